"""Source pictures: whatever a caller hands over becomes upright 8-bit RGB, and is fitted to the size of the edit.

`decoding` (files and PIL images), `arrays` (numpy, tensors, lists), `fitting` (to a size, and what that left out).
Nothing here knows models.
"""

from kandinsky5.pictures.arrays import as_pictures, to_pixels
from kandinsky5.pictures.decoding import content_hash, read_mask, read_picture
from kandinsky5.pictures.fitting import Fit, fit_picture, halved

__all__ = [
    "Fit",
    "as_pictures",
    "content_hash",
    "fit_picture",
    "halved",
    "read_mask",
    "read_picture",
    "to_pixels",
]
