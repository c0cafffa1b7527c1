"""One thing to learn: a picture with captions, or an edit; and folders of them.

In: a folder. Out: examples whose pictures are not read yet. A folder holds pictures with captions in .txt files of
their names (one a line), or a metadata.jsonl whose lines name a picture (`file_name`) with its `text` or `texts`, or an
edit: `source`, `instruction` (or `instructions`) and `target`. It refuses to know sizes and models.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.pictures import read_picture

PICTURES: Final = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA: Final = "metadata.jsonl"
OTHER_METADATA: Final = ("metadata.csv", "metadata.parquet")
"""Which the library `datasets` reads."""

DRAWN_BY_A_RUN: Final = re.compile(r"step-\d{7}-\d+\.png")
"""Pictures that runs draw of what they watch, perhaps into a folder below this one."""


@dataclass(frozen=True, kw_only=True)
class PictureBytes:
    """A picture's file: `name` for people, and where its bytes are."""

    name: str
    path: Path | None = None
    data: bytes = b""

    def read_bytes(self) -> bytes:
        """The file's bytes. Raises OSError."""
        return self.data if self.path is None else self.path.read_bytes()

    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.read_bytes()).hexdigest()

    def open(self) -> Image.Image:
        """The picture, upright, RGB. Raises RequestError for what is none."""
        return read_picture(self.path if self.path is not None else io.BytesIO(self.data))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and what may be said of it, or with `source` what turns one picture into another.

    share: how often it is seen in an epoch, 1 being once.
    """

    picture: PictureBytes
    texts: tuple[str, ...]
    source: PictureBytes | None = None
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """Something of a source that cannot be learnt from, and why."""

    name: str
    reason: str


def folder_examples(folder: Path, share: float = 1.0) -> Iterator[Example | Flaw]:
    """The examples of a folder in the order of their names, and what is wrong with the others.

    Raises:
        RequestError: no such folder, or nothing in it.
    """
    check_folder(folder)
    metadata = folder / METADATA
    if metadata.is_file():
        yield from _listed(metadata, share)
        return
    for other in OTHER_METADATA:
        if (folder / other).is_file() and not any(folder.rglob("*.txt")):
            raise RequestError(
                f'{folder} has a {other}, which data.sources.kind = "datasets" reads; "folder" wants a {METADATA}.'
            )
    files = sorted(path for path in folder.rglob("*") if _is_picture(path.relative_to(folder)))
    if not files:
        raise RequestError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}) and no {METADATA}.")
    for file in files:
        name = str(file.relative_to(folder))
        texts, reason = _captions_beside(file)
        if reason and DRAWN_BY_A_RUN.fullmatch(file.name):
            continue
        if reason:
            yield Flaw(name=name, reason=reason)
        else:
            yield Example(picture=PictureBytes(name=name, path=file), texts=texts, share=share)


def check_folder(folder: Path) -> None:
    """Raise RequestError where there is no such folder."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder of pictures.")


def _is_picture(path: Path) -> bool:
    """By its name; hidden files, such as those that macOS leaves (`._a.png`), are none."""
    return path.suffix.lower() in PICTURES and not any(part.startswith(".") for part in path.parts)


def _captions_beside(file: Path) -> tuple[tuple[str, ...], str]:
    """The lines of the .txt file, or why there are none."""
    caption = file.with_suffix(".txt")
    try:
        lines = lines_of(caption.read_bytes())
    except FileNotFoundError:
        return (), f"no {caption.name} beside it"
    except (OSError, UnicodeDecodeError) as error:
        return (), f"{caption.name} cannot be read ({error})"
    texts = tuple(line.strip() for line in lines if line.strip())
    return texts, "" if texts else f"{caption.name} is empty"


def _listed(metadata: Path, share: float) -> Iterator[Example | Flaw]:
    try:
        lines = lines_of(metadata.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{metadata} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = f"{metadata.name} line {number}"
        try:
            row = json.loads(line)
            yield _example(row, metadata.parent, share)
        except (ValueError, TypeError, KeyError) as error:
            yield Flaw(name=name, reason=str(error) or type(error).__name__)


def _example(row: Any, folder: Path, share: float) -> Example:
    """The example that a line of metadata describes. Raises ValueError saying what is wrong."""
    texts = texts_in(row)
    if "source" in row:
        target, source = row.get("target", row.get("file_name")), _file(row["source"], folder)
    else:
        target, source = row.get("file_name", row.get("image")), None
    return Example(picture=_file(target, folder), texts=texts, source=source, share=share)


def lines_of(data: bytes) -> list[str]:
    """Lines of a text in UTF-8, with a byte order mark or none. Raises UnicodeDecodeError.

    They end where an editor ends them: a JSON text may hold what Unicode also calls an end of a line.
    """
    return [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n")]


def texts_in(row: Any) -> tuple[str, ...]:
    """The texts of an object that describes a picture or an edit. Raises ValueError saying what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    names = ("instructions", "instruction", "texts", "text", "caption")
    return texts_of(next((row[name] for name in names if name in row), None))


def texts_of(value: Any) -> tuple[str, ...]:
    """One text or several, none blank. Raises ValueError for anything else."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise ValueError(
            "has no text: a picture has `text` or `texts`, an edit `instruction` or `instructions`"
        )
    texts = tuple(text.strip() for text in values if text.strip())
    if not texts:
        raise ValueError("has only blank texts")
    return texts


def _file(name: Any, folder: Path) -> PictureBytes:
    """A picture below the folder. Raises ValueError for one that is missing or elsewhere."""
    if not isinstance(name, str) or not name:
        raise ValueError("names no picture: `file_name`, or `source` and `target` of an edit")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside the folder")
    if not path.is_file():
        raise ValueError(f"{name!r} is missing")
    return PictureBytes(name=name, path=path)
