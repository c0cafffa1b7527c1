"""On an accelerator: parts on disk, moves, offload and quantised weights together. Run with `-m gpu`."""

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from diffusers import TorchAoConfig as NetworkConfig
from transformers import TorchAoConfig as EncoderConfig

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline, bring_in
from kandinsky5.pipelines.encoder_parts import left_out
from tests.pipelines.placing import WAYS, place

from .conftest import same_state
from .test_encoder_parts import WHOLE, draw, look, write

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def expected(untied_source):
    return draw(Kandinsky5T2IPipeline.from_pretrained(untied_source, **WHOLE))


@pytest.mark.parametrize("how", WAYS)
def test_the_picture_of_the_cpu(untied, expected, how):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    place(pipe, how)
    for _ in range(2):
        assert (draw(pipe).cpu() - expected).abs().max() < 2e-3, "float32 kernels of two devices"
    assert left_out(pipe.text_encoder) == ("vision", "head")


@pytest.mark.parametrize("how", ["resident", "model offload"])
@torch.no_grad()
def test_parts_join_on_the_device(untied, expected, how):
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE)
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    place(pipe, how)
    draw(pipe)
    place_of_the_rest = pipe.text_encoder.model.language_model.norm.weight.device
    bring_in(pipe.text_encoder)
    assert {p.device for p in pipe.text_encoder.parameters()} == {place_of_the_rest}
    assert (draw(pipe).cpu() - expected).abs().max() < 2e-3
    pipe.maybe_free_model_hooks()
    pipe.remove_all_hooks()
    pipe.to("cpu")
    same_state(pipe.text_encoder, whole.text_encoder)
    assert (look(pipe.text_encoder) - look(whole.text_encoder)).abs().max() < 1e-4
    assert write(pipe.text_encoder) == write(whole.text_encoder)


@pytest.mark.parametrize("how", ["sequential offload", "group offload"])
def test_parts_do_not_join_layers_that_are_placed_one_by_one(untied, how):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    place(pipe, how)
    with pytest.raises(RequestError, match="before offload is enabled"):
        bring_in(pipe.text_encoder)


@pytest.mark.parametrize("device_map", ["cuda", "balanced"])
def test_loaded_onto_the_device(untied, expected, device_map, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, device_map=device_map)
    assert {p.device.type for p in pipe.text_encoder.parameters()} == {"cuda"}
    assert (draw(pipe).cpu() - expected).abs().max() < 2e-3
    pipe.save_pretrained(tmp_path / "saved")
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved", **WHOLE)
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE)
    same_state(again.text_encoder, whole.text_encoder)
    bring_in(pipe.text_encoder)
    assert {p.device.type for p in pipe.text_encoder.parameters()} == {"cuda"}


@pytest.mark.parametrize("how", ["device_map", "moved", "model offload"])
def test_quantised_on_the_device(untied, expected, how):
    """Int8 weights of torchao in network and text encoder: nearly the picture of float32 weights."""
    quantization = pytest.importorskip("torchao.quantization")
    config = PipelineQuantizationConfig(
        quant_mapping={
            "transformer": NetworkConfig(quantization.Int8WeightOnlyConfig()),
            "text_encoder": EncoderConfig(quantization.Int8WeightOnlyConfig()),
        }
    )
    arguments = {"device_map": "cuda"} if how == "device_map" else {}
    pipe = Kandinsky5T2IPipeline.from_pretrained(
        untied, dtype=torch.bfloat16, quantization_config=config, **arguments
    )
    if how != "device_map":
        place(pipe, "resident" if how == "moved" else how)
    for model in (pipe.transformer, pipe.text_encoder):
        packed = [p for p in model.parameters() if type(p.data).__name__ == "Int8Tensor"]
        assert len(packed) > 10
    assert (draw(pipe).float().cpu() - expected).pow(2).mean().sqrt() < 0.03
