"""API keys: where they come from, and whose a request is.

In: a file or an environment variable, and the key a client sent. Out: the key's name. Keys are compared by their
hashes, all of them each time, in constant time; they are never logged. Refuses to know: HTTP.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kandinsky5.errors import RequestError

KEYS_VARIABLE: Final = "KANDINSKY5_API_KEYS"
SHORTEST_KEY: Final = 16
"""Characters; about what a random key needs."""


def read_keys(file: Path | None, variable: str | None) -> dict[str, str]:
    """Name -> key, from the lines of a file and the comma-separated parts of a variable.

    A line or part is a key, or a name and a key with a space between; # starts a comment line. Raises RequestError for
    a file that cannot be read, a key that is short or that no header carries as it is, a name or key that is there
    twice, and a file or variable that is there and holds none: it would let everyone in.
    """
    entries = (variable or "").split(",")
    if file is not None:
        try:
            entries += file.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors begin with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"The file of API keys {file} cannot be read: {error}.") from None
    found: dict[str, str] = {}
    for words in (entry.split() for entry in entries):
        if not words or words[0].startswith("#"):
            continue
        name, key = words if len(words) == 2 else (f"key{len(found) + 1}", words[0])
        if len(words) > 2 or len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()):
            raise RequestError(
                f"API key {len(found) + 1} must be a key of at least {SHORTEST_KEY} characters, all of them ASCII, or "
                "a name and a key."
            )
        if name in found or key in found.values():
            raise RequestError(f"API key {len(found) + 1} ({name}) is there twice.")
        found[name] = key
    if not found and (file is not None or variable):
        where = f"The file of API keys {file}" if file is not None else f"${KEYS_VARIABLE}"
        raise RequestError(f"{where} holds none; without it everyone may draw.")
    return found


class Keyring:
    """Who may come in. Without keys everyone may, under the name ""."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._hashes = {name: _hash(key) for name, key in keys.items()}

    def name_of(self, authorization: str | None) -> str | None:
        """The name of the key in an Authorization header, None if it is not one of ours."""
        if not self._hashes:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        sent, found = _hash(key.strip()), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, sent):
                found = name
        return found if scheme.lower() == "bearer" else None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
