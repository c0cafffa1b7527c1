"""Which of a network's parameters learn: those of an adapter that peft puts in, or all.

In: a network and settings. Out: the network, changed, and its learning parameters by name. Weights that do not learn
may be packed by torchao or bitsandbytes. It refuses to know optimisers and data.
"""

import re
from typing import Any, Final

import torch
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.model import four_bits
from kandinsky5.train.settings import TuningSettings

ADAPTER: Final = "trained"
"""What peft calls the adapter meanwhile."""

BLOCKS: Final = re.compile(
    r"(text|visual)_transformer_blocks\.\d+\.(self_attention|cross_attention|feed_forward)\.\w+"
)
"""Layers that may be packed: the blocks' products, 5.40 of 6.01 billion weights; most others stay float32."""

NF4_BLOCK: Final = 64
"""Weights of a row that share a scale in nf4."""


def pack_base(network: Any, base: str, device: torch.device) -> None:
    """Keep the products of the blocks in fewer bits, for good; they move to the device one by one meanwhile.

    Raises:
        RequestError: a network without layers that can be packed so, or a packing that this device does not have.
    """
    if base in ("bf16", "fp32"):
        return
    names = [name for name, module in network.named_modules() if _can_be_packed(module, name, base)]
    if not names:
        raise RequestError(
            f'model.base = {base!r}: this network has no layer that can be packed; use "bf16".'
            + (f" {base} takes widths that are multiples of {NF4_BLOCK}." if base == "nf4" else "")
        )
    try:
        if base == "nf4":
            four_bits.replace_layers(network, names, device)
            network.is_loaded_in_4bit = True  # what peft looks at
            for name in names:  # not to be repacked by a first look on the CPU in a form that has no gradient
                network.get_submodule(name).support_avx512bf16_for_cpu = False
        else:
            from torchao.quantization import quantize_

            chosen = set(names)
            quantize_(network, _packing(base), filter_fn=lambda _, name: name in chosen, device=device)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, ValueError) as error:
        raise RequestError(
            f"model.base = {base!r} is not possible on {device}: {' '.join(str(error).split())[:200]}"
        ) from error


def _can_be_packed(module: nn.Module, name: str, base: str) -> bool:
    if type(module) is not nn.Linear or BLOCKS.fullmatch(name) is None:
        return False
    return base != "nf4" or module.in_features % NF4_BLOCK == 0


def _packing(base: str) -> Any:
    from torchao import quantization

    return quantization.Int8WeightOnlyConfig() if base == "int8" else quantization.Float8WeightOnlyConfig()


def learning_parameters(
    network: Any, settings: TuningSettings, dtype: torch.dtype, seed: int
) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; every other one is frozen.

    Args:
        network: a `Kandinsky5Transformer3DModel`.
        settings: what learns.
        dtype: of an adapter's parameters.
        seed: of an adapter's first values.

    Raises:
        RequestError: targets that are no layers of the network.
    """
    if settings.kind == "full":
        network.requires_grad_(True)
        return dict(network.named_parameters())
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(_peft_config(network, settings), adapter_name=ADAPTER)
    found = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for parameter in found.values():
        parameter.data = parameter.data.to(dtype)
    return found


def _peft_config(network: nn.Module, settings: TuningSettings) -> Any:
    from peft import LoKrConfig, LoraConfig

    targets = _target_layers(network, settings.targets)
    alpha: Any = settings.alpha  # peft says int, and multiplies by it
    if settings.kind == "lokr":
        return LoKrConfig(
            r=settings.rank,
            alpha=alpha,
            target_modules=targets,
            module_dropout=settings.dropout,
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=settings.dropout,
        use_dora=settings.kind == "dora",
    )


def check_targets(network: nn.Module, settings: TuningSettings) -> None:
    """Raise RequestError for targets that are no layers of the network."""
    if settings.kind != "full":
        _target_layers(network, settings.targets)


def _target_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the layers whose names end so, in the blocks. Raises RequestError for an end that none has."""
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks." in name
    ]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            ends = sorted({".".join(name.split(".")[2:]) for name in layers})
            raise RequestError(
                f"tuning.targets: no block has a layer {target!r}; there are {', '.join(ends)}."
            )
    return [name for name in layers if any(name == t or name.endswith(f".{t}") for t in targets)]
