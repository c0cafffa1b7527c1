"""Words that mean nothing stand between the words of a prompt and change none of them."""

import random
from collections import Counter

from kandinsky5.demo.captions import names_a_shape
from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.strange_words import MOST, RUN, RUNS, SHARE, strange_word, with_strange_words

PROMPT = "a red circle, and to its left a blue square"


PROMPT_WORDS = PROMPT.split(" ")


def strange_at(text: str) -> list[int]:
    """Where in a text there are words that the prompt does not have."""
    rest, at = list(PROMPT_WORDS), []
    for index, word in enumerate(text.split(" ")):
        if rest and word.rstrip(",") == rest[0].rstrip(","):
            rest.pop(0)
        else:
            at.append(index)
    assert not rest, f"in order: {text}"
    return at


def test_the_prompt_is_still_there_and_most_are_left_alone() -> None:
    rng = random.Random(1)
    found = [strange_at(with_strange_words(PROMPT, rng)) for _ in range(4000)]
    assert max(map(len, found)) == max(MOST, RUN[1])
    assert 0.92 * SHARE < sum(map(bool, found)) / 4000 < 1.08 * SHARE


def test_runs_stand_at_the_front_at_the_end_and_between_clauses() -> None:
    rng = random.Random(3)
    places: Counter[int] = Counter()
    changed = 0
    for _ in range(4000):
        at = strange_at(with_strange_words(PROMPT, rng))
        changed += bool(at)
        if len(at) > MOST:  # certainly a run
            assert at == list(range(at[0], at[0] + len(at)))
            assert len(at) <= RUN[1]
            places[at[0]] += 1
    clause = PROMPT_WORDS.index("circle,") + 1
    assert set(places) == {0, clause, len(PROMPT_WORDS)}
    assert min(places.values()) > 0.2 * sum(places.values())
    long = sum(n > MOST for n in range(RUN[0], RUN[1] + 1)) / (RUN[1] - RUN[0] + 1)
    assert 0.8 * RUNS * long < sum(places.values()) / changed < 1.2 * RUNS * long


def test_a_run_within_capitals_is_in_capitals() -> None:
    rng = random.Random(4)
    long = [t for t in (with_strange_words("RED STAR", rng) for _ in range(400)) if len(t.split()) > 2 + MOST]
    assert long and all(text.isupper() for text in long)


def test_no_strange_word_says_anything() -> None:
    rng = random.Random(2)
    words = {strange_word(rng) for _ in range(20_000)}
    assert len(words) > 10_000
    assert not words & {"box", "disk", "grey", "ruby", "poster", *COLOURS}
    assert not any(names_a_shape(word) for word in words)
