"""The sizes of a model's pieces in each format, from its configs alone.

Comes in: components built without storage, and the dtype they are stored in. Goes out: bytes, by component and group.
Nothing is a constant: another depth or width has other sizes. Refuses to know: what is free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky5.checkpoint.document import read_object
from kandinsky5.checkpoint.packing import PLAIN, stored_format
from kandinsky5.checkpoint.weights import TORCH_DTYPES, Library
from kandinsky5.memory.formats import packs, weight_bytes
from kandinsky5.memory.groups import groups_of, table_of
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines.folder import KINDS, empty_model, empty_network, stored_weights

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "vae")

WIDE = frozenset(Kandinsky5Transformer3DModel._keep_in_fp32_modules)
"""Of the network in another dtype than it is stored in, what is float32."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component in a format.

    groups: for each group the bytes of its units.
    ends: bytes that belong to no group; they are always on the device.
    table: bytes of the table that is looked up on the host.
    """

    groups: Mapping[str, tuple[int, ...]]
    ends: int
    table: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.ends + self.table + sum(map(sum, self.groups.values()))

    def group(self, name: str) -> int:
        """Bytes of a group."""
        return sum(self.groups.get(name, ()))

    def largest(self, name: str) -> int:
        """Bytes of a group's largest unit."""
        return max(self.groups.get(name, ()), default=0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model without storage.

    components: on the meta device.
    dtypes: that each component is loaded in.
    stored: the format of each component's files; None where nobody here knows it.
    mapped: components whose tensors are stored in the dtype they run in, so that they can be read from the files.
    is_narrow: of the network what diffusers widens to float32 is stored in the dtype of the run, and stays in it.
    """

    components: Mapping[str, Any]
    dtypes: Mapping[str, torch.dtype]
    stored: Mapping[str, str | None]
    mapped: frozenset[str]
    is_narrow: bool

    def part(self, component: str, form: str) -> Part:
        """The sizes of a component in a format."""
        model = self.components[component]
        counted: set[int] = set()
        scales = 0

        def size(root: nn.Module, prefix: str, without: tuple[nn.Module, ...] = ()) -> int:
            nonlocal scales
            left_out = {id(part) for one in without for part in one.modules()}
            total = 0
            for name, module in root.named_modules(prefix=prefix):
                if id(module) not in left_out:
                    moving, staying = self._own_bytes(component, name, module, form, counted)
                    total, scales = total + moving, scales + staying
            return total

        table = table_of(component, model)
        table_bytes = size(table, "") if table is not None else 0
        # A block is counted before the units inside it, which it leaves out; what is counted once is not again.
        found = {
            name: tuple(size(place.module, place.path, place.without) for place in places)
            for name, places in groups_of(component, model).items()
        }
        ends = size(model, "")
        return Part(groups=found, ends=ends + scales, table=table_bytes)

    def _own_bytes(
        self, component: str, name: str, module: nn.Module, form: str, counted: set[int]
    ) -> tuple[int, int]:
        """What a module itself holds and nobody counted: (bytes that move with it, bytes of scales)."""
        moving = staying = 0
        dtype = self.dtypes[component]
        if component == "transformer" and not self.is_narrow and WIDE & set(name.split(".")):
            dtype = torch.float32
        packed = form != PLAIN and packs(component, name, module, form)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or id(tensor) in counted:
                continue
            counted.add(id(tensor))
            width = dtype if tensor.is_floating_point() else tensor.dtype
            add, scales = weight_bytes(form if packed and key == "weight" else PLAIN, tensor, width)
            moving, staying = moving + add, staying + scales
        return moving, staying


def model_of(folder: Path, dtype: torch.dtype, variant: str | None = None, *, sees: bool = False) -> Model:
    """A folder's model, of which only configs and headers were read.

    Args:
        folder: in the published layout.
        dtype: that it is to run in.
        variant: of the weight files.
        sees: with Qwen's vision tower, which editing needs.

    Raises:
        CheckpointError: configs that are missing or describe nothing that can be built.
    """
    components: dict[str, Any] = {"transformer": empty_network(folder / "transformer", variant)}
    components |= {name: empty_model(name, folder / name, variant, sees=sees) for name in KINDS}
    stored = {name: stored_format(read_object(folder / name / "config.json")) for name in COMPONENTS}
    same = {name for name in COMPONENTS if _stored_dtype(folder / name, name, variant) == dtype}
    return Model(
        components=components,
        dtypes=dict.fromkeys(COMPONENTS, dtype),
        stored=stored,
        mapped=frozenset(name for name in same if stored[name] == PLAIN),
        is_narrow=_wide_dtypes(folder / "transformer", variant) == {dtype},
    )


def narrow(network: nn.Module, dtype: torch.dtype) -> None:
    """Take back what a load widened to float32, of a network that is stored in this dtype: no value changes."""
    for name, parameter in network.named_parameters():
        if WIDE & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def _wide_dtypes(folder: Path, variant: str | None) -> set[torch.dtype | None]:
    """The dtypes that time embedding and modulation are stored in."""
    stored = stored_weights(folder, "diffusers", variant)
    return {TORCH_DTYPES.get(tensor.dtype) for name, tensor in stored.items() if WIDE & set(name.split("."))}


def _stored_dtype(folder: Path, component: str, variant: str | None) -> torch.dtype | None:
    """The one dtype that a component is stored in; None where there are several or none."""
    library: Library = KINDS[component].library if component in KINDS else "diffusers"
    found = {tensor.dtype for tensor in stored_weights(folder, library, variant).values()}
    return TORCH_DTYPES.get(found.pop()) if len(found) == 1 else None
