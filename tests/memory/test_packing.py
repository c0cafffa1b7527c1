"""Packed folders: they load everywhere a folder loads, draw nearly the same picture, and damage in them is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from kandinsky5.budget import Budget
from kandinsky5.cli.app import run
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.memory import load_planned, packing
from kandinsky5.memory.packing import write_packed
from kandinsky5.memory.parts import model_of
from kandinsky5.model.quantising import quantise
from kandinsky5.model.scaled import ScaledLinear
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.encoder_parts import bring_in, left_out

from .conftest import DTYPE
from .test_parts import real_bytes
from .test_placing import PLACES, draw, plan_of

CPU = torch.device("cpu")
FORMATS = ("int8", "fp8", "nf4")


@pytest.fixture(scope="module")
def packed(half_folder, tmp_path_factory) -> dict[str, Path]:
    """A folder in each format."""
    root = tmp_path_factory.mktemp("packed")
    for form in FORMATS:
        write_packed(half_folder, root / form, network=form, encoder=form, device=CPU)
    return {form: root / form for form in FORMATS}


@pytest.fixture(scope="module")
def expected(half_folder):
    return draw(Kandinsky5T2IPipeline.from_pretrained(half_folder))


@pytest.fixture
def breakable(packed, tmp_path):
    return {form: Path(shutil.copytree(folder, tmp_path / form)) for form, folder in packed.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_a_packed_folder_is_like_any_other(packed, half_folder, expected, form):
    folder = packed[form]
    assert {f.suffix for f in folder.rglob("*") if f.is_file()} <= {".json", ".safetensors", ".txt", ".jinja"}
    sizes = [
        sum(f.stat().st_size for f in (root / "transformer").glob("*.safetensors"))
        for root in (folder, half_folder)
    ]
    assert sizes[0] < 0.85 * sizes[1]
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder)
    difference = (draw(pipe) - expected).float().pow(2).mean().sqrt()
    assert 0 < difference < 0.1
    again = load_pipeline(str(folder), device="cpu", dtype="bf16")
    assert torch.equal(draw(again), draw(pipe))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "where", ["all on the device", "a block from host memory", "encoder from host memory"]
)
def test_packed_folders_are_placed_like_any_other(packed, machine, form, where):
    plan = plan_of(packed[form], machine, **PLACES[where])
    assert plan.network == plan.encoder == form
    if form == "nf4" and where != "all on the device":
        with pytest.raises(RequestError, match="four bits, which are not streamed to the CPU"):
            load_planned(Kandinsky5T2IPipeline, packed[form], plan, dtype=DTYPE)
        return
    placed = load_planned(Kandinsky5T2IPipeline, packed[form], plan, dtype=DTYPE)
    assert torch.equal(draw(placed), draw(Kandinsky5T2IPipeline.from_pretrained(packed[form])))
    assert torch.equal(draw(placed), draw(placed))


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_packed_encoder_takes_is_planned_for(packed, machine, form):
    """Vision tower and vocabulary projection, which are not packed, stay on disk where drawing does not use them."""
    part = model_of(packed[form], DTYPE).part("text_encoder", form)
    pipe = load_planned(Kandinsky5T2IPipeline, packed[form], plan_of(packed[form], machine), dtype=DTYPE)
    assert left_out(pipe.text_encoder) == ("vision", "head")
    assert real_bytes(pipe.text_encoder) == pytest.approx(part.total, rel=0.05)


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_left_on_disk_joins_a_packed_encoder(packed, form):
    parts = ["vision", "head"]
    pipe = Kandinsky5T2IPipeline.from_pretrained(packed[form])
    assert left_out(pipe.text_encoder) == ("vision", "head")
    bring_in(pipe.text_encoder, parts)
    whole = Kandinsky5T2IPipeline.from_pretrained(packed[form], text_encoder_parts=parts)
    assert left_out(whole.text_encoder) == left_out(pipe.text_encoder) == ()
    ours, theirs = (dict(one.text_encoder.named_parameters()) for one in (pipe, whole))
    assert list(ours) == list(theirs)
    joined = [name for name in ours if name.startswith(("model.visual.", "lm_head."))]
    assert joined and all(torch.equal(ours[name], theirs[name]) for name in joined)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("placed", [False, True], ids=["loaded", "placed"])
def test_what_was_loaded_packed_is_saved(packed, machine, tmp_path, form, placed):
    pipe = Kandinsky5T2IPipeline.from_pretrained(packed[form])
    if placed:
        pipe = load_planned(Kandinsky5T2IPipeline, packed[form], plan_of(packed[form], machine), dtype=DTYPE)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")), draw(pipe))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("budget", [None, Budget(width=64, height=64)], ids=["loaded", "placed"])
def test_packed_folders_run_in_every_dtype(packed, expected, form, dtype, budget):
    """On most CPUs float32 is what "auto" means."""
    pipe = load_pipeline(str(packed[form]), device="cpu", dtype=dtype, memory=budget)
    assert (draw(pipe).float() - expected.float()).pow(2).mean().sqrt() < 0.1


def test_what_is_packed_is_not_read_from_disk_each_time(packed, machine):
    plan = plan_of(packed["int8"], machine, **PLACES["blocks from disk"])
    with pytest.raises(RequestError, match="is not in the files as it is in memory"):
        load_planned(Kandinsky5T2IPipeline, packed["int8"], plan, dtype=DTYPE)


def test_diffusers_reads_the_packed_network(packed):
    theirs = DiffusionPipeline.from_pretrained(
        packed["int8"], dtype=DTYPE, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, vae=None
    ).transformer  # fmt: skip
    ours = Kandinsky5Transformer3DModel.from_pretrained(packed["int8"] / "transformer")
    name = "visual_transformer_blocks.1.feed_forward.in_layer"
    one, other = (network.get_submodule(name).weight for network in (ours, theirs))
    assert torch.equal(one.qdata, other.qdata) and torch.equal(one.scale, other.scale)


def test_a_float8_folder_becomes_our_float8_layers(packed, half_folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(packed["fp8"] / "transformer")
    plain = Kandinsky5Transformer3DModel.from_pretrained(half_folder / "transformer")
    stored = network.visual_transformer_blocks[0].feed_forward.in_layer.weight.qdata
    for one in (network, plain):
        quantise(one)
    ours, theirs = (n.visual_transformer_blocks[0].feed_forward.in_layer for n in (network, plain))
    assert type(ours) is ScaledLinear and torch.equal(ours.weight.float(), stored.float())
    close = (
        (ours.weight.float() * ours.scale[:, None] - theirs.weight.float() * theirs.scale[:, None])
        .abs()
        .max()
    )
    assert close < 0.05, "two libraries' roundings of the same weights"


def test_other_packings_do_not_become_float8(packed):
    network = Kandinsky5Transformer3DModel.from_pretrained(packed["int8"] / "transformer")
    with pytest.raises(RequestError, match="packed Linear, which cannot be made float8"):
        quantise(network)


@pytest.mark.parametrize("form", FORMATS)
def test_adapters_attach_to_packed_layers(packed, form):
    """LoRA's own way onto a network: the base stays packed, the adapter's output is added and learns."""
    network = Kandinsky5Transformer3DModel.from_pretrained(packed[form] / "transformer")
    pipe = Kandinsky5T2IPipeline.from_pretrained(packed[form], transformer=network)
    before = draw(pipe)
    torch.manual_seed(0)
    network.add_adapter(
        LoraConfig(r=2, target_modules=["to_query", "to_value", "in_layer"], init_lora_weights=False)
    )
    adapted = draw(pipe)
    assert not torch.equal(adapted, before) and adapted.isfinite().all()
    learning = [name for name, p in network.named_parameters() if p.requires_grad]
    assert learning and all("lora_" in name for name in learning)
    network.disable_adapters()
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize(
    ("form", "part"), [("int8", "_weight_scale"), ("int8", "_weight_qdata"), ("nf4", ".absmax")]
)
def test_a_part_that_is_missing(breakable, form, part, component):
    changed(breakable[form] / component, part, lambda tensors, name: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"has no .*, which its config implies"):
        Kandinsky5T2IPipeline.from_pretrained(breakable[form])


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize(
    ("form", "part"), [("int8", "_weight_scale"), ("fp8", "_weight_scale"), ("nf4", ".nested_absmax")]
)
def test_a_scale_that_is_no_number(breakable, form, part, component):
    def spoil(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name].view(-1)[0] = float("nan")

    changed(breakable[form] / component, part, spoil)
    with pytest.raises(CheckpointError, match="not finite"):
        Kandinsky5T2IPipeline.from_pretrained(breakable[form])


def test_values_of_another_shape(breakable):
    def cut(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name][1:].contiguous()

    changed(breakable["int8"] / "transformer", "_weight_qdata", cut)
    with pytest.raises(CheckpointError, match="its config implies"):
        Kandinsky5T2IPipeline.from_pretrained(breakable["int8"])


def test_a_copy_is_the_reader_s_own(half_folder, breakable, tmp_path):
    """Of a folder without permission to write, and with pickles beside its weights."""
    folder = breakable["int8"]
    shutil.rmtree(folder / "transformer")
    shutil.copytree(half_folder / "transformer", folder / "transformer")
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickled")
    for place in (folder / "text_encoder", folder / "text_encoder" / "config.json", folder / "vae"):
        place.chmod(place.stat().st_mode & ~0o222)
    try:
        write_packed(folder, tmp_path / "out", network="int8", encoder="bf16", device=CPU)
    finally:
        for place in (folder / "text_encoder", folder / "vae"):
            place.chmod(0o755)
    written = list((tmp_path / "out").rglob("*"))
    assert all(place.stat().st_mode & 0o200 for place in written)
    assert not [place for place in written if place.suffix == ".bin"]
    assert torch.isfinite(draw(Kandinsky5T2IPipeline.from_pretrained(tmp_path / "out"))).all()


def test_a_place_that_cannot_be_taken_is_found_before_anything_is_packed(half_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "model_of", lambda *_, **__: pytest.fail("begun"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target, words in (
        (tmp_path / "link", "there already"),
        (half_folder / "transformer" / "int8", "is inside"),
    ):
        with pytest.raises(RequestError, match=words):
            write_packed(half_folder, target, network="int8", encoder="int8", device=CPU)


def test_the_command(half_folder, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = [
        "quantize",
        str(half_folder),
        str(out),
        "--format",
        "int8",
        "--encoder",
        "bf16",
        "--device",
        "cpu",
        "-q",
    ]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["network"] == "int8" and told["encoder"] == "bf16" and told["bytes"] > 0
    kept = (half_folder / "text_encoder", out / "text_encoder")
    assert len({tuple(sorted((f.name, f.stat().st_size) for f in folder.iterdir())) for folder in kept}) == 1
    assert run(["verify", str(out), "--device", "cpu", "-q"]) == 0, capsys.readouterr()
    assert run(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert run(["quantize", str(out), str(tmp_path / "twice"), "--format", "nf4", "--encoder", "bf16"]) == 3
    assert "packed already (int8)" in capsys.readouterr().err and not (tmp_path / "twice").exists()
    assert run(["quantize", str(half_folder), str(tmp_path / "none"), "--format", "bf16"]) == 2


def changed(folder: Path, part: str, change) -> tuple[Path, str]:
    """Change the first tensor of a component whose name ends so."""
    for file in sorted(folder.glob("*.safetensors")):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        name = next((key for key in tensors if key.endswith(part)), None)
        if name is None:
            continue
        change(tensors, name)
        save_file(tensors, file, metadata=metadata)
        index = next(folder.glob("*.index.json"), None)
        if index is not None and name not in tensors:
            content = json.loads(index.read_text())
            del content["weight_map"][name]
            index.write_text(json.dumps(content))
        return file, name
    raise AssertionError(f"no tensor of {folder} ends in {part}")
