"""How the network is called and what is done to it from outside: arguments, outputs, compiling, adapting, casting."""

import inspect

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from peft import LoraConfig
from torch import nn

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

from . import peer, reference
from .tiny import config_of, inputs_for, relative_rms


def names(function) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("method", ["forward", "__init__"])
def test_arguments_are_diffusers_in_its_order(method):
    ours = inspect.signature(getattr(Kandinsky5Transformer3DModel, method)).parameters
    theirs = inspect.signature(getattr(peer.Kandinsky5Transformer3DModel, method)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert list(ours)[len(theirs) :] == (["encoder_attention_mask"] if method == "forward" else [])
    assert {n: p.default for n, p in ours.items() if n in theirs} == {n: p.default for n, p in theirs.items()}


@torch.no_grad()
def test_arguments_may_be_positional(build):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    by_name = model(**inputs.arguments(), encoder_attention_mask=mask).sample
    by_place = model(*inputs.arguments().values(), None, False, mask)
    assert torch.equal(by_place[0], by_name)


@torch.no_grad()
@pytest.mark.parametrize("value", [997.3, 500], ids=["float", "int"])
def test_a_scalar_timestep_is_the_batch_vector(build, value):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config, batch=3)
    expected = model(**inputs.changed(timestep=torch.full((3,), float(value))).arguments()).sample
    scalars = [
        value,
        torch.tensor(value),
        torch.tensor([value]),
        torch.tensor(float(value), dtype=torch.float64),
    ]
    for timestep in scalars:
        assert torch.equal(model(**inputs.changed(timestep=timestep).arguments()).sample, expected)


@torch.no_grad()
def test_each_row_has_its_own_time(build):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config, batch=2)
    together = model(**inputs.arguments()).sample
    swapped = model(**inputs.changed(timestep=inputs.timestep.flip(0)).arguments()).sample
    assert relative_rms(swapped, together) > 0.01
    integers = inputs.changed(timestep=torch.tensor([3, 900]))
    floats = inputs.changed(timestep=torch.tensor([3.0, 900.0]))
    assert torch.equal(model(**integers.arguments()).sample, model(**floats.arguments()).sample)


@torch.no_grad()
def test_output_is_a_record_or_a_tuple(build):
    config = config_of("i2i")
    model, inputs = build(config), inputs_for(config)
    record = model(**inputs.arguments())
    assert isinstance(record, Transformer2DModelOutput)
    output = model(**inputs.arguments(), return_dict=False)
    assert isinstance(output, tuple) and len(output) == 1
    assert torch.equal(output[0], record.sample)
    assert record.sample.shape == (2, 1, 6, 8, 16)


@torch.no_grad()
def test_forward_leaves_its_inputs_and_itself_alone(build):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    before = {n: t.clone() for n, t in model.state_dict().items()}, inputs.hidden_states.clone()
    first = model(**inputs.arguments()).sample
    assert torch.equal(model(**inputs.arguments()).sample, first)
    assert torch.equal(inputs.hidden_states, before[1])
    assert all(torch.equal(t, before[0][n]) for n, t in model.state_dict().items())


def test_a_new_network_starts_with_closed_gates():
    """Zero modulation: gates shut, so a new network's velocity does not depend on its text or its time."""
    config = config_of("t2i")
    model, inputs = Kandinsky5Transformer3DModel(**config).eval(), inputs_for(config)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            assert not parameter.any(), name
    with torch.no_grad():
        other = inputs.changed(timestep=torch.zeros(2), encoder_hidden_states=-inputs.encoder_hidden_states)
        assert torch.equal(model(**other.arguments()).sample, model(**inputs.arguments()).sample)


def test_gradient_checkpointing_gives_the_same_gradients(config, build):
    found = []
    for checkpointing in (False, True):
        model, inputs = build(config).train(), inputs_for(config)
        runs: list[int] = []
        model.visual_transformer_blocks[1].feed_forward.register_forward_hook(lambda *_, r=runs: r.append(1))
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing == checkpointing
        model(**inputs.arguments()).sample.pow(2).sum().backward()
        assert len(runs) == (2 if checkpointing else 1)  # recomputed on the way back
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("attribute", ["_no_split_modules", "_repeated_blocks"])
def test_declared_blocks_exist(build, attribute):
    model = build(config_of("t2i"))
    present = {type(module).__name__ for module in model.modules()}
    declared = getattr(Kandinsky5Transformer3DModel, attribute)
    assert declared and set(declared) <= present
    blocks = [*model.text_transformer_blocks, *model.visual_transformer_blocks]
    assert {type(block).__name__ for block in blocks} == set(declared)


def test_kept_in_float32_are_modules_that_exist(build):
    parts = {part for name, _ in build(config_of("t2i")).named_parameters() for part in name.split(".")}
    assert set(Kandinsky5Transformer3DModel._keep_in_fp32_modules) <= parts


@torch.no_grad()
def test_compiled_blocks_are_whole_graphs_and_equal(build):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    others = inputs_for(config, batch=1, height=4, width=12, text=11)
    expected = [
        model(**inputs.arguments(), encoder_attention_mask=mask).sample,
        model(**others.arguments()).sample,
    ]
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    actual = [
        model(**inputs.arguments(), encoder_attention_mask=mask).sample,
        model(**others.arguments()).sample,
    ]
    for a, e in zip(actual, expected, strict=True):
        assert relative_rms(a, e) < 1e-6


@torch.no_grad()
def test_the_whole_network_compiles_as_one_graph(build):
    config = config_of("t2i", num_visual_blocks=1, num_text_blocks=1)
    model, inputs = build(config), inputs_for(config)
    expected = model(**inputs.arguments()).sample
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_rms(compiled(**inputs.arguments()).sample, expected) < 1e-6


@torch.no_grad()
def test_attention_back_end_can_be_chosen_and_reset(build, back_end_restored):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    expected = model(**inputs.arguments()).sample
    for backend in ("native", "_native_math"):
        model.set_attention_backend(backend)
        processors = model.attn_processors.values()
        assert {p._attention_backend.value for p in processors} == {backend}
        assert relative_rms(model(**inputs.arguments()).sample, expected) < 2e-6
    assert len(processors) == 2 + 2 * 3  # one in each text block, two in each visual block
    model.reset_attention_backend()
    assert {p._attention_backend for p in model.attn_processors.values()} == {None}


@torch.no_grad()
def test_an_unmaskable_back_end_does_not_pass_unnoticed(build, back_end_restored):
    """Flash attention has no mask: with one it must raise, never ignore it."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    model.set_attention_backend("_native_flash")
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    with pytest.raises((ValueError, RuntimeError)):
        model(**inputs.arguments(), encoder_attention_mask=mask)


LORA_TARGETS = (
    r".*(to_query|to_key|to_value|self_attention\.out_layer|cross_attention\.out_layer"
    r"|feed_forward\.in_layer|feed_forward\.out_layer)"
)


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
@pytest.mark.parametrize("targets", ["transformer-layers", "every-linear-layer"])
def test_lora_is_the_network_with_its_product_added(build, targets):
    """An adapter on a layer must act as W + B A would: a layer that is read around its module would ignore it."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = linear_names(model)
    target = LORA_TARGETS if targets == "transformer-layers" else layers
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=target, init_lora_weights=True))
    assert (
        relative_rms(
            model(**inputs.arguments()).sample, reference.velocity(weights, config, **inputs.arguments())
        )
        < 2e-5
    )

    adapted = {
        n.removesuffix(".lora_A.default") for n, _ in model.named_modules() if n.endswith("lora_A.default")
    }
    assert adapted == set(
        layers
        if targets == "every-linear-layer"
        else [n for n in layers if "blocks" in n and "modul" not in n]
    )
    generator = torch.Generator().manual_seed(9)
    for name in sorted(adapted):
        layer = model.get_submodule(name)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.copy_(torch.randn(down.shape, generator=generator) / down.shape[1] ** 0.5)
        up.copy_(0.3 * torch.randn(up.shape, generator=generator))
        weights[f"{name}.weight"] += up @ down
    expected = reference.velocity(weights, config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < 2e-5


def test_only_the_adapter_learns(build):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=LORA_TARGETS))
    model.enable_gradient_checkpointing()
    model.train()(**inputs.arguments()).sample.pow(2).sum().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert all(p.grad.any() for name, p in model.named_parameters() if "lora_B" in name)


@torch.no_grad()
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_layerwise_casting_changes_storage_only(config, build, storage):
    """Weights at rest in a narrow dtype, computed in float32: the reference on the narrow weights, to 2e-5."""
    model, inputs = build(config), inputs_for(config)
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    weights = model.state_dict()
    assert storage in {tensor.dtype for tensor in weights.values()}
    expected = reference.velocity(weights, config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < 2e-5


@torch.no_grad()
def test_forward_hooks_see_every_layer(build):
    """Offloading brings a layer's weights when it is called: whatever has weights of its own is called."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    silent = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    for name in list(silent):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: silent.discard(name))
    model(**inputs.arguments())
    assert not silent
