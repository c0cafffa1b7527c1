"""`Kandinsky5T2IPipeline`: prompts to pictures, with diffusers' call signature over our stages.

Comes in: what diffusers' class of that name takes. Goes out: pictures. A call is a short sequence of stages; this file
holds their order and the checks that need several components, and refuses to know how any stage computes.
"""

from typing import ClassVar

import torch
from torch import Tensor

from kandinsky5 import denoise
from kandinsky5.conditioning import encode_prompts
from kandinsky5.errors import RequestError
from kandinsky5.geometry import check_size
from kandinsky5.model.transformer import MAX_TEXT_POSITIONS
from kandinsky5.pipelines.base import ImagePipeline
from kandinsky5.pipelines.callbacks import StepCallback, tensor_inputs
from kandinsky5.pipelines.output import OUTPUT_TYPES, KandinskyImagePipelineOutput
from kandinsky5.pipelines.prompt_input import PromptInput, encode_inputs
from kandinsky5.prompts import TEMPLATES, Task, clean
from kandinsky5.records import Conditioning


class Kandinsky5T2IPipeline(ImagePipeline):
    """Text to image with Kandinsky 5.0 Image Lite.

    Takes text-to-image checkpoints and editing checkpoints (which then see zeros for source and mask).

    Components and saved defaults: `ImagePipeline`.
    """

    task: ClassVar[Task] = "text-to-image"

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
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
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
        width = self.default_size[0] if width is None else width
        height = self.default_size[1] if height is None else height
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        positive_text = (prompt, prompt_embeds_qwen, prompt_embeds_clip)
        negative_text = (negative_prompt, negative_prompt_embeds_qwen, negative_prompt_embeds_clip)
        self.check_inputs(
            *(prompt, negative_prompt, height, width),
            *(*positive_text[1:], *negative_text[1:], prompt_cu_seqlens, negative_prompt_cu_seqlens),
            *(names, max_sequence_length),
        )
        _check_choices(steps, per_prompt, output_type)
        inputs = [PromptInput.from_call("prompt", *positive_text, prompt_cu_seqlens)]
        self._guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        self._interrupt = False
        if self.guidance_scale > 1:
            inputs.append(
                PromptInput.from_call("negative_prompt", *negative_text, negative_prompt_cu_seqlens)
            )
        device, channels = self._execution_device, self.transformer.config.out_visual_dim
        start = self.prepare_latents(
            *(len(inputs[0]) * per_prompt, channels, height, width),
            *(torch.float32, device, generator, latents),
        )
        try:
            positive, *negative = self._conditionings(inputs, per_prompt, max_sequence_length)
            run = denoise.Run(
                latents=start,
                positive=positive,
                negative=negative[0] if negative else None,
                guidance=self.guidance_scale,
                source=self._empty_source(start),
                batched_guidance=self.batched_guidance,
            )
            self._denoise(run, steps, device, callback_on_step_end, names)
            image = self._pictures(run.latents, output_type)
        finally:
            self.maybe_free_model_hooks()
        return KandinskyImagePipelineOutput(image=image) if return_dict else (image,)

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
        check_size(
            width, height, multiple=self.vae_scale_factor_spatial * self.transformer.config.patch_size[1]
        )
        if max_sequence_length is not None and not 1 <= max_sequence_length <= MAX_TEXT_POSITIONS:
            raise RequestError(
                f"max_sequence_length={max_sequence_length} must be from 1 to {MAX_TEXT_POSITIONS}."
            )
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise RequestError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} must be among {self._callback_tensor_inputs}."
            )
        positive = PromptInput.from_call(
            "prompt", prompt, prompt_embeds_qwen, prompt_embeds_clip, prompt_cu_seqlens
        )
        negative = PromptInput.from_call(
            "negative_prompt",
            *(
                negative_prompt,
                negative_prompt_embeds_qwen,
                negative_prompt_embeds_clip,
                negative_prompt_cu_seqlens,
            ),
        )
        if prompt is None and positive.precomputed is None:
            raise RequestError(
                "Nothing to draw: pass `prompt`, or `prompt_embeds_qwen` with `prompt_embeds_clip` and "
                "`prompt_cu_seqlens`."
            )
        if len(negative) not in (1, len(positive)):
            raise RequestError(
                f"{len(negative)} negative prompts for {len(positive)} prompts; pass one for all, or {len(positive)}."
            )

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
        conditioning = (
            self._encode(texts, max_sequence_length).to(device, dtype).repeat(num_images_per_prompt)
        )
        return conditioning.text, conditioning.pooled, conditioning.cu_seqlens

    # -- Parts ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: list[str], max_sequence_length: int) -> Conditioning:
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
        )

    def _conditionings(
        self, inputs: list[PromptInput], per_prompt: int, max_sequence_length: int
    ) -> list[Conditioning]:
        """One row a picture for each input, where the network runs; a single negative prompt serves every row."""
        encoded = encode_inputs(inputs, lambda texts: self._encode(texts, max_sequence_length))
        rows = len(encoded[0])
        repeated = [c.repeat(per_prompt if len(c) == rows else rows * per_prompt) for c in encoded]
        return [c.to(self._execution_device, self.transformer.dtype) for c in repeated]

    def _empty_source(self, run_latents: Tensor) -> Tensor | None:
        """Zeros for source and mask when the network is an editing one (as the authors do), else None."""
        extra = self.transformer.config.in_visual_dim + 1 if self.transformer.config.visual_cond else 0
        return run_latents.new_zeros(*run_latents.shape[:-1], extra) if extra else None


def _check_choices(steps: int, per_prompt: int, output_type: str) -> None:
    if steps < 1:
        raise RequestError(f"num_inference_steps={steps} must be at least 1.")
    if per_prompt < 1:
        raise RequestError(f"num_images_per_prompt={per_prompt} must be at least 1.")
    if output_type not in OUTPUT_TYPES:
        raise RequestError(f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")
