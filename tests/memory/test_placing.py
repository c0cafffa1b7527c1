"""Pipelines placed by plans draw the picture of the resident one, bit for bit, and say what cannot be done."""

import contextlib
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5.budget import Budget
from kandinsky5.engine import Engine
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.memory import activations, load_planned, place, plan_for
from kandinsky5.memory.activations import STEPS, Sizes, needs_of
from kandinsky5.memory.packing import write_packed
from kandinsky5.memory.parts import Part, model_of
from kandinsky5.memory.placing import _place_one
from kandinsky5.memory.plan import Plan
from kandinsky5.memory.planner import _brought, _Draft
from kandinsky5.model import fast, prompt_table
from kandinsky5.model.fast import FastPath
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.request import ImageRequest
from kandinsky5.streaming import is_streamed, sources
from kandinsky5.streaming.conveyor import ATTRIBUTE
from kandinsky5.streaming.sources import exact_memory
from tests.model.tiny import config_of, drawn, inputs_for
from tests.pipelines.conftest import SHORT, picture

from .conftest import DTYPE

CPU = torch.device("cpu")
SMALL = Budget(width=64, height=64)


def draw(pipe: Kandinsky5T2IPipeline, **arguments: object) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    given = {"width": 64, "height": 64, "num_inference_steps": 3, **arguments}
    return pipe(
        prompt=SHORT,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **given,  # type: ignore[arg-type]
    ).image


def plan_of(
    folder: Path, machine, *, edits: bool = False, variant: str | None = None, **changes: object
) -> Plan:
    plan = plan_for(
        folder, SMALL, device=CPU, dtype=DTYPE, edits=edits, variant=variant, machine=machine("cpu")
    )
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(half_folder):
    return draw(Kandinsky5T2IPipeline.from_pretrained(half_folder))


PLACES = {
    "all on the device": {},
    "encoder from disk": {"encoder_origin": "disk", "resident_layers": 0, "slots": 2},
    "encoder from host memory": {"encoder_origin": "host", "resident_layers": 0, "slots": 2},
    "a layer from host memory": {"encoder_origin": "host", "resident_layers": 1, "slots": 2},
    "blocks from disk": {"network_origin": "disk", "resident_blocks": 0, "slots": 2},
    "a block from host memory": {"network_origin": "host", "resident_blocks": 1, "slots": 2},
    "everything that can": {
        "network_origin": "host", "encoder_origin": "disk", "resident_blocks": 0, "resident_layers": 0, "slots": 2,
        "small_stream": True,
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


@pytest.mark.parametrize(
    ("component", "tensor"),
    [
        ("transformer", "visual_transformer_blocks.0.feed_forward.in_layer.weight"),
        ("transformer", "visual_transformer_blocks.1.visual_modulation.out_layer.weight"),
        ("transformer", "out_layer.out_layer.weight"),
        ("text_encoder", "model.embed_tokens.weight"),
        ("text_encoder", "model.layers.0.mlp.up_proj.weight"),
    ],
    ids=["block", "modulation of a block that streams", "end", "table", "layer"],
)
def test_what_stays_beside_what_is_read_later_is_looked_at(half_folder, tmp_path, machine, component, tensor):
    """Of what streams the values are looked at when they are first read."""
    folder = Path(shutil.copytree(half_folder, tmp_path / "folder"))
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    tensors[tensor].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    changes = {"network_origin": "disk", "resident_blocks": 1, "encoder_origin": "disk", "resident_layers": 1}
    plan = plan_of(folder, machine, slots=1, **changes)
    with pytest.raises(CheckpointError, match="not finite"):
        load_planned(Kandinsky5T2IPipeline, folder, plan, dtype=DTYPE)


def test_a_variant_of_the_network_alone_streams_beside_the_usual_encoder(
    half_folder, tmp_path, machine, expected
):
    folder = Path(shutil.copytree(half_folder, tmp_path / "folder"))
    (file,) = (folder / "transformer").glob("*.safetensors")
    file.rename(file.with_suffix(".bf16.safetensors"))
    plan = plan_of(
        folder,
        machine,
        variant="bf16",
        network_origin="disk",
        resident_blocks=0,
        **PLACES["encoder from disk"],
    )
    pipe = load_planned(Kandinsky5T2IPipeline, folder, plan, dtype=DTYPE, variant="bf16")
    assert torch.equal(draw(pipe), expected)


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
        str(half_folder), device="cpu", dtype="bf16", memory=Budget.of("auto", width=64, height=64)
    )
    assert pipe.plan is not None and pipe.plan.width == 64
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "ordinary"])
def test_what_moves_is_what_was_said(half_folder, machine, monkeypatch, fast_path):
    """A run of 50 steps, of which the fast path's table holds nine: bytes of conveyors against those of the planner."""
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i", num_visual_blocks=5)))
    network.fast_path = FastPath() if fast_path else None
    given = inputs_for(network.config).arguments()
    rows, tokens = given["encoder_hidden_states"].shape[:2]
    table = 9 * prompt_table.bytes_a_step(network.config, rows, tokens, itemsize=4)
    for module in (fast, activations):
        monkeypatch.setattr(module, "TABLE_BYTES", table)
    plan = plan_of(half_folder, machine, network_origin="host", resident_blocks=1, slots=2, small_stream=True)
    _place_one("transformer", network, plan, CPU, None)
    times = torch.linspace(1000, 20, STEPS)
    if network.fast_path is not None:
        network.fast_path.expect(times)
    with torch.no_grad():
        for time in times:
            network(**{**given, "timestep": time})
    conveyors = {entry[0] for part in network.modules() if (entry := getattr(part, ATTRIBUTE, None))}
    sizes = {conveyor.units[0].name: [unit.nbytes for unit in conveyor.units] for conveyor in conveyors}
    streamed = sizes["transformer.visual_transformer_blocks.1"]
    groups = {
        "modulation": tuple(sizes["transformer.visual_transformer_blocks.0.visual_modulation"]),
        "text": tuple(sizes["transformer.text_transformer_blocks.0"]),
    }
    others = (model_of(half_folder, DTYPE).components[name] for name in ("text_encoder", "vae"))
    request = Sizes(width=64, height=64, pictures=rows // 2, text_tokens=tokens, edits=False)
    needs = needs_of(network, *others, request, torch.float32, fast=fast_path, convolutions=1.0)
    assert needs.window == (9 if fast_path else 1)
    draft = _Draft(
        network="bf16", encoder="bf16", network_origin="host", encoder_origin="device",
        small_stream=True, slots=2, tiled=False, batched=True,
    )  # fmt: skip
    often, seldom = _brought(draft, Part(groups=groups, ends=0, table=0), needs, streamed, plan.slots)
    ahead = max(streamed) + max(groups["modulation"])  # what is brought for a step that does not come
    assert 0 <= sum(conveyor.moved for conveyor in conveyors) - STEPS * (often + seldom) <= ahead + STEPS


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
        load_pipeline(str(half_folder), device="cpu", dtype="bf16", memory="1MB")


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


def test_encoders_keep_no_slots_while_the_network_runs(half_folder, machine):
    """Nor after `encode_prompt`: what plans say of the steps counts none."""
    plan = plan_of(half_folder, machine, **PLACES["everything that can"])
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    conveyors = {
        entry[0]
        for encoder in (pipe.text_encoder, pipe.text_encoder_2)
        for part in encoder.modules()
        if (entry := getattr(part, ATTRIBUTE, None))
    }
    kept = []
    draw(pipe, callback_on_step_end=lambda *_: kept.append(sum(len(c._slots) for c in conveyors)) or {})
    pipe.encode_prompt(SHORT)
    kept.append(sum(len(c._slots) for c in conveyors))
    assert len(conveyors) == 2 and all(conveyor.moved for conveyor in conveyors) and kept == [0, 0, 0, 0]


def test_prompts_are_encoded_while_another_thread_draws(half_folder, machine, expected):
    """Slots hold what one call uses: others wait for their turn."""
    plan = plan_of(half_folder, machine, **PLACES["encoder from disk"])
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    states = pipe.encode_prompt(SHORT)[0]
    pipe.set_progress_bar_config(disable=True)

    def encode() -> bool:
        return all(torch.equal(pipe.encode_prompt(SHORT)[0], states) for _ in range(20))

    with ThreadPoolExecutor(3) as threads:
        encoded = [threads.submit(encode) for _ in range(2)]
        drawn = threads.submit(lambda: [draw(pipe) for _ in range(5)])
    assert all(torch.equal(picture, expected) for picture in drawn.result())
    assert all(thread.result() for thread in encoded)


def test_running_out_while_placing_names_the_plan(half_folder, machine, monkeypatch):
    """What the system says where it has no memory for weights that wait there."""
    monkeypatch.setattr(sources, "exact_memory", lambda size, *, lock: exact_memory(2**60, lock=lock))
    plan = plan_of(half_folder, machine, **PLACES["a block from host memory"])
    with pytest.raises(CapacityError, match=r"Memory ended.*1 of 2 blocks on cpu"):
        load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)


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
    with pytest.raises(RequestError, match=r"packed in memory \(memory=.*`kandinsky5 quantize`"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_placed_pipeline_is_not_moved(half_folder, machine):
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan_of(half_folder, machine), dtype=DTYPE)
    with pytest.raises(RequestError, match="placed by its plan"):
        pipe.to(torch.float32)
    for offload in ("sequential_cpu", "model_cpu", "group"):
        with pytest.raises(RequestError, match=r"placed by its plan.* not .*offloaded"):
            getattr(pipe, f"enable_{offload}_offload")(CPU)
    with pytest.raises(RequestError, match="placed by a plan already"):
        place(pipe, pipe.plan)


def test_a_plan_that_reads_files_needs_them(half_folder, machine):
    pipe = Kandinsky5T2IPipeline.from_pretrained(half_folder)
    with pytest.raises(RequestError, match="no folder to read"):
        place(pipe, plan_of(half_folder, machine, **PLACES["everything that can"]))
    assert not is_streamed(pipe.transformer), "nothing was placed, and another plan may be carried out"
    place(pipe, plan_of(half_folder, machine))


def test_without_its_text_encoder(half_folder, machine):
    """Which a plan would read from files."""
    plan = plan_of(half_folder, machine, **PLACES["encoder from disk"])
    pipe = load_planned(
        Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE, text_encoder=None, tokenizer=None
    )
    assert pipe.text_encoder is None and pipe.plan is plan


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
