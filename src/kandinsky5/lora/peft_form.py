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
        if lora.kind == "lokr":
            factors = _factors(parts)
            if lora.scales[layer] != 1:
                factors["w1"] = factors["w1"] * lora.scales[layer]
            named |= {f"{layer}.lokr_{part}": tensor for part, tensor in factors.items()}
        else:
            named |= {f"{layer}.{_PEFT_PARTS[part]}": tensor for part, tensor in parts.items()}
    return named


def _factors(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a LoKr, as peft makes any layer's: the first whole, the second a product only where that is smaller."""
    found = dict(parts)
    if "w1_a" in found:
        found["w1"] = _multiplied(found.pop("w1_a"), found.pop("w1_b"))
    if "w2_a" in found and 2 * len(found["w2_b"]) >= max(len(found["w2_a"]), found["w2_b"].shape[1]):
        found["w2"] = _multiplied(found.pop("w2_a"), found.pop("w2_b"))
    return found


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() @ b.float()).to(a.dtype)


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
