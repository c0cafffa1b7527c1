"""Device maps and quantisation reach our network while it is loaded."""

import pytest
import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from diffusers.pipelines.pipeline_loading_utils import _get_final_device_map
from transformers.utils import is_bitsandbytes_available

from kandinsky5.errors import RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from tests.model.tiny import config_of, inputs_for, relative_rms

NETWORK = config_of("t2i")
PARTS = (
    *("time_embeddings", "text_embeddings", "pooled_text_embeddings", "visual_embeddings"),
    *("text_transformer_blocks", "visual_transformer_blocks.1", "out_layer"),
)


@torch.no_grad()
def velocity(network: torch.nn.Module) -> torch.Tensor:
    return network(**inputs_for(NETWORK).arguments()).sample


@pytest.fixture
def expected(sharded_folder) -> torch.Tensor:
    return velocity(Kandinsky5Transformer3DModel.from_pretrained(sharded_folder))


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        "cpu",
        {"": "cpu"},
        {
            **dict.fromkeys(PARTS, "cpu"),
            "visual_transformer_blocks.0": "disk",
            "visual_transformer_blocks.2": "disk",
        },
    ],
    ids=["auto", "cpu", "one place", "two blocks on disk"],
)
def test_a_device_map_places_our_network(sharded_folder, expected, tmp_path, device_map):
    network = Kandinsky5Transformer3DModel.from_pretrained(
        sharded_folder, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert type(network) is Kandinsky5Transformer3DModel and network.hf_device_map
    on_disk = {name for name, parameter in network.named_parameters() if parameter.is_meta}
    blocks = {name.split(".")[1] for name in on_disk}
    assert blocks == ({"0", "2"} if isinstance(device_map, dict) and len(device_map) > 1 else set())
    assert relative_rms(velocity(network), expected) < 1e-6
    assert on_disk == {name for name, parameter in network.named_parameters() if parameter.is_meta}


def test_a_map_by_size_counts_the_stored_dtypes(sharded_folder, tmp_path):
    """Half the memory of float32 is enough for what is stored in bfloat16: nothing is offloaded for want of it."""
    network = Kandinsky5Transformer3DModel.from_pretrained(sharded_folder)
    stored = sum(p.numel() * p.element_size() for p in network.parameters())
    wide = sum(p.numel() * 4 for p in network.parameters())
    assert 1.5 * stored < wide
    placed = Kandinsky5Transformer3DModel.from_pretrained(
        sharded_folder, device_map="auto", max_memory={"cpu": int(1.3 * stored)}, offload_folder=tmp_path
    )
    assert set(placed.hf_device_map.values()) == {torch.device("cpu")} or set(
        placed.hf_device_map.values()
    ) == {"cpu"}


def test_blocks_are_not_split(sharded_folder, tmp_path):
    network = Kandinsky5Transformer3DModel.from_pretrained(sharded_folder)
    stored = sum(p.numel() * p.element_size() for p in network.parameters())
    placed = Kandinsky5Transformer3DModel.from_pretrained(
        sharded_folder, device_map="auto", max_memory={"cpu": int(0.7 * stored)}, offload_folder=tmp_path
    )
    assert {str(place) for place in placed.hf_device_map.values()} == {"cpu", "disk"}
    assert all(len(name.split(".")) <= 2 for name in placed.hf_device_map if "blocks" in name)


def test_balanced_knows_the_size_of_our_network(saved_folder):
    """Two imaginary devices: the pipeline is spread over both, our network's class and stored dtype included."""
    index = {
        name: tuple(entry)
        for name, entry in Kandinsky5T2IPipeline.load_config(saved_folder).items()
        if isinstance(entry, list)
    }
    seen = _get_final_device_map(
        device_map="balanced",
        pipeline_class=Kandinsky5T2IPipeline,
        passed_class_obj={},
        init_dict=index,
        library=None,
        max_memory={0: 10**9, 1: 10**9},
        dtype={"transformer": None, "default": torch.float32},
        cached_folder=saved_folder,
    )
    assert set(seen) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert set(seen.values()) == {0, 1}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="places components on accelerators, where there are any"
)
def test_balanced_without_an_accelerator_leaves_everything_on_the_cpu(saved_folder):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder, device_map="balanced")
    assert pipe.transformer.device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", ["balanced", "cuda"])
def test_a_pipeline_is_loaded_onto_the_accelerator(saved_folder, device_map):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder, device_map=device_map)
    assert type(pipe.transformer) is Kandinsky5Transformer3DModel
    assert pipe.transformer.device.type == "cuda"
    assert pipe("a red circle", num_inference_steps=2, output_type="pt").image.isfinite().all()


@pytest.mark.skipif(is_bitsandbytes_available(), reason="the test is about its absence")
def test_quantisation_reaches_the_network_and_says_which_library_is_missing(saved_folder, sharded_folder):
    config = PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs={"load_in_4bit": True},
        components_to_quantize=["transformer"],
    )
    with pytest.raises(ImportError, match=r"(?i)bitsandbytes"):
        Kandinsky5T2IPipeline.from_pretrained(saved_folder, quantization_config=config)
    with pytest.raises(ImportError, match=r"(?i)bitsandbytes"):
        Kandinsky5Transformer3DModel.from_pretrained(
            sharded_folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")
def test_quantised_blocks_are_quantised(sharded_folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(
        sharded_folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.bfloat16
    )
    layer = network.visual_transformer_blocks[0].feed_forward.in_layer
    assert type(layer).__name__ == "Linear4bit" and layer.weight.dtype == torch.uint8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda network: network.fuse_qkv_projections(), "three layers"),
        (lambda network: network.enable_cache(object()), "one forward pass"),
    ],
    ids=["fuse_qkv_projections", "enable_cache"],
)
def test_what_cannot_work_says_so(sharded_folder, expected, call, words):
    network = Kandinsky5Transformer3DModel.from_pretrained(sharded_folder)
    with pytest.raises(RequestError, match=words):
        call(network)
    assert torch.equal(velocity(network), expected), "and nothing was changed"
