"""What every endpoint shares: the service, the bounds, the shelf, and the way a body becomes a request in the line.

In: checked bodies. Out: an `Asking`. Refuses to know: formats of bodies and answers.
"""

from typing import Any, Final

from anyio import CapacityLimiter
from starlette.requests import Request

from kandinsky5.server.asking import Asking
from kandinsky5.server.bodies import DrawingFields
from kandinsky5.server.logs import tell
from kandinsky5.server.metrics import Metrics
from kandinsky5.server.problems import Problem
from kandinsky5.server.settings import Settings
from kandinsky5.server.shelf import Shelf
from kandinsky5.server.translation import Delivery, check_model, delivery_of, request_of
from kandinsky5.server.uploads import Upload
from kandinsky5.service import Card, Service

DECODED_AT_ONCE: Final = 2
"""Uploads, each of which may take a quarter of a gigabyte while it is decoded; large bodies; and previews, as often as
they are asked for."""


class Desk:
    """One for an app."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.metrics = Metrics(service)
        self.shelf = Shelf(seconds=settings.keep, most_bytes=settings.keep_bytes)
        self.decoding = CapacityLimiter(DECODED_AT_ONCE)

    @property
    def card(self) -> Card:
        """What the loaded model is. Raises Problem while it is being loaded for the first time."""
        if self.service.card is None:
            raise Problem(503, self.service.loading, code="not_ready", headers={"retry-after": "5"})
        return self.service.card

    def ask(
        self, request: Request, body: DrawingFields, upload: Upload | None, *, previews: int | None = None
    ) -> tuple[Asking, Delivery]:
        """Put what a body asks for into the line. Raises Problem, or what the service raises.

        `previews` are looks at the first picture on its way; None for as many as the body says.
        """
        if body.model is not None:
            check_model(body.model, self.settings)
        if upload is not None and "editing" not in self.card.tasks:
            message = "The model served here makes pictures from text only; edits need an editing model."
            raise Problem(400, message, code="unsupported", param="model")
        if body.expand_prompt and not self.settings.expands:
            message = "The text encoder of the model served here only reads; leave expand_prompt out."
            raise Problem(400, message, code="unsupported", param="expand_prompt")
        delivery = delivery_of(body)
        wanted = request_of(body, self.settings, self.card, upload)
        asking = Asking(
            self.service,
            self.metrics,
            wanted,
            None if upload is None else upload.picture,
            key=request.state.key,
            priority=body.priority or 0,
            previews=delivery.partial_images if previews is None else previews,
            expand=bool(body.expand_prompt),
        )
        tell(
            "accepted",
            id=request.state.request_id,
            ticket=asking.ticket.id,
            key=request.state.key,
            user=delivery.user,
            n=wanted.count,
            edit=upload is not None,
        )
        return asking, delivery

    def link(self, name: str, seed: int | None, request: Request) -> dict[str, Any]:
        """What stands for a picture on the shelf in a body: a url on this server, as the client reached it."""
        return {"url": f"{str(request.base_url).rstrip('/')}/v1/images/files/{name}", "seed": seed}


def desk_of(request: Request) -> Desk:
    """The desk of the app that handles a request."""
    return request.app.state.desk
