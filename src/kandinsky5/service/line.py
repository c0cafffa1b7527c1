"""Who is next: a bounded line of waiting entries, fair between the keys that put them there.

In: entries with a key, a priority and a weight (pictures). Out: the next entry. The key that was served least goes
first, counted in pictures since the line was last empty; priority orders a key's own entries and nobody else's. The
file refuses to know what entries are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from kandinsky5.errors import CapacityError


class Waiting(Protocol):
    """What stands in the line."""

    @property
    def key(self) -> str:
        """Who put it there."""
        ...

    @property
    def priority(self) -> int:
        """Higher goes first among the entries of its key."""
        ...

    @property
    def weight(self) -> int:
        """What serving it costs."""
        ...


Entry = TypeVar("Entry", bound=Waiting)


class FullLineError(CapacityError):
    """No place in the line. `own` is true when it is the key's own share that is full."""

    def __init__(self, message: str, *, own: bool) -> None:
        super().__init__(message)
        self.own = own


@dataclass
class Line(Generic[Entry]):
    """The line. `places`: entries in all; `places_per_key`: of them, what one key may take."""

    places: int
    places_per_key: int
    _waiting: dict[str, list[Entry]] = field(default_factory=dict)
    _served: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._waiting.values())

    def __iter__(self) -> Iterator[Entry]:
        return iter([entry for entries in self._waiting.values() for entry in entries])

    def add(self, entry: Entry) -> None:
        """Put an entry at the end of its key's part. Raises FullLineError."""
        if len(self) >= self.places:
            raise FullLineError(
                f"All {self.places} places in the line are taken; try again later.", own=False
            )
        own = self._waiting.get(entry.key, [])
        if len(own) >= self.places_per_key:
            raise FullLineError(
                f"{len(own)} requests of this key are waiting, as many as one key may have; try again later.",
                own=True,
            )
        if not own:
            # A key that comes back gets no credit for the time it did not ask.
            least = min((self._served[key] for key in self._waiting), default=0.0)
            self._served[entry.key] = max(self._served.get(entry.key, 0.0), least)
            self._waiting[entry.key] = own
        place = next((i for i, other in enumerate(own) if other.priority < entry.priority), len(own))
        own.insert(place, entry)

    def next(self) -> Entry | None:
        """Take out the entry whose turn it is; None from an empty line."""
        if not self._waiting:
            return None
        key = min(self._waiting, key=lambda name: self._served[name])
        entry = self._waiting[key][0]
        self._served[key] += entry.weight
        self.remove(entry)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Take an entry out, wherever it stands; False if it is not here."""
        own = self._waiting.get(entry.key, [])
        if not any(other is entry for other in own):
            return False
        self._waiting[entry.key] = [other for other in own if other is not entry]
        if not self._waiting[entry.key]:
            del self._waiting[entry.key]
        if not self._waiting:
            self._served.clear()  # nobody waits: what was drawn until now was taken from nobody
        return True
