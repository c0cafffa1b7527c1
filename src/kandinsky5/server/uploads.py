"""Files of an edit: the source and the mask, out of a form or a JSON body, decoded with the bounds of `pictures`.

In: bytes. Out: an RGB picture, and a mask of its size. The bytes never name a file, and nothing is fetched. Refuses to
know: forms, models.
"""

import base64
import binascii
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FitKind
from kandinsky5.pictures import content_hash, fit_picture, read_mask, read_picture
from kandinsky5.server.masks import fitted_mask
from kandinsky5.server.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The source of an edit, its hash, and where it may be changed: mode "L", 255 for yes; None for everywhere."""

    picture: Image.Image
    source: str
    mask: Image.Image | None


def decode(images: list[bytes], mask: bytes | None) -> Upload:
    """The source and its mask. Raises Problem for anything else than one picture, and a mask as large as it."""
    if not images:
        raise Problem(
            400, "Missing required parameter: 'image'.", code="missing_required_parameter", param="image"
        )
    if len(images) > 1:
        raise _refused("image", f"The model edits one source picture at a time, and {len(images)} came.")
    try:
        picture = read_picture(BytesIO(images[0]))
    except RequestError as error:
        raise _refused("image", str(error)) from None
    if mask is None:
        return Upload(picture=picture, source=content_hash(picture), mask=None)
    try:
        area = read_mask(BytesIO(mask))
    except RequestError as error:
        raise _refused("mask", str(error)) from None
    if area.size != picture.size:
        sizes = f"{area.width}x{area.height}, and the picture {picture.width}x{picture.height}"
        raise _refused("mask", f"The mask is {sizes}; they must be of one size.")
    return Upload(picture=picture, source=content_hash(picture), mask=area)


def of_data_url(text: str, param: str) -> bytes:
    """The bytes of a data url. Raises Problem for any other url, and for what is no base64."""
    head, comma, data = text.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise _refused(param, "image_url must be a data url in base64, such as data:image/png;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(param, "image_url holds no valid base64.") from None


def keep_outside(picture: Image.Image, upload: Upload, fit: FitKind) -> Image.Image:
    """The edited picture with the source's own pixels, as they were fitted, wherever the mask does not say: edit."""
    if upload.mask is None:
        return picture
    source, done = fit_picture(upload.picture, picture.size, fit)
    return Image.composite(picture, source, fitted_mask(upload.mask, done))


def _refused(param: str, words: str) -> Problem:
    return Problem(400, words, code="invalid_image", param=param)
