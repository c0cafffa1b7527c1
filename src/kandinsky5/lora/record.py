"""An adapter of the network, in the one form that every file format is brought to.

Parts of a layer: of a LoRA `A` (r, in) and `B` (out, r), the change of the weight being `scale B A`; of a DoRA also
`magnitude` (out,); of a LoKr `w1` and `w2`, each whole or as `w1_a`, `w1_b`, the change being `scale` times their
Kronecker product.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LoraKind = Literal["lora", "dora", "lokr"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """An adapter.

    kind: what its layers are; all of one kind.
    layers: tensors by the network's name of a layer and the part they are.
    scales: what a layer's change is multiplied by, one for each layer.
    source: where it came from, for messages.
    trigger: words that its author says call it up; may be empty.
    """

    kind: LoraKind
    layers: Mapping[str, Mapping[str, Tensor]]
    scales: Mapping[str, float]
    source: str
    trigger: str = ""

    def rank(self, layer: str) -> int:
        """The rank of a layer; of a LoKr whose second factor is whole, its longer side, as peft counts it."""
        parts = self.layers[layer]
        if self.kind != "lokr":
            return len(parts["A"])
        for name in ("w2_b", "w1_b"):
            if name in parts:
                return len(parts[name])
        return max(parts["w2"].shape)

    def digest(self) -> str:
        """SHA-256 of layers, scales and values, 64 hexadecimal digits: the same from every format of file."""
        found = hashlib.sha256(self.kind.encode())
        for layer in sorted(self.layers):
            found.update(f"{layer} {self.scales[layer]:.6g}".encode())
            for part, tensor in sorted(self.layers[layer].items()):
                found.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}".encode())
                found.update(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        return found.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for parts in self.layers.values() for t in parts.values())
