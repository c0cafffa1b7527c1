"""What packing does: to text states, to the velocity, and to the score table.

Comes in: a model's name and a number of questions. Goes out: distances and scores by format. Refuses to know: memory.
"""
from typing import Any
def measure(model: str, count: int) -> dict[str, Any]:
    """Everything."""
    return {}
