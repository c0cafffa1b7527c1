"""Examples of Hugging Face datasets and of WebDataset shards, read by their own libraries.

In: a dataset's name or shards' paths, and its columns. Out: examples, their pictures as bytes. It refuses to know sizes
and models.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.train.data.examples import (
    PICTURES,
    Example,
    Flaw,
    PictureBytes,
    check_folder,
    folder_examples,
    lines_of,
    texts_in,
    texts_of,
)
from kandinsky5.train.settings import SourceSettings


def examples_of(source: SourceSettings, base: Path) -> Iterator[Example | Flaw]:
    """The examples of a source; paths count from `base`.

    Raises:
        RequestError: a source that is missing, or whose library is not here.
    """
    share = source.repeats * source.weight
    if source.kind == "folder":
        return folder_examples(base / source.path, share)
    if source.kind == "datasets":
        return dataset_examples(source, base, share)
    return shard_examples(source, base, share)


def check_sources(sources: Iterable[SourceSettings], base: Path) -> None:
    """Refuse, before a model is loaded, folders that are not there. Raises RequestError."""
    for source in sources:
        if source.kind == "folder":
            check_folder(base / source.path)


def dataset_examples(source: SourceSettings, base: Path, share: float) -> Iterator[Example | Flaw]:
    """Rows of a Hugging Face dataset: a folder below `base`, saved by `save_to_disk` or not, or a name of the hub."""
    _require("datasets", source.kind)
    import datasets

    folder = base / source.path
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(str(folder))
        else:
            rows = datasets.load_dataset(str(folder) if folder.exists() else source.path, split=source.split)
    except Exception as error:  # the library raises its own, its file systems' and the hub's
        raise RequestError(f"The dataset {source.path} cannot be opened: {_one_line(error)}") from error
    if isinstance(rows, datasets.DatasetDict):
        if source.split not in rows:
            raise RequestError(
                f"The dataset {source.path} has no split {source.split!r}; it has {', '.join(rows)}."
            )
        rows = rows[source.split]
    wanted = [column for column in (source.picture, source.text, source.source) if column]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise RequestError(
            f"The dataset {source.path} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}."
        )
    for column in filter(None, (source.picture, source.source)):
        try:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        except (ValueError, TypeError, NotImplementedError) as error:  # of Arrow, which raises kinds of these
            raise RequestError(
                f"The column {column!r} of the dataset {source.path} holds no pictures: {_one_line(error)}"
            ) from error
    for number, row in enumerate(rows):
        name = f"{source.path} row {number}"
        try:
            picture = _bytes(row[source.picture], name)
            before = _bytes(row[source.source], f"{name} source") if source.source else None
            yield Example(picture=picture, texts=texts_of(row[source.text]), source=before, share=share)
        except ValueError as error:
            yield Flaw(name=name, reason=str(error))


def shard_examples(source: SourceSettings, base: Path, share: float) -> Iterator[Example | Flaw]:
    """Samples of WebDataset shards: a picture, or `source.*` and `target.*`, with a .txt of captions or a .json."""
    _require("webdataset", source.kind)
    import webdataset

    shards = source.path if "://" in source.path else str(base / source.path)
    try:
        samples = webdataset.WebDataset(
            shards, shardshuffle=False, empty_check=False, nodesplitter=_all_of, workersplitter=_all_of
        )
        for sample in samples:
            yield _of_sample(sample, share)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise RequestError(f"The shards {source.path} cannot be read: {_one_line(error)}") from error


def _all_of(shards: Iterable[Any]) -> Iterable[Any]:
    """Every process lists every shard; `preparing` says who encodes which of its samples."""
    return shards


def _of_sample(sample: dict[str, Any], share: float) -> Example | Flaw:
    name = str(sample.get("__key__"))
    pictures = {key: value for key, value in sample.items() if f".{key.rpartition('.')[2]}" in PICTURES}
    of_source = [key for key in pictures if key.startswith("source.")]
    of_target = [key for key in pictures if key not in of_source]
    try:
        if len(of_target) != 1 or len(of_source) > 1:
            raise ValueError(f"has {len(of_target)} pictures and {len(of_source)} sources")
        if "txt" in sample:
            texts = texts_of(lines_of(sample["txt"]))
        elif "json" in sample:
            texts = texts_in(json.loads(sample["json"]))
        else:
            raise ValueError(f"has neither {name}.txt nor {name}.json")
        before = PictureBytes(name=f"{name} source", data=sample[of_source[0]]) if of_source else None
        picture = PictureBytes(name=name, data=sample[of_target[0]])
        return Example(picture=picture, texts=texts, source=before, share=share)
    except ValueError as error:
        return Flaw(name=name, reason=str(error))


def _bytes(value: Any, name: str) -> PictureBytes:
    """A picture as `datasets` gives it undecoded. Raises ValueError for a cell without one."""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return PictureBytes(name=name, data=buffer.getvalue())
    if isinstance(value, dict) and value.get("bytes"):
        return PictureBytes(name=name, data=value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return PictureBytes(name=name, path=Path(value["path"]))
    raise ValueError("holds no picture")


def _require(package: str, kind: str) -> None:
    if find_spec(package) is None:
        raise RequestError(
            f"data.sources.kind = {kind!r} needs the package {package}: pip install 'kandinsky5[{package}]'."
        )


def _one_line(error: BaseException) -> str:
    """What it says, and what it says of its cause, which `datasets` does not repeat."""
    found = [error, *([error.__cause__] if error.__cause__ else [])]
    return "; ".join(" ".join(str(one).split())[:300] for one in found)
