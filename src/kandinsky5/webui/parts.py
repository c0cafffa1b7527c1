"""The files of the page, and the headers they are sent with.

In: nothing. Out: bytes, media types and tags by name. Refuses to know: HTTP servers, what the page does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from types import MappingProxyType
from typing import Final

MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing from elsewhere, nothing inline, nothing framed. Pictures are blobs: they are fetched with the API key."""

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }
)
"""Of every part; a browser asks each time, and is told by the tag that it has the newest."""

PAGE: Final = "index.html"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of the page. `tag` changes with its bytes."""

    data: bytes
    media_type: str
    tag: str


@cache
def parts() -> Mapping[str, Part]:
    """Every file by its name; the page itself is `PAGE`."""
    found = {}
    for file in files("kandinsky5.webui").joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(PurePath(file.name).suffix)
        if media_type is not None:
            data = file.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[file.name] = Part(data=data, media_type=media_type, tag=tag)
    return MappingProxyType(found)
