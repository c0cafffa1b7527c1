"""`--mode` from the word typed to the network that draws, and what a picture keeps of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky5.cli.opening import open_engine, open_engines
from kandinsky5.cli.options import ModeName
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.placement import MODES

from .conftest import CommandLine


@pytest.fixture
def drawing(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line over the real engine."""
    monkeypatch.setattr(command, "open", open_engine)
    return command


def test_names_are_those_of_the_modes() -> None:
    assert [name.value for name in ModeName] == ["auto", "ordinary", *MODES]


def test_pictures_are_those_of_the_ordinary_way_and_say_how(drawing: CommandLine, saved_folder: str) -> None:
    pictures = {}
    for mode in (None, "ordinary", *MODES):
        name = f"{mode}.png"
        done = drawing(
            "generate", "a red circle", "--model", saved_folder, "--precision", "fp32", "--seed", "1",
            "--steps", "2", "-q", "-o", name, *(() if mode is None else ("--mode", mode)),
        )  # fmt: skip
        assert (done.code, done.err) == (0, "")
        told = read_provenance(Path(name)).software.get("mode")
        assert told == (mode if mode in MODES else None)
        with Image.open(name) as image:
            pictures[mode] = np.asarray(image, dtype=np.int16)
    assert np.array_equal(pictures["ordinary"], pictures[None]), "auto, without a GPU"
    assert np.abs(pictures["exact"] - pictures[None]).max() <= 1
    assert 0 < np.abs(pictures["fp8"] - pictures[None]).mean() < 16


def test_memory_and_a_mode_contradict_each_other(drawing: CommandLine, saved_folder: str) -> None:
    done = drawing(
        "generate", "a", "--model", saved_folder, "--mode", "fp8", "--memory", "8GB", "-o", "a.png"
    )
    assert done.code == 2 and "leave --mode out" in done.err


def test_a_server_s_engines_share_the_mode(saved_editing_folder: str) -> None:
    engines = open_engines(saved_editing_folder, "cpu", "float32", mode="exact")
    networks = {id(engine.pipeline.transformer) for engine in engines.values()}
    assert len(engines) == 2 and len(networks) == 1
    assert engines["editing"].pipeline.transformer.fast_path.mode == "exact"
