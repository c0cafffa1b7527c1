"""`Kandinsky5I2IPipeline`: sources and instructions to edited pictures, with diffusers' call signature over our stages.

Comes in: what diffusers' class of that name takes, and how a source is to be fitted. Goes out: pictures, and how each
source came to their size. The file knows the arguments, their defaults and the size of an edit; the order of the stages
is in `drawing`, decoding and fitting of sources in `kandinsky5.pictures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FitKind, nearest_native, same_shape, side_for
from kandinsky5.pictures import Fit, fit_picture
from kandinsky5.pictures.arrays import as_pictures
from kandinsky5.pipelines.call import Call, index_of
from kandinsky5.pipelines.callbacks import StepCallback, tensor_inputs
from kandinsky5.pipelines.drawing import DrawingPipeline
from kandinsky5.pipelines.encoder_parts import TextEncoderPart
from kandinsky5.pipelines.output import KandinskyImagePipelineOutput
from kandinsky5.pipelines.prompt_input import Prompts
from kandinsky5.prompts import Task

SizeRule = Literal["native", "source"]
"""native: the checkpoint's size nearest in shape. source: the source's own shape at the checkpoint's area."""

SIZE_RULES: Final[tuple[SizeRule, ...]] = get_args(SizeRule)


class Kandinsky5I2IPipeline(DrawingPipeline):
    """Editing with Kandinsky 5.0 Image Lite: a source picture and an instruction become an edited picture.

    Takes editing checkpoints, whose network has 33 input channels: noise, source latents, mask.

    Components and saved defaults: `ImagePipeline`.
    """

    task: ClassVar[Task] = "editing"
    text_limit: ClassVar[int] = 1024
    text_encoder_parts: ClassVar[tuple[TextEncoderPart, ...]] = ("vision",)

    @classmethod
    def check_network(cls, config: Mapping[str, Any]) -> None:
        """Refuse a network without channels for a source. Raises RequestError naming the class that takes it."""
        if not config.get("visual_cond"):
            raise RequestError(
                f"The network takes {config.get('in_visual_dim')} channels and none of a source picture: it is a "
                "text-to-image checkpoint. Use Kandinsky5T2IPipeline, or an editing checkpoint such as "
                "kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers."
            )

    @torch.no_grad()
    def __call__(
        self,
        image: Any = None,
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
        max_sequence_length: int | None = 1024,
        size: SizeRule = "native",
        fit: FitKind = "cover",
    ) -> KandinskyImagePipelineOutput | tuple:
        """Edit pictures.

        Arguments that are not described here are those of `Kandinsky5T2IPipeline`.

        Args:
            image: one source picture for all prompts, or one for each: a PIL image, an array, a tensor, or a list
                (`kandinsky5.pictures.as_pictures` says which). It is never written to.
            prompt: one or several instructions.
            height, width: pixels of the result, multiples of 16 from 16 to 2048. One alone keeps the source's shape.
            generator: of the noise, and after it of the sample of the source's latents.
            prompt_embeds_qwen, prompt_embeds_clip, prompt_cu_seqlens: instead of `prompt`, what `encode_prompt` gives;
                the source still enters through its latents.
            max_sequence_length: tokens kept of instruction and picture, 1 to 1024. Only words are ever cut.
            size: where neither height nor width is given, "native" (the checkpoint's size nearest in shape, as the
                authors do) or "source" (the source's own shape at the checkpoint's area).
            fit: how a source of another shape is brought to the size: "cover" (cut off, as the authors do), "pad"
                (white around it) or "stretch" (as diffusers does). `.fits` of the output says what that did.

        Raises:
            RequestError (a ValueError): arguments that cannot be carried out, before any model runs.
        """
        names = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        prompts = Prompts.from_call(
            *(prompt, negative_prompt),
            *(prompt_embeds_qwen, prompt_embeds_clip),
            *(negative_prompt_embeds_qwen, negative_prompt_embeds_clip),
            *(prompt_cu_seqlens, negative_prompt_cu_seqlens),
        )
        self._check_autoencoder()
        sources = as_pictures(image)
        prompts.check_pictures(len(sources))
        width, height = self.edit_size([source.size for source in sources], height, width, size)
        self._check(width, height, names, output_type)
        fitted = [fit_picture(source, (width, height), fit) for source in sources]
        drawn = self._draw(
            Call(
                prompts=prompts,
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
                pictures=[picture for picture, _ in fitted],
            )
        )
        fits: list[Fit] = [record for _, record in fitted]
        return KandinskyImagePipelineOutput(image=drawn, fits=fits) if return_dict else (drawn,)

    def edit_size(
        self,
        sources: Sequence[tuple[int, int]],
        height: int | None = None,
        width: int | None = None,
        size: SizeRule = "native",
    ) -> tuple[int, int]:
        """(width, height) of the edits of sources of these (width, height), by the rules of the call.

        Raises:
            RequestError: an unknown rule, a rule beside a side, a side that the other cannot follow, or sources that
                ask for several sizes.
        """
        if size not in SIZE_RULES:
            raise RequestError(f"size={size!r} is not one of {', '.join(SIZE_RULES)}.")
        height, width = index_of(height), index_of(width)
        if size == "source" and (width is not None or height is not None):
            raise RequestError("size='source' chooses height and width; leave them out.")
        if width is not None and height is not None:
            return width, height
        sizes = sorted({self._size_of_one(source, height, width, size) for source in sources})
        if len(sizes) > 1:
            several = ", ".join(f"{w}x{h}" for w, h in sizes)
            raise RequestError(
                f"The sources ask for several sizes ({several}); give height and width, or edit them in calls of "
                "their own."
            )
        return sizes[0]

    def _size_of_one(
        self, source: tuple[int, int], height: int | None, width: int | None, size: SizeRule
    ) -> tuple[int, int]:
        if width is not None:
            return width, side_for(width, source, "height")
        if height is not None:
            return side_for(height, source, "width"), height
        if size == "native":
            return nearest_native(*source, self.resolutions)
        return same_shape(*source, self.default_size[0] * self.default_size[1])

    # -- Steps of the call that are public in diffusers -------------------------------------------------------------

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        image: Any,
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
        prompts = Prompts.from_call(
            *(prompt, negative_prompt),
            *(prompt_embeds_qwen, prompt_embeds_clip),
            *(negative_prompt_embeds_qwen, negative_prompt_embeds_clip),
            *(prompt_cu_seqlens, negative_prompt_cu_seqlens),
        )
        prompts.check_pictures(len(as_pictures(image)))
        self._check(index_of(width), index_of(height), callback_on_step_end_tensor_inputs)
        self._kept_tokens(max_sequence_length)

    @torch.no_grad()
    def prepare_latents(
        self,
        image: Any,
        batch_size: int,
        num_channels_latents: int = 16,
        height: int = 1024,
        width: int = 1024,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        fit: FitKind = "cover",
    ) -> Tensor:
        """What the network of an edit is given first: noise, then the sources' latents, then ones, on the channels.

        Args:
            image: one source for all rows, or one for each prompt, whose rows are next to each other.
            batch_size: rows, which are pictures to draw.
            latents: instead of the noise; or all channels, which are moved and given back, as diffusers does.
            fit: how a source of another shape is brought to the size.

        Returns:
            (batch_size, 1, height / 8, width / 8, 2 C + 1) in `dtype`, float32 by default.

        Raises:
            RequestError: sources that fit neither all rows nor a part each, and as `Kandinsky5T2IPipeline`'s.
        """
        if isinstance(latents, Tensor) and latents.shape[-1] == 2 * num_channels_latents + 1:
            return latents.to(device=device, dtype=dtype)
        self._check_autoencoder()
        pictures = [fit_picture(source, (width, height), fit)[0] for source in as_pictures(image)]
        if batch_size % len(pictures):
            raise RequestError(f"{len(pictures)} source pictures for {batch_size} rows; each needs as many.")
        start = self._start(
            batch_size, num_channels_latents, height, width, dtype, device, generator, latents
        )
        rows = [row * len(pictures) // batch_size for row in range(batch_size)]
        return torch.cat([start, self._source_of(pictures, rows, generator).to(start)], dim=-1)

    def _check_autoencoder(self) -> None:
        if self.vae is None:
            raise RequestError(
                "This pipeline was loaded without its autoencoder, which an edit needs for its source."
            )

    def encode_prompt(
        self,
        prompt: str | list[str],
        image: Any,
        num_images_per_prompt: int = 1,
        max_sequence_length: int | None = 1024,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        height: int | None = None,
        width: int | None = None,
        size: SizeRule = "native",
        fit: FitKind = "cover",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Instructions, each beside its picture, as tensors, in diffusers' form.

        `image`, `height`, `width`, `size` and `fit` are those of the call that the tensors are meant for: the text
        encoder sees the picture as it is edited.

        Returns:
            As `Kandinsky5T2IPipeline.encode_prompt`.
        """
        prompts = Prompts.of_texts(prompt)
        sources = as_pictures(image)
        prompts.check_pictures(len(sources))
        chosen = self.edit_size([source.size for source in sources], height, width, size)
        fitted = [fit_picture(source, chosen, fit)[0] for source in sources]
        return self._prompt_tensors(
            prompts, fitted, max_sequence_length, num_images_per_prompt, device, dtype
        )
