"""How every pipeline draws: the state of a running call, and its stages in order.

Comes in: a checked `Call`. Goes out: pictures. A call without source pictures makes pictures from text; with them it
edits. The two public pipelines are front doors to this: they say what a caller may ask, and with which defaults.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky5 import denoise
from kandinsky5 import latents as latent_stage
from kandinsky5.conditioning import view
from kandinsky5.errors import RequestError
from kandinsky5.expansion import expand
from kandinsky5.geometry import check_size
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.pictures.arrays import to_pixels
from kandinsky5.pipelines.call import Call
from kandinsky5.pipelines.callbacks import apply_callback
from kandinsky5.pipelines.encoder_parts import bring_in
from kandinsky5.pipelines.encoding import EncodingPipeline
from kandinsky5.pipelines.room import leave, planned
from kandinsky5.prompts import clean
from kandinsky5.records import Conditioning

logger = logging.getLogger(__name__)


class DrawingPipeline(EncodingPipeline):
    """The stages of a call over the components of `ImagePipeline`. Calls from several threads take turns."""

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
        network = self.transformer.config
        call.prompts.check_widths(network.in_text_dim, network.in_text_dim2)
        with self._turns:
            self._interrupt = False
            try:
                with planned(self.plan):
                    run = self.begin(call)
                    self._denoise(run, steps, self._execution_device, call)
                    return self.finish(run.latents, call.output_type)
            finally:
                leave(self.plan, self.transformer)
                self.maybe_free_model_hooks()

    @torch.no_grad()
    def begin(self, call: Call) -> denoise.Run:
        """The run of a call before its first step: noise, encoded prompts, encoded sources."""
        self._guidance_scale = self.default_guidance if call.guidance_scale is None else call.guidance_scale
        device, channels = self._execution_device, self.transformer.config.out_visual_dim
        start = self._start(
            *(call.rows, channels, call.height, call.width),
            *(torch.float32, device, call.generator, call.latents),
        )
        positive, negative = self._conditionings(call)
        return denoise.Run(
            latents=start,
            positive=positive,
            negative=negative,
            guidance=self.guidance_scale,
            source=self._source(call, start),
            batched_guidance=self.batched_guidance,
        )

    def _check(
        self, width: int, height: int, callback_tensors: list[str] | None, output_type: str | None = None
    ) -> None:
        """Refuse what no pipeline can carry out; components that are missing first."""
        for name, is_needed in (
            ("transformer", True),
            ("scheduler", True),
            ("vae", output_type not in (None, "latent")),
        ):
            if is_needed and getattr(self, name) is None:
                hint = ', or ask for output_type="latent"' if name == "vae" else ""
                raise RequestError(
                    f"This pipeline was loaded without its {name}, and cannot draw; load it{hint}."
                )
        if (kind := denoise.predicts(self.scheduler)) != denoise.FLOW_PREDICTION:
            raise RequestError(
                f"The scheduler takes the network's velocities for prediction_type={kind!r}; build it with "
                f"prediction_type={denoise.FLOW_PREDICTION!r}, use_flow_sigmas=True and the checkpoint's shift as "
                "flow_shift."
            )
        check_size(
            width, height, multiple=self.vae_scale_factor_spatial * self.transformer.config.patch_size[1]
        )
        unknown = set(callback_tensors or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise RequestError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} must be among {self._callback_tensor_inputs}."
            )

    def _start(
        self,
        batch_size: int,
        channels: int,
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Starting noise (batch_size, 1, height / 8, width / 8, channels), or the caller's latents, checked and moved.

        Raises:
            RequestError: latents that are no tensor or of another shape, or a list of generators that is not one a
                picture.
        """
        device = device or self._execution_device
        factor = self.vae_scale_factor_spatial
        shape = (batch_size, 1, height // factor, width // factor, channels)
        latent_stage.check_generators(generator, batch_size)
        if latents is None:
            return latent_stage.noise(
                *(shape[0], shape[2], shape[3], shape[4]),
                generator=generator,
                device=device,
                dtype=dtype or torch.float32,
            )
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise RequestError(
                f"latents must be a tensor (pictures, 1, height / {factor}, width / {factor}, channels) = {shape}, got "
                f"{given}."
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
        try:
            with planned(self.plan):
                yield from expand(
                    clean(prompt),
                    "text-to-image" if seen is None else "editing",
                    text_encoder=self.text_encoder,
                    tokenizer=self.tokenizer,
                    device=self._execution_device,
                    seen=seen,
                )
        finally:  # also where the caller gives up
            leave(self.plan, self.text_encoder)
            self.maybe_free_model_hooks()

    def _source(self, call: Call, start: Tensor) -> Tensor | None:
        """(B, 1, h, w, C + 1) latents and mask of the sources for an editing network, else None.

        The mask is 1; without a source both are zeros, as the authors do.
        """
        if not self.transformer.config.visual_cond:
            return None
        if not call.pictures:
            return start.new_zeros(*start.shape[:-1], start.shape[-1] + 1)
        return self._source_of(call.pictures, call.picture_rows, call.generator)

    def _source_of(
        self,
        pictures: Sequence[Image.Image],
        rows: Sequence[int],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """(B, 1, h, w, C + 1) samples of the pictures' latents, and a mask of ones; `rows`: of which picture each."""
        pixels = to_pixels(pictures).to(self._execution_device)
        latents = latent_stage.encode(pixels, self.vae, rows=rows, generator=generator)
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
        except (RuntimeError, MemoryError) as error:
            if self.plan is None or self.plan.tile is not None or not is_out_of_memory(error):
                raise
        logger.warning(
            "No memory to decode whole pictures; decoding in tiles of %d pixels.", latent_stage.TILE
        )
        torch.cuda.empty_cache()  # outside the handler, where the failed call's tensors are still referenced
        latent_stage.use_tiles(self.vae, latent_stage.TILE)
        self.plan = replace(self.plan, tile=latent_stage.TILE)
        return latent_stage.decode(latents, self.vae)
