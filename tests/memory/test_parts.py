"""Sizes that were computed without storage, beside the bytes of models that were loaded."""

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.memory.formats import FORMATS, config, pack, packs, why_not
from kandinsky5.memory.groups import groups_of, table_of
from kandinsky5.memory.parts import COMPONENTS, model_of, narrow
from kandinsky5.model.quantising import quantise
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.streaming import Unit

from .conftest import DTYPE


def real_bytes(module: nn.Module) -> int:
    """Of everything a module holds, packed tensors by their parts, bitsandbytes' scales too."""
    total, seen = 0, set()
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        parts = (
            [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            if is_traceable_wrapper_subclass(tensor)
            else [tensor]
        )
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            parts += [state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset]
        total += sum(part.nbytes for part in parts)
    return total


def test_as_stored(half_folder):
    model = model_of(half_folder, DTYPE)
    pipe = Kandinsky5T2IPipeline.from_pretrained(half_folder)
    assert model.mapped == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for name in COMPONENTS:
        module = getattr(pipe, name)
        part = model.part(name, "bf16")
        buffers = sum(
            b.nbytes for b in module.buffers() if b.is_floating_point()
        )  # float32, counted as bfloat16
        assert real_bytes(module) - buffers <= part.total <= real_bytes(module)
        for group, places in groups_of(name, module).items():
            real = [Unit("", place.module, without=place.without) for place in places]
            found = [sum(leaf.nbytes for leaf in unit.leaves) for unit in real]
            assert list(part.groups[group]) == found, (name, group)


def test_a_table_that_the_head_multiplies_by_goes_where_the_head_is(half_folder, half_editing_folder):
    """Of the published encoder the two are apart; of `half_editing_folder` they are one tensor."""
    for pipeline, folder, tied in (
        (Kandinsky5T2IPipeline, half_folder, False),
        (Kandinsky5I2IPipeline, half_editing_folder, True),
    ):
        loaded = pipeline.from_pretrained(folder).text_encoder
        planned = model_of(folder, DTYPE)
        for encoder in (loaded, planned.components["text_encoder"]):
            assert (table_of("text_encoder", encoder) is None) == tied
        assert (planned.part("text_encoder", "bf16").table == 0) == tied
        assert planned.part("text_encoder", "bf16").total <= real_bytes(loaded)


def test_in_another_dtype_what_diffusers_keeps_is_float32(half_folder):
    model = model_of(half_folder, torch.float16)
    pipe = Kandinsky5T2IPipeline.from_pretrained(half_folder, dtype=torch.float16)
    assert model.mapped == frozenset()
    assert model.part("transformer", "bf16").total == real_bytes(pipe.transformer)


@pytest.mark.parametrize("form", ["int8", "nf4", "fp8"])
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_packed(half_folder, form, component):
    by_hand = (component, form) == ("transformer", "nf4")
    packing = PipelineQuantizationConfig(quant_mapping={component: config(form, component)})
    pipe = Kandinsky5T2IPipeline.from_pretrained(
        half_folder,
        dtype={"transformer": None, "default": DTYPE},
        quantization_config=None if by_hand else packing,
    )
    module = getattr(pipe, component)
    if by_hand:
        pack(module, component, form, torch.device("cpu"))
    if component == "transformer":
        narrow(module, DTYPE)
    predicted = model_of(half_folder, DTYPE).part(component, form).total
    assert predicted == pytest.approx(real_bytes(module), rel=0.002)
    plain = {n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.weight.dtype == DTYPE}
    plain = {n for n in plain if not is_traceable_wrapper_subclass(module.get_submodule(n).weight)}
    assert not any(packs(component, name, module.get_submodule(name), form) for name in plain)
    assert not any("layers.0.mlp" in name or "to_query" in name for name in plain)


def test_our_float8_layers_are_of_the_size_of_the_format(half_folder):
    network = Kandinsky5T2IPipeline.from_pretrained(half_folder).transformer
    part = model_of(half_folder, DTYPE).part("transformer", "fp8")
    quantise(network)
    blocks = [
        Unit("", place.module, without=place.without) for place in groups_of("transformer", network)["blocks"]
    ]
    found = sum(leaf.nbytes for unit in blocks for leaf in unit.leaves)
    kept = sum(
        getattr(block.cross_attention, name).weight.numel()
        for block in network.visual_transformer_blocks
        for name in ("to_key", "to_value")
    )
    assert found == pytest.approx(part.group("blocks") + kept, rel=0.02), (
        "two layers of a block stay in bfloat16"
    )


def test_formats_have_names_and_reasons():
    assert why_not("int8", "vae") == "vae is never packed"
    assert all(why_not(name, "transformer") is None for name in FORMATS)
