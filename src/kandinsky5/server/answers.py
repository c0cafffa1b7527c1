"""Pictures into what OpenAI's clients read: bodies, events, bytes.

In: finished pictures and how they are wanted. Out: JSON values. Refuses to know: requests, connections.
"""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Final

from PIL import Image

from kandinsky5.generated import GeneratedImage
from kandinsky5.pictures import content_hash
from kandinsky5.provenance import encode_picture
from kandinsky5.request import EditRequest, ImageRequest
from kandinsky5.server.translation import Delivery
from kandinsky5.server.uploads import Upload, keep_outside
from kandinsky5.service import Begun

MEDIA_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A picture as a file, and the seed that draws it again alone."""

    data: bytes
    seed: int | None


def encode_all(
    pictures: Sequence[GeneratedImage], delivery: Delivery, upload: Upload | None
) -> list[Encoded]:
    """The pictures as files of the format that is wanted, what the mask protects put back. Takes CPU time."""
    return [
        Encoded(
            data=encode_picture(_masked(picture, upload), delivery.format, delivery.compression),
            seed=picture.request.seed,
        )
        for picture in pictures
    ]


def preview_bytes(
    preview: Image.Image, request: ImageRequest, delivery: Delivery, upload: Upload | None
) -> bytes:
    """A preview at the size of the picture, in its format, without metadata: it cannot be drawn again."""
    assert request.width and request.height
    image = preview.resize((request.width, request.height), Image.Resampling.BICUBIC)
    if upload is not None and isinstance(request, EditRequest):
        image = keep_outside(image, upload, request.fit)
    buffer = BytesIO()
    image.save(buffer, delivery.output_format.upper())
    return buffer.getvalue()


def told_size(request: ImageRequest) -> str:
    """WIDTHxHEIGHT of a resolved request."""
    return f"{request.width}x{request.height}"


def usage_of(begun: Begun) -> dict[str, Any]:
    """Tokens of the text encoder, and tokens of the pictures in the network."""
    request = begun.request
    output = (request.width or 0) * (request.height or 0) // 256 * request.count
    given = begun.text_tokens + begun.image_tokens
    return {
        "input_tokens": given,
        "input_tokens_details": {"text_tokens": begun.text_tokens, "image_tokens": begun.image_tokens},
        "output_tokens": output,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        "total_tokens": given + output,
    }


def images_body(
    data: Sequence[Mapping[str, Any]], begun: Begun, delivery: Delivery, *, created: int
) -> dict[str, Any]:
    """OpenAI's ImagesResponse around what stands for each picture."""
    body: dict[str, Any] = {
        "created": created,
        "background": "opaque",
        "data": [{**item, **revised(begun)} for item in data],
        "output_format": delivery.output_format,
        "quality": delivery.quality,
        "size": told_size(begun.request),
        "usage": usage_of(begun),
        "model_parameters": parameters_of(begun.request),
    }
    return body if delivery.user is None else {**body, "safety_identifier": delivery.user}


def revised(begun: Begun) -> dict[str, str]:
    """OpenAI's name for the prompt that was drawn, where it is not the one that was sent."""
    return {"revised_prompt": begun.request.prompt} if begun.expanded else {}


def parameters_of(request: ImageRequest) -> dict[str, Any]:
    """Ours, beside OpenAI's: what was drawn, with every default filled in."""
    told: dict[str, Any] = {
        "seed": request.seed,
        "steps": request.steps,
        "guidance": request.guidance,
        "negative_prompt": request.negative_prompt,
        "lora": dict(request.lora or ()),
    }
    return told | {"fit": request.fit} if isinstance(request, EditRequest) else told


def in_base64(encoded: Encoded) -> dict[str, Any]:
    """A picture inside a body."""
    return {"b64_json": base64.b64encode(encoded.data).decode("ascii"), "seed": encoded.seed}


def event(kind: str, data: bytes, begun: Begun, delivery: Delivery, **more: Any) -> bytes:
    """One server-sent event that carries a picture, in OpenAI's form; `kind` is its documented name."""
    body = {
        "type": kind,
        "b64_json": base64.b64encode(data).decode("ascii"),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": delivery.output_format,
        "quality": delivery.quality,
        "size": told_size(begun.request),
        **more,
    }
    return sse(kind, body)


def sse(kind: str, body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


def _masked(picture: GeneratedImage, upload: Upload | None) -> GeneratedImage:
    """With the source's pixels outside the mask, whose hash the picture then names."""
    request = picture.request
    if upload is None or upload.mask is None or not isinstance(request, EditRequest):
        return picture
    image = keep_outside(picture.image, upload, request.fit)
    return replace(picture, image=image, software={**picture.software, "mask": content_hash(upload.mask)})
