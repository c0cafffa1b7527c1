"""One adapter under the names of five programs is one adapter; what is none is refused in words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky5.errors import CheckpointError
from kandinsky5.lora import Lora, LoraFormat, read_lora, recognise, write_lora
from kandinsky5.lora.names import split_name

from .conftest import make_lora


def in_names(lora: Lora, name_of: Callable[[str, str], str], parts: dict[str, str]) -> dict[str, Tensor]:
    return {
        name_of(layer, parts[part]): tensor
        for layer, tensors in lora.layers.items()
        for part, tensor in tensors.items()
    }


def alphas(lora: Lora, name_of: Callable[[str, str], str]) -> dict[str, Tensor]:
    return {
        name_of(layer, "alpha"): torch.tensor(scale * lora.rank(layer))
        for layer, scale in lora.scales.items()
    }


def assert_same(a: Lora, b: Lora) -> None:
    assert a.kind == b.kind and a.layers.keys() == b.layers.keys()
    for layer, parts in a.layers.items():
        assert a.scales[layer] == pytest.approx(b.scales[layer], rel=1e-6)
        for part, tensor in parts.items():
            assert torch.equal(tensor, b.layers[layer][part]), (layer, part)


@pytest.mark.parametrize(
    "name_of",
    [
        lambda layer, part: f"diffusion_model.{layer}.{part}",
        lambda layer, part: f"lora_unet_{layer.replace('.', '_')}.{part}",
        lambda layer, part: f"lycoris_{layer.replace('.', '_')}.{part}",
        lambda layer, part: f"{layer}.{part}",
    ],
    ids=["comfyui", "kohya", "lycoris", "bare"],
)
@pytest.mark.parametrize("dora", [False, True])
def test_names_of_comfyui_and_kohya(name_of: Callable[[str, str], str], dora: bool) -> None:
    lora = make_lora(dora=dora)
    parts = {"A": "lora_down.weight", "B": "lora_up.weight", "magnitude": "dora_scale"}
    tensors = in_names(lora, name_of, parts)
    tensors = {k: v[:, None] if k.endswith("dora_scale") else v for k, v in tensors.items()}
    assert_same(recognise({**tensors, **alphas(lora, name_of)}), lora)


def test_the_authors_trainer(tmp_path: Path) -> None:
    """PEFT's own names with the adapter's name inside, and its config in a file beside."""
    lora = make_lora(ranks=(4, 4, 4))
    lora = Lora(kind="lora", layers=lora.layers, scales=dict.fromkeys(lora.layers, 0.25), source="")
    parts = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    save_file(
        in_names(lora, lambda layer, part: f"base_model.model.{layer}.{part}", parts),
        tmp_path / "lora.safetensors",
        metadata={"trigger": "ohwx"},
    )
    (tmp_path / "config_lora.json").write_text(json.dumps({"r": 4, "lora_alpha": 1, "target_modules": ["x"]}))
    read = read_lora(tmp_path / "lora.safetensors")
    assert_same(read, lora)
    assert read.trigger == "ohwx"


def test_rank_stabilised_scales_and_patterns_of_a_config() -> None:
    lora = make_lora(ranks=(4, 4, 2))
    parts = {"A": "lora_A.weight", "B": "lora_B.weight"}
    tensors = in_names(lora, lambda layer, part: f"transformer.{layer}.{part}", parts)
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"feed_forward.in_layer": 2}, "use_rslora": True}
    assert list(recognise(tensors, config=config).scales.values()) == [4.0, 1.0, 8 / 2**0.5]


@pytest.mark.parametrize(
    ("pattern", "scales"),
    [
        (r"self_attention\.to_query$", [0.5, 2.0, 4.0]),
        ("^visual_transformer_blocks.0.self_attention.to_query", [0.5, 2.0, 4.0]),
        ("^self_attention.to_query", [2.0, 2.0, 4.0]),
    ],
)
def test_patterns_that_are_names(pattern: str, scales: list[float]) -> None:
    tensors = in_names(
        make_lora(), lambda layer, part: f"{layer}.{part}", {"A": "lora_A.weight", "B": "lora_B.weight"}
    )
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 2}}
    assert list(recognise(tensors, config=config).scales.values()) == scales


def test_a_pattern_of_many_layers_is_not_passed_over() -> None:
    tensors = in_names(
        make_lora(), lambda layer, part: f"{layer}.{part}", {"A": "lora_A.weight", "B": "lora_B.weight"}
    )
    with pytest.raises(CheckpointError, match=r"pattern 'to_\(query\|key\)'.*write out the names"):
        recognise(tensors, config={"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_(query|key)": 2}})


@pytest.mark.parametrize("form", list(LoraFormat))
@pytest.mark.parametrize("dora", [False, True])
def test_what_is_written_is_read_again(form: LoraFormat, dora: bool, tmp_path: Path) -> None:
    lora = make_lora(dora=dora)
    write_lora(lora, tmp_path / "made" / "a.safetensors", form, about={"base": "embedded"})
    assert_same(read_lora(tmp_path / "made" / "a.safetensors"), lora)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["a.safetensors"]


def test_the_names_written_for_others(tmp_path: Path) -> None:
    for form, first in (
        (
            LoraFormat.diffusers,
            "transformer.visual_transformer_blocks.0.self_attention.to_query.lora_A.weight",
        ),
        (
            LoraFormat.comfyui,
            "diffusion_model.visual_transformer_blocks.0.self_attention.to_query.lora_down.weight",
        ),
    ):
        write_lora(make_lora(), tmp_path / "a.safetensors", form)
        assert first in load_file(tmp_path / "a.safetensors")


def lokr_tensors(whole: bool) -> dict[str, Tensor]:
    layer = "diffusion_model.visual_transformer_blocks.0.self_attention.to_query"
    if whole:
        return {f"{layer}.lokr_w1": torch.randn(8, 8), f"{layer}.lokr_w2": torch.randn(8, 8)}
    return {
        f"{layer}.lokr_w1": torch.randn(4, 4),
        f"{layer}.lokr_w2_a": torch.randn(16, 2),
        f"{layer}.lokr_w2_b": torch.randn(2, 16),
        f"{layer}.alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize(("whole", "scale"), [(True, 1.0), (False, 0.5)])
def test_lokr_is_recognised(whole: bool, scale: float) -> None:
    lora = recognise(lokr_tensors(whole))
    assert lora.kind == "lokr" and list(lora.scales.values()) == [scale]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.out_layer.out_layer.lora_A.weight", ("out_layer.out_layer", "A")),
        ("lora_unet_out_layer_modulation_out_layer.alpha", ("out_layer.modulation.out_layer", "alpha")),
        (
            "lora_unet_visual_transformer_blocks_11_visual_modulation_out_layer.lora_up.weight",
            ("visual_transformer_blocks.11.visual_modulation.out_layer", "B"),
        ),
        ("unet.mid.to_q_lora.down.weight", ("unet.mid.to_q", "A")),
        ("transformer.x.lora_B.bias", None),
        ("diffusion_model.x.hada_w1_a", None),
        ("visual_embeddings.in_layer.weight", None),
    ],
)
def test_one_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    for tensors, words in (
        ({"visual_embeddings.in_layer.weight": torch.zeros(2, 2)}, "holds no LoRA"),
        ({}, "holds no tensors"),
        ({"transformer.x.lora_A.weight": torch.zeros(2, 4)}, "cut off"),
        (
            {
                "transformer.x.lora_A.weight": torch.zeros(2, 4),
                "transformer.x.lora_B.weight": torch.zeros(4, 3),
            },
            "cut",
        ),
        ({"transformer.x.lora_A.weight": torch.full((2, 4), torch.nan)}, "not finite"),
        (
            {"x.lora_A.weight": torch.zeros(2, 4), "dit.x.lora_A.weight": torch.zeros(2, 4)},
            "twice",
        ),
        (
            {
                "x.lora_A.weight": torch.zeros(2, 4),
                "x.lora_B.weight": torch.zeros(4, 2),
                "x.alpha": torch.tensor(torch.inf),
            },
            "not finite",
        ),
        ({"x.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, "torch.int8, not of floating-point"),
        ({"x.lora_A.weight": [1.0]}, "a list, not of floating-point"),
        (
            {"x.lora_A.weight": torch.ones(2, 4, 1, 1), "x.lora_B.weight": torch.ones(4, 2, 1, 1)},
            r"A \(2, 4, 1, 1\), B \(4, 2, 1, 1\) of layer x.*convolutions",
        ),
        ({"x.lokr_w1": torch.tensor(1.0), "x.lokr_w2": torch.ones(4, 4)}, r"w1 \(\)"),
        (
            {"x.lokr_w1": torch.ones(4, 4), "x.lokr_w2_a": torch.ones(4, 2), "x.lokr_w2_b": torch.ones(3, 4)},
            r"w2_a \(4, 2\), w2_b \(3, 4\)",
        ),
        (
            {
                "x.lora_A.weight": torch.ones(2, 4),
                "x.lora_B.weight": torch.ones(4, 2),
                "x.dora_scale": torch.ones(1, 4),
            },
            r"magnitudes \(1, 4\) of layer x: one for each channel in",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            recognise(tensors)
    with pytest.raises(CheckpointError, match="pickles"):
        read_lora(tmp_path / "lora.ckpt")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(CheckpointError, match="cut off"):
        read_lora(tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        read_lora(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(make_lora(), path, LoraFormat.diffusers)
    before = path.read_bytes()

    def fail(tensors: object, name: Path, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kandinsky5.lora.writing.save_file", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_lora(make_lora(5), path, LoraFormat.diffusers)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
