"""Source pictures of every mode, file and array; and those that are refused."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.pictures import content_hash, read_mask, read_picture
from kandinsky5.pictures.arrays import as_pictures, to_pixels
from kandinsky5.pictures.decoding import MAX_PIXELS, upright_rgb

from ..pipelines.conftest import picture


def grey(width: int = 40, height: int = 30) -> np.ndarray:
    return np.asarray(picture(width, height).convert("L"))


class TestModes:
    @pytest.mark.parametrize(
        "mode", ["L", "LA", "La", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "RGBA", "RGBa", "RGBX"]
    )
    def test_every_mode_becomes_rgb_of_the_same_size(self, mode):
        by_way_of = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
        source = picture(40, 30).convert(by_way_of) if by_way_of else picture(40, 30)
        result = upright_rgb(source.convert(mode))
        assert (result.mode, result.size) == ("RGB", (40, 30))
        as_rgb = np.asarray(
            picture(40, 30).convert("L" if mode in ("L", "LA", "La") else "RGB").convert("RGB")
        )
        difference = np.abs(np.asarray(result).astype(int) - as_rgb).mean()
        assert difference < (130 if mode == "1" else 20 if mode in ("P", "PA") else 4)

    def test_transparency_is_laid_over_white(self):
        red = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
        red.paste((200, 0, 0, 255), (0, 0, 10, 20))
        red.paste((200, 0, 0, 128), (10, 0, 12, 20))
        result = upright_rgb(red)
        assert result.getpixel((5, 5)) == (200, 0, 0)
        assert result.getpixel((15, 5)) == (255, 255, 255)
        assert result.getpixel((11, 5)) == pytest.approx((227, 127, 127), abs=1)

    def test_a_palette_with_one_transparent_colour(self):
        image = Image.new("P", (20, 20), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.paste(0, (0, 0, 10, 20))
        stored = io.BytesIO()
        image.save(stored, "PNG", transparency=0)
        result = read_picture(io.BytesIO(stored.getvalue()))
        assert (result.getpixel((2, 2)), result.getpixel((15, 2))) == ((255, 255, 255), (10, 20, 30))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_are_scaled_and_not_clipped(self, kind):
        eight = grey()
        deep = Image.fromarray(eight.astype(np.uint16) * 257)
        stored = io.BytesIO()
        deep.save(stored, kind)
        stored.seek(0)
        assert np.array_equal(np.asarray(read_picture(stored))[..., 0], eight)

    def test_whole_numbers_and_floats(self):
        eight = grey()
        for image in (
            Image.fromarray(eight.astype(np.int32) * 257),
            Image.fromarray(eight.astype(np.float32) / 255),
        ):
            assert np.array_equal(np.asarray(upright_rgb(image))[..., 1], eight)
        with pytest.raises(RequestError, match="0 to 69957; 16 bits hold"):
            upright_rgb(Image.fromarray(np.arange(70_001, dtype=np.int32)[: 263 * 266].reshape(263, 266)))
        with pytest.raises(RequestError, match="floats must be from 0 to 1"):
            upright_rgb(Image.fromarray(eight.astype(np.float32)))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation):
        """The file is stored turned, and says so; what comes out stands as it was."""
        stands = picture(40, 30)
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }  # fmt: skip
        turned = stands.transpose(undo[orientation]) if orientation in undo else stands
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = io.BytesIO()
        turned.save(stored, "PNG", exif=exif)
        stored.seek(0)
        result = read_picture(stored)
        assert result.size == (40, 30) and result.tobytes() == stands.tobytes()
        assert upright_rgb(result).tobytes() == result.tobytes(), "it is not turned twice"

    def test_the_callers_picture_is_not_changed(self):
        image = picture(40, 30).convert("RGBA")
        exif = image.getexif()
        exif[0x0112] = 6
        before = image.tobytes(), image.size
        assert upright_rgb(image).size == (30, 40)
        assert (image.tobytes(), image.size, image.getexif()[0x0112]) == (*before, 6)

    def test_an_animation_is_its_first_picture(self):
        first, second = picture(40, 30).convert("P"), Image.new("P", (40, 30))
        stored = io.BytesIO()
        first.save(stored, "GIF", save_all=True, append_images=[second])
        stored.seek(0)
        assert read_picture(stored).tobytes() == upright_rgb(first).tobytes()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG header with no pixels behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


class TestRefusals:
    @pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
    def test_a_bomb_is_refused_before_it_is_decoded(self, tmp_path, monkeypatch, side):
        path = tmp_path / "bomb.png"
        path.write_bytes(png_claiming(side, side))
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
        with (
            warnings.catch_warnings(),
            pytest.raises(RequestError, match=r"bomb\.png is .*(megapixels|too large)"),
        ):
            warnings.simplefilter("error")
            read_picture(path)

    def test_a_lazy_picture_of_the_callers_too(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        image = Image.open(io.BytesIO(png_claiming(14_000, 14_000)))
        with pytest.raises(RequestError, match="196 megapixels; at most 89"):
            as_pictures(image)

    def test_a_lazy_picture_whose_file_was_closed(self, tmp_path):
        Image.new("RGB", (64, 64)).save(tmp_path / "source.png")
        with Image.open(tmp_path / "source.png") as image:
            pass
        with pytest.raises(RequestError, match=r"closed too early \(image\.load\(\)"):
            as_pictures(image)

    def test_a_lazy_picture_that_is_cut_short(self):
        stored = io.BytesIO()
        picture(200, 150).save(stored, "JPEG")
        image = Image.open(io.BytesIO(stored.getvalue()[:2000]))
        with pytest.raises(RequestError, match="The picture cannot be read"):
            as_pictures(image)

    def test_the_largest_picture_is_read(self):
        side = 4000
        assert side * side < MAX_PIXELS
        assert as_pictures(Image.new("L", (side, side)))[0].size == (side, side)

    @pytest.mark.parametrize(("size", "words"), [
        ((1, 1), "1x1; both sides must be at least 16"), ((15, 400), "15x400; both sides"),
        ((20, 1000), "20x1000; its longer side may be 16 times"), ((1000, 20), "1000x20; its longer side"),
    ])  # fmt: skip
    def test_shapes_no_edit_can_be_made_of(self, size, words):
        with pytest.raises(RequestError, match=words):
            as_pictures(Image.new("RGB", size))
        with pytest.raises(RequestError, match=words):
            as_pictures(np.zeros((size[1], size[0], 3), dtype=np.uint8))
        assert as_pictures(Image.new("RGB", (16, 256)))[0].size == (16, 256)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
    @pytest.mark.parametrize("part", [0.3, 0.9])
    def test_a_file_that_is_cut_short(self, tmp_path, kind, part):
        stored = io.BytesIO()
        picture(200, 150).save(stored, kind)
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(stored.getvalue()[: int(len(stored.getvalue()) * part)])
        with pytest.raises(RequestError, match=r"cut\.\w+ (cannot be read|is not a picture)"):
            read_picture(path)

    @pytest.mark.parametrize(
        "data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0"]
    )
    def test_a_file_that_is_no_picture(self, tmp_path, data):
        (tmp_path / "file.png").write_bytes(data)
        with pytest.raises(RequestError, match=r"file\.png"):
            read_picture(tmp_path / "file.png")

    def test_a_file_that_would_start_a_program(self, tmp_path):
        picture(40, 30).save(tmp_path / "file.eps")
        with pytest.raises(
            RequestError, match=r"file\.eps is not a picture that can be read; .*JPEG.*PNG.*are\.$"
        ):
            read_picture(tmp_path / "file.eps")

    def test_damaged_bytes_are_a_refusal_or_a_picture(self):
        """Never another error, wherever a byte is wrong."""
        rng = np.random.default_rng(0)
        Image.init()
        for kind in sorted({"PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000"} & Image.SAVE.keys()):
            stored = io.BytesIO()
            picture(60, 40).save(stored, kind)
            for _ in range(60):
                data = bytearray(stored.getvalue())
                for _ in range(3):
                    data[rng.integers(min(len(data), 400))] = rng.integers(256)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with contextlib.suppress(RequestError):
                        assert read_picture(io.BytesIO(bytes(data))).mode == "RGB"

    def test_paths_that_are_no_files(self, tmp_path):
        with pytest.raises(RequestError, match=r"missing\.png cannot be read: No such file"):
            read_picture(tmp_path / "missing.png")
        with pytest.raises(RequestError, match="cannot be read: Is a directory"):
            read_picture(tmp_path)

    @pytest.mark.parametrize(("image", "words"), [
        (np.zeros((30, 40, 2), np.uint8), r"shape \(30, 40, 2\) has no 1, 3 or 4 channels"),
        (np.zeros((3, 30, 40), np.uint8), "an array is"),
        (torch.zeros(30, 40, 3), r"shape \(30, 40, 3\).* a tensor \(channels, height, width\)"),
        (torch.zeros(1, 16, 30, 40), "channels"),
        (np.zeros(30, np.uint8), r"shape \(30,\)"),
        (np.zeros((1, 1, 30, 40, 3), np.uint8), "shape"),
        (np.zeros((30, 40, 3), np.int64), "int64; it must be uint8"),
        (np.zeros((30, 40, 3), bool), "bool; it must be uint8"),
        (np.full((30, 40, 3), -1.0), "from -1 to 1, pass image / 2"),
        (np.full((30, 40, 3), 255.0), "255; floats must be from 0 to 1"),
        (np.full((30, 40, 3), np.nan), "floats must be from 0 to 1"),
        (np.zeros((0, 40, 3)), "40x0; both sides"),
        (np.zeros((0, 30, 40, 3)), "empty"),
        ([[]], "empty"),
        ({"image": 1}, "not dict"),
        (b"\x89PNG", "not bytes"),
    ])  # fmt: skip
    def test_arrays_and_types(self, image, words):
        with pytest.raises(RequestError, match=words):
            as_pictures(image)


class TestArrays:
    def test_channels(self):
        eight = grey()
        rgb = np.asarray(picture(40, 30))
        alpha = np.dstack([rgb, np.full((30, 40), 255, np.uint8)])
        for given, expected in (
            (eight, np.dstack([eight] * 3)), (eight[..., None], np.dstack([eight] * 3)), (rgb, rgb), (alpha, rgb),
        ):  # fmt: skip
            assert np.array_equal(np.asarray(as_pictures(given)[0]), expected)
            tensor = torch.from_numpy(given.copy())
            tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
            assert np.array_equal(np.asarray(as_pictures(tensor)[0]), expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_floats_are_rounded(self, dtype):
        eight = torch.from_numpy(np.asarray(picture(40, 30)).copy()).permute(2, 0, 1)
        result = np.asarray(as_pictures((eight / 255).to(dtype))[0]).astype(int)
        assert np.abs(result - np.asarray(picture(40, 30))).max() <= (1 if dtype is torch.bfloat16 else 0)

    def test_strides_and_gradients(self):
        flipped = np.asarray(picture(40, 30))[:, ::-1]
        assert np.array_equal(np.asarray(as_pictures(flipped)[0]), flipped)
        needs = torch.rand(3, 30, 40, requires_grad=True)
        assert as_pictures(needs)[0].size == (40, 30)

    def test_lists_within_lists(self):
        found = as_pictures(
            [picture(40, 30), [np.zeros((2, 20, 20, 3), np.uint8)], (torch.zeros(3, 20, 30),)]
        )
        assert [image.size for image in found] == [(40, 30), (20, 20), (20, 20), (30, 20)]

    def test_pixels_for_the_autoencoder(self):
        values = np.zeros((20, 30, 3), np.uint8)
        values[0, 1] = (255, 0, 51)
        pixels = to_pixels([Image.fromarray(values)] * 2)
        assert pixels.shape == (2, 3, 20, 30) and pixels.dtype == torch.float32
        assert pixels[1, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6])


def test_a_hash_of_what_is_seen_and_not_of_the_file(tmp_path: Path):
    image = picture(40, 30)
    for name, options in (
        ("a.png", {}),
        ("b.png", {"compress_level": 1}),
        ("c.tiff", {}),
        ("d.webp", {"lossless": True}),
    ):
        image.save(tmp_path / name, **options)
        assert content_hash(read_picture(tmp_path / name)) == content_hash(image)
    assert content_hash(image) != content_hash(picture(40, 30, seed=1))
    flat = Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))
    assert content_hash(flat[0]) != content_hash(flat[1]), "the size counts"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_mask_is_where_a_picture_is_transparent(tmp_path: Path, mode: str) -> None:
    """Turned as its EXIF data says, like the source it belongs to."""
    mask = Image.new("RGBA", (32, 16), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: its upper edge becomes the right one
    mask.convert(mode).save(tmp_path / "mask.png", exif=exif)
    read = read_mask(tmp_path / "mask.png")
    assert (read.mode, read.size) == ("L", (16, 32))
    assert (np.asarray(read)[:, 12:] == 255).all() and (np.asarray(read)[:, :12] == 0).all()


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_bytes(b"no picture")
    for name, words in (("opaque", "no transparency"), ("small", "at least 16"), ("text", "not a picture")):
        with pytest.raises(RequestError, match=words):
            read_mask(tmp_path / f"{name}.png")
