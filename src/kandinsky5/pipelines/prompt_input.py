"""What a call says of its prompts: texts, or embeddings computed before; in diffusers' vocabulary.

Comes in: the arguments of a pipeline call. Goes out: checked `Prompts`, and from them one `Conditioning` for each
guidance branch. It refuses to know encoders: encoding is a function it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from PIL import Image
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.records import Conditioning

Value = TypeVar("Value")

Encode = Callable[[list[str], list[Image.Image]], Conditioning]
"""(texts, pictures) -> a row a text. There are no pictures, or one a text."""


@dataclass(frozen=True, kw_only=True)
class PromptInput:
    """Either texts or precomputed rows, never both; neither is the empty text."""

    texts: tuple[str, ...] = ("",)
    precomputed: Conditioning | None = None

    @classmethod
    def from_call(
        cls,
        name: str,
        prompt: str | list[str] | None,
        embeds_qwen: Tensor | None,
        embeds_clip: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Self:
        """Check the four arguments of `name` ("prompt" or "negative_prompt") against each other.

        Raises:
            RequestError: a prompt that is not text, or embeddings that are incomplete or contradict each other.
        """
        tensors = (embeds_qwen, embeds_clip, cu_seqlens)
        if odd := [tensor for tensor in tensors if tensor is not None and not isinstance(tensor, Tensor)]:
            raise RequestError(
                f"The precomputed embeddings of `{name}` must be tensors, not a {type(odd[0]).__name__}."
            )
        if embeds_qwen is not None and embeds_clip is not None and cu_seqlens is not None:
            if prompt is not None:
                raise RequestError(f"Pass either `{name}` or its precomputed embeddings, not both.")
            return cls(precomputed=Conditioning.from_cu_seqlens(embeds_qwen, embeds_clip, cu_seqlens))
        if any(tensor is not None for tensor in tensors):
            raise RequestError(
                f"`{name}_embeds_qwen`, `{name}_embeds_clip` and `{name}_cu_seqlens` belong together: pass all three "
                "or none."
            )
        texts = [prompt] if isinstance(prompt, str) else [""] if prompt is None else prompt
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"`{name}` must be a string or a list of strings, got {prompt!r:.80}.")
        if not texts:
            raise RequestError(f"`{name}` is an empty list.")
        return cls(texts=tuple(texts))

    def check_widths(self, name: str, text: int, pooled: int) -> None:
        """Refuse precomputed rows that are not as wide as a network takes them. Raises RequestError."""
        if self.precomputed is None:
            return
        for of, tensor, width in (
            ("qwen", self.precomputed.text, text),
            ("clip", self.precomputed.pooled, pooled),
        ):
            if tensor.shape[-1] != width:
                raise RequestError(
                    f"`{name}_embeds_{of}` has {tensor.shape[-1]} channels, and the network takes {width}; encode the "
                    "prompts with this checkpoint's own encoders."
                )

    def __len__(self) -> int:
        """Rows it stands for."""
        return len(self.texts) if self.precomputed is None else len(self.precomputed)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What pictures should show, and what they are guided away from: one row for all, or one for each prompt."""

    positive: PromptInput
    negative: PromptInput

    @classmethod
    def from_call(
        cls,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds_qwen: Tensor | None,
        prompt_embeds_clip: Tensor | None,
        negative_prompt_embeds_qwen: Tensor | None,
        negative_prompt_embeds_clip: Tensor | None,
        prompt_cu_seqlens: Tensor | None,
        negative_prompt_cu_seqlens: Tensor | None,
    ) -> Self:
        """Check both sides of a call, and against each other.

        Raises:
            RequestError: nothing to draw, or as many negative prompts as fit neither all nor each.
        """
        positive = PromptInput.from_call(
            "prompt", prompt, prompt_embeds_qwen, prompt_embeds_clip, prompt_cu_seqlens
        )
        negative = PromptInput.from_call(
            "negative_prompt",
            *(negative_prompt, negative_prompt_embeds_qwen, negative_prompt_embeds_clip),
            negative_prompt_cu_seqlens,
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
        return cls(positive=positive, negative=negative)

    @classmethod
    def of_texts(cls, prompt: str | list[str]) -> Self:
        """Prompts without negatives. Raises RequestError for what is no text."""
        if prompt is None:
            raise RequestError('Nothing to encode: pass `prompt`, which may be "".')
        return cls(positive=PromptInput.from_call("prompt", prompt, None, None, None), negative=PromptInput())

    def __len__(self) -> int:
        """Prompts, each of which gives one or several pictures."""
        return len(self.positive)

    def check_widths(self, text: int, pooled: int) -> None:
        """Refuse precomputed embeddings of other encoders, by their width. Raises RequestError."""
        self.positive.check_widths("prompt", text, pooled)
        self.negative.check_widths("negative_prompt", text, pooled)

    def check_pictures(self, count: int) -> None:
        """Refuse a number of source pictures that fits neither all prompts nor each of them."""
        if count not in (1, len(self)):
            raise RequestError(
                f"{count} source pictures for {len(self)} prompt{'s' if len(self) > 1 else ''}; pass one for all, or "
                "one prompt for each picture."
            )

    def encoded(
        self, encode: Encode, *, guided: bool, pictures: Sequence[Image.Image] = ()
    ) -> tuple[Conditioning, Conditioning | None]:
        """A row a prompt for the positive branch, and for the negative one if `guided`.

        All texts go to `encode` together, so that each encoder is brought in once. `pictures` are none, one for all
        prompts or one each; a text that goes with several of them is encoded with each.
        """
        branches = [self.positive, self.negative] if guided else [self.positive]
        texts: list[str] = []
        beside: list[Image.Image] = []
        for branch in (b for b in branches if b.precomputed is None):
            rows = max(len(branch), len(pictures))
            texts += _each(branch.texts, rows)
            beside += _each(pictures, rows)
        encoded = encode(texts, beside) if texts else None
        results, start = [], 0
        for branch in branches:
            part = branch.precomputed
            if part is None:
                assert encoded is not None
                stop = start + max(len(branch), len(pictures))
                part, start = encoded.rows(start, stop), stop
            else:
                part = part.rows(0, len(part))  # without padding that no row needs
            results.append(part if len(part) == len(self) else part.repeat(len(self)))
        return results[0], results[1] if guided else None


def _each(values: Sequence[Value], rows: int) -> list[Value]:
    """A value for each row, of none, one for all or one each."""
    return list(values) * (rows if len(values) == 1 else 1)
