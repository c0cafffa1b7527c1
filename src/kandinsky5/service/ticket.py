"""An accepted request, how much is accepted, and what has been counted.

In: nothing. Out: records of the service's own process. The file refuses to know what becomes of a request.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from kandinsky5.request import ImageRequest
from kandinsky5.service.messages import Report

Listener = Callable[[Report], None]
"""Called with each report about one request, in order. It must be quick and raise nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the service takes on.

    waiting: requests in the line; waiting_per_key: of them, those of one key.
    source_bytes: of the source pictures of everything that waits and is drawn, decoded.
    drawing: pictures in one forward pass, and as many are handed to the worker.
    seconds: from acceptance to the last report.
    """

    waiting: int = 64
    waiting_per_key: int = 64
    source_bytes: int = 2**30
    drawing: int = 4
    seconds: float = 600.0


@dataclass(kw_only=True, eq=False)
class Ticket:
    """An accepted request. Times are of `time.monotonic`; `begun` is None while it waits."""

    id: str
    request: ImageRequest
    picture: Image.Image | None
    key: str
    priority: int
    previews: int
    expand: bool
    listener: Listener
    accepted: float
    deadline: float
    begun: float | None = None
    ended: bool = False

    @property
    def weight(self) -> int:
        """Pictures."""
        return self.request.count


@dataclass
class Counts:
    """What has happened since the start; read by metrics."""

    accepted: int = 0
    refused: int = 0
    pictures: int = 0
    group: int = 0
    memory_bytes: int = 0
    failures: dict[str, int] = field(default_factory=dict)


def bytes_of(picture: Image.Image | None) -> int:
    """What an RGB picture takes in memory."""
    return 0 if picture is None else 3 * picture.width * picture.height
