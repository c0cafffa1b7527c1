"""diffusers' editing pipeline over our components' weights, set right where it is known to differ.

As for text to image (`peer`) its rotations are exact and its times the authors'. Its template, crop and the filter that
halves the picture are attributes or arguments, set to the release's. What is left to compare is the pipeline.
"""

from typing import Any

import diffusers
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil

from kandinsky5.prompts import EDITING, crop
from tests.model.peer import Kandinsky5Transformer3DModel, without_rounding

from .peer import OfficialTimes


def build(components: dict[str, Any], size: tuple[int, int]) -> diffusers.Kandinsky5I2IPipeline:
    """The peer for pictures of (width, height), one of which it would otherwise replace."""
    network = Kandinsky5Transformer3DModel(**components["transformer"].config)
    network.load_state_dict(components["transformer"].state_dict())
    tokenizer = components["tokenizer"]
    pipe = diffusers.Kandinsky5I2IPipeline(
        **{
            **components,
            "transformer": without_rounding(network).eval(),
            "tokenizer": PictureProcessor(image_processor=Qwen2VLImageProcessorPil(), tokenizer=tokenizer),
            "scheduler": OfficialTimes(shift=3.0),
        }
    )
    pipe.prompt_template = EDITING.text("{}", images=1)
    pipe.prompt_template_encode_start_idx = crop(len(tokenizer(EDITING.prefix)["input_ids"]))
    pipe.resolutions = [size]
    pipe.set_progress_bar_config(disable=True)
    return pipe


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor without its video half, which cannot be built here."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return None


class Bilinear(Image.Image):
    """A picture whose `resize` without a filter is the authors' instead of Pillow's bicubic."""

    def resize(self, size: Any, resample: Any = None, *args: Any, **kwargs: Any) -> Image.Image:
        return super().resize(
            size, Image.Resampling.BILINEAR if resample is None else resample, *args, **kwargs
        )


def with_the_authors_filter(picture: Image.Image) -> Image.Image:
    """The same pixels; halved as the authors do when nobody says how."""
    changed = Bilinear()
    changed.im, changed._mode, changed._size, changed.info = picture.im, picture.mode, picture.size, {}
    return changed
