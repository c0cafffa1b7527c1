"""Words that mean nothing, put around and between the words of a training prompt.

The grammar knows a few hundred words; people know more. An encoder that has only read the grammar gives a word from
outside it any meaning at all; one that has met nonsense in every place, scattered and in runs, leaves it out. Comes in:
a prompt. Goes out: the same prompt, or one with a few pronounceable words that no vocabulary holds. What is true of a
scene stays true.
"""

import functools
import random
import re

from kandinsky5.demo import frames, instruction_words, openings, phrasing, place_words, vocabulary, weaving

SHARE = 0.35
"""Of prompts that get any."""
MOST = 4
"""Of those that are scattered."""
RUNS = 0.45
"""Of prompts with strange words: how many have them in one run, the others having them scattered."""
RUN = (2, 6)
"""The fewest and the most words of a run."""

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
    """The prompt with strange words in random gaps, or a run of them in one place; most often unchanged."""
    if rng.random() >= SHARE:
        return prompt
    if rng.random() < RUNS:
        return _with_run(prompt, rng)
    words = prompt.split(" ")
    for _ in range(1 + int(rng.random() * MOST)):
        words.insert(int(rng.random() * (len(words) + 1)), strange_word(rng))
    return " ".join(words)


def _with_run(prompt: str, rng: random.Random) -> str:
    """A run at the front, at the end, or between two clauses, at times with a comma."""
    fewest, most = RUN
    run = " ".join(strange_word(rng) for _ in range(fewest + int(rng.random() * (most - fewest + 1))))
    if prompt.isupper():
        run = run.upper()
    comma = "," if rng.random() < 0.4 else ""
    draw = rng.random()
    words = prompt.split(" ")
    ends = [index for index, word in enumerate(words[:-1], 1) if word.endswith((",", ".", ";", ":"))]
    if draw < 0.35 and ends:
        words.insert(ends[int(rng.random() * len(ends))], run + comma)
        return " ".join(words)
    if draw < 0.67:
        return f"{run}{comma} {prompt}"
    return f"{prompt}{comma if prompt[-1:].isalnum() else ''} {run}"


def strange_word(rng: random.Random) -> str:
    """Of one or two syllables, at times with an ending of English; never a word of the grammar."""
    while True:
        syllables = "".join(_one(rng, _ONSETS) + _one(rng, _VOWELS) for _ in range(1 + int(rng.random() * 2)))
        word = syllables + _one(rng, _CODAS) + _one(rng, _ENDINGS)
        if word not in _known():
            return word


@functools.cache
def _known() -> frozenset[str]:
    """Every word of the grammar: the tables of its modules, read as text."""
    modules = (vocabulary, place_words, instruction_words, openings, phrasing, weaving, frames)
    tables = [
        value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("__") and isinstance(value, tuple | dict)
    ]
    return frozenset(re.findall(r"[a-z]+", repr(tables).lower()))


def _one(rng: random.Random, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]
