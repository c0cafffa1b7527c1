"""The last prompts that were encoded, so that one that comes again with another seed is not.

Comes in: texts, and the conditionings they became. Goes out: `Prompts` of either. Only what was encoded together is
found together, so that a picture has the same bytes whatever was asked before it. Kept in host memory. Refuses to know
encoders, source pictures, and who asks.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from kandinsky5.pipelines.prompt_input import PromptInput, Prompts
from kandinsky5.records import Conditioning

KEPT: Final = 16
"""Pairs of prompts; two of 512 tokens are 7 MB at the published width."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is encoded together: a prompt, the negative one of a run that is guided, and the tokens kept of each."""

    prompt: str
    negative: str | None
    tokens: int

    @property
    def prompts(self) -> Prompts:
        """Not encoded yet."""
        return Prompts.from_call(self.prompt, self.negative, *[None] * 6)


class RememberedPrompts:
    """See the module. The pair that was not asked for the longest goes first."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[Texts, Prompts] = OrderedDict()

    def of(self, texts: Texts) -> Prompts:
        """The prompts, encoded if these texts were kept."""
        if texts not in self._pairs:
            return texts.prompts
        self._pairs.move_to_end(texts)
        return self._pairs[texts]

    def keep(self, texts: Texts, positive: Conditioning, negative: Conditioning | None) -> None:
        """What the texts became; of several rows the first, for they are the same."""
        if texts in self._pairs:
            return
        first = [None if rows is None else rows.rows(0, 1).to("cpu") for rows in (positive, negative)]
        self._pairs[texts] = Prompts(
            positive=PromptInput(precomputed=first[0]), negative=PromptInput(precomputed=first[1])
        )
        while len(self._pairs) > KEPT:
            self._pairs.popitem(last=False)
