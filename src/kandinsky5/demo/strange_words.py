"""Words that mean nothing, put between the words of a training prompt.

The grammar knows a few hundred words; people know more. An encoder that has only read the grammar gives a word from
outside it any meaning at all; one that has met nonsense in every place leaves it out. Comes in: a prompt. Goes out: the
same prompt, or one with a few pronounceable words that no vocabulary holds. What is true of a scene stays true.
"""

import functools
import random
import re

from kandinsky5.demo import vocabulary

SHARE = 0.25
"""Of prompts that get any."""
MOST = 4

_ONSETS = (
    "b",
    "bl",
    "ch",
    "d",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "sh",
    "st",
)
_VOWELS = ("a", "ai", "e", "ea", "i", "o", "oo", "ou", "u", "y")
_CODAS = ("", "", "b", "ck", "ft", "k", "l", "lm", "m", "n", "nd", "p", "rd", "sk", "sp", "t", "v", "x")
_ENDINGS = ("", "", "", "ed", "er", "ing", "ish", "ly", "s", "y")


def with_strange_words(prompt: str, rng: random.Random) -> str:
    """The prompt with up to `MOST` strange words in random gaps, most often unchanged."""
    if rng.random() >= SHARE:
        return prompt
    words = prompt.split(" ")
    for _ in range(1 + int(rng.random() * MOST)):
        words.insert(int(rng.random() * (len(words) + 1)), strange_word(rng))
    return " ".join(words)


def strange_word(rng: random.Random) -> str:
    """Of one or two syllables, at times with an ending of English; never a word of the grammar."""
    while True:
        syllables = "".join(_one(rng, _ONSETS) + _one(rng, _VOWELS) for _ in range(1 + int(rng.random() * 2)))
        word = syllables + _one(rng, _CODAS) + _one(rng, _ENDINGS)
        if word not in _known():
            return word


@functools.cache
def _known() -> frozenset[str]:
    """Every word of the grammar's vocabulary: it is a module of tables, read as text."""
    tables = [value for name, value in vars(vocabulary).items() if not name.startswith("_")]
    return frozenset(re.findall(r"[a-z]+", repr(tables).lower()))


def _one(rng: random.Random, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]
