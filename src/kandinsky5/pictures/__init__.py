"""Source pictures: whatever a caller hands over becomes upright 8-bit RGB, and is fitted to the size of the edit.

`decoding` (files and PIL images), `fitting` (to a size, and what that left out), and `arrays` (numpy, tensors, lists),
whose names are not repeated here: it imports torch, and who only reads files needs none. Nothing here knows models.
"""

from kandinsky5.pictures.decoding import content_hash, opened, read_mask, read_picture
from kandinsky5.pictures.fitting import Fit, fit_picture, halved

__all__ = [
    "Fit",
    "content_hash",
    "fit_picture",
    "halved",
    "opened",
    "read_mask",
    "read_picture",
]
