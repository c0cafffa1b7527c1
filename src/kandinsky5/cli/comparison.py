"""An edited picture beside its source.

In: the picture and the source it was made of. Out: both in one, the source on the left as the model saw it. Refuses to
know: files.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from PIL import Image

from kandinsky5.pictures import fit_picture
from kandinsky5.request import EditRequest

if TYPE_CHECKING:
    from kandinsky5.generated import GeneratedImage

GAP: Final = 8
"""Pixels of white between the two."""


def beside_its_source(picture: "GeneratedImage", source: Image.Image) -> "GeneratedImage":
    """The same picture with its fitted source to the left, and the same request."""
    result = picture.image
    kind = picture.request.fit if isinstance(picture.request, EditRequest) else "cover"
    fitted, _ = fit_picture(source, result.size, kind)
    both = Image.new("RGB", (2 * result.width + GAP, result.height), "white")
    both.paste(fitted, (0, 0))
    both.paste(result, (result.width + GAP, 0))
    return replace(picture, image=both)
