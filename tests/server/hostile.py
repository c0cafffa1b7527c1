"""Requests that no honest client sends: damaged pictures, bombs, broken forms, JSON of the wrong shape, odd headers;
from a seed.

In: a seed. Out: requests as bytes with their content type and headers. A damaged picture may still be one, so the
fields beside it ask for little.
"""

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from PIL import Image

FEW = {"prompt": "make it blue", "steps": "1", "size": "64x64"}
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
MODES = ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16")
NAMES = (
    "image",
    "image[]",
    "mask",
    "images",
    "IMAGE",
    "image\x00",
    "../../etc/passwd",
    "é",
    "",
    '"',
    "a" * 5000,
)
TEXTS = (
    "",
    " ",
    "\x00",
    "1" * 400,
    "-1",
    "1e999",
    "NaN",
    "true",
    "null",
    "[]",
    "64x",
    "0x0",
    "9999x9999",
    "\ud83d",
    "𝕏" * 999,
)
NO_PICTURES = (
    b"", b"\x00", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"BM",
    b"II*\x00",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n", b"%PDF-1.7\n", b"8BPS\x00\x01",
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    b"\x1f\x8b\x08\x00" + b"\x00" * 20,
    b"PK\x03\x04", b"\x00\x00\x01\x00\x01\x00", b"#!/bin/sh\n", b"/etc/passwd", b"https://example.com/a.png",
)  # fmt: skip
HEADERS = ("origin", "host", "authorization", "x-request-id", "content-type", "cookie")
VALUES = (
    b"", b"http://[", b"http://]", b"http://[::1", b"http://[v1.]", b"//", b"://", b"null", b"[", b"]:1", b"[::1]",
    b"127.0.0.1:99999999999", b"localhost:x", b"http://\xff", b"http://user:pass@127.0.0.1", b"http://\xe2\x84\x80.example",
    b"Bearer", b"Bearer \xff\xfe", b"bearer  \xed\xa0\x80", b"Basic Og==", b"Bearer " + b"k" * 8000, b"%00", b"\xa0",
    b"application/json; charset=utf-16", b"application/json;;;=", b"/", b"multipart/form-data; boundary=\xff",
    b"1" * 400, b"a\tb", b"100-continue", b"x" * 64, b"x" * 65,
)  # fmt: skip
WIDTHS = (100, 2_000, 20_000, 120_000)
"""Entries; the largest body of them comes near to what the server reads."""


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One request. `what` says how it was made; `headers` go beside the content type, or instead of it."""

    path: str
    content_type: str
    body: bytes
    what: str
    headers: tuple[tuple[str, bytes], ...] = ()


def hostile(seed: int) -> Iterator[Hostile]:
    """Endless; the same for the same seed."""
    chance = random.Random(seed)
    makers = (
        _damaged_source,
        _damaged_mask,
        _false_picture,
        _broken_form,
        _odd_form,
        _odd_json,
        _odd_data_url,
        _odd_headers,
    )
    while True:
        yield _wide_json(chance) if chance.random() < 0.05 else chance.choice(makers)(chance)


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels, one bit each, all black: a few kilobytes."""
    row = b"\x00" + b"\x00" * ((side + 7) // 8)
    return _png(side, side, zlib.compress(row * side, 9), depth=1, colour=0)


def _png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _picture(chance: random.Random, *, alpha: bool = False) -> bytes:
    kind = "PNG" if alpha else chance.choice(KINDS)
    mode = "RGBA" if alpha else chance.choice(MODES)
    size = (128, 128) if chance.random() < 0.5 else (chance.randint(1, 300), chance.randint(1, 300))
    noise = Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1]))
    image = noise.convert("I").convert("I;16") if mode == "I;16" else noise.convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, ValueError, KeyError):  # a kind that cannot hold the mode
        noise.save(buffer, "PNG")
    return buffer.getvalue()


def _damage(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut off, repeated or overwritten, more often at the front, where headers are."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        at = chance.randrange(min(len(found), chance.choice((32, 256, 10**9)))) if found else 0
        match chance.randrange(6):
            case 0:
                del found[at:]
            case 1:
                found[at : at + 4] = chance.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff"))
            case 2:
                found[at:at] = found[at : at + chance.randrange(200)]
            case 3:
                found[at : at + chance.randrange(64)] = chance.randbytes(chance.randrange(64))
            case _:
                found[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(found)


def _form(parts: list[tuple[str, bytes | str]], chance: random.Random) -> Hostile:
    boundary = f"x{chance.getrandbits(64):x}"
    body = b""
    for name, value in parts:
        file = (
            f'; filename="{chance.choice(("a.png", "../../etc/passwd", "é.png", ""))}"'
            if isinstance(value, bytes)
            else ""
        )
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode("utf-8", "replace")
        body += (value if isinstance(value, bytes) else value.encode("utf-8", "replace")) + b"\r\n"
    content_type = f"multipart/form-data; boundary={boundary}"
    return Hostile(
        path="/v1/images/edits",
        content_type=content_type,
        body=body + f"--{boundary}--\r\n".encode(),
        what="form",
    )


def _damaged_source(chance: random.Random) -> Hostile:
    return _form([*FEW.items(), ("image", _damage(_picture(chance), chance))], chance)


def _damaged_mask(chance: random.Random) -> Hostile:
    mask = _picture(chance, alpha=True)
    mask = _damage(mask, chance) if chance.random() < 0.7 else mask
    return _form([*FEW.items(), ("image", _picture(chance)), ("mask", mask)], chance)


def _false_picture(chance: random.Random) -> Hostile:
    width, height = chance.choice(((2**31 - 1, 1), (65535, 65535), (0, 0), (16, 10**6), (50_000, 50_000)))
    claims = _png(width, height, zlib.compress(b"\x00" * 1000))
    data = chance.choice((*NO_PICTURES, claims, chance.randbytes(chance.randrange(2000))))
    return _form(
        [*FEW.items(), (chance.choice(("image", "mask")), data), ("image", _picture(chance))][
            : chance.choice((4, 5))
        ],
        chance,
    )


def _broken_form(chance: random.Random) -> Hostile:
    whole = _form([*FEW.items(), ("image", _picture(chance))], chance)
    kind = whole.content_type
    match chance.randrange(5):
        case 0:
            kind = chance.choice(
                (
                    "multipart/form-data",
                    "multipart/form-data; boundary=",
                    f"{kind}; boundary=y",
                    kind + "é" * 9,
                )
            )
        case 1:
            kind = f"multipart/form-data; boundary={'b' * chance.choice((1, 70, 71, 5000))}"
        case 2:
            return Hostile(
                path=whole.path, content_type=kind, body=_damage(whole.body, chance), what="damaged form"
            )
        case 3:
            return Hostile(
                path=whole.path, content_type=kind, body=whole.body[: chance.randrange(400)], what="cut form"
            )
        case _:
            body = whole.body.replace(
                b"form-data", chance.choice((b"attachment", b"", b"form-data; name=a; name=b", b"\xff"))
            )
            return Hostile(path=whole.path, content_type=kind, body=body, what="form of odd heads")
    return Hostile(
        path=whole.path,
        content_type=kind.encode("latin-1", "replace").decode("latin-1"),
        body=whole.body,
        what="form of an odd type",
    )


def _odd_form(chance: random.Random) -> Hostile:
    values = (*TEXTS, _picture(chance))
    parts = [
        (chance.choice((*NAMES, *FEW, "seed", "n", "fit", "stream")), chance.choice(values))
        for _ in range(chance.randrange(1, 90))
    ]
    return _form(parts, chance)


def _odd_json(chance: random.Random) -> Hostile:
    def value(depth: int = 0) -> object:
        simple = (None, True, 0, -1, 2**70, 1e308, "", "a", "64x64", chance.choice(TEXTS))
        if depth > 4 or chance.random() < 0.6:
            return chance.choice(simple)
        if chance.random() < 0.5:
            return [value(depth + 1) for _ in range(chance.randrange(5))]
        return {chance.choice((*NAMES, *FEW)): value(depth + 1) for _ in range(chance.randrange(5))}

    fields = {
        name: value()
        for name in chance.sample(
            ("prompt", "n", "size", "seed", "steps", "images", "mask", "stream", "fit", "x"), 5
        )
    }
    if isinstance(fields.get("steps", 1), int):
        fields["steps"] = 1
    body = json.dumps(fields).encode()
    body = _damage(body, chance) if chance.random() < 0.4 else body
    path = chance.choice(("/v1/images/generations", "/v1/images/edits", "/v1/jobs/edits"))
    return Hostile(path=path, content_type="application/json", body=body, what="JSON")


def _odd_data_url(chance: random.Random) -> Hostile:
    data = base64.b64encode(_damage(_picture(chance), chance)).decode()
    heads = (
        "data:image/png;base64,",
        "data:;base64,",
        "data:image/png,",
        "data:",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "DATA:x;base64,",
    )
    url = chance.choice(heads) + (data if chance.random() < 0.7 else data[: chance.randrange(50)] + "=é")
    body = {
        "prompt": "a",
        "steps": 1,
        "size": "64x64",
        "images": [{"image_url": url}] * chance.choice((1, 1, 1, 2, 17)),
    }
    return Hostile(
        path="/v1/images/edits",
        content_type="application/json",
        body=json.dumps(body).encode(),
        what="data url",
    )


def _wide_json(chance: random.Random) -> Hostile:
    """A body of as many entries as fit, at one of the places where there may be some."""
    names, empty = _entries(chance.choice(WIDTHS))
    fields = chance.choice(
        (names, b'"images":[%b]' % empty, b'"lora":{%b}' % names, b'"images":[{%b}]' % names)
    )
    path = chance.choice(("/v1/images/generations", "/v1/images/edits", "/v1/jobs/edits"))
    body = b'{"prompt":"a","steps":1,%b}' % fields
    return Hostile(path=path, content_type="application/json", body=body, what="wide JSON")


@cache
def _entries(count: int) -> tuple[bytes, bytes]:
    """The inside of an object, and of a list of empty objects."""
    return b",".join(b'"%07d":1' % number for number in range(count)), b",".join([b"{}"] * count)


def _odd_headers(chance: random.Random) -> Hostile:
    names = chance.sample(HEADERS, chance.randrange(1, 4))
    headers = tuple((name, chance.choice(VALUES)) for name in names)
    return Hostile(
        path=chance.choice(("/v1/images/generations", "/v1/jobs/edits", "/v1/jobs/none/cancel")),
        content_type="application/json",
        body=b'{"prompt": ""}',
        what=f"headers {headers}",
        headers=headers,
    )
