"""Weights that are not where they are computed with, and come there in turn.

A `Unit` is a module's tensors as one run of bytes; `HostBytes` and `FileBytes` are where the bytes stay; a `Conveyor`
carries them to a few slots on the device, ahead of their use, on a stream of its own. What is computed is bit for bit
what it is with all weights on the device. Nothing here knows networks, pipelines, or how much memory there is.

diffusers' group offload is not used for this: it fires on a block's own forward, which the fast path does not call,
pins each tensor in a block of its own (rounded up to a power of two), waits on the host for each copy, and keeps no
bound on what is on the device at once.
"""

from kandinsky5.streaming.conveyor import (
    Conveyor,
    in_turn,
    is_arrival,
    is_streamed,
    release,
    streamed_parameters,
)
from kandinsky5.streaming.freed import give_back
from kandinsky5.streaming.settling import look_up_on_host, settle
from kandinsky5.streaming.sources import FileBytes, HostBytes
from kandinsky5.streaming.unit import Unit

__all__ = [
    "Conveyor",
    "FileBytes",
    "HostBytes",
    "Unit",
    "give_back",
    "in_turn",
    "is_arrival",
    "is_streamed",
    "look_up_on_host",
    "release",
    "settle",
    "streamed_parameters",
]
