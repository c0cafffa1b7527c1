"""How a model that does not fit is made to: what is packed, what stays on the device, what comes there in turn.

`parts` are the sizes of a model's pieces, `activations` what a request needs besides, `machine` what there is; from
these `planner` chooses a `Plan`, and `placing` carries it out. `packing` writes a packed folder.
"""

from kandinsky5.memory.machine import Machine, this_machine
from kandinsky5.memory.placing import load_planned, place, plan_for, plan_for_model
from kandinsky5.memory.plan import Plan
from kandinsky5.memory.planner import choose, plans

__all__ = [
    "Machine",
    "Plan",
    "choose",
    "load_planned",
    "place",
    "plan_for",
    "plan_for_model",
    "plans",
    "this_machine",
]
