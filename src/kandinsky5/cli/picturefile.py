"""One picture as a file that carries the request it was made from.

In: a `GeneratedImage` and a path. Out: the file, whole or not at all; and back, what a file says about itself. PNG
holds the provenance as JSON in an iTXt chunk "kandinsky5" and as plain words in "parameters"; JPEG and WebP hold the
same two in EXIF UserComment and ImageDescription. Refuses to know: names of files, who asked.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kandinsky5.cli.targets import PictureFormat
from kandinsky5.errors import RequestError
from kandinsky5.request import EditRequest, ImageRequest, request_of

if TYPE_CHECKING:
    from kandinsky5.records import GeneratedImage

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
            return cls(
                request=request_of(fields["request"]),
                model=str(fields["model"]),
                seconds=float(fields["seconds"]),
                software={str(name): str(value) for name, value in fields["software"].items()},
            )
        except RequestError as error:
            raise RequestError(f"its request is not one this version can read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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
            f"The prompt takes {size} bytes of JPEG metadata, which holds {MAX_EXIF_BYTES}; use --format png or webp."
        )


def write_picture(
    picture: "GeneratedImage",
    path: Path,
    fmt: PictureFormat,
    *,
    quality: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the picture with its provenance; missing folders are made. A file cut short is never left behind.

    `quality` is 1 to 100 for JPEG and WebP. Raises RequestError when `path` is taken and `overwrite` is false, and
    OSError for a full or failing disk.
    """
    data = _encoded(picture, fmt, quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".kandinsky5-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def read_provenance(path: Path) -> Provenance:
    """What the picture at `path` says about itself. Raises RequestError when it is no picture or says nothing."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = _stored_json(image)
    except UnidentifiedImageError as error:
        raise RequestError(f"{path} is not a picture that can be read.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if text is None:
        raise RequestError(f"{path} does not say how it was made; only pictures written by kandinsky5 do.")
    try:
        return Provenance.from_json(text)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def _encoded(picture: "GeneratedImage", fmt: PictureFormat, quality: int | None) -> bytes:
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


def _move(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        # A link, unlike a rename, fails when another program took the name in the meantime.
        os.link(temporary, path)
    except FileExistsError as error:
        raise RequestError(
            f"{path} appeared while the picture was drawn; --overwrite replaces it."
        ) from error
    except OSError:
        if os.path.lexists(path):
            raise RequestError(
                f"{path} appeared while the picture was drawn; --overwrite replaces it."
            ) from None
        temporary.replace(path)


def _stored_json(image: Any) -> str | None:
    text = getattr(image, "text", {}).get(CHUNK)
    if text is not None:
        return str(text)
    comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(COMMENT_IS_ASCII):
        comment = comment.removeprefix(COMMENT_IS_ASCII)
        if comment.startswith(b"{"):
            return comment.decode("ascii", "replace")
    return None
