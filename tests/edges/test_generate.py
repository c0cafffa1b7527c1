"""`kandinsky5 generate`, from the words typed to the files written."""

import json
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.request import ImageRequest

from .conftest import CommandLine


def test_a_picture_is_written_where_asked_and_named_on_one_line(command: CommandLine) -> None:
    done = command("generate", "a red circle", "-o", "new/folder/picture.png", "--seed", "7")
    assert (done.code, done.lines) == (0, ["new/folder/picture.png\tseed 7\t1.2 s"])
    assert command.files() == ["new/folder/picture.png"]
    with Image.open("new/folder/picture.png") as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (64, 48), (7, 90, 160))


def test_options_reach_the_engine(command: CommandLine, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    options = (
        "--size 128x32 --steps 9 --guidance 1.5 --negative blur --seed 5 -n 2 --device cpu --precision fp32"
    )
    assert command("generate", "a red circle", *options.split(), "--model", str(model)).code == 0
    assert command.opened == [(str(model), "cpu", "fp32")]
    asked = {
        "width": 128,
        "height": 32,
        "steps": 9,
        "guidance": 1.5,
        "seed": 5,
        "count": 2,
        "max_sequence_length": 512,
    }
    assert command.engine.drawn == [ImageRequest(prompt="a red circle", negative_prompt="blur", **asked)]  # type: ignore[arg-type]


def test_without_a_name_pictures_are_named_by_prompt_and_seed(command: CommandLine) -> None:
    done = command("generate", "A red circle, left!", "--seed", "1234", "-n", "2")
    assert command.files() == ["a-red-circle-left-1234.png", "a-red-circle-left-1235.png"]
    assert [line.split("\t")[0] for line in done.lines] == command.files()


def test_every_run_without_a_seed_gets_its_own(command: CommandLine) -> None:
    for _ in range(3):
        assert command("generate", "a star").code == 0
    assert len(command.files()) == 3


def test_several_pictures_of_one_name_are_numbered(command: CommandLine) -> None:
    assert command("generate", "a star", "-n", "10", "-o", "s.webp").code == 0
    assert command.files() == [f"s-{number:02d}.webp" for number in range(1, 11)]


@pytest.mark.parametrize("way", ["file", "stdin", "dash"])
def test_prompts_come_one_a_line(command: CommandLine, way: str) -> None:
    text = "\ufeffa red circle\n\n  ein grüner Stern \nкруг\n".encode()
    Path("prompts.txt").write_bytes(text)
    arguments = {"file": ["--from-file", "prompts.txt"], "stdin": ["--from-file", "-"], "dash": ["-"]}[way]
    done = command("generate", *arguments, "-o", "out/", "--seed", "3", stdin=text)
    assert done.code == 0
    names = ["a-red-circle-3.png", "ein-grüner-stern-3.png", "круг-3.png"]
    assert [line.split("\t")[0] for line in done.lines] == [f"out/{name}" for name in names]
    assert [request.prompt for request in command.engine.drawn] == [
        "a red circle",
        "ein grüner Stern",
        "круг",
    ]


def test_only_ends_of_lines_end_a_prompt(command: CommandLine) -> None:
    """Word processors write other breaks into a paragraph, which is one prompt."""
    text = "a red\u2028circle\r\na\x0bstar\x0cbeside\x85it\r\n".encode()
    assert command("generate", "-", "--seed", "3", stdin=text).code == 0
    assert [request.prompt for request in command.engine.drawn] == [
        "a red\u2028circle",
        "a\x0bstar\x0cbeside\x85it",
    ]


def test_equal_prompts_with_one_seed_do_not_overwrite_each_other(command: CommandLine) -> None:
    assert command("generate", "-", "--seed", "3", stdin=b"a star\nA  star\n").code == 0
    assert command.files() == ["a-star-3-2.png", "a-star-3.png"]


@pytest.mark.parametrize(
    ("suffix", "format"), [("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")]
)
def test_the_suffix_names_the_format(command: CommandLine, suffix: str, format: str) -> None:
    assert command("generate", "a star", "-o", f"star.{suffix}").code == 0
    with Image.open(f"star.{suffix}") as image:
        assert image.format == format
    assert read_provenance(Path(f"star.{suffix}")).request.prompt == "a star"


def test_a_format_is_followed_where_the_name_is_ours(command: CommandLine) -> None:
    assert command("generate", "a star", "--seed", "1", "--format", "jpg", "--quality", "20").code == 0
    assert command("generate", "a star", "--seed", "1", "--format", "webp").code == 0
    assert command.files() == ["a-star-1.jpg", "a-star-1.webp"]


def test_quality_is_heard(command: CommandLine) -> None:
    for quality in ("5", "95"):
        assert command("generate", "a star", "-o", f"{quality}.jpg", "--quality", quality).code == 0
    tables = []
    for quality in ("5", "95"):
        with Image.open(f"{quality}.jpg") as image:
            tables.append(sum(image.quantization[0]))  # type: ignore[attr-defined]
    assert tables[0] > 5 * tables[1]


def test_json_is_one_object_a_picture(command: CommandLine) -> None:
    done = command("generate", "a star", "--seed", "4", "-n", "2", "--json")
    objects = [json.loads(line) for line in done.lines]
    assert [thing["path"] for thing in objects] == ["a-star-4.png", "a-star-5.png"]
    assert [thing["request"]["seed"] for thing in objects] == [4, 5]
    assert {thing["model"] for thing in objects} == {"embedded"}


def test_like_draws_from_a_picture_and_other_options_change_it(command: CommandLine) -> None:
    assert (
        command("generate", "a star", "-o", "a.png", "--seed", "9", "--steps", "6", "--size", "32x32").code
        == 0
    )
    assert command("generate", "--like", "a.png", "-o", "b.png").code == 0
    assert read_provenance(Path("b.png")) == read_provenance(Path("a.png"))
    assert command("generate", "two stars", "--like", "a.png", "--steps", "2", "-o", "c.png").code == 0
    changed = read_provenance(Path("c.png")).request
    assert (changed.prompt, changed.steps, changed.seed, changed.width) == ("two stars", 2, 9, 32)


def test_a_model_named_by_a_strangers_picture_is_not_fetched(command: CommandLine, tmp_path: Path) -> None:
    command("generate", "a star", "-o", "a.png")
    stored = read_provenance(tmp_path / "a.png")
    with Image.open("a.png") as image:
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt("kandinsky5", json.dumps({**stored.to_dict(), "model": "stranger/model"}))
        image.save("b.png", pnginfo=chunks)
    done = command("generate", "--like", "b.png", "-o", "c.png")
    assert done.code == 2
    assert "stranger/model" in done.err and "--model" in done.err
    assert command("generate", "--like", "b.png", "--model", "embedded", "-o", "c.png").code == 0


# What is refused, and when: before the engine is opened.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to draw"),
        (["a star", "--from-file", "p.txt"], "not from both"),
        (["--from-file", "missing.txt"], "missing.txt cannot be read: No such file"),
        (["--from-file", "latin1.txt"], "latin1.txt is not UTF-8 text"),
        (["-"], "Standard input holds no prompt"),
        ([""], "empty"),
        (["a star", "--size", "10"], "1024x768"),
        (["a star", "--size", "1000x1000"], "992 or 1008"),
        (["a star", "--steps", "0"], "steps 0"),
        (["a star", "--steps", "many"], "--steps"),
        (["a star", "--guidance", "nan"], "guidance nan"),
        (["a star", "-n", "0"], "count 0"),
        (["a star", "--seed", "-1"], "seed -1"),
        (["a star", "--model", "nothing"], "t2i-lite-sft"),
        (["a star", "--precision", "int8"], "bf16"),
        (["a star", "-o", "star.gif"], ".png, .jpg"),
        (["a star", "-o", "star"], "slash"),
        (["a star", "-o", "star.png", "--format", "jpg"], "--format says jpg"),
        (["a star", "--quality", "50"], "--quality is for jpg and webp"),
        (["a star", "--format", "jpg", "--quality", "0"], "--quality"),
        (["a star", "--format", "gif"], "--format"),
        (["a star", "--colour", "red"], "--colour"),
        (["a star", "-o", "taken.png"], "taken.png already there"),
        (["a star", "-o", "taken.png/"], "taken.png is not a folder"),
        (["a star", "-o", "taken.png/x.png"], "taken.png is not a folder"),
        (["a star", "--like", "missing.png"], "missing.png cannot be read"),
        (["a star", "--like", "latin1.txt"], "latin1.txt is not a picture"),
        (["ж" * 20_000, "-o", "a.jpg"], "png and webp hold it"),
    ],
)
def test_a_wrong_request_is_one_line_and_loads_nothing(
    command: CommandLine, arguments: list[str], message: str
) -> None:
    Path("taken.png").write_bytes(b"mine")
    Path("latin1.txt").write_bytes("grün".encode("latin-1"))
    done = command("generate", *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1 and "Traceback" not in done.err
    assert (done.out, command.opened) == ("", [])
    assert command.files() == ["latin1.txt", "taken.png"]
    assert Path("taken.png").read_bytes() == b"mine"


def test_all_names_are_checked_before_the_first_is_drawn(command: CommandLine) -> None:
    Path("s-3.png").write_bytes(b"mine")
    done = command("generate", "a star", "-n", "3", "-o", "s.png")
    assert (done.code, command.opened) == (2, [])
    assert "s-3.png already there" in done.err


def test_overwrite_replaces(command: CommandLine) -> None:
    Path("star.png").write_bytes(b"old")
    assert command("generate", "a star", "-o", "star.png", "--overwrite").code == 0
    with Image.open("star.png") as image:
        assert image.format == "PNG"
    assert command.files() == ["star.png"]


def test_a_folder_that_is_not_writable_is_refused_early(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is asked through `os.access`; whoever runs the suite as root may write everywhere."""
    Path("locked").mkdir()
    locked = Path("locked").stat().st_ino
    monkeypatch.setattr(os, "access", lambda path, mode: os.stat(path).st_ino != locked)
    done = command("generate", "a star", "-o", "locked/new/star.png")
    assert (done.code, command.opened) == (2, [])
    assert "locked is not writable" in done.err
    assert command("generate", "a star", "-o", "star.png").code == 0


# What goes wrong later leaves nothing half-written.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("too odd"), 2),
        (CheckpointError("weights missing"), 3),
        (CapacityError("no room"), 4),
        (RuntimeError("a bug\nin two lines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_ending_has_its_code_and_one_line(
    command: CommandLine, error: BaseException, code: int
) -> None:
    def fail_on_the_second(request: ImageRequest) -> None:
        if command.engine.drawn:
            raise error

    command.engine.before = fail_on_the_second
    done = command("generate", "-", "-o", "out/", "--seed", "1", stdin=b"a star\na ring\n")
    assert done.code == code
    assert done.err.startswith("kandinsky5: ") and len(done.err.splitlines()) == 1
    assert command.files() == ["out/a-star-1.png"]
    assert read_provenance(Path("out/a-star-1.png")).request.prompt == "a star"


def test_debug_shows_where(command: CommandLine) -> None:
    def fail(request: ImageRequest) -> None:
        raise RuntimeError("a bug")

    command.engine.before = fail
    done = command("--debug", "generate", "a star")
    assert done.code == 1
    assert "Traceback" in done.err and "in fail" in done.err


def test_a_file_that_appears_meanwhile_is_kept(command: CommandLine) -> None:
    command.engine.before = lambda request: Path("star.png").write_bytes(b"mine") and None
    done = command("generate", "a star", "-o", "star.png")
    assert (done.code, command.files()) == (2, ["star.png"])
    assert Path("star.png").read_bytes() == b"mine"


def test_a_full_disk_leaves_no_file(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = command("generate", "a star", "-o", "star.png")
    assert (done.code, command.files()) == (4, [])
    assert "No space left" in done.err


def test_files_have_the_permissions_of_any_new_file(command: CommandLine) -> None:
    before = os.umask(0o022)
    try:
        command("generate", "a star", "-o", "star.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("star.png").stat().st_mode) == 0o644


# The embedded model's world.


def test_a_prompt_from_elsewhere_is_drawn_with_a_hint(command: CommandLine) -> None:
    done = command("generate", "a cat", "-o", "cat.png")
    assert (done.code, command.files()) == (0, ["cat.png"])
    assert "'a cat'" in done.err and "--model t2i-lite-sft" in done.err
    assert len(done.err.splitlines()) == 5


@pytest.mark.parametrize("arguments", [["a red circle"], ["a cat", "--quiet"], ["a cat", "--model", "t2i"]])
def test_no_hint_where_none_is_due(command: CommandLine, arguments: list[str]) -> None:
    assert command("generate", *arguments, "-o", "x.png").err == ""
