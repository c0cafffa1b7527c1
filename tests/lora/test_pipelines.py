"""LoRA on the public pipelines: what is loaded, weighed, fused and taken out changes the velocity by the formula."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel as DiffusersNetwork
from diffusers.loaders import KandinskyLoraLoaderMixin
from torch import Tensor, nn

from kandinsky5.adapters import NamedAdapters
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.lora import Lora, LoraFormat, comfyui_tensors, from_network, recognise, write_lora
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.placement import use_mode

from .conftest import ATTENTION, FF, MODULATION, SHAPES, WIDTH, change, drawn, make_lora


@pytest.fixture
def own(pipeline: Kandinsky5T2IPipeline) -> Kandinsky5T2IPipeline:
    """A pipeline whose network is its own, to be changed."""
    return Kandinsky5T2IPipeline.from_pipe(pipeline, transformer=copy.deepcopy(pipeline.transformer))


def velocity(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return network(
            hidden_states=torch.randn(2, 1, 8, 8, 16, generator=generator),
            encoder_hidden_states=torch.randn(2, 5, 64, generator=generator),
            timestep=torch.tensor([200.0, 800.0]),
            pooled_projections=torch.randn(2, 48, generator=generator),
            visual_rope_pos=[torch.arange(n) for n in (1, 4, 4)],
            text_rope_pos=torch.arange(5),
            return_dict=False,
        )[0]


def with_changes(network: nn.Module, *loras: tuple[Lora, float]) -> Tensor:
    """The velocity of a copy whose weights were changed by hand."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for lora, weight in loras:
            for layer in lora.layers:
                other.get_submodule(layer).weight += weight * change(lora, layer)
    return velocity(other)


@pytest.mark.parametrize("form", list(LoraFormat))
def test_a_file_changes_what_its_formula_says(
    form: LoraFormat, own: Kandinsky5T2IPipeline, tmp_path: Path
) -> None:
    lora = make_lora()
    expected = with_changes(own.transformer, (lora, 1.0))
    write_lora(lora, tmp_path / "style.safetensors", form)
    own.load_lora_weights(tmp_path, adapter_name="style")
    torch.testing.assert_close(velocity(own.transformer), expected, rtol=1e-4, atol=1e-5)


def test_several_weighed_fused_and_taken_out(own: Kandinsky5T2IPipeline) -> None:
    plain, first, second = copy.deepcopy(own.transformer), make_lora(0), make_lora(50)
    before = velocity(plain)
    for name, lora in (("first", first), ("second", second)):
        own.load_lora_weights(comfyui_tensors(lora), adapter_name=name)
    own.set_adapters(["first", "second"], [0.5, -0.25])
    mixed = with_changes(plain, (first, 0.5), (second, -0.25))
    torch.testing.assert_close(velocity(own.transformer), mixed, rtol=1e-4, atol=1e-5)
    own.fuse_lora()
    torch.testing.assert_close(velocity(own.transformer), mixed, rtol=1e-4, atol=1e-5)
    own.unfuse_lora()
    own.set_adapters("second")
    torch.testing.assert_close(
        velocity(own.transformer), with_changes(plain, (second, 1.0)), rtol=1e-4, atol=1e-5
    )
    own.disable_lora()
    torch.testing.assert_close(velocity(own.transformer), before, rtol=1e-4, atol=1e-5)
    own.unload_lora_weights()
    torch.testing.assert_close(velocity(own.transformer), before, rtol=1e-4, atol=1e-5)
    assert {*dict(own.transformer.named_parameters())} == {*dict(plain.named_parameters())}


def test_dora_follows_its_formula(own: Kandinsky5T2IPipeline) -> None:
    lora, other = make_lora(dora=True), copy.deepcopy(own.transformer)
    for layer, parts in lora.layers.items():
        weight = other.get_submodule(layer).weight
        with torch.no_grad():
            changed = weight + change(lora, layer)
            weight.copy_(parts["magnitude"][:, None] * changed / changed.norm(dim=1, keepdim=True))
    own.load_lora_weights(comfyui_tensors(lora))
    torch.testing.assert_close(velocity(own.transformer), velocity(other), rtol=1e-3, atol=1e-4)


def test_lokr_follows_its_formula(own: Kandinsky5T2IPipeline) -> None:
    w1, a, b = drawn(4, 4, seed=1), drawn(16, 2, seed=2), drawn(2, 16, seed=3)
    names = (("lokr_w1", w1), ("lokr_w2_a", a), ("lokr_w2_b", b), ("alpha", torch.tensor(1.0)))
    tensors = {f"diffusion_model.{ATTENTION}.{name}": value for name, value in names}
    other = copy.deepcopy(own.transformer)
    with torch.no_grad():
        other.get_submodule(ATTENTION).weight += 0.5 * torch.kron(w1, a @ b)
    own.load_lora_weights(tensors, adapter_name="kron")
    torch.testing.assert_close(velocity(own.transformer), velocity(other), rtol=1e-4, atol=1e-5)
    again = from_network(own.transformer, "kron")
    assert again.kind == "lokr" and torch.equal(again.layers[ATTENTION]["w2_a"], a)


@pytest.mark.parametrize(
    ("w1", "w2"),
    [
        ([(8, 2), (2, 8)], [(8, 8)]),
        ([(8, 3), (3, 8)], [(8, 2), (2, 8)]),
        ([(4, 2), (2, 4)], [(16, 2), (2, 16)]),
        ([(8, 8)], [(8, 5), (5, 8)]),
    ],
    ids=["first a product", "two ranks", "first small", "more than half rank"],
)
def test_lokr_in_forms_that_peft_does_not_make(
    own: Kandinsky5T2IPipeline, w1: list[tuple[int, int]], w2: list[tuple[int, int]]
) -> None:
    tensors, factors = {}, []
    for name, shapes in (("w1", w1), ("w2", w2)):
        parts = [drawn(*shape, seed=sum(shape)) for shape in shapes]
        ends = [""] if len(parts) == 1 else ["_a", "_b"]
        tensors |= {f"{ATTENTION}.lokr_{name}{end}": part for end, part in zip(ends, parts, strict=True)}
        factors.append(parts[0] if len(parts) == 1 else parts[0] @ parts[1])
    other = copy.deepcopy(own.transformer)
    with torch.no_grad():
        other.get_submodule(ATTENTION).weight += 0.5 * torch.kron(*factors)
    lora = recognise(tensors)
    own.load_lora_weights(Lora(kind="lokr", layers=lora.layers, scales={ATTENTION: 0.5}, source=""))
    torch.testing.assert_close(velocity(own.transformer), velocity(other), rtol=1e-4, atol=1e-5)


def test_a_lokr_that_peft_cannot_hold_is_refused_in_words(own: Kandinsky5T2IPipeline) -> None:
    tensors = {f"{ATTENTION}.lokr_w1": drawn(2, 32, seed=1), f"{ATTENTION}.lokr_w2": drawn(32, 2, seed=2)}
    with pytest.raises(CheckpointError, match="factorised in ways that peft does not make"):
        own.load_lora_weights(tensors)
    assert not own.get_list_adapters()


def test_both_pipelines_take_them(editing: Kandinsky5I2IPipeline) -> None:
    network = copy.deepcopy(editing.transformer)
    mine = Kandinsky5I2IPipeline.from_pipe(editing, transformer=network)
    mine.load_lora_weights(comfyui_tensors(make_lora()), adapter_name="a")
    assert mine.get_list_adapters() == {"transformer": ["a"]}
    assert Kandinsky5T2IPipeline.from_pipe(mine).get_active_adapters() == ["a"]


def test_what_a_network_carries_is_what_was_loaded(own: Kandinsky5T2IPipeline) -> None:
    for lora in (make_lora(), make_lora(dora=True)):
        own.load_lora_weights(comfyui_tensors(lora), adapter_name=lora.kind)
        back = from_network(own.transformer, lora.kind)
        assert back.kind == lora.kind and back.scales == pytest.approx(lora.scales)
        for layer, parts in lora.layers.items():
            assert all(torch.equal(tensor, back.layers[layer][part]) for part, tensor in parts.items())
    with pytest.raises(RequestError, match="no adapter 'x'"):
        from_network(own.transformer, "x")


def test_the_file_loads_into_diffusers_own_network(own: Kandinsky5T2IPipeline, tmp_path: Path) -> None:
    lora = make_lora()
    write_lora(lora, tmp_path / "a.safetensors", LoraFormat.diffusers)
    theirs = DiffusersNetwork.from_config(dict(own.transformer.config))
    theirs.load_state_dict(own.transformer.state_dict())
    tensors, metadata = KandinskyLoraLoaderMixin.lora_state_dict(
        str(tmp_path / "a.safetensors"), return_lora_metadata=True
    )
    theirs.load_lora_adapter(tensors, metadata=metadata, adapter_name="a")
    for layer in lora.layers:
        delta = theirs.get_submodule(layer).get_delta_weight("a")
        torch.testing.assert_close(delta, change(lora, layer), rtol=1e-4, atol=1e-6)


def test_adapters_of_other_models_are_refused_and_change_nothing(own: Kandinsky5T2IPipeline) -> None:
    flux = {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 3072),
        "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(3072, 4),
    }
    large = {
        f"transformer.{ATTENTION}.lora_A.weight": torch.zeros(4, 2560),
        f"transformer.{ATTENTION}.lora_B.weight": torch.zeros(2560, 4),
    }
    before = {name: type(module) for name, module in own.transformer.named_modules()}
    with pytest.raises(
        CheckpointError, match=r"single_transformer_blocks.*none of the network's.*another model"
    ):
        own.load_lora_weights(flux)
    with pytest.raises(CheckpointError, match="2560 channels in and 2560 out, the network's has 64 and 64"):
        own.load_lora_weights(large)
    assert {name: type(module) for name, module in own.transformer.named_modules()} == before


def test_dtypes_are_the_network_s(own: Kandinsky5T2IPipeline) -> None:
    own.transformer.to(torch.bfloat16)
    own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name="a")
    adapted = {p.dtype for name, p in own.transformer.named_parameters() if "lora_" in name}
    assert adapted == {torch.bfloat16}


def test_values_that_the_network_s_dtype_cannot_hold(own: Kandinsky5T2IPipeline) -> None:
    own.transformer.to(torch.float16)
    tensors = {
        name: value * 1e6 for name, value in comfyui_tensors(make_lora()).items() if "alpha" not in name
    }
    with pytest.raises(CheckpointError, match=r"float16 cannot hold; load the network in torch\.bfloat16"):
        own.load_lora_weights(tensors)
    assert not own.get_list_adapters()


def test_arguments_that_would_be_ignored(own: Kandinsky5T2IPipeline, tmp_path: Path) -> None:
    tensors = comfyui_tensors(make_lora())
    with pytest.raises(RequestError, match="weigth_name"):
        own.load_lora_weights(tensors, weigth_name="x")
    with pytest.raises(RequestError, match="pickles"):
        own.load_lora_weights(tmp_path, use_safetensors=False)
    with pytest.raises(RequestError, match="pickles"):
        own.save_lora_weights(tmp_path, tensors, safe_serialization=False)
    with pytest.raises(CheckpointError, match="must hold one"):
        own.load_lora_weights(tmp_path)
    write_lora(make_lora(), tmp_path / "one.safetensors", LoraFormat.comfyui)
    with pytest.raises(RequestError, match="beside the file"):
        own.load_lora_weights(tmp_path / "one.safetensors", weight_name="other.safetensors")
    own.load_lora_weights(tensors, adapter_name="a")
    with pytest.raises(RequestError, match="'a' already"):
        own.load_lora_weights(tensors, adapter_name="a")


def test_a_network_that_torch_compile_has_wrapped(own: Kandinsky5T2IPipeline) -> None:
    """Diffusers would leave an adapter inside that `unload_lora_weights` does not find."""
    lora = make_lora()
    expected = with_changes(own.transformer, (lora, 1.0))
    own.transformer = torch.compile(plain := own.transformer, backend="eager")
    with pytest.raises(RequestError, match=r"load them first, or compile in place"):
        own.load_lora_weights(comfyui_tensors(lora))
    own.transformer = plain
    own.transformer.compile(backend="eager")
    own.load_lora_weights(comfyui_tensors(lora))
    torch.testing.assert_close(velocity(own.transformer), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_are_only_stored_in_float8(own: Kandinsky5T2IPipeline, tmp_path: Path) -> None:
    """Layerwise casting: peft casts an adapter to what its layer is stored in, and cannot multiply in that."""
    lora = make_lora()
    own.load_lora_weights(comfyui_tensors(lora), adapter_name="first")
    own.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert velocity(own.transformer).isfinite().all()
    with pytest.raises(RequestError, match=r"load it first, and call enable_layerwise_casting\(\) then"):
        own.load_lora_weights(comfyui_tensors(lora), adapter_name="second")
    assert own.get_list_adapters() == {"transformer": ["first"]}
    own.unload_lora_weights()
    with pytest.raises(RequestError, match="layerwise casting"):
        own.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("name", ["", "v1.5", 3])
def test_names_that_no_module_can_have(own: Kandinsky5T2IPipeline, name: object) -> None:
    with pytest.raises(RequestError, match="must be a text without a dot"):
        own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name=name)  # type: ignore[arg-type]
    assert not own.get_list_adapters()


@pytest.mark.parametrize("name", ["train", "keys", "type"])
def test_names_that_torch_s_modules_have_taken(own: Kandinsky5T2IPipeline, name: str) -> None:
    with pytest.raises(RequestError, match="a word of torch's modules"):
        own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name=name)
    assert not any("lora" in name for name, _ in own.transformer.named_modules())


def test_without_a_name_none_that_is_there_is_replaced(own: Kandinsky5T2IPipeline) -> None:
    for seed in (0, 50):
        own.load_lora_weights(comfyui_tensors(make_lora(seed)))
    own.delete_adapters("default_0")
    own.load_lora_weights(comfyui_tensors(make_lora(70)))
    assert sorted(own.get_list_adapters()["transformer"]) == ["default_0", "default_1"]
    assert torch.equal(
        from_network(own.transformer, "default_1").layers[ATTENTION]["A"],
        make_lora(50).layers[ATTENTION]["A"],
    )


def test_the_last_one_loaded_is_on_alone(own: Kandinsky5T2IPipeline) -> None:
    for name in ("first", "second"):
        own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name=name)
    assert own.get_active_adapters() == ["second"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_network_that_wears_adapters_is_not_saved(
    own: Kandinsky5T2IPipeline, tmp_path: Path, fused: bool
) -> None:
    """Its layers would have peft's names, which no class of a network knows."""
    own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name="a")
    if fused:
        own.fuse_lora()
    with pytest.raises(
        RequestError, match=r"layers of 'transformer'.*fuse_lora\(\).*unload_lora_weights\(\)"
    ):
        own.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    own.unload_lora_weights()
    own.save_pretrained(tmp_path / "saved")
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(velocity(again.transformer), velocity(own.transformer))


def test_names_of_files_stay_apart_as_names_of_modules(own: Kandinsky5T2IPipeline, tmp_path: Path) -> None:
    adapters = NamedAdapters(own)
    for name in ("a.b.safetensors", "a_b.safetensors", "a_.safetensors", "a._safetensors"):
        write_lora(make_lora(), tmp_path / name.replace("._s", "_.s"), LoraFormat.comfyui)
        adapters.add(name, str(tmp_path / name.replace("._s", "_.s")))
    assert len(own.get_list_adapters()["transformer"]) == len(adapters.names) == 4


def test_the_fast_way_through_the_network_sees_them(own: Kandinsky5T2IPipeline) -> None:
    use_mode(own.transformer, "exact")
    own.load_lora_weights(comfyui_tensors(make_lora()), adapter_name="a")
    fast = velocity(own.transformer)
    use_mode(own.transformer, None)
    torch.testing.assert_close(fast, velocity(own.transformer), rtol=1e-4, atol=1e-5)


def test_float8_layers_take_them_fused(own: Kandinsky5T2IPipeline) -> None:
    tensors = comfyui_tensors(make_lora())
    own.load_lora_weights(tensors, adapter_name="a")
    own.fuse_lora()
    own.unload_lora_weights()
    use_mode(own.transformer, "fp8")
    kept = {name: tensor for name, tensor in tensors.items() if MODULATION in name}
    for some in (tensors, kept):  # also where it is for layers that are not float8
        with pytest.raises(RequestError, match="fuse it first"):
            own.load_lora_weights(some)
    assert not own.get_list_adapters()


def test_quantised_weights_take_them(own: Kandinsky5T2IPipeline) -> None:
    """int8 weights, as `quantization_config` makes them: the adapter stands beside them in full precision."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    lora = make_lora()
    quantize_(own.transformer, Int8WeightOnlyConfig())
    before = velocity(own.transformer)
    own.load_lora_weights(comfyui_tensors(lora), adapter_name="a")
    x = drawn(3, WIDTH, seed=9)
    layer = own.transformer.get_submodule(ATTENTION)
    torch.testing.assert_close(
        layer(x) - layer.base_layer(x), x @ change(lora, ATTENTION).T, rtol=1e-3, atol=1e-4
    )
    own.unload_lora_weights()
    assert torch.equal(velocity(own.transformer), before)


def test_shapes_of_the_tests_are_the_network_s(own: Kandinsky5T2IPipeline) -> None:
    assert FF == 96
    for layer, shape in SHAPES.items():
        assert tuple(own.transformer.get_submodule(layer).weight.shape) == shape
    assert recognise(comfyui_tensors(make_lora())).layers.keys() == SHAPES.keys()
