"""What goes wrong, in OpenAI's error body: a status, a type, a code, the parameter, and words that help.

In: our errors, a failed request, a body that does not validate. Out: a `Problem`, and the response that tells it; what
is a failure of ours is logged on the way. The one table of codes is here. Refuses to know: endpoints.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.server.logs import log
from kandinsky5.service import Failed
from kandinsky5.service.line import FullLineError

TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
"""OpenAI's types; every other status is an "invalid_request_error"."""

FAILURES: Final[Mapping[str, tuple[int, str, bool]]] = {
    "request": (400, "invalid_value", False),
    "capacity": (503, "out_of_memory", False),
    "numbers": (500, "not_a_number", False),
    "worker": (503, "worker_lost", True),
    "deadline": (504, "deadline_exceeded", False),
    "cancelled": (409, "cancelled", False),
    "closing": (503, "shutting_down", True),
    "checkpoint": (500, "checkpoint", False),
    "internal": (500, "internal_error", False),
}
"""Kind of a failed request -> status, code, and whether the same request may do better at once."""

EXPECTED: Final = (RequestError, CapacityError, HTTPException)
"""Beside `Problem`: what says itself what is wrong. Anything else is a failure of ours."""

STARLETTES: Final[Mapping[int, tuple[str, str]]] = {
    400: ("invalid_form", "{}"),
    404: (
        "not_found",
        "There is nothing here; /openapi.json lists what there is, and OpenAI's paths begin with /v1/.",
    ),
    405: ("method_not_allowed", "This path takes {}."),
}
"""Status of what Starlette refuses (forms, paths, methods) -> code, and words around what it says."""

CLIENT_GONE: Final = 499
"""Nobody reads it; it is for the log and the metrics (nginx's number for a client that hung up)."""


class Problem(Exception):  # noqa: N818 - the body's word; not every one is an error of ours
    """A refusal or failure on its way to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The body with its status and headers."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def of_failure(failed: Failed) -> Problem:
    """A request that was accepted and will not be drawn."""
    status, code, again = FAILURES[failed.kind]
    # The openai package asks again by itself after any 5xx; it obeys this header.
    return Problem(status, failed.reason, code=code, headers={} if again else {"x-should-retry": "false"})


def of_error(error: Exception, *, retry_after: int = 1) -> Problem:
    """An error raised while a request was checked or accepted."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestError):
        return Problem(400, str(error), code="invalid_value")
    if isinstance(error, FullLineError):
        code = "rate_limit_exceeded" if error.own else "queue_full"
        return Problem(429, str(error), code=code, headers={"retry-after": str(retry_after)})
    if isinstance(error, CapacityError):
        return Problem(503, str(error), code="shutting_down", headers={"retry-after": str(retry_after)})
    if isinstance(error, CheckpointError):
        return Problem(500, str(error), code="checkpoint")
    if isinstance(error, HTTPException):
        code, words = STARLETTES.get(error.status_code, STARLETTES[400])
        told = (error.headers or {}).get("Allow", error.detail)
        return Problem(error.status_code, words.format(told), code=code, headers=error.headers)
    return Problem(
        500,
        "The server failed at this request; its log says where, under the id in x-request-id.",
        code="internal_error",
        headers={"x-should-retry": "false"},
    )


def of_any(error: Exception, **facts: Any) -> Problem:
    """As `of_error`, for whoever cannot know what was raised: a failure of ours goes into the log, with these facts."""
    if not isinstance(error, (Problem, *EXPECTED)):
        log.error("unexpected", exc_info=error, extra={"facts": facts})
    return of_error(error)


def of_validation(error: ValidationError) -> Problem:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False)[0]
    param = plain(".".join(str(part) for part in first["loc"])) or None
    if first["type"] == "extra_forbidden":
        return unknown_parameter(".".join(str(part) for part in first["loc"]))
    if first["type"] == "missing":
        return Problem(
            400, f"Missing required parameter: {param!r}.", code="missing_required_parameter", param=param
        )
    words = first["msg"].removeprefix("Value error, ")
    message = f"Invalid value for {param!r}: {words}, not {_shown(first['input'])}."
    return Problem(400, message, code="invalid_value", param=param)


def unknown_parameter(name: str) -> Problem:
    """A field that there is not."""
    param = plain(name) or None
    return Problem(400, f"Unknown parameter: {param!r:.80}.", code="unknown_parameter", param=param)


def _shown(value: Any) -> str:
    """The beginning of a value that a client sent, however long or deep it is."""
    if isinstance(value, dict | list):
        return reprlib.repr(value)[:80]
    return repr(value[:80] if isinstance(value, str) else value)[:80]


def plain(name: str) -> str:
    """A name that a client made up, fit to be sent back."""
    return name[:80].encode("unicode_escape").decode("ascii")
