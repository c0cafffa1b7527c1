"""What a setting may be: one of several, within bounds, above nothing.

In: a setting's name and value. Out: nothing, or a RequestError that names both and what would be one. It refuses to
know which settings there are. No number is infinite: a checkpoint could not say so.
"""

import math
from collections.abc import Collection

from kandinsky5.errors import RequestError


def one_of(name: str, value: object, choices: Collection[object]) -> None:
    """Raise RequestError for a value that is none of the choices."""
    if value not in choices:
        raise RequestError(f"{name} = {value!r} is not one of {', '.join(map(str, choices))}.")


def within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise RequestError for a value outside [low, high]."""
    if not low <= value <= high or math.isinf(value):
        raise RequestError(f"{name} = {value} must be from {low} to {high}.".replace(" to inf", " up"))


def positive(name: str, value: float) -> None:
    """Raise RequestError for a value that is not above 0."""
    if not 0 < value < math.inf:
        raise RequestError(f"{name} = {value:g} must be above 0, and finite.")
