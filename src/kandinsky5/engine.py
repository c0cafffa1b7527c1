"""One loaded pipeline that answers requests.

In: an `ImageRequest`, in which None means "the checkpoint's default". Out: `GeneratedImage`s, each with the request
that draws it again alone. This is the one place where defaults and seeds are filled in. Refuses to know: files,
formats, who asks. One request at a time: the pipeline holds the state of the run.
"""

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch

from kandinsky5.errors import CapacityError
from kandinsky5.placement import is_out_of_memory
from kandinsky5.records import GeneratedImage
from kandinsky5.request import ImageRequest, choose_seed
from kandinsky5.version import __version__

if TYPE_CHECKING:
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all). What it raises ends the run and reaches the caller."""

DEFAULT_TEXT_TOKENS: Final = 512
"""Text tokens kept of a prompt when the request does not say (authors' image pipelines)."""


class Engine:
    """A pipeline and the name of where it came from, which every picture carries."""

    def __init__(self, pipeline: "Kandinsky5T2IPipeline", *, source: str) -> None:
        self.pipeline = pipeline
        self.source = source

    def resolve(self, request: ImageRequest) -> ImageRequest:
        """The request with every None filled in from the checkpoint, and a seed chosen if it names none."""
        width, height = self.pipeline.default_size
        filled = replace(
            request,
            width=width if request.width is None else request.width,
            height=height if request.height is None else request.height,
            steps=self.pipeline.default_steps if request.steps is None else request.steps,
            guidance=self.pipeline.default_guidance if request.guidance is None else request.guidance,
            max_sequence_length=request.max_sequence_length or DEFAULT_TEXT_TOKENS,
            seed=choose_seed() if request.seed is None else request.seed,
        )
        log.info("resolved request: %s", filled)
        return filled

    def generate(self, request: ImageRequest, *, on_step: OnStep | None = None) -> list[GeneratedImage]:
        """`request.count` pictures of the prompt; picture i is drawn from its own generator, seeded with seed + i.

        Raises RequestError for what the pipeline cannot run and CapacityError when the device runs out of memory.
        `seconds` of every picture is the wall time of the whole call.
        """
        resolved = self.resolve(request)
        started = time.perf_counter()
        images = self._draw(resolved, on_step)
        seconds = time.perf_counter() - started
        software = self._software()
        return [
            GeneratedImage(
                image=image,
                request=replace(resolved, seed=seed, count=1),
                model=self.source,
                seconds=seconds,
                software=software,
            )
            for image, seed in zip(images, resolved.seeds, strict=True)
        ]

    def _draw(self, request: ImageRequest, on_step: OnStep | None) -> list[Any]:
        def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(index + 1, pipe.num_timesteps)
            return tensors

        try:
            output: Any = self.pipeline(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                num_images_per_prompt=request.count,
                max_sequence_length=request.max_sequence_length or DEFAULT_TEXT_TOKENS,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
                callback_on_step_end=after_step,
                output_type="pil",
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CapacityError(
                f"{request.count} of {request.width}x{request.height} at once do not fit into the memory of "
                f"{self._device()}; ask for fewer pictures at a time or a smaller size."
            ) from error
        return output.images

    def _device(self) -> torch.device:
        return self.pipeline._execution_device

    def _software(self) -> Mapping[str, str]:
        """What drew the picture, as far as it can change its bytes: versions, device, dtype."""
        return {
            "kandinsky5": __version__,
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "device": self._device().type,
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
        }
