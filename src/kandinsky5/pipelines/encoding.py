"""How a pipeline's words, and what its text encoder is shown of a source, become embeddings.

Comes in: checked prompts, pictures at the size of the result. Goes out: a row a prompt, or diffusers' three tensors.
The template, its crop and the limit of tokens are the task's. What is drawn of them is in `drawing`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from kandinsky5.conditioning import encode_prompts, view
from kandinsky5.errors import RequestError
from kandinsky5.model.transformer import MAX_TEXT_POSITIONS
from kandinsky5.pictures import halved
from kandinsky5.pipelines.base import ImagePipeline
from kandinsky5.pipelines.call import whole
from kandinsky5.pipelines.processor_files import build_picture_processor
from kandinsky5.pipelines.prompt_input import Prompts
from kandinsky5.pipelines.room import leave
from kandinsky5.prompts import TEMPLATES, Template, clean, crop
from kandinsky5.records import Conditioning


class EncodingPipeline(ImagePipeline):
    """The encoders of an `ImagePipeline` at work."""

    text_limit: ClassVar[int]
    """Text tokens kept by a call that does not say (authors' pipelines)."""

    @property
    def _template(self) -> Template:
        return TEMPLATES[self.task, self.config.template]

    @property
    def prompt_template(self) -> str:
        """The full text around a prompt, which stands where "{}" is, as diffusers has it. The checkpoint's own."""
        return self._template.text("{}", images=int(self.task == "editing"))

    @property
    def prompt_template_encode_start_idx(self) -> int:
        """How many of the text encoder's states are cut off the front; by this tokenizer's count.

        Raises:
            RequestError: the pipeline has no tokenizer.
        """
        if self.tokenizer is None:
            raise RequestError(
                "This pipeline was loaded without its tokenizer, which counts the template's tokens."
            )
        words: Any = getattr(self.tokenizer, "tokenizer", self.tokenizer)  # a processor holds one
        return crop(len(words(self._template.prefix)["input_ids"]))

    def _kept_tokens(self, asked: int | None) -> int:
        """`max_sequence_length` of a call, the task's own where it is None. Raises RequestError out of bounds."""
        if asked is None:
            return self.text_limit
        return whole("max_sequence_length", asked, 1, MAX_TEXT_POSITIONS)

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
        max_sequence_length: int | None,
        per_prompt: int | None,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `encode_prompt` of both pipelines gives, in diffusers' form."""
        limit = self._kept_tokens(max_sequence_length)
        times = 1 if per_prompt is None else whole("num_images_per_prompt", per_prompt)
        positive, _ = self._encoded(prompts, pictures, limit)
        positive = positive.to(device, dtype).repeat(times)
        return positive.text, positive.pooled, positive.cu_seqlens

    def _encode(
        self, texts: Sequence[str], max_sequence_length: int, shown: Sequence[Image.Image] = ()
    ) -> Conditioning:
        """A row a text; `shown` are the pictures that the vision tower sees, none or one a text."""
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        if missing := [name for name in names if getattr(self, name) is None]:
            raise RequestError(
                f"This pipeline was loaded without its text encoders (no {', '.join(missing)}); pass precomputed "
                "prompt embeddings (and negative ones, or guidance_scale=1)."
            )
        with nullcontext() if self.plan is None else self._turns:  # slots are one call's
            try:
                return encode_prompts(
                    [clean(text) for text in texts],
                    self._template,
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
            finally:
                leave(self.plan, self.text_encoder)
                leave(self.plan, self.text_encoder_2)

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
