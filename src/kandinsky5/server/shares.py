"""Who holds how much of a room that several keys share, and what goes first when it is full.

In: names of things, whose each is, how large. Out: the one to drop: the oldest of the key that holds the most, so that
who asks for much pushes out nobody else's. Refuses to know: the things.
"""

from dataclasses import dataclass, field


@dataclass
class _Share:
    """What one key holds: numbers and sizes by name, the oldest first."""

    things: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 0

    @property
    def oldest(self) -> int:
        return next(iter(self.things.values()))[0]


class Shares:
    """A room for things of `most` in all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._shares: dict[str, _Share] = {}
        self._keys: dict[str, str] = {}
        self._added = 0
        self._size = 0

    def add(self, name: str, key: str, size: int = 1) -> None:
        """Put a thing in, also where there is no room."""
        share = self._shares.setdefault(key, _Share())
        share.things[name] = self._added, size
        share.size += size
        self._keys[name] = key
        self._added += 1
        self._size += size

    def remove(self, name: str) -> None:
        """Take a thing out; nothing happens where it is not in."""
        key = self._keys.pop(name, None)
        if key is None:
            return
        share = self._shares[key]
        _, size = share.things.pop(name)
        share.size -= size
        self._size -= size
        if not share.things:
            del self._shares[key]

    def first_to_go(self) -> str | None:
        """What must be dropped for there to be room, None while there is; of keys that hold as much, the older."""
        if self._size <= self.most:
            return None
        largest = max(self._shares.values(), key=lambda share: (share.size, -share.oldest))
        return next(iter(largest.things))
