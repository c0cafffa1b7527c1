"""OpenAI's words into ours: the one place where the two vocabularies meet.

In: a checked body, the server's bounds, the model's card, the source of an edit. Out: an `ImageRequest` or
`EditRequest`, and how its pictures are wanted. Refuses to know: HTTP, how a request is carried out.
"""

from dataclasses import dataclass
from typing import Any, Final

from kandinsky5.errors import RequestError
from kandinsky5.geometry import LARGEST_SIDE, SIZE_MULTIPLE, nearest_native, parse_size
from kandinsky5.provenance import PictureFormat, check_request_fits
from kandinsky5.request import (
    MAX_GUIDANCE,
    MAX_LORA_WEIGHT,
    MAX_PROMPT_CHARACTERS,
    MAX_STEPS,
    EditRequest,
    ImageRequest,
)
from kandinsky5.server.bodies import LARGEST_COUNT, DrawingFields, EditFields
from kandinsky5.server.problems import Problem
from kandinsky5.server.settings import Settings
from kandinsky5.server.uploads import Upload
from kandinsky5.service import Card

QUALITY_STEPS: Final = {"low": 0.5, "high": 1.5, "hd": 1.5}
"""Steps by quality, as a part of the model's own number; every other quality is that number."""

FORMATS: Final = {"png": PictureFormat.png, "jpeg": PictureFormat.jpg, "webp": PictureFormat.webp}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How pictures are wanted, in OpenAI's words. `compression` is the quality of JPEG and WebP."""

    output_format: str
    compression: int | None
    quality: str
    user: str | None
    as_url: bool = False
    stream: bool = False
    partial_images: int = 0

    @property
    def format(self) -> PictureFormat:
        """The same in ours."""
        return FORMATS[self.output_format]


def limits_of(settings: Settings) -> dict[str, int | float]:
    """What one request may ask for here, by the words of `/v1/models`: pixels, steps, pictures, bytes, characters."""
    return {
        "max_pixels": settings.max_pixels,
        "max_side": LARGEST_SIDE,
        "size_multiple": SIZE_MULTIPLE,
        "max_steps": min(settings.max_steps, MAX_STEPS),
        "max_n": min(settings.max_count, LARGEST_COUNT),
        "max_guidance": MAX_GUIDANCE,
        "max_lora_weight": MAX_LORA_WEIGHT,
        "max_prompt_characters": MAX_PROMPT_CHARACTERS,
        "max_body_bytes": settings.max_body_bytes,
    }


def check_model(name: str, settings: Settings) -> None:
    """Refuse a model that is not the one served. Raises Problem."""
    if name not in (settings.model, *settings.aliases):
        raise Problem(
            404,
            f"The model {name!r:.80} does not exist here; this server has {settings.model!r}.",
            code="model_not_found",
            param="model",
        )


def delivery_of(body: DrawingFields) -> Delivery:
    """How the body wants its pictures. Raises Problem for wishes that contradict each other."""
    wishes = body.model_dump()
    output_format = body.output_format or "png"
    if output_format == "png" and body.output_compression not in (None, 100):
        raise _refused("output_compression", "a png is always exact; ask for jpeg or webp")
    stream, as_url = bool(wishes.get("stream")), wishes.get("response_format") == "url"
    if stream and as_url:
        raise _refused("response_format", "a stream carries its pictures; leave it out or ask for b64_json")
    if stream and (body.n or 1) > 1:
        raise _refused("n", "a stream is for one picture")
    if wishes.get("partial_images") and not stream:
        raise _refused("partial_images", "partial images come with stream=true only")
    if body.steps is not None and body.quality not in (None, "auto"):
        raise _refused("quality", "it stands for a number of steps; give one of the two")
    return Delivery(
        output_format=output_format,
        compression=None if output_format == "png" else body.output_compression,
        quality="auto" if body.steps is not None else _quality_told(body.quality),
        user=body.safety_identifier or body.user,
        as_url=as_url,
        stream=stream,
        partial_images=wishes.get("partial_images") or 0,
    )


def request_of(
    body: DrawingFields, settings: Settings, card: Card, upload: Upload | None = None
) -> ImageRequest:
    """The request of a body; `upload` is the source of an edit. Raises Problem for what passes a bound."""
    fields: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or "",
        "count": body.n or 1,
        "steps": body.steps if body.steps is not None else _steps(body.quality, card),
        "guidance": body.guidance,
        "seed": body.seed,
        "lora": list((body.lora or {}).items()) or None,
    }
    if body.size not in (None, "auto"):
        fields["width"], fields["height"] = parse_size(str(body.size))
    try:
        if upload is not None:
            fields |= {"source": upload.source, **_fit(body)}
        request = ImageRequest(**fields) if upload is None else EditRequest(**fields)
        check_request_fits(request, FORMATS[body.output_format or "png"])
    except RequestError as error:
        raise Problem(400, str(error), code="invalid_value", param=_named_in(str(error))) from None
    own = card.size if upload is None else nearest_native(*upload.picture.size, card.sizes)
    _check_bounds(request, settings, card, own)
    return request


def _check_bounds(request: ImageRequest, settings: Settings, card: Card, own: tuple[int, int]) -> None:
    """`own` is the size that the model will choose where the request names none."""
    width, height = request.width or own[0], request.height or own[1]
    if width * height > settings.max_pixels:
        raise _refused("size", f"{width}x{height} is more than the {settings.max_pixels} pixels drawn here")
    if (request.steps or card.steps) > settings.max_steps:
        raise _refused(
            "steps", f"{request.steps or card.steps} is more than the {settings.max_steps} taken here"
        )
    if request.count > settings.max_count:
        raise _refused(
            "n", f"{request.count} is more than the {settings.max_count} pictures drawn at once here"
        )
    for name, _ in request.lora or ():
        if name not in settings.loras:
            there = ", ".join(settings.loras) or "none"
            raise _refused("lora", f"there is no adapter {name!r:.80} here; loaded are {there}")


def _fit(body: DrawingFields) -> dict[str, Any]:
    return {"fit": body.fit} if isinstance(body, EditFields) and body.fit is not None else {}


def _quality_told(quality: str | None) -> str:
    """The quality as OpenAI's answers name it."""
    return {"hd": "high", "low": "low", "high": "high"}.get(quality or "", "medium")


def _steps(quality: str | None, card: Card) -> int | None:
    part = QUALITY_STEPS.get(quality or "")
    return None if part is None else max(1, round(card.steps * part))


def _named_in(message: str) -> str | None:
    """Which parameter a refusal of ours is about, by the word that it begins with."""
    first = message.removeprefix("The ").split()[0].lower()
    named = {"width": "size", "height": "size", "size": "size", "seed": "seed", "prompt": "prompt"}
    return named.get(first, first if first in DrawingFields.model_fields else None)


def _refused(param: str, words: str) -> Problem:
    return Problem(400, f"Invalid value for {param!r}: {words}.", code="invalid_value", param=param)
