"""`--lora` from the words typed to the pixels drawn, and what a picture keeps of it."""

from pathlib import Path

import pytest
import torch

from kandinsky5.cli.adapters import chosen_loras
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.engine import Engine
from kandinsky5.errors import RequestError
from kandinsky5.lora import Lora, LoraFormat, write_lora
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.request import ImageRequest

from .conftest import CommandLine

LAYER = "visual_transformer_blocks.0.feed_forward.in_layer"


def adapter(path: Path, channels: int = 64, scale: float = 1.0) -> Path:
    generator = torch.Generator().manual_seed(0)
    parts = {
        "A": torch.randn(2, channels, generator=generator),
        "B": torch.randn(96 if channels == 64 else channels, 2, generator=generator),
    }
    lora = Lora(kind="lora", layers={LAYER: parts}, scales={LAYER: scale}, source="")
    write_lora(lora, path, LoraFormat.comfyui)
    return path


@pytest.fixture
def drawing(command: CommandLine, saved_folder: str, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line over the real engine and the small saved system."""
    from kandinsky5.cli.opening import open_engine

    monkeypatch.setattr(command, "open", open_engine)
    return command


def draw(command: CommandLine, folder: str, *options: str, name: str) -> bytes:
    done = command(
        "generate", "a red circle", "--model", folder, "--seed", "1", "--precision", "fp32", "-q",
        "-o", name, "--steps", "2", *options,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    from PIL import Image

    with Image.open(name) as image:
        return image.tobytes()


def test_a_file_changes_the_picture_and_is_told_in_it(drawing: CommandLine, saved_folder: str) -> None:
    file = adapter(Path("style.safetensors"))
    plain = draw(drawing, saved_folder, name="plain.png")
    styled = draw(drawing, saved_folder, "--lora", str(file), name="styled.png")
    half = draw(drawing, saved_folder, "--lora", f"{file}:0.5", name="half.png")
    assert len({plain, styled, half}) == 3
    assert draw(drawing, saved_folder, "--lora", f"{file}:0", name="nothing.png") == plain
    adapter(Path("again.safetensors"), scale=-1.0)
    both = ("--lora", "style.safetensors", "--lora", "again.safetensors")
    cancelled = draw(drawing, saved_folder, *both, name="both.png")  # up to rounding
    assert max(abs(a - b) for a, b in zip(cancelled, plain, strict=True)) <= 2
    told = read_provenance(Path("half.png"))
    assert told.request.lora == (("style.safetensors", 0.5),)
    assert len(told.software["lora style.safetensors"]) == 64


def test_like_asks_for_the_file(drawing: CommandLine, saved_folder: str) -> None:
    file = adapter(Path("style.safetensors"))
    styled = draw(drawing, saved_folder, "--lora", f"{file}:0.5", name="styled.png")
    silent = drawing("generate", "--like", "styled.png", "--model", saved_folder, "-o", "a.png")
    assert silent.code == 2 and "style.safetensors:0.5: say --lora" in silent.err
    again = ("--like", "styled.png", "--model", saved_folder, "--precision", "fp32", "-q")
    assert drawing("generate", *again, "--lora", f"{file}:0.5", "-o", "a.png").code == 0
    assert drawing("generate", *again, "--lora", "none", "-o", "b.png").code == 0
    from PIL import Image

    with Image.open("a.png") as same, Image.open("b.png") as other:
        assert same.tobytes() == styled != other.tobytes()


def test_another_model_s_adapter_ends_with_3(drawing: CommandLine, saved_folder: str) -> None:
    adapter(Path("large.safetensors"), channels=2560)
    options = ("--model", saved_folder, "-o", "a.png", "--lora")
    done = drawing("generate", "a star", *options, "large.safetensors")
    assert done.code == 3 and "made for 2560 channels in" in done.err
    done = drawing("generate", "a star", *options, "none-here.safetensors")
    assert done.code == 3 and "none-here.safetensors is missing" in done.err
    assert not Path("a.png").exists()


def test_what_no_model_could_wear_is_refused_before_one_is_loaded(command: CommandLine) -> None:
    file = str(adapter(Path("style.safetensors")))
    done = command("generate", "a star", "--lora", "none-here.safetensors", "-o", "a.png")
    assert done.code == 3 and "none-here.safetensors is missing" in done.err and command.opened == []
    done = command("generate", "a star", "--lora", file, "--mode", "fp8-attention", "-o", "a.png")
    assert done.code == 2 and "--mode fp8-attention has float8 layers" in done.err and command.opened == []


@pytest.mark.parametrize(
    ("text", "name", "source", "weight"),
    [
        ("a/b/style.safetensors", "style.safetensors", "a/b/style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", "style.safetensors", 0.8),
        ("C:/loras/style.safetensors", "style.safetensors", "C:/loras/style.safetensors", 1.0),
        ("org/name:-1", "org/name", "org/name", -1.0),
    ],
)
def test_the_words_of_the_option(text: str, name: str, source: str, weight: float) -> None:
    (lora,) = chosen_loras("generate", [text], None)
    assert (lora.name, lora.source, lora.weight) == (name, source, weight)


def test_words_that_are_refused() -> None:
    for texts, message in (
        (["a.safetensors:inf"], "not FILE"),
        ([":1"], "not FILE"),
        (["x/a", "x/a"], "twice"),
    ):
        with pytest.raises(RequestError, match=message):
            chosen_loras("generate", texts, None)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("style", "list of pairs"),
        ([["a", 1, 2]], "list of pairs"),
        ([["", 1]], "name of an adapter"),
        ([["a", float("nan")]], "not a number"),
        ([["a", 11]], "not a number"),
        ([["a", 1], ["a", 2]], "twice"),
        ([[str(i), 1] for i in range(17)], "at most 16"),
    ],
)
def test_requests_that_are_refused(lora: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ImageRequest(prompt="a", lora=lora)  # type: ignore[arg-type]


def test_an_engine_knows_only_what_it_loaded(pipeline: Kandinsky5T2IPipeline, tmp_path: Path) -> None:
    import copy

    own = Kandinsky5T2IPipeline.from_pipe(pipeline, transformer=copy.deepcopy(pipeline.transformer))
    own.set_progress_bar_config(disable=True)
    engine = Engine(own, source="tiny")
    request = ImageRequest(prompt="a star", seed=3, steps=1, width=64, height=64)
    before = engine.generate(request)[0].image.tobytes()
    engine.adapters.add("a.b", str(adapter(tmp_path / "a.safetensors")))
    assert engine.adapters.names == ["a.b"]
    assert engine.generate(request)[0].image.tobytes() == before
    with pytest.raises(RequestError, match=r"no adapter 'x' here; loaded are a\.b"):
        engine.resolve(ImageRequest(prompt="a", lora=[["x", 1]]))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="already"):
        engine.adapters.add("a.b", str(tmp_path / "a.safetensors"))
