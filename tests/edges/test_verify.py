"""`kandinsky5 verify`: what passes, and which check finds which damage."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5 import verification
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.variants import VARIANTS
from kandinsky5.verification import agreement
from tests.pipelines.conftest import editing_network

from .conftest import CommandLine

__all__ = ["editing_network"]

CHECKS = [name for name, _, _ in verification.CHECKS]
RUN = ["--device", "cpu", "--precision", "fp32"]


def outcomes(folder: Path, **arguments: Any) -> dict[str, verification.Finding]:
    return {finding.check: finding for finding in verification.verify(folder, **arguments)}


def test_the_embedded_model_passes(command: CommandLine) -> None:
    done = command("verify", "embedded", "--json", *RUN)
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    found = {finding["check"]: finding for finding in facts["findings"]}
    assert facts["ok"] and list(found) == CHECKS
    assert [name for name in CHECKS if found[name]["outcome"] != "ok"] == ["network config"]
    assert "286 BF16" in found["stored dtypes"]["figure"]
    assert "a tokenizer of its own" in found["template tokens"]["figure"]
    assert found["picture"]["figure"].startswith("256x256, 2 steps")


def test_the_table_names_every_check(command: CommandLine, saved_folder: str) -> None:
    done = command("verify", saved_folder, "--files")
    assert (done.code, done.err) == (0, "")
    assert [line.split("  ")[0] for line in done.lines] == ["check", *CHECKS]
    assert done.out.count("only files are looked at") == 3


def test_an_editing_network_passes(
    editing_network: Kandinsky5Transformer3DModel,
    saved_folder: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "editing"
    shutil.copytree(saved_folder, folder)
    editing_network.save_pretrained(folder / "transformer")
    found = outcomes(folder, device="cpu", dtype="float32")
    assert {finding.outcome for name, finding in found.items() if name != "network config"} == {"ok"}, found


def change_tensors(folder: Path, component: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = next((folder / component).glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, name: str, value: object) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


NAME = "visual_transformer_blocks.1.self_attention.to_query.weight"


@pytest.mark.parametrize(
    ("damage", "check", "words"),
    [
        (lambda f: (f / "vae" / "config.json").unlink(), "files", "vae/config.json"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "files", "lacks tokenizer"),
        (lambda f: (f / "model_index.json").write_text("[]"), "files", "lacks model_index.json"),
        (
            lambda f: change_tensors(f, "transformer", lambda t: t.pop(NAME)),
            "network tensors",
            f"has no tensor '{NAME}'",
        ),
        (
            lambda f: change_tensors(f, "transformer", lambda t: t.update({NAME: t[NAME][:-1].clone()})),
            "network tensors",
            r"has shape \(63, 64\); its config implies \(64, 64\)",
        ),
        (
            lambda f: change_tensors(f, "transformer", lambda t: t.update(extra=torch.ones(1))),
            "network tensors",
            "Tensor 'extra' .* has no place in the network",
        ),
        (lambda f: change_config(f, "ff_dim", 100), "network tensors", "its config implies"),
        (lambda f: change_config(f, "model_dim", 50), "network tensors", "model_dim=50 must be a multiple"),
        (lambda f: (f / "transformer" / "config.json").write_text("{"), "network config", "is not JSON"),
        (
            lambda f: cut(f / "text_encoder_2" / "model.safetensors"),
            "other components",
            "text_encoder_2/model.safetensors",
        ),
        (
            lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{}"),
            "other components",
            "tokenizer",
        ),
        (
            lambda f: change_tensors(
                f, "text_encoder", lambda t: next(iter(t.values())).view(-1)[3:4].fill_(torch.nan)
            ),
            "finite values",
            "has NaN or infinity",
        ),
    ],
    ids=[
        *(
            "no vae config",
            "no tokenizer",
            "index is a list",
            "tensor missing",
            "tensor cut",
            "tensor unknown",
        ),
        *("config lies", "config impossible", "config broken", "file cut", "tokenizer empty", "NaN"),
    ],
)
def test_damage_is_found_by_its_check(
    saved_folder: str, tmp_path: Path, damage: Callable[[Path], object], check: str, words: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved_folder, folder)
    damage(folder)
    found = outcomes(folder, files_only=True)
    failed = [finding.check for finding in found.values() if finding.outcome == "failed"]
    assert failed[0] == check
    assert re.search(words, found[check].figure), found[check].figure
    assert {found[name].outcome for name in ("loading", "forward pass", "picture")} == {"skipped"}


def test_a_failed_check_ends_with_3(command: CommandLine, saved_folder: str) -> None:
    copy = command.folder / "copy"
    shutil.copytree(saved_folder, copy)
    cut(copy / "vae" / "diffusion_pytorch_model.safetensors")
    done = command("verify", str(copy), *RUN)
    assert done.code == 3 and len(done.err.splitlines()) == 1
    assert "does not pass: other components, stored dtypes, finite values" in done.err
    assert "loading           skipped  other components: failed" in done.out


def test_a_checkpoint_that_claims_to_be_published_is_held_to_it(saved_folder: str) -> None:
    found = outcomes(Path(saved_folder), variant=VARIANTS[1], files_only=True)
    assert found["network config"].outcome == found["template tokens"].outcome == "failed"
    assert "was published with" in found["network config"].figure
    assert "Qwen's tokenizer gives 41 and 52" in found["template tokens"].figure


def test_a_network_that_computes_something_else_is_found(
    saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of another scale, say."""
    original = Kandinsky5Transformer3DModel._time_vector
    monkeypatch.setattr(
        Kandinsky5Transformer3DModel, "_time_vector", lambda self, t, pooled: original(self, t / 1000, pooled)
    )
    found = outcomes(Path(saved_folder), device="cpu", dtype="float32")
    assert found["forward pass"].outcome == "failed"
    assert "of diffusers in float32 0.0e+00; 0.01 is allowed" in found["forward pass"].figure
    assert found["picture"].outcome == "skipped"


def relative(figure: str) -> tuple[float, float, float]:
    """Our distance, diffusers', and what ours may be, out of the figure of a forward pass."""
    ours, theirs, limit = map(float, re.findall(r"\d\.?\d*e[+-]\d+", figure))
    return ours, theirs, limit


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_low_precision_is_measured_by_what_it_does_to_diffusers(saved_folder: str, precision: str) -> None:
    finding = outcomes(Path(saved_folder), device="cpu", dtype=precision)["forward pass"]
    assert finding.outcome == "ok", finding.figure
    ours, theirs, limit = relative(finding.figure)
    assert 0 < ours < limit and limit == pytest.approx(1.5 * theirs + 0.01, rel=0.05)
    assert 0 < theirs < 0.1


def test_the_yardstick_is_diffusers_network_in_float32(saved_folder: str, components: dict[str, Any]) -> None:
    """Widened block by block it is the network that is float32 from the start, and nothing of ours has changed."""
    network = components["transformer"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = agreement.measure(network)
    assert found.theirs == 0.0 < found.ours < 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    halved = copy.deepcopy(network).to(torch.bfloat16)
    rounded = copy.deepcopy(halved).float()
    inputs = {
        name: value.to(torch.bfloat16).float() if name in agreement._ROUNDED else value
        for name, value in agreement._inputs(network).items()
    }
    with torch.inference_mode():
        truth = agreement._peer(rounded)(**inputs).sample
        widened = agreement._in_float32(agreement._peer(halved))(**inputs).sample
    assert torch.equal(truth, widened)


def test_a_wrong_network_is_found_in_low_precision(
    saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Kandinsky5Transformer3DModel._time_vector
    monkeypatch.setattr(
        Kandinsky5Transformer3DModel, "_time_vector", lambda self, t, pooled: original(self, t / 1000, pooled)
    )
    assert outcomes(Path(saved_folder), device="cpu", dtype="bf16")["forward pass"].outcome == "failed"


def test_rounding_that_hides_everything_proves_nothing(
    saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kandinsky5.verification.checks.MEANINGLESS", 1e-6)
    found = outcomes(Path(saved_folder), device="cpu", dtype="bf16")
    assert (
        found["forward pass"].outcome == "skipped" and "try --precision fp32" in found["forward pass"].figure
    )


def test_no_room_is_known_before_loading_and_ends_with_4(
    command: CommandLine, saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: object, **keywords: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("kandinsky5.loading.free_memory", lambda device: 100_000)
    monkeypatch.setattr("kandinsky5.loading.Kandinsky5T2IPipeline.from_pretrained", loaded)
    done = command("verify", saved_folder, *RUN)
    assert done.code == 4 and len(done.err.splitlines()) == 1
    assert "no check failed, but loading has no room: The weights of" in done.err
    assert re.search(r"need \d\.\d GB in float32 on cpu, where 0\.0 GB are free; bfloat16", done.err)
    assert (
        "loading           no room" in done.out and "forward pass      skipped  loading: no room" in done.out
    )
    assert command("verify", saved_folder, "--files").code == 0
    assert json.loads(command("verify", saved_folder, *RUN, "--json").out)["ok"] is False


def test_memory_that_ends_in_a_check_is_no_failure(
    saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, *arguments: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Kandinsky5Transformer3DModel, "forward", full)
    found = outcomes(Path(saved_folder), device="cpu", dtype="float32")
    assert (found["forward pass"].outcome, found["picture"].outcome) == ("no room", "skipped")


def test_a_device_that_is_none_says_nothing_of_the_checkpoint(
    command: CommandLine, saved_folder: str
) -> None:
    done = command("verify", saved_folder, "--device", "gpu")
    assert done.code == 2 and "'gpu'" in done.err and done.out == ""


def test_what_is_not_here_is_not_fetched(command: CommandLine) -> None:
    done = command("verify", "t2i-lite-sft", "--cache-dir", "none")
    assert done.code == 3
    assert "kandinsky5 pull kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers fetches it" in done.err
