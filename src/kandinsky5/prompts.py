"""The words around a prompt: templates as they were tokenised in training, where they are cut off, and cleaning.

Comes in: a person's text. Goes out: the text that is tokenised. All of it is data that changes a picture, pinned by
golden tests; the file refuses to know tokenizers, tensors and encoders.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Task = Literal["text-to-image", "editing"]

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text before and after a prompt. `prefix` is cut off the encoder's states, `suffix` stays."""

    prefix: str
    suffix: str

    def text(self, prompt: str, images: int = 0) -> str:
        """The full text for one prompt that is accompanied by `images` source pictures."""
        return self.prefix + prompt + IMAGE_PLACEHOLDER * images + self.suffix


_IMAGE_SYSTEM = (
    "<|im_start|>system\nYou are a {word} engineer. Describe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_EDIT_SYSTEM = (
    "<|im_start|>system\nYou are a {word} engineer. Based on the provided source image (first image) and target image "
    "(second image), create an interesting text prompt that can be used together with the source image to create the "
    "target image:<|im_end|>\n<|im_start|>user\n"
)

# "promt" is what the released weights were trained with (kandinskylab/kandinsky-5, 2025-11-28); the authors corrected
# the spelling later (pull request 84). diffusers 0.42.1 has the corrected words, for editing without the newlines.
_SPELLINGS = {"release": "promt", "corrected": "prompt"}

_SYSTEMS: Mapping[Task, str] = {"text-to-image": _IMAGE_SYSTEM, "editing": _EDIT_SYSTEM}

TEMPLATES: Mapping[tuple[Task, str], Template] = MappingProxyType(
    {
        (task, name): Template(prefix=system.format(word=word), suffix="<|im_end|>")
        for task, system in _SYSTEMS.items()
        for name, word in _SPELLINGS.items()
    }
)
"""Templates by task and name."""

TEMPLATE_NAMES = tuple(_SPELLINGS)
"""The default, "release", and "corrected"."""

TEXT_TO_IMAGE = TEMPLATES["text-to-image", "release"]
EDITING = TEMPLATES["editing", "release"]

EXPANSION: Mapping[Task, str] = MappingProxyType(
    {
        "text-to-image": (
            "You write prompts for a program that paints what it is told. The user gives a short prompt. Answer with "
            "one paragraph of at most 120 words, in English, that describes the finished picture: everything the user "
            "names, with its number, colours, place and any lettering word for word, then the setting, the light, the "
            "materials, the composition and the style that suit it. Add nothing that contradicts the user, and no "
            "comments."
        ),
        "editing": (
            "You write instructions for a program that edits pictures. The user shows a picture and says what to "
            "change. Answer with one paragraph of at most 80 words, in English, that says exactly which part of this "
            "picture changes, how it looks afterwards, and that the rest stays as it is. Keep any lettering word for "
            "word. Add nothing that the user did not ask for, and no comments."
        ),
    }
)
"""What the text encoder is told before it writes a prompt out. The words are ours."""

ENDINGS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end a turn of Qwen's chat."""


def expansion_chat(prompt: str, task: Task, images: int = 0) -> str:
    """The chat whose next turn is the longer prompt, for one prompt with `images` pictures."""
    return (
        f"<|im_start|>system\n{EXPANSION[task]}<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE_PLACEHOLDER * images}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


_TRAINED_CROPS: Mapping[int, int] = MappingProxyType({41: 41, 52: 55})


def crop(prefix_tokens: int) -> int:
    """How many leading tokens are cut off the encoder's states, given how many tokens the prefix itself has.

    The authors cut 41 (images, the whole prefix) and 55 (editing, the prefix of 52 and three tokens of the
    instruction, as trained). Any other count means another tokenizer or template: exactly its prefix is cut.
    """
    return _TRAINED_CROPS.get(prefix_tokens, prefix_tokens)


def clean(text: str) -> str:
    """Broken Unicode mended (ftfy), HTML entities resolved twice, white space folded; as diffusers does."""
    import ftfy  # imported here: 0.1 s that `kandinsky5 --help` need not pay

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
