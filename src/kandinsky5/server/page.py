"""GET / and its files: the web page.

In: a request. Out: a part of the page, or word that the browser has it. Refuses to know: what the page does.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from kandinsky5.server.problems import Problem
from kandinsky5.webui import HEADERS, PAGE, parts

ROOM: Final = "/web/"
"""Where the page's files are."""


async def page(request: Request) -> Response:
    """The page itself."""
    return _sent(request, PAGE)


async def part(request: Request) -> Response:
    """A file of the page."""
    return _sent(request, request.path_params["name"])


def _sent(request: Request, name: str) -> Response:
    found = parts().get(name)
    if found is None:
        raise Problem(404, "There is no such file of the page.", code="not_found")
    headers = {**HEADERS, "etag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type=found.media_type, headers=headers)
