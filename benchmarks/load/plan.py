"""What clients ask for: a mixture of sizes, steps, prompts and seeds, some of it given up; the same for the same seed.

In: numbers, and whether the model edits. Out: `Ask`s. Refuses to know: how they are sent.
"""

import base64
import io
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

Kind = Literal["draw", "edit", "cancel", "leave"]
"""cancel: a job that is given up by its path. leave: a client that hangs up."""

THINGS = ("circle", "square", "triangle", "star", "cross", "ring", "line")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange")
SIZES = ("64x64", "128x128", "128x64", "192x128", "256x256")
GIVEN_UP_STEPS = 60
GUIDANCE = 3.5
"""Of requests whose times are compared: each step of each is two rows."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `seconds` is when it is given up, if it is."""

    number: int
    kind: Kind
    body: dict[str, Any] = field(repr=False)
    seconds: float = 0.0


def mixed(count: int, *, edits: bool, seed: int = 0) -> list[Ask]:
    """A tenth is cancelled, a tenth hangs up, and where the model edits a fifth are edits."""
    chance = random.Random(seed)
    kinds: tuple[Kind, ...] = (
        ("draw",) * 6 + (("edit",) * 2 if edits else ("draw",) * 2) + ("cancel", "leave")
    )
    asks = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        body = drawing(chance, number, chance.choice(SIZES), chance.randint(2, 4))
        if kind == "edit":
            body["images"] = [{"image_url": source(chance)}]
        if kind in ("cancel", "leave"):
            body["steps"] = GIVEN_UP_STEPS
        asks.append(Ask(number=number, kind=kind, body=body, seconds=chance.uniform(0.05, 1.5)))
    chance.shuffle(asks)
    return asks


def alike(count: int, size: str, steps: int) -> list[Ask]:
    """Requests of one size, number of steps and guidance, each with its own prompt and seed."""
    chance = random.Random(size)
    bodies = [{**drawing(chance, number, size, steps), "guidance": GUIDANCE} for number in range(count)]
    return [Ask(number=number, kind="draw", body=body) for number, body in enumerate(bodies)]


def drawing(chance: random.Random, number: int, size: str, steps: int) -> dict[str, Any]:
    """The body of a picture from text; `number` is its seed."""
    things = [f"a {chance.choice(COLOURS)} {chance.choice(THINGS)}" for _ in range(chance.randint(1, 4))]
    return {
        "prompt": " and ".join(things),
        "size": size,
        "steps": steps,
        "seed": number,
        "guidance": chance.choice((1.0, 2.0, 3.5)),
    }


def source(chance: random.Random) -> str:
    """A picture of few colours, as a data url."""
    small = Image.frombytes("RGB", (4, 4), chance.randbytes(48))
    buffer = io.BytesIO()
    small.resize((128, 128), Image.Resampling.NEAREST).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
