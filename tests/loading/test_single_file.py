"""The authors' single-file originals: config from shapes, tensors bit for bit, and words for what is something else."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.model.layout import implied_config
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from tests.model.tiny import PUBLISHED, config_of, drawn
from tests.pipelines.conftest import SHORT


def original(folder: Path, network: torch.nn.Module, name: str = "kandinsky5lite.safetensors") -> Path:
    """A file as the authors publish it: tensors and no metadata."""
    file = folder / name
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, file)
    return file


@pytest.mark.parametrize("variant", ["t2i", "i2i"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_config_and_tensors_of_a_file(tmp_path, variant, dtype):
    config = config_of(variant)
    written = drawn(Kandinsky5Transformer3DModel(**config)).to(dtype)
    read = Kandinsky5Transformer3DModel.from_single_file(original(tmp_path, written))
    assert {name: read.config[name] for name in config} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in config.items()
    }
    assert read.state_dict().keys() == written.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert read.state_dict()[name].dtype == dtype and torch.equal(read.state_dict()[name], tensor), name
    assert not read.training and read.config._name_or_path.endswith("kandinsky5lite.safetensors")


@pytest.mark.parametrize("visual_cond", [False, True], ids=["t2i", "i2i"])
def test_the_published_shapes_imply_the_published_config(visual_cond):
    config = {**PUBLISHED, "visual_cond": visual_cond}
    with torch.device("meta"):
        tensors = Kandinsky5Transformer3DModel.from_config(config).state_dict()
    file = Path("kandinsky5lite.safetensors")
    stored = {
        name: StoredTensor(name=name, dtype="BF16", shape=tuple(tensor.shape), file=file)
        for name, tensor in tensors.items()
    }
    implied = implied_config(stored, file)
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in implied.items()} == config


def test_a_dtype_and_a_field_by_name(tmp_path):
    written = drawn(Kandinsky5Transformer3DModel(**config_of("t2i", axes_dims=(8, 4, 4))))
    read = Kandinsky5Transformer3DModel.from_single_file(
        original(tmp_path, written), dtype=torch.bfloat16, axes_dims=(8, 4, 4)
    )
    assert tuple(read.config.axes_dims) == (8, 4, 4)
    weights = read.state_dict()
    assert weights["visual_transformer_blocks.0.feed_forward.in_layer.weight"].dtype == torch.bfloat16
    assert weights["visual_transformer_blocks.0.visual_modulation.out_layer.weight"].dtype == torch.float32


def draw(pipe: Kandinsky5T2IPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        SHORT, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).image


def test_a_pipeline_around_a_file(saved_folder, components, tmp_path):
    file = original(tmp_path, components["transformer"])
    expected = draw(Kandinsky5T2IPipeline.from_pretrained(saved_folder))
    rest = Path(shutil.copytree(saved_folder, tmp_path / "rest"))
    shutil.rmtree(rest / "transformer")  # the base's own network is not needed
    assert torch.equal(draw(Kandinsky5T2IPipeline.from_single_file(file, config=str(rest))), expected)
    others = {name: part for name, part in components.items() if name != "transformer"}
    from_parts = draw(Kandinsky5T2IPipeline.from_single_file(str(file), **others))
    assert (from_parts - expected).abs().max() < 1e-5
    changed = Kandinsky5T2IPipeline.from_single_file(
        file, config=rest, text_encoder=components["text_encoder"], dtype={"transformer": torch.bfloat16}
    )
    assert changed.text_encoder is components["text_encoder"]
    assert changed.transformer.dtype == torch.bfloat16


def test_an_editing_file_draws_from_text(saved_folder, editing_network, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_single_file(original(tmp_path, editing_network), config=saved_folder)
    assert pipe.transformer.config.visual_cond is True
    expected = draw(Kandinsky5T2IPipeline.from_pretrained(saved_folder))
    assert (draw(pipe) - expected).abs().max() < 1e-4


def test_nowhere_to_take_the_rest_from(components, tmp_path):
    file = original(tmp_path, components["transformer"])
    with pytest.raises(RequestError, match=r"text_encoder, .*config="):
        Kandinsky5T2IPipeline.from_single_file(file)
    with pytest.raises(RequestError, match=r"quantization_config"):
        Kandinsky5T2IPipeline.from_single_file(file, config="x/y", quantization_config=object())


REFUSED = {
    "another model": (lambda f: save_file({"conv.weight": torch.ones(2, 2)}, f), "conv.weight"),
    "half": (lambda f: os.truncate(f, 20_000), "cut off"),
    "a tensor less": (
        lambda f: rewrite(f, lambda t: t.pop("out_layer.modulation.out_layer.bias")),
        "modulation",
    ),
    "a block less": (
        lambda f: rewrite(f, lambda t: [t.pop(n) for n in list(t) if "visual_transformer_blocks.1." in n]),
        "visual_transformer_blocks.1",
    ),
    "odd channels": (
        lambda f: rewrite(f, lambda t: t.update({"visual_embeddings.in_layer.weight": torch.ones(64, 80)})),
        "20 visual channels",
    ),
    "missing": (lambda f: f.unlink(), "missing"),
}


def rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("kind", REFUSED)
def test_something_else_is_refused_by_the_name_of_the_file(tmp_path, kind):
    damage, words = REFUSED[kind]
    file = original(tmp_path, drawn(Kandinsky5Transformer3DModel(**config_of("t2i"))))
    damage(file)
    with pytest.raises(CheckpointError, match=words) as caught:
        Kandinsky5Transformer3DModel.from_single_file(file)
    assert str(file) in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_pickle_is_refused(tmp_path):
    torch.save({}, tmp_path / "network.ckpt")
    with pytest.raises(CheckpointError, match="pickles"):
        Kandinsky5Transformer3DModel.from_single_file(tmp_path / "network.ckpt")
