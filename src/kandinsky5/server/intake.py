"""From an HTTP request to a checked body: JSON or a form, fields and files.

In: a request whose size is bounded by `gate`. Out: a body and, for an edit, its decoded files. Raises Problem for
everything else. Refuses to know: what is done with them.
"""

import json
from typing import Any, NoReturn, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request

from kandinsky5.server.bodies import DrawingFields, JsonSources, of_form, of_json
from kandinsky5.server.problems import Problem, plain
from kandinsky5.server.uploads import Upload, decode, of_data_url

Body = TypeVar("Body", bound=DrawingFields)
Form = TypeVar("Form", bound=DrawingFields)

SOURCES = ("image", "image[]")
"""Names of a source in a form; the openai package writes the second where it is given a list."""

MOST_PARTS = 64
LARGEST_TEXT = 256 * 1024
"""Bytes of one text in a form; a prompt in the longest encoding takes a third of that."""


async def json_body(request: Request, kind: type[Body]) -> Body:
    """A body that must be JSON."""
    _check_type(request, "application/json")
    return of_json(kind, _parsed(await request.body()))


async def edit_body(
    request: Request, kind: type[Body], form_kind: type[Form], limiter: CapacityLimiter
) -> tuple[Body | Form, Upload]:
    """The body of an edit in either form, and its files. `limiter` bounds how many are decoded at a time."""
    if _media_type(request) == "multipart/form-data":
        body: Body | Form
        body, images, mask = await _form(request, form_kind)
    else:
        _check_type(request, "application/json", "multipart/form-data")
        body = of_json(kind, _parsed(await request.body()))
        assert isinstance(body, JsonSources)
        images = [of_data_url(part.image_url, "images") for part in body.images]
        mask = None if body.mask is None else of_data_url(body.mask.image_url, "mask")
    return body, await to_thread.run_sync(decode, images, mask, limiter=limiter)


async def _form(request: Request, kind: type[Form]) -> tuple[Form, list[bytes], bytes | None]:
    texts: dict[str, str] = {}
    images: list[bytes] = []
    masks: list[bytes] = []
    async with request.form(max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=LARGEST_TEXT) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in (*SOURCES, "mask"):
                    raise Problem(
                        400, f"Unknown file: {name!r:.80}.", code="unknown_parameter", param=plain(name)
                    )
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
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not valid JSON in UTF-8.", code="invalid_json") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
