"""One picture as the bytes of a file that carry the request it was made from.

In: a `GeneratedImage`. Out: PNG, JPEG or WebP; and back, what an opened picture says about itself. PNG holds the
provenance as JSON in an iTXt chunk "kandinsky5" and as plain words in "parameters"; JPEG and WebP hold the same two in
EXIF UserComment and ImageDescription. Refuses to know: files and their names, who asked.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from kandinsky5.errors import RequestError
from kandinsky5.request import EditRequest, ImageRequest, request_of

if TYPE_CHECKING:
    from kandinsky5.generated import GeneratedImage

CHUNK: Final = "kandinsky5"
WORDS_CHUNK: Final = "parameters"

IMAGE_DESCRIPTION: Final = 0x010E
EXIF_FOLDER: Final = 0x8769
USER_COMMENT: Final = 0x9286
COMMENT_IS_ASCII: Final = b"ASCII\0\0\0"
"""EXIF 2.32: tags, and the eight bytes that say how a UserComment is written."""

MAX_EXIF_BYTES: Final = 60_000
"""A JPEG segment holds 65,533 bytes; the rest is for the tags and for the words."""

DEFAULT_QUALITY: Final = 92


class PictureFormat(StrEnum):
    """A file format pictures are written in."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a picture says about itself: the request of this one picture, the model's name, seconds, software."""

    request: ImageRequest
    model: str
    seconds: float
    software: Mapping[str, str]

    @classmethod
    def of(cls, picture: "GeneratedImage") -> "Provenance":
        """The provenance of a picture just drawn."""
        return cls(
            request=picture.request,
            model=picture.model,
            seconds=round(picture.seconds, 3),
            software=dict(picture.software),
        )

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "request": self.request.to_dict(),
            "model": self.model,
            "seconds": self.seconds,
            "software": dict(self.software),
        }

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """From the JSON a picture holds. Raises RequestError when it is not what this package writes."""
        try:
            fields = json.loads(text)
            seconds = float(fields["seconds"])
            if not math.isfinite(seconds):
                raise ValueError(f"{seconds} seconds")
            return cls(
                request=request_of(fields["request"]),
                model=str(fields["model"]),
                seconds=seconds,
                software={str(name): str(value) for name, value in fields["software"].items()},
            )
        except RequestError as error:
            raise RequestError(f"its request is not one this version can read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RequestError(f"its kandinsky5 metadata is damaged ({error!r:.80})") from error

    def words(self) -> str:
        """The same for a person, in the form other image programs show."""
        r = self.request
        edit = f", Source: {r.source[:12]}, Fit: {r.fit}" if isinstance(r, EditRequest) else ""
        negative = f"Negative prompt: {r.negative_prompt}\n" if r.negative_prompt else ""
        return (
            f"{r.prompt}\n{negative}Steps: {r.steps}, CFG scale: {r.guidance}, Seed: {r.seed}, "
            f"Size: {r.width}x{r.height}, Model: {self.model}{edit}"
        )


def check_request_fits(request: ImageRequest, fmt: PictureFormat) -> None:
    """Refuse, before anything is drawn, a prompt too long for the format's metadata. Raises RequestError."""
    size = len(json.dumps(request.to_dict()))
    if fmt is PictureFormat.jpg and size > MAX_EXIF_BYTES:
        raise RequestError(
            f"The prompt takes {size} bytes of JPEG metadata, which holds {MAX_EXIF_BYTES}; png and webp hold it."
        )


def encode_picture(picture: "GeneratedImage", fmt: PictureFormat, quality: int | None = None) -> bytes:
    """The picture as a file of that format, with its provenance. `quality` is 0 to 100 for JPEG and WebP."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    provenance = Provenance.of(picture)
    text = json.dumps(provenance.to_dict())
    buffer = BytesIO()
    if fmt is PictureFormat.png:
        chunks = PngInfo()
        chunks.add_itxt(CHUNK, text)
        chunks.add_itxt(WORDS_CHUNK, provenance.words())
        picture.image.save(buffer, "PNG", pnginfo=chunks)
        return buffer.getvalue()
    exif = Image.Exif()
    words = provenance.words().encode()
    if fmt is PictureFormat.webp or len(text) + len(words) <= MAX_EXIF_BYTES:
        exif[IMAGE_DESCRIPTION] = words
    exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = COMMENT_IS_ASCII + text.encode("ascii")
    settings: dict[str, Any] = {"quality": DEFAULT_QUALITY if quality is None else quality, "exif": exif}
    if fmt is PictureFormat.jpg:
        # Flat colours beside each other bleed when chroma is stored at half size.
        picture.image.save(buffer, "JPEG", subsampling=0, **settings)
    else:
        picture.image.save(buffer, "WEBP", **settings)
    return buffer.getvalue()


def stored_json(image: Any) -> str | None:
    """The JSON that `encode_picture` wrote into an opened picture, or None."""
    text = getattr(image, "text", {}).get(CHUNK)
    if text is not None:
        return str(text)
    comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(COMMENT_IS_ASCII):
        comment = comment.removeprefix(COMMENT_IS_ASCII)
        if comment.startswith(b"{"):
            return comment.decode("ascii", "replace")
    return None
