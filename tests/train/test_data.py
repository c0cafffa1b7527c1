"""Sources, sizes and the cache: what is read, what is left out and why, and what is encoded anew."""

import io
import itertools
import json
import multiprocessing
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.geometry import NATIVE_SIZES
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.train.data import encoding
from kandinsky5.train.data.cache import TensorCache, fingerprint, key_of
from kandinsky5.train.data.encoding import Learnable, check_flaws
from kandinsky5.train.data.examples import Example, Flaw, folder_examples
from kandinsky5.train.data.remote import examples_of
from kandinsky5.train.data.sizes import enlarged, nearest_size, sizes_of
from kandinsky5.train.settings import DataSettings, SourceSettings
from tests.pipelines.conftest import picture

from .conftest import Told, small_settings, write_edits, write_pictures


def read(folder: Path) -> tuple[list[Example], list[Flaw]]:
    found = list(folder_examples(folder))
    return [x for x in found if isinstance(x, Example)], [x for x in found if isinstance(x, Flaw)]


# -- Sources ---------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", count=3)
    write_pictures(tmp_path / "a" / "deeper", count=1)
    (tmp_path / "a" / "1.txt").unlink()
    (tmp_path / "a" / "2.txt").write_text(" \n")
    examples, flaws = read(tmp_path / "a")
    assert [e.picture.name for e in examples] == ["0.png", "deeper/0.png"]
    assert len(examples[0].texts) == 3
    assert [(f.name, f.reason) for f in flaws] == [
        ("1.png", "no 1.txt beside it"),
        ("2.png", "2.txt is empty"),
    ]


def test_metadata_lists_pictures_and_edits(tmp_path: Path) -> None:
    write_edits(tmp_path, count=1)
    lines = [
        {"file_name": "after-0.png", "text": "blue"},
        {"file_name": "after-0.png", "texts": ["a", " ", "b"]},
        {"source": "before-0.png", "instructions": ["make it blue", "blue it"], "target": "after-0.png"},
        {"file_name": "../secret.png", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "after-0.png"},
        {"file_name": "after-0.png", "text": ""},
        {"text": "x"},
        [],
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*(json.dumps(line) for line in lines), "{", ""]))
    examples, flaws = read(tmp_path)
    assert [e.texts for e in examples] == [("blue",), ("a", "b"), ("make it blue", "blue it")]
    assert [e.source is not None for e in examples] == [False, False, True]
    reasons = [flaw.reason for flaw in flaws]
    for reason, part in zip(
        reasons,
        [
            "outside the folder",
            "is missing",
            "has no text",
            "blank",
            "names no picture",
            "no JSON object",
            "Expecting",
        ],
        strict=True,
    ):
        assert part in reason


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a folder"):
        list(folder_examples(tmp_path / "none"))
    with pytest.raises(RequestError, match="holds no pictures"):
        list(folder_examples(tmp_path))


def test_texts_as_editors_of_every_system_write_them(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", count=2)
    (tmp_path / "a" / "0.txt").write_bytes("\ufeffa red circle\r\n\r\nin\u2028two\r\n".encode())
    (tmp_path / "a" / "._1.png").write_bytes(b"of macOS")
    examples, flaws = read(tmp_path / "a")
    assert [e.texts for e in examples] == [("a red circle", "in\u2028two"), ("blue square and",)]
    assert not flaws
    lines = [{"file_name": f"{n}.png", "text": "next\u2028line"} for n in range(2)]
    written = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "a" / "metadata.jsonl").write_bytes(written.encode("utf-8-sig"))
    examples, flaws = read(tmp_path / "a")
    assert [e.texts for e in examples] == [("next\u2028line",)] * 2 and not flaws


def test_metadata_of_another_format_is_for_the_library_that_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path / "listed"
    write_pictures(folder, count=2)
    (folder / "metadata.csv").write_text("file_name,text\n0.png,zero\n1.png,one\n")
    assert len(read(folder)[0]) == 2, "there are captions beside them"
    for caption in folder.glob("*.txt"):
        caption.unlink()
    with pytest.raises(RequestError, match=r'metadata\.csv, which data\.sources\.kind = "datasets" reads'):
        list(folder_examples(folder))
    examples = list(examples_of(SourceSettings(path="listed", kind="datasets"), tmp_path))
    assert [e.texts for e in examples if isinstance(e, Example)] == [("zero",), ("one",)]


def test_a_dataset_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"image": [1], "text": ["a"]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(RequestError, match="column 'image' of the dataset set holds no pictures"):
        list(examples_of(SourceSettings(path="set", kind="datasets"), tmp_path))
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": [1], "text": ["a"]})})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(RequestError, match="no split 'test'; it has train"):
        list(examples_of(SourceSettings(path="both", kind="datasets", split="test"), tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"image": 1}\n{"image": ')
    with pytest.raises(RequestError, match=r"broken cannot be opened: .*; .*JSON"):
        list(examples_of(SourceSettings(path="broken", kind="datasets"), tmp_path))


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [picture(64, 64, seed=i) for i in range(3)]
    columns = {"image": pictures, "text": ["a", ["b", "c"][0], "d"], "before": pictures[::-1]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column(
        "before", datasets.Image()
    ).save_to_disk(str(tmp_path / "set"))
    source = SourceSettings(path="set", kind="datasets", source="before")
    examples = [e for e in examples_of(source, tmp_path) if isinstance(e, Example)]
    assert [e.texts for e in examples] == [("a",), ("b",), ("d",)]
    assert examples[0].picture.open().tobytes() == pictures[0].tobytes()
    assert examples[0].source is not None and examples[0].source.open().tobytes() == pictures[2].tobytes()
    with pytest.raises(RequestError, match="no column 'words'; it has image"):
        list(examples_of(SourceSettings(path="set", kind="datasets", text="words"), tmp_path))


def test_web_dataset_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    buffer = io.BytesIO()
    picture(64, 64).save(buffer, "PNG")
    files = {
        "0.png": buffer.getvalue(),
        "0.txt": b"a\nb",
        "1.source.png": buffer.getvalue(),
        "1.target.png": buffer.getvalue(),
        "1.json": json.dumps({"instruction": "blue"}).encode(),
        "2.txt": b"no picture",
        "3.png": buffer.getvalue(),
        "3.json": b'{"caption": "red"}',
        "4.png": buffer.getvalue(),
        "5.png": buffer.getvalue(),
        "5.json": b"[]",
    }
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as shard:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"{number}{name}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    source = SourceSettings(path="shard-{0..1}.tar", kind="webdataset", repeats=2, weight=0.25)
    found = list(examples_of(source, tmp_path))
    examples = [e for e in found if isinstance(e, Example)]
    assert [e.texts for e in examples] == [("a", "b"), ("blue",), ("red",)] * 2
    assert [e.share for e in examples] == [0.5] * 6
    assert [f.reason for f in found if isinstance(f, Flaw)][:3] == [
        "has 0 pictures and 0 sources",
        "has neither 04.txt nor 04.json",
        "is no JSON object",
    ]
    whole = (tmp_path / "shard-0.tar").read_bytes()
    (tmp_path / "shard-0.tar").write_bytes(whole[: whole.index(b"1.source.png") + 600])
    with pytest.raises(RequestError, match=r"shards shard-0\.tar cannot be read"):
        list(examples_of(SourceSettings(path="shard-0.tar", kind="webdataset"), tmp_path))


def test_a_source_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kandinsky5.train.data.remote.find_spec", lambda name: None)
    for kind in ("datasets", "webdataset"):
        with pytest.raises(RequestError, match=rf"pip install 'kandinsky5\[{kind}\]'"):
            list(examples_of(SourceSettings(path="x", kind=kind), tmp_path))


# -- What is left out ------------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_a_limit_ends_the_run(tmp_path: Path, saved_folder: str) -> None:
    from kandinsky5.train.training import train

    write_pictures(tmp_path / "pictures", count=8)
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    whole = (tmp_path / "pictures" / "2.png").read_bytes()
    (tmp_path / "pictures" / "2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (48, 48)).save(tmp_path / "pictures" / "3.png")
    told = Told()
    train(small_settings(tmp_path, saved_folder, run__steps=1, data__bad_limit=0.5), tmp_path, told)
    left_out = tmp_path / "training" / "left-out.jsonl"
    flaws = {row["name"]: row["reason"] for row in map(json.loads, left_out.read_text().splitlines())}
    assert list(flaws) == ["1.png", "2.png", "3.png"]
    assert "48x48, smaller than 64x64 by 1.33" in flaws["3.png"] and "upscale" in flaws["3.png"]
    assert f"3 of 8 files left out, listed in {left_out}" in told.said
    with pytest.raises(RequestError, match=r"3 of 8 files are unusable.*1\.png"):
        train(small_settings(tmp_path, saved_folder, run__steps=1, data__bad_limit=0.1), tmp_path, told)
    settings = small_settings(
        tmp_path, saved_folder, run__steps=1, data__bad_limit=0.3, data__upscale=True, output="enlarged"
    )
    train(settings, tmp_path, told)
    assert "6 pictures to learn from" in told.said


def test_limits_of_bad_files() -> None:
    flaws = [Flaw(name="a", reason="broken")]
    check_flaws(9, flaws, 0.05)  # one of few is not yet a share
    check_flaws(99, flaws, 0.05)
    for found, limit in ((9, 0.0), (0, 1.0)):
        with pytest.raises(RequestError, match="a: broken"):
            check_flaws(found, flaws, limit)


# -- Sizes -----------------------------------------------------------------------------------------------------


def test_each_picture_goes_to_the_size_nearest_in_shape() -> None:
    sizes = sizes_of(["native"], NATIVE_SIZES)
    assert sizes == list(NATIVE_SIZES)
    for size in sizes:
        assert nearest_size(*size, sizes) == size
    assert nearest_size(4000, 3000, sizes) == (1152, 896)
    assert nearest_size(3000, 4000, sizes) == (896, 1152)
    assert nearest_size(100, 1000, sizes) == (640, 1408)


def test_of_several_sizes_of_one_shape_the_largest_that_is_filled() -> None:
    sizes = sizes_of(["512x512", "native", "256x256"], [(1024, 1024)])
    assert nearest_size(2000, 2000, sizes) == (1024, 1024)
    assert nearest_size(600, 640, sizes) == (512, 512)
    assert nearest_size(100, 100, sizes) == (256, 256)
    assert enlarged(600, 640, (512, 512), "cover") == pytest.approx(512 / 600)
    assert enlarged(600, 300, (512, 512), "pad") == pytest.approx(512 / 600)


# -- The cache -------------------------------------------------------------------------------------------------


def test_keys_name_what_an_entry_depends_on() -> None:
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])
    module = torch.nn.Linear(3, 2)
    before = fingerprint(module)
    with torch.no_grad():
        module.weight[0, 0] += 1
    assert fingerprint(module) != before
    table = torch.nn.Embedding(1000, 64)
    before = fingerprint(table)
    with torch.no_grad():
        table.weight[510:520] += 1
    assert fingerprint(table) != before


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("what", "encoded_anew"),
    [
        ("nothing", []),
        ("the autoencoder's scale", ["picture"]),
        ("an encoder's config", ["text"]),
        ("a tokenizer", ["text"]),
        ("this package", ["picture", "text"]),
    ],
)
def test_what_encodes_is_in_the_keys(
    what: str, encoded_anew: list[str], saved_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures", count=1)
    example = read(tmp_path / "pictures")[0][0]

    def keys(folder: Path) -> dict[str, str]:
        pipe = Kandinsky5T2IPipeline.from_pretrained(folder, transformer=None)
        encoder = encoding.Encoder(pipe, None, DataSettings(), [(64, 64)], TensorCache(tmp_path / "cache"))
        learnable = encoder.encode(example)
        assert isinstance(learnable, Learnable)
        return {"picture": learnable.picture, "text": learnable.texts[0]}

    before = keys(Path(saved_folder))
    folder = Path(shutil.copytree(saved_folder, tmp_path / "model"))
    if what == "the autoencoder's scale":
        change_json(folder / "vae" / "config.json", scaling_factor=0.5)
    elif what == "an encoder's config":
        change_json(folder / "text_encoder_2" / "config.json", layer_norm_eps=0.125)
    elif what == "a tokenizer":
        change_json(folder / "tokenizer_2" / "tokenizer_config.json", unk_token="<other>")
    elif what == "this package":
        monkeypatch.setattr(encoding, "ENCODING_VERSION", 0)
    after = keys(folder)
    assert [name for name in before if before[name] != after[name]] == encoded_anew


def write_forever(folder: Path) -> None:
    cache = TensorCache(folder)
    for number in itertools.count():
        cache.put(key_of(i=number), {"x": torch.full((200_000,), float(number))})


def test_a_writer_that_is_killed_leaves_no_half_entry(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=write_forever, args=(tmp_path,))
    writer.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("[!.]*.safetensors"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.kill()
    writer.join()
    cache = TensorCache(tmp_path)
    entries = [path.stem for path in tmp_path.rglob("*.safetensors") if not path.name.startswith(".")]
    assert len(entries) >= 20
    for key in entries:
        entry = cache.get(key)
        assert entry is not None and len(entry["x"].unique()) == 1 and len(entry["x"]) == 200_000


def test_a_damaged_entry_is_no_entry(tmp_path: Path) -> None:
    cache, key = TensorCache(tmp_path), key_of(a=1)
    assert key not in cache and cache.get(key) is None
    cache.put(key, {"x": torch.ones(4)})
    path = cache.path(key)
    path.write_bytes(path.read_bytes()[:-3])
    assert key not in cache and cache.get(key) is None
    (tmp_path / key[:2]).rmdir()
    (tmp_path / key[:2]).write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        cache.put(key, {"x": torch.ones(4)})
