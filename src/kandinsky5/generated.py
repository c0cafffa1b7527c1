"""A finished picture with where it came from.

Plain values: a process that draws hands it to one that has no tensor library, such as the server's. Refuses to know:
models, files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from kandinsky5.pictures import Fit
from kandinsky5.request import ImageRequest


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """A picture and everything needed to make it again.

    image: the picture.
    request: the request with every default resolved, and this picture's own seed.
    model: the checkpoint's id, alias or folder.
    seconds: time of the run that made it, shared by all pictures of that run.
    software: versions, device and dtype that it was made with.
    fit: of an edit, how the source came to the picture's size.
    """

    image: Image.Image
    request: ImageRequest
    model: str
    seconds: float
    software: Mapping[str, str]
    fit: Fit | None = None
