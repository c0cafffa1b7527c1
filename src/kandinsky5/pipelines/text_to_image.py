"""`Kandinsky5T2IPipeline`: prompts to pictures, with diffusers' call signature over our stages.

Comes in: what diffusers' class of that name takes. Goes out: pictures. The file knows the arguments and their defaults;
the order of the stages is in `drawing`, and how one computes in the stage.
"""

from typing import ClassVar

import torch
from torch import Tensor

from kandinsky5.pipelines.call import Call, index_of
from kandinsky5.pipelines.callbacks import StepCallback, tensor_inputs
from kandinsky5.pipelines.drawing import DrawingPipeline
from kandinsky5.pipelines.output import KandinskyImagePipelineOutput
from kandinsky5.pipelines.prompt_input import Prompts
from kandinsky5.prompts import Task


class Kandinsky5T2IPipeline(DrawingPipeline):
    """Text to image with Kandinsky 5.0 Image Lite.

    Takes text-to-image checkpoints and editing checkpoints (which then see zeros for source and mask).

    Components and saved defaults: `ImagePipeline`.
    """

    task: ClassVar[Task] = "text-to-image"
    text_limit: ClassVar[int] = 512

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
        max_sequence_length: int | None = 512,
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
        width = self.default_size[0] if width is None else index_of(width)
        height = self.default_size[1] if height is None else index_of(height)
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._check(width, height, names, output_type)
        image = self._draw(
            Call(
                prompts=Prompts.from_call(
                    *(prompt, negative_prompt),
                    *(prompt_embeds_qwen, prompt_embeds_clip),
                    *(negative_prompt_embeds_qwen, negative_prompt_embeds_clip),
                    *(prompt_cu_seqlens, negative_prompt_cu_seqlens),
                ),
                width=width,
                height=height,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                latents=latents,
                output_type=output_type,
                callback=callback_on_step_end,
                callback_tensors=names,
                max_sequence_length=self._kept_tokens(max_sequence_length),
            )
        )
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
        self._check(index_of(width), index_of(height), callback_on_step_end_tensor_inputs)
        self._kept_tokens(max_sequence_length)
        Prompts.from_call(
            *(prompt, negative_prompt),
            *(prompt_embeds_qwen, prompt_embeds_clip),
            *(negative_prompt_embeds_qwen, negative_prompt_embeds_clip),
            *(prompt_cu_seqlens, negative_prompt_cu_seqlens),
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
        return self._start(batch_size, num_channels_latents, height, width, dtype, device, generator, latents)

    def encode_prompt(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        max_sequence_length: int | None = 512,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts as tensors, in diffusers' form.

        Returns:
            Text states (B, L, E) padded on the right, pooled vectors (B, P), cumulative lengths (B + 1,) int32, where
            B is the number of prompts times `num_images_per_prompt`, each prompt's rows next to each other.

        Raises:
            RequestError: no prompt, a number out of bounds, or a pipeline without encoders.
        """
        prompts = Prompts.of_texts(prompt)
        return self._prompt_tensors(prompts, (), max_sequence_length, num_images_per_prompt, device, dtype)
