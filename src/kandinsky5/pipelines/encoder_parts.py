"""Parts of Qwen2.5-VL that a task does not use: left in the checkpoint's files, and brought in when they are needed.

Text to image reads hidden states of text. The vision tower (editing) and the vocabulary projection (writing prompts)
are 2.4 GB of the published 16.6 GB; where they would be stands a module without parameters, so that nothing on the meta
device meets hooks and moves, and the encoder keeps its type. A projection tied to the embeddings takes nothing and
stays. This file refuses to know pipelines, and how folders are checked.
"""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from kandinsky5.checkpoint.finite import check_finite
from kandinsky5.checkpoint.on_disk import TensorsOnDisk
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.turn import TURN
from kandinsky5.errors import RequestError

TextEncoderPart = Literal["vision", "head"]

TEXT_ENCODER_PARTS: Final[Mapping[TextEncoderPart, str]] = MappingProxyType(
    {"vision": "model.visual", "head": "lm_head"}
)
"""Name of a part, and of its module in the encoder."""

DESCRIBED: Final[Mapping[TextEncoderPart, str]] = MappingProxyType(
    {"vision": "vision tower", "head": "vocabulary projection"}
)


PLAIN_DTYPES: Final = frozenset(("F32", "F16", "BF16"))
"""As files name them, of tensors that are not packed."""


def stored_packed(stored: Mapping[str, StoredTensor]) -> set[TextEncoderPart]:
    """Parts that are packed in the files, and so are loaded with the rest; `stored` as in `remember`."""
    return {
        part
        for part, module in TEXT_ENCODER_PARTS.items()
        if any(
            name.startswith(module + ".") and tensor.dtype not in PLAIN_DTYPES
            for name, tensor in stored.items()
        )
    }


class PartOnDisk(nn.Module):
    """Stands where a part would be, without parameters.

    `state_dict()` of an encoder that holds it is complete all the same, so that every way of saving writes the whole
    encoder: the part's tensors are mapped from the files, in the dtype they would have by now.

    Attributes:
        part: which one it is.
        dtype: that the part would have; follows `.to(dtype)`.
        tensors: where its tensors are; None while the encoder is being loaded.
        is_beside_quantised: the rest was quantised in memory, which this part was not.
    """

    _keys_to_ignore_on_load_unexpected = (r"^(model\.)?visual\.", r"^lm_head\.")  # read by transformers

    def __init__(self, part: TextEncoderPart):
        super().__init__()
        self.part = part
        self.dtype = torch.get_default_dtype()
        self.tensors: TensorsOnDisk | None = None
        self.is_beside_quantised = False

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        """No logits where none are asked for.

        Raises:
            RequestError: somebody needs the part.
        """
        if self.part == "head" and states.numel() == 0:
            return states
        raise RequestError(
            f"The text encoder's {DESCRIBED[self.part]} was left on disk. Bring it in with kandinsky5.pipelines."
            f'bring_in(text_encoder, ["{self.part}"]), or load it from the start with '
            f'from_pretrained(..., text_encoder_parts=["{self.part}"]).'
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "PartOnDisk":
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tensors is None:
            return
        if self.is_beside_quantised:
            raise RequestError(
                f"The text encoder was quantised without its {DESCRIBED[self.part]}, so it cannot be saved whole: load "
                f"it with from_pretrained(..., text_encoder_parts={list(TEXT_ENCODER_PARTS)}) first."
            )
        for name, tensor in self.tensors.read():
            destination[prefix + name] = tensor.to(self.dtype)


@contextmanager
def leaving_out(parts: Collection[TextEncoderPart]) -> Iterator[None]:
    """Qwen2.5-VL models that this thread builds in the meantime have a `PartOnDisk` for each of these parts."""
    thread = threading.get_ident()

    def replace(owner: nn.Module, name: str, module: nn.Module | None) -> Any:
        part = _part_of(owner, name) if threading.get_ident() == thread else None
        return PartOnDisk(part) if part in parts and part is not None else module

    handle = register_module_module_registration_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _part_of(owner: nn.Module, name: str) -> TextEncoderPart | None:
    if isinstance(owner, Qwen2_5_VLModel) and name == "visual":
        return "vision"
    if isinstance(owner, Qwen2_5_VLForConditionalGeneration) and name == "lm_head":
        config: Any = owner.config
        return None if config.tie_word_embeddings else "head"
    return None


def remember(
    encoder: nn.Module | None, stored: Mapping[str, StoredTensor], *, is_packed: bool = False
) -> None:
    """Tell what was left out of a loaded encoder where it is.

    Args:
        encoder: built and loaded while `leaving_out` was in force; None has no parts.
        stored: every tensor of its folder, by its name in the encoder.
        is_packed: the folder holds the encoder packed, without these parts.
    """
    for part, place in _places(encoder):
        prefix = TEXT_ENCODER_PARTS[part] + "."
        place.dtype = encoder.dtype  # type: ignore[union-attr, assignment]
        place.is_beside_quantised = _quantizer(encoder) is not None and not is_packed
        place.tensors = TensorsOnDisk.of(
            {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
        )


def left_out(encoder: nn.Module | None) -> tuple[TextEncoderPart, ...]:
    """The parts of an encoder that are not in memory."""
    return tuple(part for part, _ in _places(encoder))


def is_kept_in(encoder: nn.Module | None, folder: Path) -> bool:
    """Whether parts that were left out are in files of this folder."""
    kept = [file.parent for _, place in _places(encoder) if place.tensors for file in place.tensors.stamps]
    return any(parent.resolve() == folder.resolve() for parent in kept)


def bring_in(encoder: nn.Module | None, parts: Collection[TextEncoderPart] = ("vision", "head")) -> None:
    """Load parts that were left on disk into the encoder, beside the rest: its device, its dtype.

    Parts that are there already stay as they are. To be called before sequential or group offload is enabled, which
    decide once where each layer lives; model offload takes a part along whenever it comes.

    Raises:
        CheckpointError: the files are gone, were changed since, or hold values that are not finite. Nothing was
            brought in.
        RequestError: the encoder is quantised or spread in a way that a part cannot join, or there is no such part.
    """
    check_parts(parts)
    if encoder is not None:
        loaded = {part: _load(encoder, part, place) for part, place in _places(encoder) if part in parts}
        for part, module in loaded.items():
            encoder.set_submodule(TEXT_ENCODER_PARTS[part], module)


def check_parts(parts: Collection[TextEncoderPart]) -> None:
    """Refuse names of parts that do not exist; a text is no collection of names."""
    unknown = [parts] if isinstance(parts, str) else [p for p in parts if p not in TEXT_ENCODER_PARTS]
    if unknown:
        raise RequestError(
            f"text_encoder_parts must be a list of {', '.join(map(repr, TEXT_ENCODER_PARTS))}, not {unknown[0]!r}."
        )


def _load(encoder: nn.Module, part: TextEncoderPart, place: PartOnDisk) -> nn.Module:
    """The part's module with its values, on the encoder's device."""
    if place.tensors is None:
        raise RequestError(f"It is not known where the {DESCRIBED[part]} of this text encoder is stored.")
    device = _one_device(encoder, part)
    quantizer = _quantizer(encoder)
    if quantizer is not None and TEXT_ENCODER_PARTS[part] not in (quantizer.modules_to_not_convert or ()):
        raise RequestError(
            f"The text encoder is quantised and its {DESCRIBED[part]} on disk is not: load it with "
            f'from_pretrained(..., text_encoder_parts=["{part}"], quantization_config=...).'
        )
    with TURN, init_empty_weights(include_buffers=False):
        module = type(encoder)(encoder.config).get_submodule(TEXT_ENCODER_PARTS[part])
    module.load_state_dict(
        {name: tensor.to(device, place.dtype, copy=True) for name, tensor in place.tensors.read()},
        assign=True,
    )
    check_finite(module, next(iter(place.tensors.stamps)).parent)
    module.requires_grad_(next(encoder.parameters()).requires_grad)
    return module.to(device).train(encoder.training)


def _one_device(encoder: nn.Module, part: TextEncoderPart) -> torch.device:
    """Where the encoder is, if it is in one place and may be moved as a whole."""
    devices = {parameter.device for parameter in encoder.parameters()}
    if len(devices) > 1 or torch.device("meta") in devices or _has_group_hooks(encoder):
        raise RequestError(
            f"The {DESCRIBED[part]} cannot join a text encoder whose layers are offloaded one by one or spread over "
            "devices: bring it in before offload is enabled, or load it from the start with "
            f'from_pretrained(..., text_encoder_parts=["{part}"]).'
        )
    return devices.pop()


def _has_group_hooks(encoder: nn.Module) -> bool:
    registries = (getattr(module, "_diffusers_hook", None) for module in encoder.modules())
    return any(registry is not None and registry.get_hook("group_offloading") for registry in registries)


def _quantizer(encoder: nn.Module | None) -> Any:
    return getattr(encoder, "hf_quantizer", None)


def _places(encoder: nn.Module | None) -> Iterator[tuple[TextEncoderPart, PartOnDisk]]:
    modules = dict(encoder.named_modules()) if encoder is not None else {}
    for part, name in TEXT_ENCODER_PARTS.items():
        place = modules.get(name)
        if isinstance(place, PartOnDisk):
            yield part, place
