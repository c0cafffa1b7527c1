"""diffusers' text-to-image pipeline over our components' weights, with two of its roundings taken out.

Its network rounds rotations to bfloat16 even in float32 (see `tests/model/peer.py`), and its scheduler takes other
times than the authors'. Both are set right here, so that what is left to compare is the pipeline.
"""

from typing import Any

import diffusers
import torch

from tests.model.peer import Kandinsky5Transformer3DModel, without_rounding


def build(components: dict[str, Any], size: tuple[int, int]) -> diffusers.Kandinsky5T2IPipeline:
    """The peer for pictures of (width, height), one of which it would otherwise replace."""
    network = Kandinsky5Transformer3DModel(**components["transformer"].config)
    network.load_state_dict(components["transformer"].state_dict())
    pipe = diffusers.Kandinsky5T2IPipeline(
        **{
            **components,
            "transformer": without_rounding(network).eval(),
            "tokenizer": TextOnlyProcessor(components["tokenizer"]),
            "scheduler": OfficialTimes(shift=3.0),
        }
    )
    pipe.resolutions = [size]
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TextOnlyProcessor:
    """The tokenizer under the call of Qwen's processor, whose video half cannot be built here."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.decode = tokenizer.decode

    def __call__(self, text: list[str], images: None = None, videos: None = None, **kwargs: Any) -> Any:
        return self.tokenizer(text, **kwargs)


class OfficialTimes(diffusers.FlowMatchEulerDiscreteScheduler):
    """The scheduler with the authors' times."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **kwargs: Any) -> None:
        sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
        super().set_timesteps(sigmas=sigmas, device=device)
