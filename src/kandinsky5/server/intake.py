"""From an HTTP request to a checked body: JSON or a form, fields and files.

In: a request whose size is bounded by `gate`. Out: a body and, for an edit, its decoded files. Raises Problem for
everything else. Refuses to know: what is done with them.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request

from kandinsky5.request import MAX_PROMPT_CHARACTERS
from kandinsky5.server.bodies import DrawingFields, JsonSources, of_form, of_json
from kandinsky5.server.problems import Problem, plain
from kandinsky5.server.uploads import Upload, decode, of_data_url

Body = TypeVar("Body", bound=DrawingFields)
Form = TypeVar("Form", bound=DrawingFields)
Found = TypeVar("Found")

SOURCES = ("image", "image[]")
"""Names of a source in a form; the openai package writes the second where it is given a list."""

MOST_PARTS = 64
LARGEST_TEXT = 256 * 1024
"""Bytes of one text in a form; a prompt in the longest encoding takes a third of that."""

SMALL: Final = 64 * 1024
"""Bytes of a JSON body that is read between two other things; a larger one is read in a thread."""

MOST_MARKS: Final = 2 * MAX_PROMPT_CHARACTERS + 4096
"""Commas and opening brackets of a JSON body: as many as two prompts can have, and some for what is around them. Their
number bounds what the parsed body takes in memory, which may be twenty times its bytes."""


async def json_body(request: Request, kind: type[Body], limiter: CapacityLimiter) -> Body:
    """A body that must be JSON. `limiter` bounds how many large ones are read at a time."""
    _check_type(request, "application/json")
    data = await request.body()
    return await _read(lambda: of_json(kind, _parsed(data)), len(data), limiter)


async def edit_body(
    request: Request, kind: type[Body], form_kind: type[Form], limiter: CapacityLimiter
) -> tuple[Body | Form, Upload]:
    """The body of an edit in either form, and its files. `limiter` bounds how many are read or decoded at a time."""
    body: Body | Form
    if _media_type(request) == "multipart/form-data":
        body, images, mask = await _form(request, form_kind)
    else:
        _check_type(request, "application/json", "multipart/form-data")
        data = await request.body()
        body, images, mask = await _read(lambda: _json_edit(kind, data), len(data), limiter)
    return body, await to_thread.run_sync(decode, images, mask, limiter=limiter)


async def _read(work: Callable[[], Found], size: int, limiter: CapacityLimiter) -> Found:
    """What the work makes of that many bytes; other requests go on while there are many."""
    return work() if size <= SMALL else await to_thread.run_sync(work, limiter=limiter)


def _json_edit(kind: type[Body], data: bytes) -> tuple[Body, list[bytes], bytes | None]:
    body = of_json(kind, _parsed(data))
    assert isinstance(body, JsonSources)
    images = [of_data_url(part.image_url, "images") for part in body.images]
    return body, images, None if body.mask is None else of_data_url(body.mask.image_url, "mask")


async def _form(request: Request, kind: type[Form]) -> tuple[Form, list[bytes], bytes | None]:
    texts: dict[str, str] = {}
    images: list[bytes] = []
    masks: list[bytes] = []
    async with request.form(max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=LARGEST_TEXT) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in (*SOURCES, "mask"):
                    message = f"Unknown file: {name!r:.80}; the source is 'image' or 'image[]', and 'mask' its mask."
                    raise Problem(400, message, code="unknown_parameter", param=plain(name))
                (masks if name == "mask" else images).append(await value.read())
            elif name in (*SOURCES, "mask"):
                raise Problem(400, f"{name!r} must be a file, not a text.", code="invalid_image", param=name)
            elif name in texts:
                raise Problem(400, f"{name!r:.80} is there twice.", code="invalid_value", param=plain(name))
            else:
                texts[name] = value
    if len(masks) > 1:
        raise Problem(400, "'mask' is there twice.", code="invalid_value", param="mask")
    return of_form(kind, texts), images, masks[0] if masks else None


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_type(request: Request, *types: str) -> None:
    # Also what keeps pages of other origins from sending one without being asked: these types need a preflight.
    if _media_type(request) not in types:
        sent = plain(_media_type(request)) or "nothing"
        raise Problem(
            415, f"Content-Type must be {' or '.join(types)}, not {sent}.", code="unsupported_media_type"
        )


def _parsed(data: bytes) -> Any:
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise Problem(400, "The body has far more values than there are parameters.", code="invalid_json")
    try:
        return json.loads(data, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not valid JSON in UTF-8.", code="invalid_json") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are each there once. Raises Problem: of two values one would be ignored."""
    whole = dict(pairs)
    if len(whole) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise Problem(400, f"{name!r:.80} is there twice.", code="invalid_value", param=plain(name))
    return whole


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
