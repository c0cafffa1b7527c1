"""Without a dtype what is stored is kept; with one it is followed."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTextModel, Qwen2_5_VLForConditionalGeneration

from kandinsky5.errors import RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

from .conftest import FLOAT32_MODULES

STORED = {
    "transformer": torch.bfloat16,
    "vae": torch.float32,
    "text_encoder": torch.bfloat16,
    "text_encoder_2": torch.float16,
}


@pytest.fixture(scope="module")
def mixed(saved_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model stored in another dtype, the network in one throughout, as published."""
    folder = Path(shutil.copytree(saved_folder, tmp_path_factory.mktemp("mixed") / "folder"))
    Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer").to(torch.bfloat16).save_pretrained(
        folder / "transformer"
    )
    for model, name in (
        (AutoencoderKL, "vae"),
        (Qwen2_5_VLForConditionalGeneration, "text_encoder"),
        (CLIPTextModel, "text_encoder_2"),
    ):
        model.from_pretrained(folder / name).to(STORED[name]).save_pretrained(folder / name)
    return folder


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in module.state_dict().values()}


@pytest.mark.parametrize("arguments", [{}, {"dtype": "auto"}, {"torch_dtype": None}], ids=str)
def test_stored_dtypes_are_kept(mixed, arguments):
    pipe = Kandinsky5T2IPipeline.from_pretrained(mixed, **arguments)
    assert {name: dtypes(getattr(pipe, name)) for name in STORED} == {n: {d} for n, d in STORED.items()}
    stored = load_file(mixed / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in pipe.transformer.state_dict().items())


@pytest.mark.parametrize("fixture", ["network_folder", "sharded_folder"])
def test_a_network_of_two_dtypes_keeps_both(request, fixture, network_folder):
    folder = request.getfixturevalue(fixture)
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    stored = load_file(network_folder / "diffusion_pytorch_model.safetensors")
    assert dtypes(network) == {torch.bfloat16, torch.float32}
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_is_followed_but_for_what_stays_float32(mixed, name):
    pipe = Kandinsky5T2IPipeline.from_pretrained(mixed, **{name: torch.float16})
    for key, tensor in pipe.transformer.state_dict().items():
        kept = any(part in FLOAT32_MODULES for part in key.split("."))
        assert tensor.dtype == (torch.float32 if kept else torch.float16), key
    assert dtypes(pipe.vae) == dtypes(pipe.text_encoder) == {torch.float16}


def test_blocks_of_several_dtypes_run_in_the_widest(network_folder, tmp_path, caplog):
    """Norms in float32 between layers in bfloat16: kept apart they could not be multiplied."""
    network = Kandinsky5Transformer3DModel.from_pretrained(network_folder)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float() + 1e-6
    network.save_pretrained(tmp_path)
    loaded = Kandinsky5Transformer3DModel.from_pretrained(tmp_path)
    assert dtypes(loaded) == {torch.float32} and "several dtypes" in caplog.text
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name


def test_a_dtype_for_each_component(mixed):
    pipe = Kandinsky5T2IPipeline.from_pretrained(
        mixed, dtype={"transformer": torch.float16, "vae": torch.bfloat16, "default": torch.float32}
    )
    assert torch.float16 in dtypes(pipe.transformer)
    assert (dtypes(pipe.vae), dtypes(pipe.text_encoder)) == ({torch.bfloat16}, {torch.float32})


def test_a_dtype_for_one_component_leaves_the_others_as_stored(mixed):
    pipe = Kandinsky5T2IPipeline.from_pretrained(mixed, dtype={"transformer": torch.float16})
    assert torch.float16 in dtypes(pipe.transformer) and torch.bfloat16 not in dtypes(pipe.transformer)
    others = [name for name in STORED if name != "transformer"]
    assert {name: dtypes(getattr(pipe, name)) for name in others} == {name: {STORED[name]} for name in others}
    pipe = Kandinsky5T2IPipeline.from_pretrained(mixed, dtype={"vae": torch.bfloat16, "transformer": None})
    assert dtypes(pipe.vae) == dtypes(pipe.transformer) == {torch.bfloat16}


def test_to_device_and_dtype_as_documented(mixed):
    pipe = Kandinsky5T2IPipeline.from_pretrained(mixed)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.to(device="cpu", dtype=torch.bfloat16) is pipe
    assert all(dtypes(getattr(pipe, name)) == {torch.bfloat16} for name in STORED)
    picture = pipe("a red circle", num_inference_steps=2, output_type="pt").image
    assert picture.isfinite().all() and picture.std() > 0


@pytest.mark.parametrize("dtype", ["bf16", torch.float32.itemsize, {"vae": "half"}], ids=str)
def test_what_is_no_dtype_is_refused(mixed, dtype):
    with pytest.raises(RequestError, match=r"torch\.dtype"):
        Kandinsky5T2IPipeline.from_pretrained(mixed, dtype=dtype)
    with pytest.raises(RequestError, match="same argument"):
        Kandinsky5Transformer3DModel.from_pretrained(
            mixed / "transformer", dtype=torch.float16, torch_dtype=torch.float16
        )


@pytest.mark.parametrize(("arguments", "words"), [
    ({"dtype": {"transfomer": torch.float16}}, "dtype names 'transfomer', which is none of default, .*transformer"),
    ({"device_map": "auto"}, "device_map='auto' is none of 'balanced', "),
    ({"device_map": {"transformer": "cpu"}}, "device_map={'transformer': 'cpu'} is none of"),
])  # fmt: skip
def test_what_no_pipeline_is_loaded_with_is_refused_before_anything_is_fetched(arguments, words):
    with pytest.raises(RequestError, match=words):
        Kandinsky5T2IPipeline.from_pretrained("nobody/nothing", **arguments)
