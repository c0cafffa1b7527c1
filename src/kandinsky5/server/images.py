"""POST /v1/images/generations and /v1/images/edits: a request that waits for its pictures, or watches them come.

In: checked bodies. Out: OpenAI's answers. A client that hangs up ends its request. Refuses to know: how pictures are
drawn, how files are decoded.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kandinsky5.server.answers import (
    MEDIA_TYPES,
    Encoded,
    encode_all,
    event,
    images_body,
    in_base64,
    preview_bytes,
    revised,
    sse,
    usage_of,
)
from kandinsky5.server.asking import Asking, ClientGoneError, cancel_when_gone, unless_gone
from kandinsky5.server.bodies import DrawingFields, EditBody, EditForm, GenerationBody
from kandinsky5.server.desk import Desk, desk_of
from kandinsky5.server.intake import edit_body, json_body
from kandinsky5.server.problems import CLIENT_GONE, Problem, of_any
from kandinsky5.server.translation import Delivery
from kandinsky5.server.uploads import Upload
from kandinsky5.service import Begun, Finished, Previewed, Report

BREATH: Final = 10.0
"""Seconds after which a silent stream sends a comment, so that proxies keep it open; and after which it begins."""


async def generations(request: Request) -> Response:
    """Pictures from text."""
    body = await json_body(request, GenerationBody, desk_of(request).decoding)
    return await _answer(request, body, None, "image_generation")


async def edits(request: Request) -> Response:
    """Edits of a source."""
    body, upload = await edit_body(request, EditBody, EditForm, desk_of(request).decoding)
    return await _answer(request, body, upload, "image_edit")


async def file(request: Request) -> Response:
    """A picture behind a url."""
    kept = desk_of(request).shelf.get(request.path_params["name"])
    if kept is None:
        raise Problem(404, "There is no such picture, or no longer.", code="not_found")
    return Response(kept.data, media_type=kept.media_type, headers={"x-content-type-options": "nosniff"})


async def _answer(request: Request, body: DrawingFields, upload: Upload | None, kind: str) -> Response:
    desk = desk_of(request)
    asking, delivery = desk.ask(request, body, upload)
    try:
        if delivery.stream:
            # What is refused at once is refused with a status. Who waits in line for longer is told so by a stream.
            await unless_gone(request, asking.report(within=BREATH))
            # From here on: a response that is never begun does not end its events either.
            watching = asyncio.ensure_future(cancel_when_gone(request, asking))
            return StreamingResponse(
                _events(asking, watching, delivery, upload, kind, request),
                media_type="text/event-stream",
                headers={"cache-control": "no-store", "x-accel-buffering": "no"},  # nginx keeps events back
            )
        return JSONResponse(await unless_gone(request, _collected(desk, asking, delivery, upload, request)))
    except ClientGoneError:
        asking.cancel()
        return Response(status_code=CLIENT_GONE)
    except BaseException:
        asking.cancel()
        raise


async def _collected(
    desk: Desk, asking: Asking, delivery: Delivery, upload: Upload | None, request: Request
) -> dict[str, Any]:
    finished = await asking.finished()
    encoded = await to_thread.run_sync(encode_all, finished.pictures, delivery, upload)
    assert asking.begun is not None
    data = [_shelved(desk, one, delivery, request) if delivery.as_url else in_base64(one) for one in encoded]
    return images_body(data, asking.begun, delivery, created=int(time.time()))


def _shelved(desk: Desk, encoded: Encoded, delivery: Delivery, request: Request) -> dict[str, Any]:
    name = desk.shelf.put(encoded.data, MEDIA_TYPES[delivery.output_format], request.state.key)
    return desk.link(name, encoded.seed, request)


async def _events(
    asking: Asking,
    watching: "asyncio.Future[None]",
    delivery: Delivery,
    upload: Upload | None,
    kind: str,
    request: Request,
) -> AsyncIterator[bytes]:
    """Partial pictures, then the picture, and comments between them; a failure on the way is an event too."""
    try:
        yield _comment(asking)
        async for report in _worth_telling(asking):
            begun = asking.begun
            if isinstance(report, Previewed) and begun is not None:
                data = await to_thread.run_sync(preview_bytes, report.image, begun.request, delivery, upload)
                name = f"{kind}.partial_image"
                yield event(name, data, begun, delivery, partial_image_index=report.index)
            elif isinstance(report, Finished) and begun is not None:
                (encoded,) = await to_thread.run_sync(encode_all, report.pictures, delivery, upload)
                more = {"usage": usage_of(begun), "seed": encoded.seed, **revised(begun)}
                yield event(f"{kind}.completed", encoded.data, begun, delivery, **more)
            else:
                yield _comment(asking)
    except Exception as error:
        yield sse("error", {"type": "error", **of_any(error, id=request.state.request_id).body()})
    finally:
        watching.cancel()
        asking.cancel()


async def _worth_telling(asking: Asking) -> AsyncIterator[Report | None]:
    """The reports that a client is told of, to the end; None where there was none for BREATH seconds."""
    told = time.monotonic()
    while True:
        report = await asking.report(within=told + BREATH - time.monotonic())
        if report is None or isinstance(report, Begun | Previewed | Finished):
            yield report
            told = time.monotonic()
        if isinstance(report, Finished):
            return


def _comment(asking: Asking) -> bytes:
    """Where the request is, for proxies and for people who look; clients read over it."""
    return b": waiting\n\n" if asking.begun is None else b": drawing\n\n"
