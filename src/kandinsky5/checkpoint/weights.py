"""The weight files of one component's folder as one table of tensors.

Comes in: a folder, and which of the two libraries will read it. Goes out: name -> tensor, after every file that will be
read has been found whole; or what is wrong with the names and shapes, compared with those expected. It refuses to know
configs, and never opens a pickle.
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Literal

import torch

from kandinsky5.checkpoint.document import read_object
from kandinsky5.checkpoint.safetensors_header import StoredTensor, read_header
from kandinsky5.errors import CheckpointError

Library = Literal["diffusers", "transformers"]

STEMS: Mapping[Library, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""How each library names its weight files."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")

PACKED_PART: Final = re.compile(r"(?P<owner>.+)\._(?P<leaf>weight)_(?P<part>qdata|scale|zero_point)")
"""What torchao's parts of a tensor are called in a file."""

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Floating dtypes that a weight may be stored in."""

UNPACKED: Final = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""Dtypes of weights that no library packed, and of the buffers beside them."""


def read_weights(folder: Path, library: Library, variant: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor that the library will find in this folder.

    Args:
        folder: of one component.
        library: whose names and precedence apply: diffusers prefers a sharded checkpoint, transformers a single file.
        variant: the middle of the file names ("fp16"), or None.

    Raises:
        CheckpointError: a file that is missing, cut off, damaged, pickled, unreadable, or outside the folder.
    """
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing.")
        names = {path.name for path in folder.iterdir()}
        single, index = weight_names(library, variant)
        found = [
            name for name in ((index, single) if library == "diffusers" else (single, index)) if name in names
        ]
        if not found:
            raise CheckpointError(_why_no_weights(folder, single, variant))
        return _read_shards(folder / index) if found[0] == index else read_header(folder / single)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}.") from error


def weight_names(library: Library, variant: str | None = None) -> tuple[str, str]:
    """Names of a single weight file and of a sharded checkpoint's index."""
    stem, middle = STEMS[library], f".{variant}" if variant else ""
    return f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"


def _why_no_weights(folder: Path, single: str, variant: str | None) -> str:
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        return (
            f"{folder} has pickled weights only, which can run code when they are opened and are not read here. Save "
            "them again with `save_pretrained(..., safe_serialization=True)`, or use a repository with safetensors."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    told = f" It has {', '.join(others[:3])}; name a variant to read another file." if others else ""
    asked = f" of variant {variant!r}" if variant else ""
    return f"{folder} has no weights{asked}: {single} is missing.{told}"


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """All shards that an index names, each whole, each tensor in the shard that the index says, once."""
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise CheckpointError(
            f"{index} must have a `metadata` object and a `weight_map` with an entry a tensor."
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{index} keeps tensor {name!r} in {str(shard)[:200]!r}; a shard is a .safetensors file beside it."
            )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_header(index.parent / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"Tensor {name!r} is in {tensors[name].file.name} and in {tensor.file}."
                )
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"Tensor {name!r} is in {tensor.file}, but {index.name} says {weight_map.get(name)!r}."
                )
            tensors[name] = tensor
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise CheckpointError(f"Tensor {lost[0]!r} is not in {index.parent / weight_map[lost[0]]}, where {index.name} "
                              "keeps it.")  # fmt: skip
    return tensors


def _is_plain_name(shard: str) -> bool:
    return shard.endswith(".safetensors") and not set(shard) & set("/\\:\0") and not shard.startswith(".")


def compare(
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
) -> None:
    """Hold stored tensors to the names and shapes that a config implies.

    Args:
        stored: what `read_weights` found.
        expected: name -> shape.
        where: the folder or file, for messages about tensors that are not there.

    Raises:
        CheckpointError: a tensor that is missing, unknown, of another shape, or not floating.
    """
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(
            f"{where} has no tensor {missing[0]!r}{_and_more(missing)}, which its config implies."
        )
    unknown = [name for name in stored if name not in expected]
    if unknown:
        raise CheckpointError(
            f"Tensor {unknown[0]!r}{_and_more(unknown)} in {stored[unknown[0]].file} has no place in the network that "
            "its config describes."
        )
    for name, shape in expected.items():
        tensor = stored[name]
        _check_shape(name, tensor, shape)
        if tensor.dtype not in TORCH_DTYPES:
            raise CheckpointError(
                f"Tensor {name!r} in {tensor.file} is stored as {tensor.dtype}, not as floats."
            )


def compare_packed(
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
    form: str | None,
) -> None:
    """Hold a packed component to its config: each tensor is there, plain or as the parts that its library makes of it.

    Args:
        stored: what the files hold, by current name.
        expected: name -> shape of the component before it was packed.
        where: the folder, for messages.
        form: of `packing.stored_format`; None where only the library knows what the parts are called.

    Raises:
        CheckpointError: a tensor that is missing, a part of one that is, values of another shape, or nothing that is
            packed.
    """
    if all(tensor.dtype in UNPACKED for tensor in stored.values()):
        raise CheckpointError(
            f"{where}: its config says that it is packed (quantization_config), but no tensor is."
        )
    if form is None:
        _compare_layers(stored, expected, where)
        return
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = PACKED_PART.fullmatch(name)
        if match:
            parts.setdefault(f"{match['owner']}.{match['leaf']}", {})[match["part"]] = tensor
    for name, shape in expected.items():
        plain, packed = stored.get(name), parts.get(name, {})
        if plain is not None and plain.dtype == "U8":
            _check_four_bits(name, plain, stored, shape, where)
        elif plain is not None:
            _check_shape(name, plain, shape)
        elif not {"qdata", "scale"} <= packed.keys():
            lacking = "qdata" if "qdata" not in packed else "scale"
            what = f"{lacking!r} of tensor {name!r}" if packed else f"tensor {name!r}"
            raise CheckpointError(f"{where} has no {what}, which its config implies.")
        else:
            _check_shape(name, packed["qdata"], shape)
            _check_shape(name, packed["scale"], (shape[0], 1))


def _compare_layers(
    stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    """Each tensor is there under its name, or its layer has others that a library made of it."""
    owners = {name.rpartition(".")[0] for name in stored if name not in expected}
    for name, shape in expected.items():
        plain = stored.get(name)
        if plain is None and not any(place in owners for place in (name, name.rpartition(".")[0])):
            raise CheckpointError(
                f"{where} has no tensor {name!r}, nor parts of it, which its config implies."
            )
        if plain is not None and plain.dtype in UNPACKED:
            _check_shape(name, plain, shape)


def _check_four_bits(
    name: str,
    values: StoredTensor,
    stored: Mapping[str, StoredTensor],
    shape: tuple[int, ...],
    where: Path,
) -> None:
    """Bitsandbytes' parts: two values a byte in one column, and their scales."""
    _check_shape(name, values, ((math.prod(shape) + 1) // 2, 1))
    for part in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4"):
        if f"{name}.{part}" not in stored:
            raise CheckpointError(f"{where} has no {part!r} of tensor {name!r}, which its config implies.")


def _check_shape(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != tuple(shape):
        raise CheckpointError(
            f"Tensor {name!r} in {tensor.file} has shape {tensor.shape}; its config implies {tuple(shape)}."
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def unpacked_dtype(stored: Mapping[str, StoredTensor], names: Collection[str]) -> torch.dtype | None:
    """The dtype to load a quantised checkpoint in: what holds the tensors that no library packed.

    Args:
        stored: all tensors, scales and packed values among them.
        names: those that the model itself has; a packed one may keep its name, but not a dtype of 16 bits or more.
    """
    return common_dtype({n: t for n, t in stored.items() if n in names and not t.dtype.startswith("F8")})


def common_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype | None:
    """The narrowest dtype that holds every floating tensor without loss, None when there is none."""
    dtypes = {TORCH_DTYPES[tensor.dtype] for tensor in stored.values() if tensor.dtype in TORCH_DTYPES}
    if len(dtypes) == 1:
        return dtypes.pop()
    common = None
    for dtype in dtypes:
        wide = dtype if dtype.itemsize > 1 else torch.float32  # torch promotes no 8-bit floats
        common = wide if common is None else torch.promote_types(common, wide)
    return common
