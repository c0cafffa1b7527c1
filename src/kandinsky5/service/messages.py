"""What the service and its worker process say to each other: plain records that can be pickled.

To the worker go `Begin`, `Drop`, `Ping` and `Stop`; back come `Ready`, `Pong` for each ping and, for each request,
`Begun`, then `Stepped` and `Previewed`, and one of the ends `Finished`, `Failed` and `Dropped`. The file refuses to
know who sends them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from kandinsky5.generated import GeneratedImage
from kandinsky5.prompts import Task
from kandinsky5.request import ImageRequest

FailureKind = Literal[
    "request", "checkpoint", "capacity", "numbers", "worker", "deadline", "cancelled", "closing", "internal"
]
"""Whose failure it is. request: the asker's. checkpoint: the files'. capacity: memory. numbers: NaN. worker: its
process ended. deadline: took too long. cancelled: by the asker. closing: the service is. internal: ours."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the loaded model is and does, for whoever checks requests without it. `sizes`: what it was trained on."""

    model: str
    tasks: tuple[Task, ...]
    size: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Draw this. `previews` is how many looks at the first picture are wanted on the way.

    `expand` is whether the text encoder writes the prompt out first.
    """

    id: str
    request: ImageRequest
    picture: Image.Image | None = None
    previews: int = 0
    expand: bool = False


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Stop drawing this; answered by `Dropped` unless it has ended."""

    id: str


@dataclass(frozen=True)
class Ping:
    """Say that you live; answered by `Pong` at once, also in the middle of a step."""


@dataclass(frozen=True)
class Stop:
    """End the process."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The model is loaded and has drawn once."""

    card: Card


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The request with everything filled in, before its first step; tokens are those given to the text encoder.

    `expanded` is whether its prompt was written out.
    """

    id: str
    request: ImageRequest
    text_tokens: int
    image_tokens: int
    expanded: bool = False


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Steps taken, of all of its pictures together."""

    id: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """What the first picture seems to become, one pixel for each latent position."""

    id: str
    index: int
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All pictures, in order of their seeds; `seconds` by stage ("encode", "denoise", "decode")."""

    id: str
    pictures: Sequence[GeneratedImage]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """It will not be drawn, and why, in words for the asker. An empty id: the model cannot be loaded."""

    id: str
    kind: FailureKind
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """It is no longer drawn."""

    id: str


@dataclass(frozen=True)
class Pong:
    """The process lives."""


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """How large the last forward pass was, and what the device holds."""

    pictures: int
    memory_bytes: int


Command = Begin | Drop | Ping | Stop
Report = Begun | Stepped | Previewed | Finished | Failed | Dropped
"""Of one request."""
