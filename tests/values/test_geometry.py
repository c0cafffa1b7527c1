import re
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky5 import geometry
from kandinsky5.errors import RequestError
from kandinsky5.geometry import check_size, nearest_native, parse_size, same_shape, side_for

SIDES = st.integers(-100, 5000)


def test_the_numbers_of_the_published_system() -> None:
    assert (geometry.VAE_FACTOR, geometry.PATCH, geometry.SIZE_MULTIPLE) == (8, 2, 16)
    assert geometry.LARGEST_SIDE == 2048
    landscape = {(1408, 640), (1280, 768), (1152, 896)}
    assert set(geometry.NATIVE_SIZES) == {(1024, 1024)} | landscape | {(h, w) for w, h in landscape}


@given(SIDES)
def test_a_refusal_names_sides_that_run_and_none_is_nearer(side: int) -> None:
    try:
        check_size(side, side)
    except RequestError as refusal:
        named = [int(n) for n in re.findall(r"\d+", str(refusal).partition("nearest")[2])]
        assert named
        for near in named:
            check_size(near, near)
        nearest = min(abs(side - other) for other in range(16, 2049, 16))
        assert min(abs(side - near) for near in named) == nearest


@given(SIDES, SIDES)
def test_exactly_the_multiples_within_bounds_pass(width: int, height: int) -> None:
    runs = all(side in range(16, 2049, 16) for side in (width, height))
    try:
        check_size(width, height)
    except RequestError:
        assert not runs
    else:
        assert runs


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (1024, 1000, "Height 1000 is not a multiple of 16; the nearest that is: 992 or 1008."),
        (1000, 1024, "Width 1000 is not a multiple of 16; the nearest that is: 992 or 1008."),
        (4096, 1024, "Width 4096 is outside 16 to 2048; the nearest that works: 2048."),
        (1024, 0, "Height 0 is outside 16 to 2048; the nearest that works: 16."),
        (1024, -16, "Height -16 is outside 16 to 2048; the nearest that works: 16."),
        (1024.0, 1024, "Width 1024.0 is not a whole number of pixels."),
        (True, 1024, "Width True is not a whole number of pixels."),
    ],
)
def test_a_refusal_names_the_side_and_what_would_work(width: int, height: int, message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_size(width, height)
    assert str(refusal.value) == message


def test_another_system_has_other_multiples_and_bounds() -> None:
    check_size(24, 40, multiple=8, largest=40)
    with pytest.raises(RequestError, match="outside 8 to 40; the nearest that works: 40"):
        check_size(24, 48, multiple=8, largest=40)
    with pytest.raises(RequestError, match="the nearest that is: 40"):
        check_size(42, 40, multiple=8, largest=44)


@pytest.mark.parametrize("size", geometry.NATIVE_SIZES)
def test_every_native_size_is_its_own_nearest_at_any_scale(size: tuple[int, int]) -> None:
    assert nearest_native(*size) == size
    assert nearest_native(size[0] * 3, size[1] * 3) == size


def test_the_nearest_native_is_by_height_over_width_as_the_authors_choose() -> None:
    # height / width 1.5 lies between 1.286 (896x1152) and 1.667 (768x1280), nearer the latter.
    assert nearest_native(1000, 1500) == (768, 1280)
    # width / height 1.5 is 0.667: nearer 0.6 (1280x768) than 0.778 (1152x896).
    assert nearest_native(1500, 1000) == (1280, 768)
    assert nearest_native(1, 100) == (640, 1408)
    with pytest.raises(RequestError, match="0x10"):
        nearest_native(0, 10)


def test_the_nearest_of_another_systems_sizes() -> None:
    assert nearest_native(300, 100, [(256, 256), (512, 128)]) == (512, 128)
    assert nearest_native(300, 100, [(256, 256)]) == (256, 256)


@given(st.integers(16, 20_000), st.integers(16, 20_000), st.sampled_from([256**2, 1024**2]))
def test_a_size_of_the_same_shape_can_be_run_and_is_near(width: int, height: int, area: int) -> None:
    """Within bounds always; up to 1:16 the shape is kept to rounding, and the area where 2048 a side allow it."""
    size = same_shape(width, height, area)
    check_size(*size)
    longer, shorter = max(width, height), min(width, height)
    if longer <= 16 * shorter:
        assert abs(size[0] * height - size[1] * width) <= 8.5 * (width + height)
        if longer / shorter <= 2048**2 / area:
            assert abs(size[0] * size[1] / area - 1) < 0.15


@given(st.sampled_from(range(16, 2049, 16)), st.integers(16, 5000), st.integers(16, 5000))
def test_a_side_follows_the_other(side: int, width: int, height: int) -> None:
    for axis, exact in (("width", side * width / height), ("height", side * height / width)):
        if not 8 <= round(exact) < 2056:
            with pytest.raises(RequestError, match="keeps its shape"):
                side_for(side, (width, height), axis)  # type: ignore[arg-type]
            continue
        found = side_for(side, (width, height), axis)  # type: ignore[arg-type]
        check_size(found, side)
        assert abs(found - exact) <= 8.5


@pytest.mark.parametrize(
    ("side", "source", "axis", "words", "works"),
    [
        (1536, (1080, 1920), "height", "height 2731, .* largest width that keeps its shape is 1152", 1152),
        (1536, (1920, 1080), "width", "width 2731, .* largest height that keeps its shape is 1152", 1152),
        (2048, (64, 1024), "height", "height 32768, .* is 128", 128),
        (16, (300, 100), "height", "height 5, .* smallest width that keeps its shape is 48", 48),
        (2048, (9, 9000), "height", "no width keeps its shape, or give both sides", None),
    ],
)
def test_a_side_that_the_other_cannot_follow_names_one_that_it_can(
    side: int, source: tuple[int, int], axis: Literal["width", "height"], words: str, works: int | None
) -> None:
    with pytest.raises(RequestError, match=words):
        side_for(side, source, axis)
    if works is not None:
        ratio = source[0] / source[1] if axis == "width" else source[1] / source[0]
        assert side_for(works, source, axis) == round(works * ratio)


@pytest.mark.parametrize("text", ["1024x768", "1024X768", " 1024 × 768 "])
def test_a_size_is_read(text: str) -> None:
    assert parse_size(text) == (1024, 768)


@pytest.mark.parametrize(
    "text", ["", "1024", "x", "1024x", "1024x768x3", "-1x2", "1e3x2", "１０x２", "1" * 5000 + "x1"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="1024x768"):
        parse_size(text)
