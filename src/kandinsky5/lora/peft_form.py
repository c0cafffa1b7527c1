"""An adapter in the form peft and diffusers take, and back out of a network that peft has put one into.

Comes in: a `Lora`, or an adapted network. Goes out: tensors by peft's names, with the config that makes their layers.
The config is made of shapes and scales alone; nothing of a file's own config reaches peft. It refuses to know files.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kandinsky5.errors import RequestError
from kandinsky5.lora.reading import recognise
from kandinsky5.lora.record import Lora

_PEFT_PARTS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def peft_tensors(lora: Lora) -> dict[str, Tensor]:
    """The tensors by peft's names. The scale of a LoKr is multiplied into its first factor, where peft expects it."""
    named: dict[str, Tensor] = {}
    for layer, parts in lora.layers.items():
        for part, tensor in parts.items():
            if lora.kind == "lokr":
                scaled = part in ("w1", "w1_a") and lora.scales[layer] != 1
                named[f"{layer}.lokr_{part}"] = tensor * lora.scales[layer] if scaled else tensor
            else:
                named[f"{layer}.{_PEFT_PARTS[part]}"] = tensor
    return named


def peft_config(lora: Lora) -> dict[str, Any] | None:
    """The arguments of peft's `LoraConfig`; None for a LoKr, whose shapes say all there is."""
    if lora.kind == "lokr":
        return None
    ranks = {layer: lora.rank(layer) for layer in lora.layers}
    alphas = {layer: lora.scales[layer] * rank for layer, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {layer: value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {layer: value for layer, value in alphas.items() if value != alpha},
        "target_modules": sorted(lora.layers),
        "use_dora": lora.kind == "dora",
    }


def from_network(network: nn.Module, name: str, *, trigger: str = "") -> Lora:
    """The adapter called `name` that peft has put into a network, its tensors where they are.

    Raises:
        RequestError: no adapter of that name.
    """
    from peft import get_peft_model_state_dict

    configs: Mapping[str, Any] = getattr(network, "peft_config", {})
    if name not in configs:
        raise RequestError(f"There is no adapter {name!r} here; there are {', '.join(configs) or 'none'}.")
    tensors = get_peft_model_state_dict(network, adapter_name=name)
    return recognise(tensors, source=f"The adapter {name}", config=configs[name].to_dict(), trigger=trigger)
