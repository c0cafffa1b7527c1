"""Where pictures go: their names and their format, settled and checked before any weights are read.

In: the requests, seeds chosen, and what `-o` and `--format` say. Out: one path for each picture. Refuses to know: how a
picture is drawn or encoded. Nothing is created here.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from kandinsky5.errors import RequestError
from kandinsky5.provenance import PictureFormat
from kandinsky5.request import ImageRequest

FORMAT_OF_SUFFIX = {
    ".png": PictureFormat.png,
    ".jpg": PictureFormat.jpg,
    ".jpeg": PictureFormat.jpg,
    ".webp": PictureFormat.webp,
}

NAME_BYTES = 255
PATH_BYTES = 4000
"""Most that a name and a path take on common file systems; the name that is written first takes some more."""

SLUG_CHARACTERS = 60
SLUG_BYTES = 180
"""File names hold 255 bytes on common file systems; the seed, a number and the suffix need the rest."""


def choose_format(output: str | None, wanted: PictureFormat | None) -> PictureFormat:
    """The format that `--format`, or else the suffix of `-o`, names; PNG when neither does.

    Raises RequestError when they disagree.
    """
    if output is None or _is_folder(output):
        return wanted or PictureFormat.png
    suffix = Path(output).suffix.lower()
    if suffix not in FORMAT_OF_SUFFIX:
        raise RequestError(
            f"Output {output!r} is no folder and does not end in {', '.join(FORMAT_OF_SUFFIX)}; "
            f"a new folder is written with a slash at its end."
        )
    if wanted is not None and FORMAT_OF_SUFFIX[suffix] is not wanted:
        raise RequestError(
            f"Output {output!r} ends in {suffix}, but --format says {wanted.value}; leave one out."
        )
    return FORMAT_OF_SUFFIX[suffix]


def plan_paths(
    requests: Sequence[ImageRequest],
    output: str | None,
    fmt: PictureFormat,
    *,
    overwrite: bool,
    compare: bool = False,
) -> list[list[Path]]:
    """For each request the paths of its pictures, in order of their seeds.

    A folder (an existing one, or a name that ends in a slash) is filled with `words-of-the-prompt-SEED.png`; so is the
    current folder when `output` is None. A file name is used as it is for one picture, and as `name-1.png`,
    `name-2.png` and so on for several. With `compare`, the path of each one's comparison must be free too. Raises
    RequestError when a path is taken (and `overwrite` is false) or cannot be written.
    """
    if output is None or _is_folder(output):
        paths = _named_by_prompt(requests, Path(output or "."), fmt)
    else:
        paths = _named_by_file(requests, Path(output))
    flat = [path for group in paths for path in group]
    if compare:
        flat += [comparison_path(path) for path in flat]
    for path in flat:
        _check_writable(path)
    taken = [path for path in flat if os.path.lexists(path)]
    if taken and not overwrite:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise RequestError(f"{taken[0]}{more} already there; choose another -o, or --overwrite to replace.")
    return paths


def comparison_path(path: Path) -> Path:
    """Where the comparison of an edited picture goes: beside it, as `name-compare.png`."""
    return path.with_name(f"{path.stem}-compare{path.suffix}")


def slug(prompt: str) -> str:
    """The prompt's words in lower case joined by hyphens, cut to fit a file name; letters of any script stay."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt).lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer) > SLUG_CHARACTERS or len(longer.encode()) > SLUG_BYTES:
            break
        name = longer
    return name or "picture"


def _is_folder(output: str) -> bool:
    separators = tuple(sep for sep in (os.sep, os.altsep) if sep)
    return output.endswith(separators) or _is_dir(output)


def _is_dir(path: str | Path) -> bool:
    """Also of a name too long to be one, which `Path.is_dir` fails with."""
    return os.path.isdir(path)  # noqa: PTH112


def _named_by_prompt(requests: Sequence[ImageRequest], folder: Path, fmt: PictureFormat) -> list[list[Path]]:
    used: set[str] = set()

    def free_name(stem: str) -> str:
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name)
        return f"{name}.{fmt.value}"

    return [[folder / free_name(f"{slug(r.prompt)}-{seed}") for seed in r.seeds] for r in requests]


def _named_by_file(requests: Sequence[ImageRequest], file: Path) -> list[list[Path]]:
    total = sum(request.count for request in requests)
    if total == 1:
        return [[file]]
    numbers = iter(range(1, total + 1))
    digits = len(str(total))
    return [
        [file.with_name(f"{file.stem}-{next(numbers):0{digits}d}{file.suffix}") for _ in range(request.count)]
        for request in requests
    ]


def _check_writable(path: Path) -> None:
    long = next((part for part in path.parts if len(os.fsencode(part)) > NAME_BYTES), None)
    if long is not None or len(os.fsencode(path.absolute())) > PATH_BYTES:
        raise RequestError(
            f"Output {str(path)[:80]}... is too long: names may have {NAME_BYTES} bytes, paths {PATH_BYTES}."
        )
    if path.is_dir():
        raise RequestError(f"{path} is a folder; a picture cannot take its name.")
    check_folder(path.parent, path)


def check_folder(folder: Path, path: Path) -> None:
    """Refuse to write `path` where its folder is none, or cannot be made or written to; nothing is made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder, so {path} cannot be written.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"Folder {folder} is not writable, so {path} cannot be written.")
