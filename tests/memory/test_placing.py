"""Pipelines placed by plans draw the picture of the resident one, bit for bit, and say what cannot be done."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5.budget import Budget
from kandinsky5.engine import Engine
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.memory import load_planned, place, plan_for
from kandinsky5.memory.packing import write_packed
from kandinsky5.memory.plan import Plan
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.request import ImageRequest
from kandinsky5.streaming import is_streamed
from tests.pipelines.conftest import SHORT, picture

from .conftest import DTYPE

CPU = torch.device("cpu")
SMALL = Budget(width=64, height=64)


def draw(pipe: Kandinsky5T2IPipeline, **arguments: object) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    given = {"width": 64, "height": 64, **arguments}
    return pipe(
        prompt=SHORT,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **given,  # type: ignore[arg-type]
    ).image


def plan_of(folder: Path, machine, *, edits: bool = False, **changes: object) -> Plan:
    plan = plan_for(folder, SMALL, device=CPU, dtype=DTYPE, edits=edits, machine=machine("cpu"))
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(half_folder):
    return draw(Kandinsky5T2IPipeline.from_pretrained(half_folder))


PLACES = {
    "all on the device": {},
    "encoder from disk": {"encoder_origin": "disk", "slots": 2},
    "encoder from host memory": {"encoder_origin": "host", "slots": 2},
    "blocks from disk": {"network_origin": "disk", "resident_blocks": 0, "slots": 2},
    "a block from host memory": {"network_origin": "host", "resident_blocks": 1, "slots": 2},
    "everything that can": {
        "network_origin": "host", "encoder_origin": "disk", "resident_blocks": 0, "slots": 2, "small_stream": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", PLACES.values(), ids=PLACES.keys())
def test_the_picture_of_the_resident_pipeline(half_folder, machine, expected, changes):
    plan = plan_of(half_folder, machine, **changes)
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), expected), "and once more, after slots were given back"
    assert is_streamed(pipe.transformer) == ("network_origin" in changes)
    assert is_streamed(pipe.text_encoder) == ("encoder_origin" in changes)
    assert {p.dtype for p in pipe.transformer.parameters()} == {DTYPE}, "modulation stays as it is stored"


def test_a_small_machine_streams_from_disk(half_folder, machine, expected):
    """The planner's own choice, where host memory is nearly as small as what must be there."""
    whole = plan_for(half_folder, SMALL, device=CPU, dtype=DTYPE, machine=machine("cpu"))
    assert whole.is_resident and whole.bytes_per_step == 0
    found = []
    for share in (0.98, 0.94, 0.9, 0.86, 0.82):
        little = machine("cpu", device_bytes=int(whole.device_bytes * share))
        with contextlib.suppress(CapacityError):
            found.append(plan_for(half_folder, SMALL, device=CPU, dtype=DTYPE, machine=little))
            assert found[-1].device_bytes <= little.device_bytes
    plan = next(plan for plan in found if plan.encoder_origin == "disk")
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    pipe.batched_guidance = (
        True  # rows of two passes are rounded alike, but products of other shapes may not be
    )
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("changes", [{}, PLACES["encoder from disk"], PLACES["everything that can"]])
def test_editing(half_editing_folder, machine, changes):
    source = picture(64, 64)
    arguments = {"image": source, "size": "native", "width": None, "height": None}
    reference = draw(Kandinsky5I2IPipeline.from_pretrained(half_editing_folder), **arguments)
    plan = plan_of(half_editing_folder, machine, edits=True, **changes)
    pipe = load_planned(Kandinsky5I2IPipeline, half_editing_folder, plan, dtype=DTYPE)
    assert torch.equal(draw(pipe, **arguments), reference)
    drawing = Kandinsky5T2IPipeline.from_pipe(pipe)
    assert drawing.plan is plan and drawing._execution_device == CPU
    assert draw(drawing).isfinite().all()


def test_load_pipeline_takes_a_budget(half_folder, expected):
    pipe = load_pipeline(
        str(half_folder), device="cpu", dtype="bf16", budget=Budget.of("auto", width=64, height=64)
    )
    assert pipe.plan is not None and pipe.plan.width == 64
    assert torch.equal(draw(pipe), expected)


def test_tiles_and_turns(half_folder, machine, expected):
    plan = plan_of(half_folder, machine, tile=32, batched_guidance=False)
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    difference = (draw(pipe) - expected).float().pow(2).mean().sqrt()
    assert pipe.vae.use_tiling and not pipe.batched_guidance
    assert 0 < difference < 0.3, "pixels change, the picture stays"


def test_too_little_for_any_plan_is_said_before_anything_is_loaded(half_folder, machine, monkeypatch):
    monkeypatch.setattr(Kandinsky5T2IPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(CapacityError, match=r"No plan fits: 1 of 64x64 take at least \d\.\d MB on cpu"):
        plan_for(half_folder, SMALL, device=CPU, dtype=DTYPE, machine=machine("cpu", device_bytes=1000))
    with pytest.raises(CapacityError, match="No plan fits"):
        load_pipeline(str(half_folder), device="cpu", dtype="bf16", budget=Budget.of("1MB"))


def test_what_would_fit_is_named(half_folder, machine):
    room = plan_for(
        half_folder, Budget(width=512, height=512), device=CPU, dtype=DTYPE,
        machine=machine("cpu", device_bytes=10**11),
    ).device_bytes  # fmt: skip
    with pytest.raises(CapacityError, match="512x512 would fit"):
        plan_for(
            half_folder, Budget(width=2048, height=2048, pictures=4), device=CPU, dtype=DTYPE,
            machine=machine("cpu", device_bytes=room),
        )  # fmt: skip


def test_running_out_in_the_middle_names_plan_and_the_next_request_works(half_folder, machine, expected):
    plan = plan_of(half_folder, machine, **PLACES["everything that can"])
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    attention = pipe.transformer.visual_transformer_blocks[1].cross_attention
    processor = attention.processor

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    attention.processor = full
    pipe.batched_guidance = False
    with pytest.raises(CapacityError, match=r"Memory ended.*network bf16, 0 of 2 blocks on cpu"):
        draw(pipe)
    engine = Engine(pipe, source="tiny")
    with pytest.raises(CapacityError, match=r"Memory ended.*Qwen2.5-VL bf16, streamed from disk"):
        engine.generate(ImageRequest(prompt=SHORT, width=64, height=64, steps=2, seed=0))
    attention.processor = processor
    pipe.batched_guidance = True
    assert torch.equal(draw(pipe), expected)


def test_decoding_falls_back_to_tiles(half_folder, machine, monkeypatch):
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan_of(half_folder, machine), dtype=DTYPE)
    real = pipe.vae.decode

    def decode(latents: torch.Tensor, **arguments: object) -> object:
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(latents, **arguments)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    assert draw(pipe).isfinite().all()
    assert pipe.plan.tile == 512


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_packed_on_the_way(half_folder, machine, expected, tmp_path, form):
    """What a plan packs is what `quantize` writes, but cannot be saved as something else."""
    plan = plan_of(half_folder, machine, network=form, encoder=form)
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    write_packed(half_folder, tmp_path / "packed", network=form, encoder=form, device=CPU)
    assert torch.equal(draw(pipe), draw(Kandinsky5T2IPipeline.from_pretrained(tmp_path / "packed")))
    with pytest.raises(RequestError, match=r"packed when it was loaded \(memory=\): `kandinsky5 quantize`"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_placed_pipeline_is_not_moved(half_folder, machine):
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan_of(half_folder, machine), dtype=DTYPE)
    with pytest.raises(RequestError, match="placed by its plan"):
        pipe.to(torch.float32)
    with pytest.raises(RequestError, match="placed by a plan already"):
        place(pipe, pipe.plan)


def test_a_plan_that_reads_files_needs_them(half_folder, machine):
    pipe = Kandinsky5T2IPipeline.from_pretrained(half_folder)
    with pytest.raises(RequestError, match="no folder to read"):
        place(pipe, plan_of(half_folder, machine, **PLACES["blocks from disk"]))


def test_values_that_are_read_late_are_looked_at_when_they_are_read(half_folder, machine, tmp_path):
    import shutil

    folder = Path(shutil.copytree(half_folder, tmp_path / "folder"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["visual_transformer_blocks.1.feed_forward.in_layer.weight"][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        Kandinsky5T2IPipeline.from_pretrained(folder)
    plan = plan_of(folder, machine, **PLACES["blocks from disk"])
    pipe = load_planned(Kandinsky5T2IPipeline, folder, plan, dtype=DTYPE)
    with pytest.raises(CheckpointError, match=r"1\.feed_forward\.in_layer\.weight.* not finite"):
        draw(pipe)


def test_saving_what_streams(half_folder, machine, tmp_path, expected):
    plan = plan_of(half_folder, machine, **PLACES["everything that can"])
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    draw(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")), expected)
