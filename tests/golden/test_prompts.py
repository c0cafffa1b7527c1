"""The words around a prompt, letter by letter: what the released weights were trained with."""

import pytest

from kandinsky5.prompts import EDITING, TEMPLATE_NAMES, TEMPLATES, TEXT_TO_IMAGE, clean, crop

# kandinskylab/kandinsky-5, snapshot of 2025-11-28, typing error included.
RELEASED_IMAGE = (
    "<|im_start|>system\n"
    "You are a promt engineer. Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n"
    "a cat<|im_end|>"
)
RELEASED_EDIT = (
    "<|im_start|>system\n"
    "You are a promt engineer. Based on the provided source image (first image) and target image (second image), "
    "create an interesting text prompt that can be used together with the source image to create the target "
    "image:<|im_end|>\n"
    "<|im_start|>user\n"
    "make it red<|vision_start|><|image_pad|><|vision_end|><|im_end|>"
)


def test_the_release_is_the_default():
    assert TEXT_TO_IMAGE.text("a cat") == RELEASED_IMAGE
    assert EDITING.text("make it red", images=1) == RELEASED_EDIT
    assert TEMPLATES["text-to-image", "release"] is TEXT_TO_IMAGE
    assert TEMPLATES["editing", "release"] is EDITING
    assert TEMPLATE_NAMES == ("release", "corrected")


@pytest.mark.parametrize(
    ("task", "released"), [("text-to-image", RELEASED_IMAGE), ("editing", RELEASED_EDIT)]
)
def test_the_corrected_words_differ_in_one_letter(task, released):
    images = 1 if task == "editing" else 0
    corrected = TEMPLATES[task, "corrected"].text("a cat" if images == 0 else "make it red", images=images)
    assert corrected == released.replace("promt", "prompt", 1) != released


@pytest.mark.parametrize(
    ("prefix", "cut"), [(41, 41), (52, 55), (40, 40), (49, 49), (51, 51), (7, 7), (0, 0)]
)
def test_crops_by_the_prefixs_own_count(prefix, cut):
    """41 and 52 are Qwen's counts of the released prefixes; any other count is another tokenizer or template."""
    assert crop(prefix) == cut


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  two \n\t spaces  ", "two spaces"),
        ("fish &amp;amp; chips &lt;b&gt;", "fish & chips <b>"),
        ("schÃ¶n", "schön"),
        ("кот в шляпе", "кот в шляпе"),
        ("", ""),
        ("a\u00a0b", "a b"),
    ],
)
def test_cleaning(raw, cleaned):
    assert clean(raw) == cleaned
