"""The network's config and its tensors, each held to the other.

Comes in: a `config.json` as a mapping, and a table of stored tensors. Goes out: the config that the tensors imply, or
what is wrong with the one that was given. No network is built here, and no tensor read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError

NETWORK_CLASS = "Kandinsky5Transformer3DModel"

WIDTHS = (
    *("in_visual_dim", "in_text_dim", "in_text_dim2", "time_dim"),
    *("out_visual_dim", "model_dim", "ff_dim"),
)
DEPTHS = ("num_text_blocks", "num_visual_blocks")
TRIPLES = ("patch_size", "axes_dims")
LARGEST_WIDTH = 2**20

PATCH_SIZE = (1, 2, 2)
"""Of every published network; a file of tensors does not say it."""

AXES_EIGHTHS = (2, 3, 3)
"""How frame, row and column share a head's channels in every published network: 32, 48, 48 of 128; 16, 24, 24 of 64."""


def check_config(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], where: Path) -> None:
    """Refuse a config whose values cannot be sizes, before anything of such a size is built.

    The number of blocks is bounded by the number of tensors, since every block has some.

    Raises:
        CheckpointError: naming the file and the field.
    """
    named = config.get("_class_name", NETWORK_CLASS)
    if named != NETWORK_CLASS:
        raise CheckpointError(f"{where} describes a {str(named)[:80]}, not a {NETWORK_CLASS}.")
    for field in WIDTHS:
        _check_count(config, field, 1, LARGEST_WIDTH, where)
    for field in DEPTHS:
        _check_count(config, field, 0, len(stored), where)
    for field in TRIPLES:
        triple = config.get(field, [1, 1, 1])
        if not isinstance(triple, list | tuple) or len(triple) != 3:
            raise CheckpointError(f"{where}: {field} must be three numbers, not {str(triple)[:80]}.")
        for value in triple:
            _check_count({field: value}, field, 1, LARGEST_WIDTH, where)
    if not isinstance(config.get("visual_cond", False), bool):
        raise CheckpointError(f"{where}: visual_cond must be true or false.")


def _check_count(config: Mapping[str, Any], field: str, least: int, most: int, where: Path) -> None:
    value = config.get(field, least)
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"{where}: {field} must be a whole number from {least} to {most}, not {str(value)[:80]}."
        )


def implied_config(stored: Mapping[str, StoredTensor], file: Path) -> dict[str, Any]:
    """The config of a network whose tensors have these shapes, as in the authors' single-file originals.

    Raises:
        CheckpointError: the file is of something else.
    """
    in_tokens, out_tokens = PATCH_SIZE[1] * PATCH_SIZE[2], PATCH_SIZE[1] * PATCH_SIZE[2]
    model_dim, patch_in = _matrix(stored, "visual_embeddings.in_layer.weight", file)
    patch_out, _ = _matrix(stored, "out_layer.out_layer.weight", file)
    time_dim, in_text_dim2 = _matrix(stored, "pooled_text_embeddings.in_layer.weight", file)
    channels, out_channels = patch_in // in_tokens, patch_out // out_tokens
    if channels not in (out_channels, 2 * out_channels + 1):
        raise CheckpointError(
            f"{file} has a network of {channels} visual channels in and {out_channels} out; text to image has as many "
            f"in as out, editing {2 * out_channels + 1}."
        )
    (head_dim,) = _shape(stored, "visual_transformer_blocks.0.self_attention.query_norm.weight", 1, file)
    if head_dim % 8:
        raise CheckpointError(f"{file} has heads of {head_dim} channels, which do not divide by 8.")
    return {
        "in_visual_dim": out_channels,
        "out_visual_dim": out_channels,
        "visual_cond": channels != out_channels,
        "in_text_dim": _matrix(stored, "text_embeddings.in_layer.weight", file)[1],
        "in_text_dim2": in_text_dim2,
        "time_dim": time_dim,
        "patch_size": list(PATCH_SIZE),
        "model_dim": model_dim,
        "ff_dim": _matrix(stored, "visual_transformer_blocks.0.feed_forward.in_layer.weight", file)[0],
        "num_text_blocks": _blocks(stored, "text_transformer_blocks"),
        "num_visual_blocks": _blocks(stored, "visual_transformer_blocks"),
        "axes_dims": [head_dim * eighths // 8 for eighths in AXES_EIGHTHS],
    }


def _matrix(stored: Mapping[str, StoredTensor], name: str, file: Path) -> tuple[int, ...]:
    return _shape(stored, name, 2, file)


def _shape(stored: Mapping[str, StoredTensor], name: str, dimensions: int, file: Path) -> tuple[int, ...]:
    if name not in stored or len(stored[name].shape) != dimensions:
        raise CheckpointError(
            f"{file} is not a Kandinsky 5 network: it has no {dimensions}-dimensional tensor {name!r}. Its first "
            f"tensor is {next(iter(stored), 'none')!r}."
        )
    return stored[name].shape


def _blocks(stored: Mapping[str, StoredTensor], group: str) -> int:
    pattern = re.compile(rf"{group}\.(\d{{1,6}})\.")
    return len({match[1] for name in stored if (match := pattern.match(name))})
