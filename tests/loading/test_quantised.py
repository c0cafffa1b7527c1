"""Quantised while loading, by torchao: every layer that the library quantises, nothing by accident left out."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers import TorchAoConfig as NetworkConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig
from transformers import TorchAoConfig as EncoderConfig

from kandinsky5.checkpoint.finite import is_finite
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline, bring_in
from kandinsky5.pipelines.encoder_parts import left_out
from tests.pipelines.conftest import SHORT

from .conftest import FLOAT32_MODULES
from .test_encoder_parts_saved import BROUGHT, WHOLE


def both(**encoder: object) -> PipelineQuantizationConfig:
    return PipelineQuantizationConfig(
        quant_mapping={
            "transformer": NetworkConfig(Int8WeightOnlyConfig()),
            "text_encoder": EncoderConfig(Int8WeightOnlyConfig(), **encoder),
        }
    )


@pytest.fixture
def quantised(untied) -> Kandinsky5T2IPipeline:
    return Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16, quantization_config=both())


@pytest.fixture
def quantised_whole(untied) -> Kandinsky5T2IPipeline:
    return Kandinsky5T2IPipeline.from_pretrained(
        untied, dtype=torch.bfloat16, quantization_config=both(), **WHOLE
    )


def plain_layers(model: nn.Module) -> set[str]:
    return {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not isinstance(layer.weight.data, Int8Tensor)
    }


def draw(pipe: Kandinsky5T2IPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        SHORT, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).image.float()


def test_every_layer_but_those_the_libraries_keep(quantised, quantised_whole, caplog, untied):
    """Time embedding and modulation stay float32 in diffusers, the vocabulary projection as it is in transformers."""
    for pipe in (quantised, quantised_whole):
        assert all(FLOAT32_MODULES & set(name.split(".")) for name in plain_layers(pipe.transformer))
        assert len(plain_layers(pipe.transformer)) == 6
    assert plain_layers(quantised.text_encoder) == set()
    assert plain_layers(quantised_whole.text_encoder) == {"lm_head"}
    assert left_out(quantised.text_encoder) == ("vision", "head")
    plain = Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16)
    difference = (draw(quantised) - draw(plain)).pow(2).mean().sqrt()
    assert 0 < difference < 0.03
    assert torch.equal(draw(quantised), draw(quantised_whole))
    with caplog.at_level(logging.INFO, logger="kandinsky5.pipelines.quantization"):
        Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16, quantization_config=both())
    assert "transformer: 6 of 36 linear layers keep their dtype" in caplog.text


def test_without_a_dtype(untied):
    """What torchao wants beside its integers is bfloat16; what is stored in float32 does not stop it."""
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, quantization_config=both())
    assert len(plain_layers(pipe.transformer)) == 6 and plain_layers(pipe.text_encoder) == set()
    assert draw(pipe).isfinite().all()


def test_the_network_alone(untied):
    network = Kandinsky5Transformer3DModel.from_pretrained(
        untied / "transformer",
        dtype=torch.bfloat16,
        quantization_config=NetworkConfig(Int8WeightOnlyConfig()),
    )
    assert isinstance(network.visual_transformer_blocks[0].feed_forward.in_layer.weight, Int8Tensor)


def test_moves_and_deep_copies(quantised):
    expected = draw(quantised)
    assert torch.equal(draw(quantised.to("cpu")), expected)
    assert torch.equal(draw(Kandinsky5T2IPipeline.from_pipe(quantised)), expected)
    assert is_finite(copy.deepcopy(quantised.transformer).out_layer.out_layer.weight)


def test_a_projection_joins_and_a_vision_tower_does_not(quantised, quantised_whole):
    bring_in(quantised.text_encoder, ["head"])
    head, expected = (p.text_encoder.lm_head.weight for p in (quantised, quantised_whole))
    assert head.dtype == torch.bfloat16 and torch.equal(head, expected)
    with pytest.raises(
        RequestError, match=r"quantised and its vision tower on disk is not.*quantization_config"
    ):
        bring_in(quantised.text_encoder)
    assert left_out(quantised.text_encoder) == ("vision",)


def test_a_projection_that_would_be_quantised_does_not_join(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(
        untied, dtype=torch.bfloat16, quantization_config=both(modules_to_not_convert=["model.visual"])
    )
    with pytest.raises(RequestError, match="vocabulary projection on disk is not"):
        bring_in(pipe.text_encoder, ["head"])
    bring_in(pipe.text_encoder, ["vision"])
    assert left_out(pipe.text_encoder) == ("head",)


def test_a_whole_one_is_saved_and_loaded_again(quantised_whole, tmp_path, caplog):
    expected = draw(quantised_whole)
    quantised_whole.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {torch.int8, torch.bfloat16} <= {tensor.dtype for tensor in stored.values()}
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    assert "several dtypes" not in caplog.text
    assert left_out(again.text_encoder) == ("head",), "what is stored packed is loaded with the rest"
    assert torch.equal(draw(again), expected)
    bring_in(again.text_encoder, ["head"])
    for name in ("transformer", "text_encoder"):
        one, other = getattr(quantised_whole, name), getattr(again, name)
        assert plain_layers(one) == plain_layers(other)
        assert [p.dtype for p in one.parameters()] == [p.dtype for p in other.parameters()]
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16, **BROUGHT)
    assert type(theirs.transformer).__module__.startswith("diffusers.")
    assert plain_layers(theirs.transformer) == plain_layers(again.transformer)
    name = "visual_transformer_blocks.1.feed_forward.in_layer"
    ours, other = (p.transformer.get_submodule(name).weight for p in (again, theirs))
    assert torch.equal(ours.qdata, other.qdata) and torch.equal(ours.scale, other.scale)


def test_one_with_parts_on_disk_is_not_saved(quantised, tmp_path):
    with pytest.raises(RequestError, match=r"quantised without its vision tower.*text_encoder_parts"):
        quantised.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_no_numbers_are_found_in_packed_tensors(untied, component, value):
    layer = {"transformer": "feed_forward.in_layer.weight", "text_encoder": "mlp.up_proj.weight"}[component]
    for file in (untied / component).glob("*.safetensors"):
        tensors = load_file(file)
        name = next((key for key in tensors if key.endswith(layer)), None)
        if name is not None:
            tensors[name].view(-1)[5] = float(value)
            save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{layer}.* not finite"):
        Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16, quantization_config=both())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (NetworkConfig(Int8WeightOnlyConfig()), "PipelineQuantizationConfig"),
        (
            PipelineQuantizationConfig(quant_mapping={"trasformer": NetworkConfig(Int8WeightOnlyConfig())}),
            "trasformer.*none of",
        ),
        (
            PipelineQuantizationConfig(
                quant_mapping={
                    "transformer": NetworkConfig(
                        Int8WeightOnlyConfig(),
                        modules_to_not_convert=["embeddings", "blocks", "out_layer"],
                    )
                }
            ),
            "reached no layer of 'transformer'",
        ),
    ],
    ids=["for one model", "unknown component", "no layer"],
)
def test_what_would_stay_as_it_is_without_a_word(untied, config, words):
    with pytest.raises(RequestError, match=words):
        Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16, quantization_config=config)


def test_a_component_that_is_passed_is_not_quantised(untied, components):
    with pytest.raises(RequestError, match="'transformer', which was passed"):
        Kandinsky5T2IPipeline.from_pretrained(
            untied, transformer=components["transformer"], quantization_config=both()
        )


def test_the_saved_config_says_how(quantised_whole, tmp_path: Path):
    quantised_whole.save_pretrained(tmp_path / "saved")
    for name in ("transformer", "text_encoder"):
        config = json.loads((tmp_path / "saved" / name / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "torchao"
