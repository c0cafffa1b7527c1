"""The public pipelines: diffusers' classes and call signatures over our stages.

Comes in: what diffusers' `Kandinsky5T2IPipeline` takes. Goes out: pictures. A call is a short sequence of stages; this
file holds their order, the checks that need several components, and the vocabulary of diffusers, and refuses to know how
any stage computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import KandinskyLoraLoaderMixin
from diffusers.models import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration

from kandinsky5 import denoise, latents as latent_stage, prompts
from kandinsky5.conditioning import encode_prompts
from kandinsky5.errors import RequestError
from kandinsky5.geometry import NATIVE_SIZES, VAE_FACTOR, check_size
from kandinsky5.loading import published_index, with_our_classes
from kandinsky5.model.transformer import MAX_TEXT_POSITIONS, Kandinsky5Transformer3DModel
from kandinsky5.records import Conditioning

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]


@dataclass
class KandinskyImagePipelineOutput(BaseOutput):
    """Pictures of one call.

    image: list of PIL images, or an array (B, H, W, 3) or tensor (B, 3, H, W) in [0, 1], or latents (B, 1, h, w, C).
    """

    image: list[PIL.Image.Image] | np.ndarray | Tensor

    @property
    def images(self) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """The same under the name that most diffusers pipelines use."""
        return self.image


class Kandinsky5T2IPipeline(DiffusionPipeline, KandinskyLoraLoaderMixin):
    """Text to image with Kandinsky 5.0 Image Lite.

    Takes text-to-image checkpoints and editing checkpoints (which then see zeros for source and mask).

    Args:
        transformer: the network.
        vae: FLUX's autoencoder; its config gives the size of a latent and the default size of a picture.
        text_encoder: Qwen2.5-VL.
        tokenizer: its processor, or only its tokenizer.
        text_encoder_2: CLIP's text model.
        tokenizer_2: its tokenizer.
        scheduler: a flow-matching scheduler; its `shift` belongs to the checkpoint.
        default_steps, default_guidance: used by a call that names none; saved with the checkpoint.
        template: "release" (the words the published weights were trained with) or "corrected".
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds_qwen",
        "prompt_embeds_clip",
        "negative_prompt_embeds_qwen",
        "negative_prompt_embeds_clip",
    ]

    def __init__(
        self,
        transformer: Kandinsky5Transformer3DModel,
        vae: AutoencoderKL,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Any,
        text_encoder_2: CLIPTextModel,
        tokenizer_2: CLIPTokenizer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        default_steps: int = 50,
        default_guidance: float = 3.5,
        template: str = "release",
    ):
        super().__init__()
        if ("text-to-image", template) not in prompts.TEMPLATES:
            names = sorted(name for task, name in prompts.TEMPLATES if task == "text-to-image")
            raise RequestError(f"template={template!r} is not one of {', '.join(names)}.")
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            scheduler=scheduler,
        )
        self.register_to_config(
            default_steps=default_steps, default_guidance=default_guidance, template=template
        )
        levels = len(vae.config.block_out_channels) if vae is not None else None
        self.vae_scale_factor_spatial = VAE_FACTOR if levels is None else 2 ** (levels - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor_spatial)
        self.batched_guidance = True

    # -- What the checkpoint says ---------------------------------------------------------------------------------

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """`model_index.json`, with the network's class replaced by ours in memory."""
        return with_our_classes(super().load_config(*args, **kwargs))

    def register_modules(self, **kwargs: Any) -> None:
        """Register components under the names that other libraries find in a saved `model_index.json`."""
        super().register_modules(**kwargs)
        self.register_to_config(**published_index({name: self.config[name] for name in kwargs}))

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) of a picture whose size is not given, from the autoencoder's `sample_size`."""
        if self.vae is None:
            return NATIVE_SIZES[0]
        side = self.vae.config.sample_size
        return (side, side) if isinstance(side, int) else (side[1], side[0])

    @property
    def default_steps(self) -> int:
        """Steps of a call that names none."""
        return self.config.default_steps

    @property
    def default_guidance(self) -> float:
        """Guidance of a call that names none."""
        return self.config.default_guidance

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """(width, height) pairs the checkpoint was trained on. Other multiples of 16 can be run."""
        return list(NATIVE_SIZES) if self.default_size in NATIVE_SIZES else [self.default_size]

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

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds_qwen: Tensor | None = None,
        prompt_embeds_clip: Tensor | None = None,
        negative_prompt_embeds_qwen: Tensor | None = None,
        negative_prompt_embeds_clip: Tensor | None = None,
        prompt_cu_seqlens: Tensor | None = None,
        negative_prompt_cu_seqlens: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int = 512,
    ) -> KandinskyImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt: one or several prompts.
            negative_prompt: one for all prompts or one each; empty by default. Used when guidance is above 1.
            height, width: pixels, multiples of 16 from 16 to 2048; a side not given is the checkpoint's own.
            num_inference_steps: steps of the flow; the checkpoint's own by default.
            guidance_scale: classifier-free guidance; at 1 or below there is no negative branch. The checkpoint's own
                by default.
            num_images_per_prompt: pictures a prompt; they come out prompt by prompt.
            generator: one for the batch, or one a picture.
            latents: starting noise (B, 1, height / 8, width / 8, C) for all B pictures.
            prompt_embeds_qwen, prompt_embeds_clip, prompt_cu_seqlens: instead of `prompt`, what `encode_prompt` gives:
                (rows, L, E) right-padded, (rows, P), (rows + 1,); each row gives `num_images_per_prompt` pictures.
            negative_prompt_embeds_qwen, negative_prompt_embeds_clip, negative_prompt_cu_seqlens: the same for
                `negative_prompt`; one row for all or one for each row of the prompts.
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent" (B, 1, h, w, C).
            return_dict: an output with `.image` and `.images`, or a tuple.
            callback_on_step_end: called as `(pipeline, step, timestep, tensors)` after each step; what it returns
                replaces those tensors for the steps that follow.
            callback_on_step_end_tensor_inputs: names of the tensors it is given, `["latents"]` by default.
            max_sequence_length: text tokens kept, 1 to 1024.

        Raises:
            RequestError (a ValueError): arguments that cannot be carried out, before any model runs.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        tensor_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        width = self.default_size[0] if width is None else width
        height = self.default_size[1] if height is None else height
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        self._guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        self._interrupt = False
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            prompt_embeds_qwen,
            prompt_embeds_clip,
            negative_prompt_embeds_qwen,
            negative_prompt_embeds_clip,
            prompt_cu_seqlens,
            negative_prompt_cu_seqlens,
            tensor_inputs,
            max_sequence_length,
        )
        per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        _check_choices(steps, per_prompt, output_type)
        rows = _row_count(prompt, prompt_embeds_qwen)
        device, dtype = self._execution_device, self.transformer.dtype
        run_latents = self.prepare_latents(
            rows * per_prompt,
            self.transformer.config.out_visual_dim,
            height,
            width,
            torch.float32,
            device,
            generator,
            latents,
        )
        try:
            positive = self._conditioning(
                prompt,
                prompt_embeds_qwen,
                prompt_embeds_clip,
                prompt_cu_seqlens,
                rows,
                per_prompt,
                max_sequence_length,
            ).to(device, dtype)
            negative = None
            if self.guidance_scale > 1:
                negative = self._conditioning(
                    "" if negative_prompt is None else negative_prompt,
                    negative_prompt_embeds_qwen,
                    negative_prompt_embeds_clip,
                    negative_prompt_cu_seqlens,
                    rows,
                    per_prompt,
                    max_sequence_length,
                ).to(device, dtype)
            run = denoise.Run(
                latents=run_latents,
                positive=positive,
                negative=negative,
                guidance=self.guidance_scale,
                source=self._empty_source(run_latents),
                batched_guidance=self.batched_guidance,
            )
            self._denoise(run, steps, device, callback_on_step_end, tensor_inputs)
            image: Any = run.latents
            if output_type != "latent":
                pixels = latent_stage.decode(run.latents, self.vae)
                image = self.image_processor.postprocess(pixels, output_type=output_type)
        finally:
            self.maybe_free_model_hooks()
        return KandinskyImagePipelineOutput(image=image) if return_dict else (image,)

    def _denoise(
        self,
        run: denoise.Run,
        steps: int,
        device: torch.device,
        callback: StepCallback | PipelineCallback | MultiPipelineCallbacks | None,
        tensor_inputs: list[str],
    ) -> None:
        """Run the steps under a progress bar, with the user's callback after each."""
        timesteps = denoise.set_times(self.scheduler, steps, device)
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:

            def on_step(i: int, timestep: Tensor, run: denoise.Run) -> None:
                if callback is not None:
                    _apply_callback(callback, self, i, timestep, run, tensor_inputs)
                run.guidance, run.stop = self._guidance_scale, self._interrupt
                progress_bar.update()

            denoise.denoise(run, transformer=self.transformer, scheduler=self.scheduler, on_step=on_step)

    # -- Steps of the call that are public in diffusers -------------------------------------------------------------

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        prompt_embeds_qwen: Tensor | None = None,
        prompt_embeds_clip: Tensor | None = None,
        negative_prompt_embeds_qwen: Tensor | None = None,
        negative_prompt_embeds_clip: Tensor | None = None,
        prompt_cu_seqlens: Tensor | None = None,
        negative_prompt_cu_seqlens: Tensor | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> None:
        """Refuse arguments that cannot be carried out; the first that is wrong raises a RequestError."""
        check_size(width, height, multiple=self.vae_scale_factor_spatial * self.transformer.config.patch_size[1])
        if max_sequence_length is not None and not 1 <= max_sequence_length <= MAX_TEXT_POSITIONS:
            raise RequestError(
                f"max_sequence_length={max_sequence_length} must be from 1 to {MAX_TEXT_POSITIONS}."
            )
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise RequestError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} must be among {self._callback_tensor_inputs}."
            )
        _check_text("prompt", prompt, prompt_embeds_qwen, prompt_embeds_clip, prompt_cu_seqlens)
        _check_text(
            "negative_prompt",
            negative_prompt,
            negative_prompt_embeds_qwen,
            negative_prompt_embeds_clip,
            negative_prompt_cu_seqlens,
        )
        if prompt is None and prompt_embeds_qwen is None:
            raise RequestError(
                "Nothing to draw: pass `prompt`, or `prompt_embeds_qwen` with `prompt_embeds_clip` and "
                "`prompt_cu_seqlens`."
            )
        rows, negative_rows = (
            _row_count(prompt, prompt_embeds_qwen),
            _row_count(negative_prompt, negative_prompt_embeds_qwen),
        )
        if negative_rows not in (1, rows):
            raise RequestError(f"{negative_rows} negative prompts for {rows} prompts; pass one for all, or {rows}.")

    def encode_prompt(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        max_sequence_length: int = 512,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts as tensors, in diffusers' form.

        Returns:
            Text states (B, L, E) padded on the right, pooled vectors (B, P), cumulative lengths (B + 1,) int32, where
            B is the number of prompts times `num_images_per_prompt`, each prompt's rows next to each other.
        """
        texts = [prompt] if isinstance(prompt, str) else prompt
        conditioning = self._encode(texts, max_sequence_length).to(device, dtype).repeat(num_images_per_prompt)
        return conditioning.text, conditioning.pooled, conditioning.cu_seqlens

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

    # -- Parts ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: list[str], max_sequence_length: int) -> Conditioning:
        if self.text_encoder is None or self.text_encoder_2 is None:
            raise RequestError(
                "This pipeline was loaded without its text encoders; pass precomputed prompt embeddings (and negative "
                "ones, or guidance_scale=1)."
            )
        return encode_prompts(
            [prompts.clean(text) for text in texts],
            prompts.TEMPLATES["text-to-image", self.config.template],
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            max_tokens=max_sequence_length,
            device=self._execution_device,
            dtype=self.text_encoder.dtype,
        )

    def _conditioning(
        self,
        prompt: str | list[str] | None,
        embeds_qwen: Tensor | None,
        embeds_clip: Tensor | None,
        cu_seqlens: Tensor | None,
        rows: int,
        per_prompt: int,
        max_sequence_length: int,
    ) -> Conditioning:
        """One row a picture, from texts or from precomputed embeddings."""
        if embeds_qwen is not None and embeds_clip is not None and cu_seqlens is not None:
            conditioning = Conditioning.from_cu_seqlens(embeds_qwen, embeds_clip, cu_seqlens)
        else:
            assert prompt is not None
            conditioning = self._encode([prompt] if isinstance(prompt, str) else prompt, max_sequence_length)
        if len(conditioning) != rows:
            conditioning = conditioning.repeat(rows)
        return conditioning.repeat(per_prompt)

    def _empty_source(self, run_latents: Tensor) -> Tensor | None:
        """Zeros for source and mask when the network is an editing one (as the authors do), else None."""
        extra = self.transformer.config.in_visual_dim + 1 if self.transformer.config.visual_cond else 0
        return run_latents.new_zeros(*run_latents.shape[:-1], extra) if extra else None


def _apply_callback(
    callback: StepCallback | PipelineCallback | MultiPipelineCallbacks,
    pipeline: Kandinsky5T2IPipeline,
    i: int,
    timestep: Tensor,
    run: denoise.Run,
    tensor_inputs: list[str],
) -> None:
    """Hand the run's tensors to a diffusers callback, and put what it returns back into the run."""
    tensors = {
        "latents": run.latents,
        "prompt_embeds_qwen": run.positive.text,
        "prompt_embeds_clip": run.positive.pooled,
        "negative_prompt_embeds_qwen": run.negative.text if run.negative else None,
        "negative_prompt_embeds_clip": run.negative.pooled if run.negative else None,
    }
    changed = callback(pipeline, i, timestep, {name: tensors[name] for name in tensor_inputs}) or {}
    run.latents = changed.get("latents", run.latents).to(torch.float32)
    run.positive = _with_embeds(
        run.positive, changed.get("prompt_embeds_qwen"), changed.get("prompt_embeds_clip")
    )
    if run.negative is not None:
        run.negative = _with_embeds(
            run.negative, changed.get("negative_prompt_embeds_qwen"), changed.get("negative_prompt_embeds_clip")
        )


def _with_embeds(old: Conditioning, text: Tensor | None, pooled: Tensor | None) -> Conditioning:
    """The conditioning with replaced tensors. Text states of another shape have no padding."""
    text = old.text if text is None else text
    mask = old.mask
    if text.shape[:2] != mask.shape:
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return Conditioning(text=text, mask=mask, pooled=old.pooled if pooled is None else pooled)


def _check_text(
    name: str,
    prompt: str | list[str] | None,
    embeds_qwen: Tensor | None,
    embeds_clip: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    """Either texts, or all three precomputed tensors, or neither."""
    if prompt is not None and not (
        isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(p, str) for p in prompt))
    ):
        raise RequestError(f"`{name}` must be a string or a list of strings, got {type(prompt).__name__}.")
    if prompt == []:
        raise RequestError(f"`{name}` is an empty list.")
    given = [x is not None for x in (embeds_qwen, embeds_clip, cu_seqlens)]
    if any(given) and not all(given):
        raise RequestError(
            f"`{name}_embeds_qwen`, `{name}_embeds_clip` and `{name}_cu_seqlens` belong together: pass all three or none."
        )
    if prompt is not None and all(given):
        raise RequestError(f"Pass either `{name}` or its precomputed embeddings, not both.")


def _check_choices(steps: int, per_prompt: int, output_type: str | None) -> None:
    if steps < 1:
        raise RequestError(f"num_inference_steps={steps} must be at least 1.")
    if per_prompt < 1:
        raise RequestError(f"num_images_per_prompt={per_prompt} must be at least 1.")
    if output_type not in OUTPUT_TYPES:
        raise RequestError(f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")


def _row_count(prompt: str | list[str] | None, embeds: Tensor | None) -> int:
    """Prompts in a call; one when nothing is given (an empty negative prompt for all)."""
    if isinstance(prompt, list):
        return len(prompt)
    return 1 if embeds is None else len(embeds)
