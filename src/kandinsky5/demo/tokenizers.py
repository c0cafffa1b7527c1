"""The embedded model's two tokenizers, trained on what its world has to say.

Comes in: captions of drawn scenes, and the official templates. Goes out: a Qwen2 and a CLIP tokenizer of transformers'
own classes, and the processor files that belong beside the first. Both are byte-level, so any text has tokens. Nothing
here knows of tensors.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, Qwen2Tokenizer

from kandinsky5.demo.architecture import CLIP_POSITIONS, VISION_MERGE, VISION_PATCH
from kandinsky5.demo.captions import describe, plain
from kandinsky5.demo.vision_patches import LEAST_PIXELS, MEAN, MOST_PIXELS, STD, TEMPORAL_PATCH
from kandinsky5.demo.world import draw_scene
from kandinsky5.prompts import EDITING, TEXT_TO_IMAGE

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CLIP_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
"""The published tokenizers' special tokens that templates and encoders use."""

WORD_ENDS = 0xE000
"""The first of so many private characters as there are bytes, which stand for a byte that ends a word."""

PARTS = Path("parts")
"""Where tokenizers, and the autoencoder as `vae`, are kept in a working folder: under their published names."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizers(
    vocabulary: int, *, captions: int = 20_000, seed: int = 5
) -> tuple[Qwen2Tokenizer, CLIPTokenizer]:
    """Both tokenizers, from `captions` training scenes; the same arguments give the same tokens."""
    rng = random.Random(f"tokenizers {seed}")
    lines = []
    for index in range(captions):
        scene = draw_scene(rng)
        lines.append(plain(scene).text if index % 8 == 0 else describe(scene, rng).text)
    # Repeated, so that the words of the templates become whole tokens: every prompt pays for them.
    for template in (TEXT_TO_IMAGE, EDITING):
        lines += [template.prefix, template.suffix] * (captions // 100)
    return train_qwen_tokenizer(lines, vocabulary), train_clip_tokenizer(lines, vocabulary)


def train_qwen_tokenizer(lines: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer of at most `vocabulary` tokens, special ones included; the same lines give the same tokens."""
    like = Qwen2Tokenizer().backend_tokenizer
    model = _train_bpe(lines, vocabulary - len(QWEN_SPECIAL_TOKENS), like.normalizer, like.pre_tokenizer)
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=list(QWEN_SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )


def train_clip_tokenizer(lines: Iterable[str], vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, words end in `</w>`) of at most `vocabulary` tokens, special ones included.

    The vocabulary is laid out as CLIP's: bytes, bytes that end a word, merges, special tokens. All 512 bytes are there
    whether the lines hold them or not.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [byte + "</w>" for byte in alphabet]
    merges = _merges_to_word_ends(lines, vocabulary - len(tokens) - len(CLIP_SPECIAL_TOKENS))
    tokens += [first + second for first, second in merges]
    tokens += CLIP_SPECIAL_TOKENS
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=CLIP_POSITIONS,
    )


def save_processor_files(folder: Path) -> None:
    """Write what turns a tokenizer's folder into that of a `Qwen2_5_VLProcessor`: picture and video settings.

    The tokenizer and the picture half load without torchvision; the video half, which no task here uses, must exist for
    AutoProcessor. Pixel values follow CLIP's statistics, as in the published checkpoints.
    """
    picture: dict[str, Any] = {
        "processor_class": "Qwen2_5_VLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "patch_size": VISION_PATCH,
        "merge_size": VISION_MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "size": {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS},
    }
    _write_json(
        folder / "preprocessor_config.json", picture | {"image_processor_type": "Qwen2VLImageProcessor"}
    )
    _write_json(
        folder / "video_preprocessor_config.json", picture | {"video_processor_type": "Qwen2VLVideoProcessor"}
    )


def save_tokenizers(qwen: Qwen2Tokenizer, clip: CLIPTokenizer, folder: Path) -> None:
    """Write them as `tokenizer` and `tokenizer_2`, the names of the published layout."""
    qwen.save_pretrained(folder / "tokenizer")
    save_processor_files(folder / "tokenizer")
    clip.save_pretrained(folder / "tokenizer_2")


def load_tokenizers(folder: Path) -> tuple[Qwen2Tokenizer, CLIPTokenizer]:
    """Read what `save_tokenizers` wrote."""
    qwen = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    return qwen, CLIPTokenizer.from_pretrained(folder / "tokenizer_2")


def _train_bpe(
    lines: Iterable[str],
    vocabulary: int,
    normalizer: Any,
    pre_tokenizer: Any,
    further: Iterable[str] = (),
) -> dict[str, Any]:
    """Byte pairs learnt of lines as they are split; the `model` section of a tokenizer.json.

    Of pairs that are equally frequent the one with the lower numbers is taken, and numbers of an alphabet that is
    given, which is all bytes and `further` characters, are the same in each process.
    """
    learner = Tokenizer(BPE())
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=sorted([*pre_tokenizers.ByteLevel.alphabet(), *further]),
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    return json.loads(learner.to_str())["model"]


def _merges_to_word_ends(lines: Iterable[str], count: int) -> list[tuple[str, str]]:
    """CLIP's merges, of bytes and of bytes that end a word.

    The library numbers the latter as it meets them, in an order that changes from process to process. So here they are
    characters of their own while it learns.
    """
    like = CLIPTokenizer().backend_tokenizer
    ending = {
        byte: chr(WORD_ENDS + index) for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    spelt = {end: f"{byte}</w>" for byte, end in ending.items()}

    def split(line: str) -> str:
        words = like.pre_tokenizer.pre_tokenize_str(like.normalizer.normalize_str(line))
        return " ".join(word[:-1] + ending[word[-1]] for word, _ in words)

    model = _train_bpe(
        map(split, lines), count + 2 * len(ending), None, pre_tokenizers.WhitespaceSplit(), ending.values()
    )
    merges = [(first, second) for first, second in model["merges"][:count]]
    return [(_spelt(first, spelt), _spelt(second, spelt)) for first, second in merges]


def _spelt(token: str, endings: Mapping[str, str]) -> str:
    return token[:-1] + endings.get(token[-1], token[-1])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
