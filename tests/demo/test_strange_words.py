"""Words that mean nothing stand between the words of a prompt and change none of them."""

import random

from kandinsky5.demo.captions import names_a_shape
from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.strange_words import MOST, SHARE, strange_word, with_strange_words

PROMPT = "a red circle to the left of a blue square"


def test_the_prompt_is_still_there_and_most_are_left_alone() -> None:
    rng = random.Random(1)
    changed = 0
    for _ in range(2000):
        words = with_strange_words(PROMPT, rng).split(" ")
        added = len(words) - len(PROMPT.split(" "))
        assert 0 <= added <= MOST
        changed += added > 0
        rest = iter(words)
        assert all(word in rest for word in PROMPT.split(" ")), "in order"
    assert 0.8 * SHARE < changed / 2000 < 1.2 * SHARE


def test_no_strange_word_says_anything() -> None:
    rng = random.Random(2)
    words = {strange_word(rng) for _ in range(20_000)}
    assert len(words) > 10_000
    assert not words & {"box", "disk", "grey", "ruby", *COLOURS}
    assert not any(names_a_shape(word) for word in words)
