"""Where a group stands in a picture, as a person looking at it would say.

Comes in: centres of things. Goes out: whether a relation or a named place can be said of them. `layout` draws scenes
clear of borderline cases and asks for more; this is the reading, and asks for less. Knows nothing of shapes or colours.
"""

from kandinsky5.demo.layout import POSITIONS, Centres, mean_centre

RELATION_DISTANCE = 0.05
"""A relation holds from this distance between the groups' mean centres along its axis, of the canvas ..."""
RELATION_DOMINANCE = 0.5
"""... which must be at least this many times the distance across: within 63 degrees of the axis."""

THIRDS = (0.42, 0.58)
"""A group is left, or at the top, while its mean centre is below the first, and right, or at the bottom, above the
second: the anchors of named places are at 0.22, 0.5 and 0.78."""
MIDDLE = (0.31, 0.69)
"""It is in the middle between these."""


def stands(a: Centres, relation: str, b: Centres) -> bool:
    """Whether group a stands in this relation to group b, by their mean centres; no for a group that is not there."""
    if not a or not b:
        return False
    (ax, ay), (bx, by) = mean_centre(a), mean_centre(b)
    along, across = {
        "left of": (bx - ax, by - ay),
        "right of": (ax - bx, by - ay),
        "above": (by - ay, bx - ax),
        "below": (ay - by, bx - ax),
    }[relation]
    return along >= RELATION_DISTANCE and along >= RELATION_DOMINANCE * abs(across)


def stands_at(centres: Centres, position: str) -> bool:
    """Whether the mean centre of a group is at a named place, of nine that overlap."""
    if not centres:
        return False
    return all(
        (value < THIRDS[0], MIDDLE[0] < value < MIDDLE[1], value > THIRDS[1])[third]
        for value, third in zip(mean_centre(centres), POSITIONS[position], strict=True)
    )
