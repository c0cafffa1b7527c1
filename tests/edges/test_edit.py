"""`kandinsky5 edit`, from the words typed to the files written: over a plain engine, and a real one at tiny size."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky5 import variants
from kandinsky5.cli.app import run
from kandinsky5.cli.comparison import GAP
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.pictures import content_hash, read_picture
from kandinsky5.request import EditRequest
from tests.pipelines.conftest import picture

from .conftest import CommandLine

EDIT = ("--model", "i2i")


@pytest.fixture(autouse=True)
def photo(command: CommandLine) -> Path:
    """A source in the command's folder, in the shape of the plain engine's pictures."""
    picture(128, 96).save("photo.png")
    return Path("photo.png")


def outputs(command: CommandLine) -> list[str]:
    return [name for name in command.files() if name != "photo.png"]


def test_a_picture_is_written_where_asked_and_named_on_one_line(command: CommandLine) -> None:
    done = command("edit", "photo.png", "make it night", *EDIT, "-o", "new/night.png", "--seed", "7")
    assert (done.code, done.lines, done.err) == (0, ["new/night.png\tseed 7\t1.2 s"], "")
    assert outputs(command) == ["new/night.png"]
    assert command.tasks == ["editing"]
    source = command.engine.sources[0]
    assert source is not None and source.tobytes() == picture(128, 96).tobytes()
    request = command.engine.drawn[0]
    assert isinstance(request, EditRequest)
    assert (request.prompt, request.fit, request.size_from) == ("make it night", "cover", None)
    assert request.source == content_hash(picture(128, 96))


def test_options_reach_the_engine(command: CommandLine) -> None:
    options = "--size 128x32 --fit pad --steps 9 --guidance 1.5 --negative blur --seed 5 -n 2 --device cpu"
    done = command("edit", "photo.png", "make it night", *EDIT, *options.split())
    assert done.code == 0
    assert command.opened == [("i2i", "cpu", "auto")]
    (request,) = command.engine.drawn
    assert request == EditRequest(
        prompt="make it night",
        negative_prompt="blur",
        width=128,
        height=32,
        steps=9,
        guidance=1.5,
        seed=5,
        count=2,
        max_sequence_length=512,
        source=request.source,  # type: ignore[attr-defined]
        fit="pad",
    )


def test_the_size_may_follow_the_source(command: CommandLine) -> None:
    requests: list[object] = []
    real = command.engine.resolve
    command.engine.resolve = lambda request, *rest: requests.append(request) or real(request, *rest)  # type: ignore[method-assign, func-returns-value]
    assert command("edit", "photo.png", "a", *EDIT, "--size", "source").code == 0
    assert isinstance(requests[0], EditRequest) and requests[0].size_from == "source"
    assert (requests[0].width, requests[0].height) == (None, None)


def test_what_the_fit_cost_is_said_once(command: CommandLine) -> None:
    picture(200, 96).save("wide.png")
    done = command("edit", "wide.png", "a", *EDIT, "-n", "3", "--seed", "1")
    assert done.err == (
        "wide.png: 72 of 200 columns cut off, left and right, for 64x48 (--fit cover, pad or stretch; --size source "
        "keeps its shape)\n"
    )
    assert len(done.lines) == 3
    assert command("edit", "wide.png", "b", *EDIT, "--quiet").err == ""
    assert "white added" in command("edit", "wide.png", "b", *EDIT, "--fit", "pad").err


def test_instructions_come_one_a_line(command: CommandLine) -> None:
    done = command(
        "edit", "photo.png", "-", *EDIT, "-o", "out/", "--seed", "3", stdin=b"make it night\n\nadd a star\n"
    )
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.lines] == ["out/make-it-night-3.png", "out/add-a-star-3.png"]


class TestCompare:
    def test_the_source_stands_to_the_left(self, command: CommandLine) -> None:
        done = command("edit", "photo.png", "a", *EDIT, "--compare", "-o", "a.png", "--seed", "7")
        assert done.lines == ["a.png\tseed 7\t1.2 s\ta-compare.png"]
        both, result = np.asarray(Image.open("a-compare.png")), np.asarray(Image.open("a.png"))
        assert both.shape == (48, 2 * 64 + GAP, 3)
        source = picture(128, 96).resize((64, 48), Image.Resampling.BILINEAR)
        assert np.array_equal(both[:, :64], np.asarray(source))
        assert (both[:, 64 : 64 + GAP] == 255).all()
        assert np.array_equal(both[:, 64 + GAP :], result)
        assert read_provenance(Path("a-compare.png")) == read_provenance(Path("a.png"))

    def test_it_is_fitted_as_the_edit_was(self, command: CommandLine) -> None:
        picture(200, 96).save("wide.png")
        command("edit", "wide.png", "a", *EDIT, "--compare", "-o", "a.png", "--fit", "pad")
        both = np.asarray(Image.open("a-compare.png"))
        assert (both[0, :64] == 255).all() and not (both[24, :64] == 255).all()

    def test_its_name_must_be_free(self, command: CommandLine) -> None:
        Path("a-compare.png").write_bytes(b"mine")
        done = command("edit", "photo.png", "a", *EDIT, "--compare", "-o", "a.png")
        assert (done.code, command.opened) == (2, [])
        assert "a-compare.png already there" in done.err
        assert command("edit", "photo.png", "a", *EDIT, "-o", "a.png").code == 0

    def test_json_names_it_and_says_what_the_fit_did(self, command: CommandLine) -> None:
        done = command(
            "edit", "photo.png", "a", *EDIT, "--compare", "-o", "a.png", "--json", "--size", "48x48"
        )
        (facts,) = [json.loads(line) for line in done.lines]
        assert (facts["path"], facts["comparison"]) == ("a.png", "a-compare.png")
        assert facts["fit"]["kept"] == [16, 0, 112, 96] and "cut off" in facts["fit"]["changes"]
        assert facts["request"]["source"] == content_hash(picture(128, 96))


class TestLike:
    def test_an_edit_is_done_again_and_options_change_it(self, command: CommandLine) -> None:
        first = (
            "edit",
            "photo.png",
            "make it night",
            *EDIT,
            "--fit",
            "pad",
            "--size",
            "32x32",
            "--seed",
            "9",
        )
        assert command(*first, "-o", "a.png").code == 0
        assert command("edit", "photo.png", "--like", "a.png", *EDIT, "-o", "b.png").code == 0
        assert read_provenance(Path("b.png")) == read_provenance(Path("a.png"))
        changes = ("--size", "source", "--fit", "cover")
        assert command("edit", "photo.png", "--like", "a.png", *EDIT, *changes, "-o", "c.png").code == 0
        changed = read_provenance(Path("c.png")).request
        assert isinstance(changed, EditRequest)
        assert (changed.prompt, changed.fit, changed.width, changed.seed) == ("make it night", "cover", 64, 9)

    def test_the_same_edit_of_another_source(self, command: CommandLine) -> None:
        picture(128, 96, seed=4).save("other.png")
        assert command("edit", "photo.png", "make it night", *EDIT, "-o", "a.png").code == 0
        assert command("edit", "other.png", "--like", "a.png", *EDIT, "-o", "b.png").code == 0
        request = read_provenance(Path("b.png")).request
        assert isinstance(request, EditRequest) and request.source == content_hash(picture(128, 96, seed=4))

    def test_settings_of_a_drawn_picture(self, command: CommandLine) -> None:
        assert command("generate", "a star", "-o", "star.png", "--steps", "6", "--seed", "8").code == 0
        done = command("edit", "star.png", "make it blue", "--like", "star.png", *EDIT, "-o", "blue.png")
        request = command.engine.drawn[-1]
        assert (done.code, request.prompt, request.steps, request.seed) == (0, "make it blue", 6, 8)

    def test_generate_does_not_take_an_edit(self, command: CommandLine) -> None:
        assert command("edit", "photo.png", "a", *EDIT, "-o", "a.png").code == 0
        done = command("generate", "--like", "a.png", "-o", "b.png")
        assert done.code == 2 and "kandinsky5 edit SOURCE --like" in done.err

    def test_show_tells_source_and_fit(self, command: CommandLine) -> None:
        assert command("edit", "photo.png", "a", *EDIT, "-o", "a.jpg", "--fit", "stretch").code == 0
        lines = command("show", "a.jpg").lines
        assert f"source: {content_hash(picture(128, 96))}" in lines and "fit: stretch" in lines
        with Image.open("a.jpg") as image:
            assert f"Source: {content_hash(picture(128, 96))[:12]}, Fit: stretch" in image.getexif()[0x010E]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "a", "--model", "t2i-lite-sft"], "t2i-lite-sft makes pictures from text only"),
        (["photo.png", *EDIT], "Say what to change: kandinsky5 edit photo.png"),
        (["photo.png", " ", *EDIT], "empty"),
        (["photo.png", "a", "--from-file", "p.txt", *EDIT], "not from both"),
        (["missing.png", "a", *EDIT], "missing.png cannot be read: No such file"),
        ([".", "a", *EDIT], "Is a directory"),
        (["cut.png", "a", *EDIT], "cut.png cannot be read"),
        (["words.png", "a", *EDIT], "words.png is not a picture"),
        (["dot.png", "a", *EDIT], "dot.png is 1x1; both sides must be at least 16 pixels"),
        (["strip.png", "a", *EDIT], "strip.png is 1000x20; its longer side"),
        (["photo.png", "a", *EDIT, "--size", "10"], "1024x768"),
        (["photo.png", "a", *EDIT, "--size", "1000x1000"], "992 or 1008"),
        (["photo.png", "a", *EDIT, "--fit", "crop"], "cover"),
        (["photo.png", "a", *EDIT, "--steps", "0"], "steps 0"),
        (["photo.png", "a", *EDIT, "-o", "photo.png"], "photo.png already there"),
        (["photo.png", "a", "--model", "nothing"], "i2i-lite-sft"),
        ([], "SOURCE"),
    ],
)
def test_a_wrong_request_is_one_line_and_loads_nothing(
    command: CommandLine, arguments: list[str], message: str
) -> None:
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:2000])
    Path("words.png").write_bytes(b"not a picture")
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("RGB", (1000, 20)).save("strip.png")
    before = command.files()
    done = command("edit", *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1 and "Traceback" not in done.err
    assert (done.out, command.opened, command.files()) == ("", [], before)


# The real system at tiny size, loaded from folders in the published layout.

REAL = ("--device", "cpu")


def test_a_source_becomes_an_edited_picture(
    saved_editing_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", "photo.png", "make it blue", "--model", saved_editing_folder, *REAL]
    assert run([*arguments, "-o", "a.png", "--seed", "5", "--compare"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a.png\tseed 5\t") and captured.out.endswith("a-compare.png\n")
    assert "32 of 128 columns cut off" in captured.err
    stored = read_provenance(Path("a.png"))
    assert (stored.request.width, stored.request.height, stored.request.steps) == (128, 128, 3)
    assert run([*arguments, "-o", "b.png", "--like", "a.png"]) == 0
    assert run([*arguments, "-o", "c.png", "--seed", "5", "--size", "source"]) == 0
    first, again, shaped = (read_picture(name) for name in ("a.png", "b.png", "c.png"))
    assert first.tobytes() == again.tobytes()
    assert shaped.size == (144, 112)
    assert run(["edit", "c.png", *arguments[2:], "-o", "d.png", "--seed", "5", "--size", "144x112"]) == 0
    assert np.abs(np.asarray(read_picture("d.png"), int) - np.asarray(shaped, int)).max() > 8


def test_the_embedded_model_edits_as_soon_as_its_weights_do(
    saved_folder: str,
    saved_editing_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The default model of the command, with nothing but other weights in its folder."""
    monkeypatch.setattr(variants, "embedded_folder", lambda: Path(saved_folder))
    assert run(["edit", "photo.png", "make it blue", *REAL, "-o", "a.png"]) == 2
    refusal = "embedded makes pictures from text only. Editing needs an editing checkpoint: i2i-lite-sft"
    assert refusal in capsys.readouterr().err
    monkeypatch.setattr(variants, "embedded_folder", lambda: Path(saved_editing_folder))
    assert run(["edit", "photo.png", "make it blue", *REAL, "-o", "a.png"]) == 0
    assert read_provenance(Path("a.png")).model == "embedded"


def test_a_text_to_image_folder_is_refused_in_words(
    saved_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["edit", "photo.png", "make it blue", "--model", saved_folder, *REAL, "-o", "a.png"]) == 2
    errors = capsys.readouterr().err
    assert "text-to-image checkpoint" in errors and len(errors.splitlines()) == 1
    assert not Path("a.png").exists()


# What `docs/editing.md` says.

PAGE = (Path(__file__).parents[2] / "docs" / "editing.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_understood(command: CommandLine) -> None:
    (lines,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    picture(128, 96, seed=1).save("other.png")
    for line in lines.strip().splitlines():
        done = command(*shlex.split(line)[1:])
        assert (done.code, done.err) == (0, ""), line
    assert {"night.png", "night-compare.png", "other-night.png"} <= set(outputs(command))
    assert sum(name.startswith("nights/make-it-night-") for name in outputs(command)) == 4


def test_the_snippet_of_the_page_runs(saved_editing_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As on the page, but for the model and the device, which only a large GPU and a download can be."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for ours, theirs in (
        (f'"{saved_editing_folder}"', '"kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers"'),
        ('device="cpu"', 'device="cuda"'),
        ('"photo.png"', '"photo.jpg"'),
    ):
        assert snippet.count(theirs) == 1
        snippet = snippet.replace(theirs, ours)
    exec(snippet, {})
    assert capsys.readouterr().out == "32 of 128 columns cut off, left and right\n"
    assert read_picture("night.png").size == (128, 128)
