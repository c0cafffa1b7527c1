"""What a call gives back, in diffusers' vocabulary."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
from diffusers.utils import BaseOutput
from torch import Tensor

from kandinsky5.pictures import Fit

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class KandinskyImagePipelineOutput(BaseOutput):
    """Pictures of one call.

    image: list of PIL images, or an array (B, H, W, 3) or tensor (B, 3, H, W) in [0, 1], or latents (B, 1, h, w, C).
    fits: of an edit, how each source picture came to the size of the result; None without sources.
    """

    image: list[PIL.Image.Image] | np.ndarray | Tensor
    fits: list[Fit] | None = None

    @property
    def images(self) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """The same under the name that most diffusers pipelines use."""
        return self.image
