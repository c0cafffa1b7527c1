"""One loaded pipeline that answers requests.

In: an `ImageRequest`, in which None means "the checkpoint's default"; for an edit an `EditRequest` and its picture.
Out: `GeneratedImage`s, each with the request that draws it again alone. This is the one place where defaults and seeds
are filled in. Refuses to know: files, formats, who asks. `generate` carries out one request at a time; `begin` and
`develop` are its two ends, for whoever takes the steps between for several requests at once (`kandinsky5.service`).
"""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch
from PIL import Image

from kandinsky5.adapters import NamedAdapters
from kandinsky5.denoise import Run
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.generated import GeneratedImage
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.pictures import Fit, content_hash, fit_picture
from kandinsky5.pipelines.call import Call
from kandinsky5.pipelines.remembered import RememberedPrompts, Texts
from kandinsky5.request import EditRequest, ImageRequest, choose_seed
from kandinsky5.version import __version__

if TYPE_CHECKING:
    from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all). What it raises ends the run and reaches the caller."""

DEFAULT_TEXT_TOKENS: Final = 512
"""Text tokens kept of a prompt when the request does not say (authors' image pipelines)."""

DEFAULT_EDIT_TOKENS: Final = 1024
"""The same of an instruction and its picture."""


class Engine:
    """A pipeline, the name of where it came from, which every picture carries, and adapters that requests may name."""

    def __init__(
        self,
        pipeline: "Kandinsky5T2IPipeline | Kandinsky5I2IPipeline",
        *,
        source: str,
        adapters: NamedAdapters | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self.adapters = NamedAdapters(pipeline) if adapters is None else adapters
        self._remembered = RememberedPrompts()

    def over(self, pipeline: "Kandinsky5T2IPipeline | Kandinsky5I2IPipeline") -> "Engine":
        """An engine of another task, whose pipeline has the same network and so the same adapters."""
        return Engine(pipeline, source=self.source, adapters=self.adapters)

    def resolve(self, request: ImageRequest, picture: Image.Image | None = None) -> ImageRequest:
        """The request with every None filled in from the checkpoint, and a seed chosen if it names none.

        `picture` is the source of an edit, whose shape decides about a size that is left open. Raises RequestError for
        a request that is not this pipeline's task, an adapter that is not loaded, or an edit without a picture.
        """
        self.adapters.check(request.lora)
        width, height = self._size(request, picture)
        tokens = DEFAULT_TEXT_TOKENS
        if isinstance(request, EditRequest):
            tokens, request = DEFAULT_EDIT_TOKENS, replace(request, size_from=None)  # by now width and height
        filled = replace(
            request,
            width=width,
            height=height,
            steps=self.pipeline.default_steps if request.steps is None else request.steps,
            guidance=self.pipeline.default_guidance if request.guidance is None else request.guidance,
            max_sequence_length=request.max_sequence_length or tokens,
            seed=choose_seed() if request.seed is None else request.seed,
        )
        log.info("resolved request: %s", filled)
        return filled

    def generate(
        self,
        request: ImageRequest,
        *,
        picture: Image.Image | None = None,
        on_step: OnStep | None = None,
    ) -> list[GeneratedImage]:
        """`request.count` pictures of the prompt; picture i is drawn from its own generator, of the seed seed + i.

        `picture` is the source of an edit, RGB as `kandinsky5.pictures` gives it; its hash is in the request, and part
        of what the generators start from.

        Raises RequestError for what the pipeline cannot run, CapacityError when the device runs out of memory, and
        FloatingPointError where the network or the autoencoder gives no numbers. `seconds` of every picture is the wall
        time of the whole call.
        """
        resolved = self.resolve(request, picture)
        if isinstance(resolved, EditRequest) and picture is not None:
            _check_source(resolved, picture)
        self.adapters.wear(resolved.lora)
        started = time.perf_counter()
        output = self._draw(resolved, picture, on_step)
        images = self._pictures(output.image)
        seconds = time.perf_counter() - started
        fit = output.fits[0] if output.fits else None
        return [
            self.told(image, resolved, seed=seed, seconds=seconds, fit=fit)
            for image, seed in zip(images, resolved.seeds, strict=True)
        ]

    def expanded(self, request: ImageRequest, picture: Image.Image | None = None) -> ImageRequest:
        """The request with its prompt written out by the text encoder. Raises as `generate` does."""
        *_, prompt = self.expanding(request, picture)
        return replace(request, prompt=prompt)

    def expanding(self, request: ImageRequest, picture: Image.Image | None = None) -> Iterator[str]:
        """What is written of the longer prompt so far, after each token; the last is the answer."""
        resolved = self.resolve(request, picture)
        fitted = None
        if isinstance(resolved, EditRequest) and picture is not None:
            assert resolved.width and resolved.height
            fitted, _ = fit_picture(picture, (resolved.width, resolved.height), resolved.fit)
        with self._room_for(resolved):
            yield from self.pipeline.expanding(resolved.prompt, fitted)

    def begin(self, resolved: ImageRequest, picture: Image.Image | None = None) -> tuple[Run, Fit | None]:
        """A resolved request before its first step, and how the source of an edit came to its size.

        Steps from here, with the request's adapters worn at each, and `develop` give what `generate` gives. A prompt
        that was asked for lately is not encoded again. Raises as `generate` does.
        """
        assert resolved.width and resolved.height and resolved.max_sequence_length
        assert resolved.guidance is not None
        fit = None
        pictures: list[Image.Image] = []
        if isinstance(resolved, EditRequest) and picture is not None:
            _check_source(resolved, picture)
            fitted, fit = fit_picture(picture, (resolved.width, resolved.height), resolved.fit)
            pictures = [fitted]
        texts = Texts(
            prompt=resolved.prompt,
            negative=resolved.negative_prompt if resolved.guidance > 1 else None,
            tokens=resolved.max_sequence_length,
        )
        call = Call(
            prompts=texts.prompts if pictures else self._remembered.of(texts),
            width=resolved.width,
            height=resolved.height,
            num_inference_steps=resolved.steps,
            guidance_scale=resolved.guidance,
            num_images_per_prompt=resolved.count,
            generator=self._generators(resolved),
            latents=None,
            output_type="pil",
            callback=None,
            callback_tensors=[],
            max_sequence_length=resolved.max_sequence_length,
            pictures=pictures,
        )
        with self._room_for(resolved):
            run = self.pipeline.begin(call)
        if not pictures:
            self._remembered.keep(texts, run.positive, run.negative)
        return run, fit

    def image_tokens(self, resolved: ImageRequest, picture: Image.Image | None) -> int:
        """How many tokens the text encoder is given of the source of an edit; 0 without one."""
        if (
            not isinstance(resolved, EditRequest)
            or picture is None
            or not (resolved.width and resolved.height)
        ):
            return 0
        fitted = fit_picture(picture, (resolved.width, resolved.height), resolved.fit)[0]
        return self.pipeline.picture_tokens(fitted)

    def develop(self, latents: torch.Tensor) -> Image.Image:
        """The picture of the finished latents (1, 1, h, w, C). Raises FloatingPointError where they hold no numbers."""
        self._check_latents(latents)
        return self._pictures(self.pipeline.finish(latents, "pt"))[0]

    def _check_latents(self, latents: torch.Tensor) -> None:
        """Raise FloatingPointError for latents, of any shape, that the network has filled with no numbers."""
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError(
                f"The network gave values that are no numbers, in {self._software()['dtype']}; another seed or prompt "
                "may work, and --precision fp32 has more room."
            )

    def _pictures(self, values: torch.Tensor) -> list[Image.Image]:
        """Decoded values (B, 3, H, W) in [0, 1] as pictures. Raises FloatingPointError where they are no numbers."""
        if not bool(torch.isfinite(values).all()):
            raise FloatingPointError("The autoencoder gave values that are no numbers for this picture.")
        plain = [False] * len(values)
        return self.pipeline.image_processor.postprocess(values, output_type="pil", do_denormalize=plain)

    def told(
        self,
        image: Image.Image,
        request: ImageRequest,
        *,
        seed: int,
        seconds: float,
        fit: Fit | None,
    ) -> GeneratedImage:
        """The picture with what made it; `request` is resolved, `seed` the picture's own."""
        return GeneratedImage(
            image=image,
            request=replace(request, seed=seed, count=1),
            model=self.source,
            seconds=seconds,
            software={
                **self._software(),
                **{f"lora {name}": digest for name, digest in self.adapters.digests(request.lora).items()},
            },
            fit=fit,
        )

    def _size(self, request: ImageRequest, picture: Image.Image | None) -> tuple[int, int]:
        """(width, height) of the request's pictures."""
        pipeline: Any = self.pipeline
        if not isinstance(request, EditRequest):
            if pipeline.task == "editing":
                raise RequestError("This model was opened for editing; an edit needs a source picture.")
            width, height = pipeline.default_size
            return request.width or width, request.height or height
        if pipeline.task != "editing":
            raise RequestError(
                f"{self.source} was opened for making pictures from text only; it cannot edit."
            )
        if picture is None:
            raise RequestError("An edit needs its source picture, of which the request has the hash only.")
        return pipeline.edit_size(
            [picture.size], request.height, request.width, request.size_from or "native"
        )

    def _draw(self, request: ImageRequest, picture: Image.Image | None, on_step: OnStep | None) -> Any:
        """The pipeline's output, its pictures as a tensor."""

        def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(index + 1, pipe.num_timesteps)
            if index + 1 == pipe.num_timesteps:
                self._check_latents(tensors["latents"])
            return tensors

        pipeline: Any = self.pipeline
        edit = {"image": picture, "fit": request.fit} if isinstance(request, EditRequest) else {}
        with self._room_for(request):
            return pipeline(
                **edit,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                num_images_per_prompt=request.count,
                max_sequence_length=request.max_sequence_length,
                generator=self._generators(request),
                callback_on_step_end=after_step,
                output_type="pt",
            )

    @staticmethod
    def _generators(request: ImageRequest) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(seed) for seed in request.noise_seeds]

    @contextmanager
    def _room_for(self, request: ImageRequest) -> Iterator[None]:
        """What a full device raises, in our words."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CapacityError(
                f"{request.count} of {request.width}x{request.height} at once do not fit into the memory of "
                f"{self._device()}; ask for fewer pictures at a time or a smaller size."
            ) from error

    def _device(self) -> torch.device:
        return self.pipeline._execution_device

    def _software(self) -> Mapping[str, str]:
        """What drew the picture, as far as it can change its bytes: versions, device, dtype."""
        return {
            "kandinsky5": __version__,
            "torch": str(
                torch.__version__
            ),  # a class of torch's own, which every reader of a record would load
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "device": self._device().type,
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            **self._mode(),
            **self._plan(),
        }

    def _mode(self) -> Mapping[str, str]:
        """The network's mode, where it is in one."""
        path = self.pipeline.transformer.fast_path
        return {} if path is None else {"mode": path.mode}

    def _plan(self) -> Mapping[str, str]:
        """What of a plan can change bytes."""
        plan = self.pipeline.plan
        if plan is None:
            return {}
        tiles = {} if plan.tile is None else {"tile": str(plan.tile)}
        return {"network_weights": plan.network, "encoder_weights": plan.encoder, **tiles}


def _check_source(request: EditRequest, picture: Image.Image) -> None:
    """Refuse a picture that the request was not made for. Raises RequestError."""
    found = content_hash(picture)
    if found != request.source:
        raise RequestError(
            f"The request is for the picture {request.source[:12]}..., and this one is {found[:12]}...; the hash is "
            "that of kandinsky5.pictures.content_hash."
        )
