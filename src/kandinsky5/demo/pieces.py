"""A picture falls into its ground and the connected pieces of one colour that stand on it.

Comes in: one picture, uint8 (S, S, 3). Goes out: the ground's colour, and pieces with their measured colour and how
much of each pixel they cover. Plain arithmetic on pixels: no network, and nothing is known here of shapes, sizes or
claims. Lengths are written for a canvas of 256 and scaled to the picture's.

What a decoder does to edges is undone in two steps. Which pixels belong together is read from the named colour
nearest to each, but only where neighbours agree: on an edge between red and white some pixels are nearest to pink,
in a band too thin to have an inside. How far a piece reaches is then read from its own colour: a pixel halfway from
the ground to it is half covered, as the renderer drew it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kandinsky5.demo.palette import COLOURS, RGB, lab_distance

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Labels = NDArray[np.intp]

EIGHT = np.ones((3, 3), dtype=np.bool_)
"""All eight neighbours."""

CANVAS = 256
BORDER = 2
"""The outermost pixels are left out: a decoder is least sure of them."""
FRAME = 4
"""Width of the frame inside these that shows the ground: things keep 6 px from the edge."""
THING_CONTRAST = 9.0
"""Lab distance to the ground that belongs to a thing: less than half of `palette.MIN_CONTRAST`, three times what
noise of 3/255 does to a dark ground."""
NOISE_BLUR = 0.6
BESIDE = 3
"""Patches of different names are beside each other within this distance."""
BLEND_TOLERANCE = 40
"""A mixture of a colour and the ground is met to this many of 255 in each channel."""
ALIKE = 15.0
"""Lab distance of patches that are one colour: named ones are at least 36 apart."""
LEAST_CORE = 14
"""Least area of one colour inside its edges; less is an edge or a speck."""
LEAST_AREA = 48
"""Least area of a piece: a quarter of the smallest thing of the world, a small line. Smaller ones are specks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One connected piece: `coverage` (h, w) in [0, 1] is a window of the picture whose first pixel is `origin`.

    `canvas` is the side of the picture; window, origin and area are in its pixels, `origin` as (column, row).
    """

    rgb: RGB
    coverage: Floats
    origin: tuple[int, int]
    canvas: int


def cut(image: NDArray[np.uint8]) -> tuple[RGB, list[Piece]]:
    """The ground's colour and the pieces on it, largest first. A picture that is not uint8 (S, S, 3): ValueError."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.dtype != np.uint8:
        raise ValueError(
            f"A picture is uint8 of shape (S, S, 3); this one is {image.dtype} of {image.shape}."
        )
    scale = len(image) / CANVAS
    border, frame = round(BORDER * scale), max(round(FRAME * scale), 1)
    ground = _ground(image[border : len(image) - border, border : len(image) - border], frame)
    # On a dark ground noise of 5/255 is as far as THING_CONTRAST in Lab; this halves it.
    calm = ndimage.gaussian_filter(image, (NOISE_BLUR * scale, NOISE_BLUR * scale, 0), truncate=3)
    contrast = _distance(lab_of(calm), lab_of(np.array(ground, dtype=np.uint8)))
    standing_out = _inside(contrast > THING_CONTRAST, border)
    labels = _nearest_colours(image, contrast, standing_out)
    pieces = [
        piece
        for mask, core in _connected(_cores(image, ground, labels, scale), standing_out)
        if (piece := _measured(image, ground, mask, core, standing_out)) is not None
        and piece.coverage.sum() >= LEAST_AREA * scale**2
    ]
    return ground, sorted(pieces, key=lambda piece: -float(piece.coverage.sum()))


def lab_of(rgb: NDArray[np.uint8]) -> Floats:
    """CIE L*a*b* of sRGB colours (..., 3), as `palette.lab`."""
    linear, to_xyz = _tables()
    xyz = linear[rgb] @ to_xyz
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1).astype(np.float32)


@functools.cache
def _tables() -> tuple[Floats, Floats]:
    """Linear light of the 256 values, and the matrix from linear RGB to XYZ relative to D65."""
    v = np.arange(256) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    return linear.astype(np.float32), (to_xyz / [[0.95047], [1.0], [1.08883]]).T.astype(np.float32)


def _distance(a: Floats, b: Floats) -> Floats:
    return np.sqrt(((a - b) ** 2).sum(-1))


def _ground(image: NDArray[np.uint8], frame: int) -> RGB:
    """The median of the frame: right as long as the ground is seen on half of it."""
    rows = np.concatenate(
        [part.reshape(-1, 3) for part in (image[:frame], image[-frame:], image[:, :frame], image[:, -frame:])]
    )
    return _rgb(np.median(rows, axis=0))


def _rgb(values: NDArray[np.floating]) -> RGB:
    r, g, b = (round(float(value)) for value in values)
    return r, g, b


def _inside(mask: Bools, border: int) -> Bools:
    """A mask (S, S) without the outermost pixels."""
    inner = np.zeros_like(mask)
    inner[border : len(mask) - border, border : len(mask) - border] = True
    return mask & inner


def _connected(cores: Labels, standing_out: Bools) -> Iterator[tuple[Bools, Bools]]:
    """Masks (S, S) of the pieces, each with the part of it that is inside its edges."""
    inside = cores >= 0
    if not inside.any():
        return
    # Every pixel that stands out belongs to the nearest core.
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    labels = np.where(standing_out, cores[tuple(nearest)], -1)
    for label in np.unique(labels[labels >= 0]):
        mask = labels == label
        # Gaps of up to two pixels do not part a thing.
        numbered, _ = ndimage.label(ndimage.binary_dilation(mask), structure=EIGHT)
        numbered[~mask] = 0
        for number in range(1, int(numbered.max()) + 1):
            piece = numbered == number
            yield piece, piece & inside


def _cores(image: NDArray[np.uint8], ground: RGB, labels: Labels, scale: float) -> Labels:
    """The labels where all is of one colour, elsewhere -1.

    A patch beside a larger one is not a colour of its own if it is thin and a mixture of that colour and the
    ground's, or if it is nearly that colour and has another name by a hair.
    """
    numbered = _patches(labels, scale)
    windows, sizes = ndimage.find_objects(numbered), np.bincount(numbered.ravel())
    colours = {n: np.median(image[w][numbered[w] == n], axis=0) for n, w in enumerate(windows, 1) if w}
    cores = np.where(numbered > 0, labels, -1)
    reach = max(round(BESIDE * scale), 1)
    for number in sorted(colours, key=lambda number: -sizes[number]):
        rows, columns = windows[number - 1]
        window = (
            slice(max(rows.start - reach, 0), rows.stop + reach),
            slice(max(columns.start - reach, 0), columns.stop + reach),
        )
        patch = numbered[window] == number
        near = numbered[window][ndimage.binary_dilation(patch, EIGHT, iterations=reach)]
        larger = [other for other in np.unique(near[near > 0]) if sizes[other] > sizes[number]]
        own = colours[number]
        thin = not ndimage.binary_erosion(patch, EIGHT, iterations=3).any()
        if thin and any(_is_blend(own, np.array(ground), colours[other]) for other in larger):
            cores[window][patch] = -1
        for other in larger:
            if lab_distance(_rgb(own), _rgb(colours[other])) < ALIKE:
                cores[window][patch] = cores[numbered == other][0]
                break
    return cores


def _patches(labels: Labels, scale: float) -> NDArray[np.int32]:
    """Patches of pixels whose four neighbours have the same label, numbered from 1, without specks."""
    numbered = np.zeros_like(labels, dtype=np.int32)
    for label in np.unique(labels[labels >= 0]):
        patches, _ = ndimage.label(ndimage.binary_erosion(labels == label), structure=EIGHT)
        specks = np.bincount(patches.ravel()) < LEAST_CORE * scale**2
        patches[specks[patches]] = 0
        numbered = np.where(patches > 0, patches + numbered.max(), numbered)
    return numbered


def _is_blend(colour: Floats, ground: Floats, other: Floats) -> bool:
    """Whether a colour lies on the way from the ground to another one, as those of blurred edges do."""
    axis = other - ground
    share = float((colour - ground) @ axis / max(float(axis @ axis), 1.0))
    return 0 < share < 0.9 and float(np.abs(colour - ground - share * axis).max()) < BLEND_TOLERANCE


def _nearest_colours(image: NDArray[np.uint8], contrast: Floats, standing_out: Bools) -> Labels:
    """For each pixel that stands out the index into `COLOURS` of the nearest, elsewhere -1.

    Read from the mean over 3 x 3, in which a pixel counts by the square of its contrast: noise is evened out, and
    the edges of a thin band take after its middle.
    """
    weight = contrast[..., None] ** 2
    smooth = ndimage.uniform_filter(np.concatenate((image * weight, weight), axis=2), size=(3, 3, 1))[
        standing_out
    ]
    lab = lab_of((smooth[:, :3] / smooth[:, 3:]).round().astype(np.uint8))
    named = lab_of(np.array(list(COLOURS.values()), dtype=np.uint8))
    labels = np.full(standing_out.shape, -1)
    # |a - b|^2 = |a|^2 - 2 a.b + |b|^2, of which |a|^2 does not matter here.
    labels[standing_out] = np.argmin((named**2).sum(1) - 2 * lab @ named.T, axis=1)
    return labels


def _measured(
    image: NDArray[np.uint8], ground: RGB, mask: Bools, core: Bools, standing_out: Bools
) -> Piece | None:
    """A piece with its colour and coverage, or None where it has no colour of its own."""
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    top, left = max(rows.start - 2, 0), max(columns.start - 2, 0)
    window = (slice(top, rows.stop + 2), slice(left, columns.stop + 2))
    pixels, own, inside = image[window].astype(np.float32), mask[window], core[window]
    if not inside.any():
        return None
    colour = np.median(pixels[inside], axis=0)
    axis = colour - np.array(ground, dtype=np.float32)
    coverage = (pixels - np.array(ground, dtype=np.float32)) @ (axis / max(float(axis @ axis), 1.0))
    # The faint outermost pixels stand out too little to be in the mask.
    reach = own | (ndimage.binary_dilation(own) & ~standing_out[window])
    return Piece(
        rgb=_rgb(colour),
        coverage=np.where(reach, coverage.clip(0, 1), 0).astype(np.float32),
        origin=(left, top),
        canvas=len(image),
    )
