"""What a call says of its prompts: texts, or embeddings computed before; in diffusers' vocabulary.

Comes in: the arguments of a pipeline call. Goes out: a checked `PromptInput`, and from several of them one
`Conditioning` each. It refuses to know encoders: encoding is a function it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.records import Conditioning


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

    def __len__(self) -> int:
        """Rows it stands for."""
        return len(self.texts) if self.precomputed is None else len(self.precomputed)


def encode_inputs(
    inputs: Sequence[PromptInput], encode: Callable[[list[str]], Conditioning]
) -> list[Conditioning]:
    """One `Conditioning` an input. All texts go to `encode` together, so that each encoder is brought in once."""
    texts = [text for given in inputs if given.precomputed is None for text in given.texts]
    encoded = encode(texts) if texts else None
    results, start = [], 0
    for given in inputs:
        if given.precomputed is not None:
            results.append(given.precomputed)
        else:
            assert encoded is not None
            results.append(encoded.rows(start, start + len(given)))
            start += len(given)
    return results
