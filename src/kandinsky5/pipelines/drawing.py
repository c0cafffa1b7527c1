"""How every pipeline draws: the state of a running call, and its stages in order.

Comes in: a checked `Call`. Goes out: pictures. A call without source pictures makes pictures from text; with them it
edits. The two public pipelines are front doors to this: they say what a caller may ask, and with which defaults.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from kandinsky5 import denoise
from kandinsky5 import latents as latent_stage
from kandinsky5.conditioning import encode_prompts, view
from kandinsky5.errors import RequestError
from kandinsky5.expansion import expand
from kandinsky5.geometry import check_size
from kandinsky5.model.transformer import MAX_TEXT_POSITIONS
from kandinsky5.pictures import halved, to_pixels
from kandinsky5.pipelines.base import ImagePipeline
from kandinsky5.pipelines.callbacks import StepCallback, apply_callback
from kandinsky5.pipelines.encoder_parts import bring_in
from kandinsky5.pipelines.output import OUTPUT_TYPES
from kandinsky5.pipelines.processor_files import build_picture_processor
from kandinsky5.pipelines.prompt_input import Prompts
from kandinsky5.pipelines.room import leave, planned
from kandinsky5.prompts import TEMPLATES, clean
from kandinsky5.records import Conditioning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call asks for, in diffusers' words. None is the checkpoint's own default.

    pictures: sources at the size of the result, none, one for all prompts or one each.
    """

    prompts: Prompts
    width: int
    height: int
    num_inference_steps: int | None
    guidance_scale: float | None
    num_images_per_prompt: int | None
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    output_type: str
    callback: StepCallback | None
    callback_tensors: list[str]
    max_sequence_length: int
    pictures: Sequence[Image.Image] = ()

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise RequestError(f"num_inference_steps={self.num_inference_steps} must be at least 1.")
        if self.per_prompt < 1:
            raise RequestError(f"num_images_per_prompt={self.per_prompt} must be at least 1.")
        if self.output_type not in OUTPUT_TYPES:
            raise RequestError(f"output_type={self.output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")

    @property
    def per_prompt(self) -> int:
        """Pictures a prompt."""
        return 1 if self.num_images_per_prompt is None else self.num_images_per_prompt

    @property
    def rows(self) -> int:
        """Pictures in all."""
        return len(self.prompts) * self.per_prompt

    @property
    def picture_rows(self) -> list[int]:
        """For each picture to draw, which source it is made of."""
        return [row // self.per_prompt if len(self.pictures) > 1 else 0 for row in range(self.rows)]


class DrawingPipeline(ImagePipeline):
    """The stages of a call over the components of `ImagePipeline`."""

    # -- State that a callback may read and change during a call ----------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        """Guidance of the running call; a callback may set `_guidance_scale` for the steps that follow."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Network times of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` to True to end the running call after the current step."""
        return self._interrupt

    # -- The call -----------------------------------------------------------------------------------------------------

    def _draw(self, call: Call) -> Any:
        """Everything from noise and words to what the caller asked for as `output_type`."""
        steps = self.default_steps if call.num_inference_steps is None else call.num_inference_steps
        self._interrupt = False
        try:
            with planned(self.plan):
                run = self.begin(call)
                self._denoise(run, steps, self._execution_device, call)
                return self.finish(run.latents, call.output_type)
        finally:
            leave(self.plan, self.text_encoder)
            leave(self.plan, self.transformer)
            self.maybe_free_model_hooks()

    @torch.no_grad()
    def begin(self, call: Call) -> denoise.Run:
        """The run of a call before its first step: noise, encoded prompts, encoded sources."""
        self._guidance_scale = self.default_guidance if call.guidance_scale is None else call.guidance_scale
        device, channels = self._execution_device, self.transformer.config.out_visual_dim
        start = self.prepare_latents(
            *(call.rows, channels, call.height, call.width),
            *(torch.float32, device, call.generator, call.latents),
        )
        positive, negative = self._conditionings(call)
        leave(self.plan, self.text_encoder)
        return denoise.Run(
            latents=start,
            positive=positive,
            negative=negative,
            guidance=self.guidance_scale,
            source=self._source(call, start),
            batched_guidance=self.batched_guidance,
        )

    def _check(
        self, width: int, height: int, callback_tensors: list[str] | None, max_sequence_length: int | None
    ) -> None:
        """Refuse what no pipeline can carry out."""
        check_size(
            width, height, multiple=self.vae_scale_factor_spatial * self.transformer.config.patch_size[1]
        )
        if max_sequence_length is not None and not 1 <= max_sequence_length <= MAX_TEXT_POSITIONS:
            raise RequestError(
                f"max_sequence_length={max_sequence_length} must be from 1 to {MAX_TEXT_POSITIONS}."
            )
        unknown = set(callback_tensors or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise RequestError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} must be among {self._callback_tensor_inputs}."
            )

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int = 16,
        height: int = 1024,
        width: int = 1024,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Starting noise (batch_size, 1, height / 8, width / 8, channels), or the caller's latents, checked and moved.

        Raises:
            RequestError: latents of another shape, or a list of generators that is not one a picture.
        """
        device = device or self._execution_device
        factor = self.vae_scale_factor_spatial
        shape = (batch_size, 1, height // factor, width // factor, num_channels_latents)
        latent_stage.check_generators(generator, batch_size)
        if latents is None:
            return latent_stage.noise(
                *(shape[0], shape[2], shape[3], shape[4]),
                generator=generator,
                device=device,
                dtype=dtype or torch.float32,
            )
        if tuple(latents.shape) != shape:
            raise RequestError(
                f"latents must be (pictures, 1, height / {factor}, width / {factor}, channels) = {shape}, got "
                f"{tuple(latents.shape)}."
            )
        return latents.to(device=device, dtype=dtype)

    # -- Its parts ----------------------------------------------------------------------------------------------------

    def _conditionings(self, call: Call) -> tuple[Conditioning, Conditioning | None]:
        """One row a picture for each branch, where the network runs."""
        positive, negative = self._encoded(
            call.prompts, call.pictures, call.max_sequence_length, guided=self.guidance_scale > 1
        )

        def rows(prompts: Conditioning) -> Conditioning:
            return prompts.repeat(call.per_prompt).to(self._execution_device, self.transformer.dtype)

        return rows(positive), None if negative is None else rows(negative)

    def _encoded(
        self,
        prompts: Prompts,
        pictures: Sequence[Image.Image],
        max_sequence_length: int,
        *,
        guided: bool = False,
    ) -> tuple[Conditioning, Conditioning | None]:
        """One row a prompt for the positive branch, and if `guided` for the negative; `pictures` as in a `Call`."""
        return prompts.encoded(
            lambda texts, shown: self._encode(texts, max_sequence_length, shown),
            guided=guided,
            pictures=[self._shown(picture) for picture in pictures],
        )

    def _prompt_tensors(
        self,
        prompts: Prompts,
        pictures: Sequence[Image.Image],
        max_sequence_length: int,
        per_prompt: int,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `encode_prompt` of both pipelines gives, in diffusers' form."""
        positive, _ = self._encoded(prompts, pictures, max_sequence_length)
        positive = positive.to(device, dtype).repeat(per_prompt)
        return positive.text, positive.pooled, positive.cu_seqlens

    def _encode(
        self, texts: Sequence[str], max_sequence_length: int, shown: Sequence[Image.Image] = ()
    ) -> Conditioning:
        """A row a text; `shown` are the pictures that the vision tower sees, none or one a text."""
        if self.text_encoder is None or self.text_encoder_2 is None:
            raise RequestError(
                "This pipeline was loaded without its text encoders; pass precomputed prompt embeddings (and negative "
                "ones, or guidance_scale=1)."
            )
        return encode_prompts(
            [clean(text) for text in texts],
            TEMPLATES[self.task, self.config.template],
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            max_tokens=max_sequence_length,
            device=self._execution_device,
            dtype=self.text_encoder.dtype,
            pictures=shown,
            picture_processor=self.picture_processor if shown else None,
        )

    def expand_prompt(self, prompt: str, image: Image.Image | None = None) -> str:
        """The prompt written out by the text encoder, for `prompt=` of a call; 256 tokens at most.

        Args:
            prompt: a few words.
            image: the source of an edit, RGB at the size of the result; only where this pipeline edits.

        Raises:
            RequestError: the pipeline has no text encoder, or one that wrote nothing.
        """
        *_, text = self.expanding(prompt, image)
        return text

    def expanding(self, prompt: str, picture: Image.Image | None = None) -> Iterator[str]:
        """The same, and what is written so far after each token.

        The vocabulary projection is brought in if it was left on disk, and stays.
        """
        if self.text_encoder is None:
            raise RequestError("This pipeline was loaded without its text encoder, which writes prompts out.")
        bring_in(self.text_encoder, ["head"])
        seen = None if picture is None else view(self._shown(picture), self.picture_processor)
        with planned(self.plan):
            yield from expand(
                clean(prompt),
                "text-to-image" if seen is None else "editing",
                text_encoder=self.text_encoder,
                tokenizer=self.tokenizer,
                device=self._execution_device,
                seen=seen,
            )

    def picture_tokens(self, picture: Image.Image) -> int:
        """How many tokens the text encoder is given of a source at the size of its edit."""
        return view(self._shown(picture), self.picture_processor).tokens

    def _shown(self, picture: Image.Image) -> Image.Image:
        """What the vision tower sees: half the picture, or half of what it would be at the native area."""
        return halved(picture, self.default_size[0] * self.default_size[1])

    @property
    def picture_processor(self) -> Qwen2VLImageProcessorPil:
        """Qwen's image processor as the checkpoint sets it; the half of it that needs no torchvision."""
        return build_picture_processor(
            self.tokenizer, self._processor, self.text_encoder.config.vision_config
        )

    def _source(self, call: Call, start: Tensor) -> Tensor | None:
        """(B, 1, h, w, C + 1) latents and mask of the sources for an editing network, else None.

        The mask is 1; without a source both are zeros, as the authors do.
        """
        if not self.transformer.config.visual_cond:
            return None
        if not call.pictures:
            return start.new_zeros(*start.shape[:-1], start.shape[-1] + 1)
        pixels = to_pixels(call.pictures).to(self._execution_device)
        latents = latent_stage.encode(pixels, self.vae, rows=call.picture_rows, generator=call.generator)
        return torch.cat([latents, torch.ones_like(latents[..., :1])], dim=-1)

    def _denoise(self, run: denoise.Run, steps: int, device: torch.device, call: Call) -> None:
        """Run the steps under a progress bar, with the user's callback after each."""
        timesteps = denoise.set_times(self.scheduler, steps, device)
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:

            def on_step(i: int, timestep: Tensor, run: denoise.Run) -> None:
                if call.callback is not None:
                    apply_callback(call.callback, self, i, timestep, run, call.callback_tensors)
                run.guidance, run.stop = self._guidance_scale, self._interrupt
                progress_bar.update()

            denoise.denoise(run, transformer=self.transformer, scheduler=self.scheduler, on_step=on_step)

    @torch.no_grad()
    def finish(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Latents as what the caller asked for."""
        if output_type == "latent":
            return latents
        leave(self.plan, self.transformer)
        return self.image_processor.postprocess(self._decoded(latents), output_type=output_type)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels; in tiles from now on where a plan hoped for more memory than there is."""
        try:
            return latent_stage.decode(latents, self.vae)
        except torch.OutOfMemoryError:
            if self.plan is None or self.plan.tile is not None:
                raise
        logger.warning(
            "No memory to decode whole pictures; decoding in tiles of %d pixels.", latent_stage.TILE
        )
        torch.cuda.empty_cache()  # outside the handler, where the failed call's tensors are still referenced
        latent_stage.use_tiles(self.vae, latent_stage.TILE)
        self.plan = replace(self.plan, tile=latent_stage.TILE)
        return latent_stage.decode(latents, self.vae)
