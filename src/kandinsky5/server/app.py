"""What is where: the paths of the server, over one service.

In: a service and settings. Out: an ASGI app. It neither starts nor stops the service. Refuses to know: ports, signals.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.server import images, jobs, page
from kandinsky5.server.desk import Desk, desk_of
from kandinsky5.server.document import document
from kandinsky5.server.gate import Gate
from kandinsky5.server.problems import Problem, of_error
from kandinsky5.server.settings import Settings
from kandinsky5.server.translation import check_model, limits_of
from kandinsky5.service import Service


def build_app(service: Service, settings: Settings) -> Starlette:
    """The app."""
    desk = Desk(service, settings)
    app = Starlette(
        routes=[
            Route("/", page.page, methods=["GET"]),
            Route(page.ROOM + "{name}", page.part, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", model, methods=["GET"]),
            Route("/v1/images/generations", images.generations, methods=["POST"]),
            Route("/v1/images/edits", images.edits, methods=["POST"]),
            Route("/v1/images/files/{name}", images.file, methods=["GET"]),
            Route("/v1/jobs/generations", jobs.submit_generation, methods=["POST"]),
            Route("/v1/jobs/edits", jobs.submit_edit, methods=["POST"]),
            Route("/v1/jobs", jobs.listed, methods=["GET"]),
            Route("/v1/jobs/{id}", jobs.polled, methods=["GET"]),
            Route("/v1/jobs/{id}/cancel", jobs.cancelled, methods=["POST"]),
            Route("/v1/jobs/{id}/preview", jobs.preview, methods=["GET"]),
            Route("/v1/jobs/{id}/result", jobs.result, methods=["GET"]),
        ],
        middleware=[Middleware(Gate, settings=settings, metrics=desk.metrics)],
        exception_handlers=dict.fromkeys(
            (Problem, RequestError, CapacityError, HTTPException), _answer_error
        ),
    )
    app.state.desk = desk
    app.state.jobs = jobs.Jobs(desk)
    app.state.document = document(settings)
    return app


async def health(request: Request) -> Response:
    """Whether the server answers at all."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether a request would be drawn now: not while the model is loaded, and why it is, or at shutdown."""
    service = desk_of(request).service
    if service.ready:
        return JSONResponse({"status": "ready"})
    if service.closing:
        return JSONResponse({"status": "closing"}, 503)
    return JSONResponse({"status": "loading", "reason": service.loading}, 503)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(desk_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.state.document)


async def models(request: Request) -> Response:
    """OpenAI's list of models, with the one served here."""
    return JSONResponse({"object": "list", "data": [_model(desk_of(request))]})


async def model(request: Request) -> Response:
    """That one by its name, which may hold a slash."""
    desk = desk_of(request)
    check_model(request.path_params["name"], desk.settings)
    return JSONResponse(_model(desk))


def _model(desk: Desk) -> dict[str, object]:
    card = desk.service.card
    told: dict[str, object] = {
        "id": desk.settings.model,
        "object": "model",
        "created": 0,
        "owned_by": "kandinsky5",
        "limits": limits_of(desk.settings),
        "expands_prompts": desk.settings.expands,
        "loras": list(desk.settings.loras),
    }
    if card is None:
        return told
    ours = {
        "size": _named(card.size),
        "sizes": [_named(size) for size in card.sizes],
        "steps": card.steps,
        "guidance": card.guidance,
        "tasks": list(card.tasks),
    }
    return told | {"defaults": ours}


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


async def _answer_error(request: Request, error: Exception) -> Response:
    return of_error(error, retry_after=desk_of(request).service.seconds_until_room()).response()
