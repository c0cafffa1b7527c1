"""The trainer from settings to results, on a small system: what it writes, and that stopping changes nothing."""

import errno
import json
import multiprocessing
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5.cli.app import ExitCode
from kandinsky5.cli.app import run as command_line
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.lora import read_lora
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.train import preparing
from kandinsky5.train.log import validation_figures
from kandinsky5.train.results import write_card
from kandinsky5.train.tuning import lesson as tuning_lesson
from kandinsky5.train.tuning.learning import pack_base
from tests.model.tiny import config_of

from .conftest import SMALL, Told, small_settings, write_edits, write_pictures

Run = Callable[..., Told]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_it_promises(trained: Run, tmp_path: Path, saved_folder: str) -> None:
    prompts = ["a red circle", "a star"]
    told = trained(watch__prompts=prompts, watch__steps=2, data__validation_share=0.3, watch__trigger="ohwx")
    out = tmp_path / "training"
    assert list(told.losses) == [1, 2, 3, 4, 5, 6]
    assert any("learn" in line for line in told.said)
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "pytorch_lora_weights.safetensors",
        "comfyui_lora.safetensors",
        "README.md",
        "log.jsonl",
        "pictures",
        "checkpoints",
    }
    drawn = sorted(file.name for file in (out / "pictures").iterdir())
    assert drawn == [f"step-{step:07d}-{n}.png" for step in (0, 6) for n in (1, 2)]
    assert sorted(file.name for file in (out / "checkpoints").iterdir()) == ["step-0000003", "step-0000006"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 6]
    steps = [line for line in lines if "loss" in line]
    assert len(steps[0]["loss_by_time"]) == 8 and steps[0]["rate"] == pytest.approx(0.005)
    card = (out / "README.md").read_text()
    assert "step-0000006-1.png" in card and "ohwx" in card and "rank = 4" in card
    lora = read_lora(out / "pytorch_lora_weights.safetensors")
    assert lora.trigger == "ohwx" and len(lora.layers) == 10 * 2 + 6
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    for name in ("pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"):
        pipe.load_lora_weights(out / name)


def test_the_loss_falls_on_what_is_learnt(trained: Run, tmp_path: Path) -> None:
    trained(
        run__steps=60, run__batch=4, run__micro_batch=4, watch__log_every=60, run__save_every=60,
        run__checkpointing=False, data__validation_share=0.2, objective__unconditional=0.0,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "training" / "log.jsonl").read_text().splitlines()]
    before, after = (line["validation_loss"] for line in lines if "validation_loss" in line)
    assert after < 0.7 * before


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """The compilation of torchao's optimisers takes a processor long and changes no value."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tuning__dropout": 0.3, "run__ema": 0.9, "run__batch": 4},
        {"optimiser__name": "adamw8bit", "tuning__rank": 8},
        {"optimiser__name": "prodigy", "optimiser__rate": 1.0},
        {"optimiser__name": "schedule-free"},
    ],
)
def test_a_stopped_run_continues_bit_for_bit(
    trained: Run, tmp_path: Path, changes: dict[str, object], uncompiled: None
) -> None:
    whole = trained(output="whole", **changes)
    stopped = trained(output="parts", stop_at=4, **changes)
    assert stopped.said[-1] == "stopped"
    continued = trained(output="parts", **changes)
    assert any("continuing after step 3" in line for line in continued.said)
    assert continued.losses == {step: whole.losses[step] for step in (4, 5, 6)}
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_killed_run_loses_at_most_the_steps_since_its_checkpoint(trained: Run, tmp_path: Path) -> None:
    """SIGKILL while it steps and saves; the next start cleans up and arrives at the same."""
    length = {"run__steps": 12, "run__save_every": 2}
    trained(output="whole", **length)
    victim = multiprocessing.get_context("fork").Process(
        target=trained, kwargs={"output": "killed", **length}
    )
    victim.start()
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.kill()
    victim.join()
    reached = max(int(path.name[-7:]) for path in checkpoints.glob("step-*"))
    assert reached < 12
    (checkpoints / ".partial-0000099").mkdir()  # as if it had been killed while it saved
    told = trained(output="killed", **length)
    assert any(f"continuing after step {reached}" in line for line in told.said)
    assert not list(checkpoints.glob(".partial-*"))
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kandinsky5.train import checkpoints

    save = checkpoints.save_file

    def full_at_six(tensors: object, path: Path, **kwargs: object) -> None:
        if "0000006" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints, "save_file", full_at_six)
    with pytest.raises(CheckpointError, match=r"No space left.*step-0000003 is still good"):
        trained()
    kept = tmp_path / "training" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["step-0000003"]
    monkeypatch.undo()
    assert any("continuing after step 3" in line for line in trained().said)


def test_a_run_begun_with_other_settings_is_not_continued(trained: Run, tmp_path: Path) -> None:
    trained(stop_at=4)
    with pytest.raises(RequestError, match=r"tuning\.rank.*another output folder"):
        trained(tuning__rank=8)
    trained(run__steps=8)  # its length may change: no rate decays here
    with pytest.raises(RequestError, match=r"run\.steps = 6 is less than .*step-0000008.*at least 8"):
        trained(run__steps=6)
    (tmp_path / "pictures" / "3.txt").write_text("something else")
    with pytest.raises(RequestError, match="the pictures or captions"):
        trained(run__steps=9)


def test_no_picture_is_encoded_twice(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(run__steps=1)
    entries = sorted((tmp_path / "training" / "cache").rglob("*.safetensors"))
    half = entries[0]
    half.write_bytes(half.read_bytes()[:100])  # what a failing disk leaves
    stamps = {path: path.stat().st_mtime_ns for path in entries[1:]}
    trained(run__steps=2)
    again = sorted((tmp_path / "training" / "cache").rglob("*.safetensors"))
    assert again == entries and load_file(half)
    assert {path: path.stat().st_mtime_ns for path in entries[1:]} == stamps


@pytest.mark.parametrize("kind", ["dora", "lokr"])
def test_other_adapters(kind: str, trained: Run, tmp_path: Path, saved_folder: str) -> None:
    trained(tuning__kind=kind, run__steps=2)
    lora = read_lora(tmp_path / "training" / "pytorch_lora_weights.safetensors")
    assert lora.kind == kind
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    pipe.load_lora_weights(lora, adapter_name="a")
    moved = "B" if kind == "dora" else "w2_b"
    assert any(parts[moved].abs().max() > 0 for parts in lora.layers.values())


@pytest.mark.parametrize("base", ["bf16", "int8", "fp8", "nf4"])
def test_adapters_learn_beside_every_base(base: str, trained: Run, tmp_path: Path) -> None:
    trained(
        model__base=base, run__steps=20, run__batch=4, run__micro_batch=4, optimiser__rate=0.02,
        data__validation_share=0.3, watch__log_every=20, run__save_every=20,
    )  # fmt: skip
    before, after = validation_figures(tmp_path / "training").values()
    assert after < 0.75 * before


def test_edits_and_pictures_together(
    tmp_path: Path, saved_editing_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    from kandinsky5.train.training import train

    write_edits(tmp_path / "edits")
    write_pictures(tmp_path / "pictures", side=128)
    settings = small_settings(
        tmp_path, saved_editing_folder, model__task="editing", sources=["edits", "pictures"], run__steps=3
    )
    told = Told()
    out = train(settings, tmp_path, told)
    assert "10 pictures to learn from" in told.said
    few = small_settings(
        tmp_path, saved_editing_folder, model__task="editing", sources=["edits"], data__max_edit_tokens=9,
        run__steps=1, output="few",
    )  # fmt: skip
    train(few, tmp_path, told)
    assert "longer than 9 tokens; its end was cut off" in caplog.text
    pipe = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder)
    pipe.load_lora_weights(out)


def test_an_edit_for_a_network_that_only_draws(trained: Run, tmp_path: Path) -> None:
    write_edits(tmp_path / "edits")
    with pytest.raises(RequestError, match=r"takes no source picture.*editing checkpoint"):
        trained(sources=["edits"])


def test_batches_that_do_not_divide(trained: Run) -> None:
    with pytest.raises(RequestError, match="no multiple"):
        trained(run__batch=3, run__micro_batch=2)


def test_targets_that_are_no_layers(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no block has a layer 'attn\.to_q'.*self_attention\.to_query"):
        trained(tuning__targets=["attn.to_q"])
    assert not (tmp_path / "training").exists(), "said before anything is encoded"


def test_processes_that_do_not_divide_into_groups(trained: Run) -> None:
    with pytest.raises(RequestError, match=r"1 processes do not divide into run\.replicas = 2"):
        trained(tuning__kind="full", run__replicas=2)


def test_weights_that_are_no_numbers_are_not_saved(trained: Run, tmp_path: Path) -> None:
    """Neither where a line is due, nor between lines where a checkpoint is; what was saved before stays."""
    trained(run__steps=3)
    broken = {"optimiser__rate": 1e30, "optimiser__warmup": 0, "watch__log_every": 4, "run__steps": 10}
    for save_every in (2, 5):
        output = f"every-{save_every}"
        with pytest.raises(RequestError, match=r"no checkpoint was written.*Lower optimiser\.rate = 1e\+30"):
            trained(output=output, run__save_every=save_every, **broken)
        assert not list((tmp_path / output).rglob("*.safetensors.*"))
        assert not (tmp_path / output / "checkpoints").exists()
        assert not (tmp_path / output / "pytorch_lora_weights.safetensors").exists()


def test_the_command_line_says_so(
    trained: Run, tmp_path: Path, saved_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('[[data.sources]]\npath = "pictures"\n')
    changes = {"model.name": saved_folder, **SMALL, "optimiser.rate": 1e30, "optimiser.warmup": 0}
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    assert command_line(["train", str(tmp_path / "config.toml"), "-q", *options]) == ExitCode.REQUEST
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kandinsky5: Up to step") and "Lower optimiser.rate" in error


def test_an_initial_file_is_written_where_that_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["train", "init", str(tmp_path / "a.toml")]) == 0
    assert command_line(["train", "init", str(tmp_path / "a.toml")]) == ExitCode.REQUEST
    assert command_line(["train", "init", str(tmp_path / "none" / "a.toml")]) == ExitCode.REQUEST
    assert "a.toml cannot be written: No such file" in capsys.readouterr().err


def test_a_packing_that_no_layer_takes() -> None:
    config = config_of("t2i") | {"model_dim": 48, "ff_dim": 80, "axes_dims": (4, 6, 6)}
    network = Kandinsky5Transformer3DModel(**config)
    with pytest.raises(RequestError, match=r"nf4.*no layer that can be packed.*multiples of 64"):
        pack_base(network, "nf4", torch.device("cpu"))
    pack_base(network, "int8", torch.device("cpu"))
    assert type(network.visual_transformer_blocks[0].feed_forward.in_layer.weight.data) is not torch.Tensor


def test_a_card_says_who_loads_a_lokr(trained: Run, tmp_path: Path) -> None:
    trained(tuning__kind="lokr", run__steps=1)
    card = (tmp_path / "training" / "README.md").read_text()
    assert "diffusers itself does not load a LoKr" in card


def test_a_card_s_command_is_one_for_a_shell(tmp_path: Path) -> None:
    prompt, folder = "красный $HOME's `круг`", tmp_path / "crescents"
    folder.mkdir()
    for task, words in (
        ("text-to-image", ["generate", prompt]),
        ("editing", ["edit", "picture.png", "ohwx"]),
    ):
        changes = {"watch__prompts": [prompt], "watch__trigger": "ohwx", "model__task": task}
        settings = small_settings(tmp_path, "embedded", **changes)
        card = write_card(folder, settings, 1, {}, []).read_text(encoding="utf-8")
        (command,) = (line for line in card.splitlines() if line.startswith("kandinsky5 "))
        options = ["--model", "embedded", "--lora", "crescents", "-o", "result.png"]
        assert shlex.split(command) == ["kandinsky5", *words, *options]


def test_a_folder_that_is_missing_is_said_before_a_model_is_loaded(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="gone is not a folder of pictures"):
        trained(model=str(tmp_path / "no-model"), sources=["gone"])


def test_a_run_is_not_continued_on_other_weights(trained: Run, tmp_path: Path, saved_folder: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_folder, model)
    trained(model=str(model), run__steps=4, run__stop_at=2)
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"other settings \(the model's weights\)"):
        trained(model=str(model), run__steps=4)


def test_a_run_goes_on_where_its_pictures_have_moved(trained: Run, tmp_path: Path) -> None:
    trained(run__steps=4, run__stop_at=2)
    (tmp_path / "pictures").rename(tmp_path / "moved")
    told = trained(run__steps=4, sources=["moved"], data__bad_limit=0.5)
    assert any("continuing after step 2" in line for line in told.said)


def test_a_damaged_checkpoint_is_said_as_it_is(trained: Run, tmp_path: Path) -> None:
    trained(run__steps=4, run__stop_at=2)
    (tmp_path / "training" / "checkpoints" / "step-0000002" / "values.json").write_text("")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path))}.*values\.json is not JSON"):
        trained(run__steps=4)


def test_a_folder_whose_encoders_alone_are_packed_teaches_and_a_packed_network_does_not(
    trained: Run, tmp_path: Path, saved_folder: str
) -> None:
    for name, plain in (("text", "--network"), ("network", "--encoder")):
        assert command_line(["quantize", saved_folder, str(tmp_path / name), plain, "bf16", "-q"]) == 0
    trained(model=str(tmp_path / "text"), run__steps=1)
    assert weights(tmp_path / "training")
    with pytest.raises(RequestError, match=r"is packed already.*model\.base packs that"):
        trained(model=str(tmp_path / "network"), output="other")


def test_what_a_run_draws_is_not_among_its_pictures(trained: Run, tmp_path: Path) -> None:
    changes = {"output": "pictures/run", "watch__prompts": ["a star"] * 3, "watch__steps": 1, "run__steps": 2}
    for _ in range(2):
        trained(**changes)
    assert (tmp_path / "pictures" / "run" / "pictures" / "step-0000002-3.png").is_file()
    assert (tmp_path / "pictures" / "run" / "left-out.jsonl").read_text() == ""


def test_what_takes_long_or_does_nothing_is_told(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "TOLD_EVERY", -1.0)
    told = trained(run__steps=1, data__validation_share=0.0001)
    assert "6 pictures encoded so far" in told.said
    assert any("holds none back" in line for line in told.said)


def test_a_disk_that_is_full_for_anything_else_is_said_too(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tuning_lesson, "save_pictures", refuse)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trained(watch__prompts=["a star"], watch__steps=1)
