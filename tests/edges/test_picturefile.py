"""A picture carries its request through every format, for us and for other programs."""

from pathlib import Path

import pytest
from PIL import Image

from kandinsky5.cli.picturefile import read_provenance, write_picture
from kandinsky5.errors import RequestError
from kandinsky5.generated import GeneratedImage
from kandinsky5.provenance import PictureFormat, Provenance
from kandinsky5.request import ImageRequest

PROMPT = 'Ein "roter" Kreis\nи синий квадрат 🟦, a\\b'


def picture(prompt: str = PROMPT, negative: str = "") -> GeneratedImage:
    image = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    request = ImageRequest(
        prompt=prompt, negative_prompt=negative, width=48, height=32, steps=5, guidance=2.5, seed=2**64 - 1
    )
    software = {"kandinsky5": "0.1.0", "torch": "2", "device": "cpu"}
    return GeneratedImage(image=image, request=request, model="embedded", seconds=1.23456, software=software)


@pytest.mark.parametrize("fmt", PictureFormat)
def test_what_is_written_is_read(tmp_path: Path, fmt: PictureFormat) -> None:
    path = tmp_path / f"p.{fmt}"
    write_picture(picture(), path, fmt)
    provenance = read_provenance(path)
    assert provenance.request == picture().request
    assert (provenance.model, provenance.seconds) == ("embedded", 1.235)
    assert provenance.software == picture().software


def test_a_png_is_exact_and_tells_other_programs_in_words(tmp_path: Path) -> None:
    write_picture(picture(negative="blur"), tmp_path / "p.png", PictureFormat.png)
    with Image.open(tmp_path / "p.png") as image:
        assert image.tobytes() == picture().image.tobytes()
        assert image.text["parameters"] == (  # type: ignore[attr-defined]
            f"{PROMPT}\nNegative prompt: blur\n"
            "Steps: 5, CFG scale: 2.5, Seed: 18446744073709551615, Size: 48x32, Model: embedded"
        )


@pytest.mark.parametrize("fmt", [PictureFormat.jpg, PictureFormat.webp])
def test_exif_tells_other_programs_in_words(tmp_path: Path, fmt: PictureFormat) -> None:
    write_picture(picture("a red circle"), tmp_path / "p", fmt)
    with Image.open(tmp_path / "p") as image:
        assert str(image.getexif()[0x010E]).startswith("a red circle\nSteps: 5")


@pytest.mark.parametrize("fmt", PictureFormat)
def test_the_longest_prompts_fit_or_are_refused_before(tmp_path: Path, fmt: PictureFormat) -> None:
    """20,000 letters twice are within a JPEG's metadata, the words for people then are not and stay out."""
    long = picture("a" * 20_000, "b" * 20_000)
    write_picture(long, tmp_path / "p", fmt)
    assert read_provenance(tmp_path / "p").request == long.request


def test_a_picture_without_a_request_says_so(tmp_path: Path) -> None:
    for name in ("p.png", "p.jpg", "p.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(RequestError, match="does not say how it was made"):
            read_provenance(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ("[" * 100_000, "damaged"),
        (
            f'{{"request": {{"prompt": "a"}}, "model": "m", "seconds": {"1" * 400}, "software": {{}}}}',
            "damaged",
        ),
        (
            '{"request": {"prompt": "a", "new": 1}, "model": "m", "seconds": 1, "software": {}}',
            "Unknown request field new",
        ),
        ('{"request": {"prompt": "a"}, "model": "m", "seconds": "long", "software": {}}', "damaged"),
        ('{"request": {"prompt": "a"}, "model": "m", "seconds": 1, "software": []}', "damaged"),
        ('{"request": {"prompt": "a"}, "model": "m", "seconds": NaN, "software": {}}', "damaged"),
        ('{"request": {"prompt": "a"}, "model": "m", "seconds": 1e999, "software": {}}', "damaged"),
        pytest.param("[" * 100_000, "damaged", id="deep"),
        ('{"request": 3, "model": "m", "seconds": 1, "software": {}}', "JSON object"),
    ],
)
def test_damaged_metadata_is_named(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Provenance.from_json(text)


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    write_picture(picture(), tmp_path / "p.png", PictureFormat.png)
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:cut])
    with pytest.raises(RequestError, match=r"p\.png"):
        read_provenance(tmp_path / "p.png")


def test_no_hard_links_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none; a taken name is kept there too."""

    def unsupported(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", unsupported)
    write_picture(picture(), tmp_path / "p.png", PictureFormat.png)
    with pytest.raises(RequestError, match="appeared"):
        write_picture(picture("other"), tmp_path / "p.png", PictureFormat.png)
    assert read_provenance(tmp_path / "p.png").request.prompt == PROMPT
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
