"""Folders with seeded damage: they load whole, or a `CheckpointError` says why; nothing else, and in bounded memory."""

import json
import random
import resource
import shutil
import struct
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

NETWORK_CASES, PIPELINE_CASES = 560, 40
SECONDS_EACH, MEGABYTES_MORE = 5, 300
VALUES = (
    *(None, True, -1, 0, 3, 10**9, 2**63, 10**400, 1.5, -1e308, 1e308),
    *("", "x", "../../x", "\0", [], [1], [10**9] * 3, {}, {"a": 1}),
)

INSERTED = (
    *(
        ("quantization_config", value)
        for value in ({}, [1], "x", {"quant_method": "foo"}, {"quant_method": "gptq"})
    ),
    ("quantization_config", {"quant_method": "torchao", "quant_type": {"default": 5}}),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    (
        "quantization_config",
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
    ("auto_map", {"AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}),
    *(
        ("_attn_implementation", "evil/kernel"),
        ("attn_implementation", "evil"),
        ("torch_dtype", "float8_e4m3fn"),
    ),
    *(
        ("num_train_timesteps", 10**8),
        ("use_dynamic_shifting", True),
        ("shift", -1),
        ("tokenizer_class", "Evil"),
    ),
)
"""Keys that a config need not have, and whose values change how a library loads."""


def flip_bits(rng: random.Random, data: bytes, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 4, 64])):
        changed[rng.randrange(min(within, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, data: bytes, within: int) -> bytes:
    return data[: rng.randrange(min(within, len(data)))]


def splice(rng: random.Random, data: bytes, within: int) -> bytes:
    """A stretch removed, doubled or replaced."""
    start = rng.randrange(min(within, len(data)))
    end = start + rng.randrange(1, 64)
    return data[:start] + rng.choice([b"", data[start:end] * 2, rng.randbytes(32)]) + data[end:]


def edit_object(rng: random.Random, content: object) -> object:
    """One value somewhere in a JSON value replaced, removed or renamed, or a key inserted."""
    if isinstance(content, dict) and content:
        key = rng.choice(sorted(content))
        kind = rng.randrange(5)
        if kind == 4:
            inserted, value = rng.choice(INSERTED)
            return {**content, inserted: value}
        if kind == 0:
            return {k: v for k, v in content.items() if k != key}
        if kind == 1:
            return {**content, key + "x": content[key]}
        return {**content, key: edit_object(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.5:
        place = rng.randrange(len(content))
        return [edit_object(rng, v) if i == place else v for i, v in enumerate(content)]
    return rng.choice(VALUES)


def edit_json(rng: random.Random, data: bytes, within: int) -> bytes:
    return json.dumps(edit_object(rng, json.loads(data))).encode()


def edit_header(rng: random.Random, data: bytes, within: int) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    text = json.dumps(edit_object(rng, json.loads(data[8 : 8 + length]))).encode()
    announced = rng.choice([len(text)] * 6 + [len(text) + 1, 2**31, 2**63, 0])
    return struct.pack("<Q", announced) + text + data[8 + length :]


def mutate(rng: random.Random, file: Path) -> str:
    """Damage one file; what was done."""
    data = file.read_bytes()
    structured = edit_json if file.suffix == ".json" else edit_header
    how = rng.choice([flip_bits, truncate, splice, structured, structured, structured])
    file.write_bytes(how(rng, data, rng.choice([16, 4096, len(data)])))
    return f"{how.__name__} of {file.name}"


class Outcomes:
    """Runs loads, and fails on whatever is neither a load nor a `CheckpointError`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def load(self, case: str, load) -> object | None:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            loaded = load()
            self.counts["loaded"] += 1
        except CheckpointError as error:
            assert str(error) and "\n" not in str(error), case
            self.counts["refused"] += 1
            loaded = None
        except BaseException as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - start < SECONDS_EACH, case
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES_MORE * 1024, case
        return loaded


@pytest.mark.filterwarnings("ignore")
def test_damaged_networks(network_folder, sharded_folder, tmp_path):
    """After a load every tensor has its name, its shape and a finite value."""
    shapes = {
        name: tensor.shape
        for name, tensor in Kandinsky5Transformer3DModel.from_pretrained(network_folder).state_dict().items()
    }
    outcomes = Outcomes()
    for seed in range(NETWORK_CASES):
        rng = random.Random(seed)
        source = rng.choice([network_folder, sharded_folder])
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        what = mutate(rng, rng.choice(sorted(folder.iterdir())))
        network = outcomes.load(
            f"seed {seed}, {what}", lambda f=folder: Kandinsky5Transformer3DModel.from_pretrained(f)
        )
        if network is not None:
            state = network.state_dict()
            assert {name: tensor.shape for name, tensor in state.items()} == shapes, f"seed {seed}, {what}"
            assert all(tensor.isfinite().all() for tensor in state.values()), f"seed {seed}, {what}"
            assert not any(tensor.is_meta for tensor in state.values()), f"seed {seed}, {what}"
        shutil.rmtree(folder)
    assert outcomes.counts["loaded"] > NETWORK_CASES // 20
    assert outcomes.counts["refused"] > NETWORK_CASES // 2


@pytest.mark.filterwarnings("ignore")
def test_damaged_pipelines(saved_folder, tmp_path):
    """Every file of a pipeline's folder, small ones as often as large ones."""
    whole = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    models = ("transformer", "vae", "text_encoder", "text_encoder_2")
    shapes = {
        name: {key: tensor.shape for key, tensor in getattr(whole, name).state_dict().items()}
        for name in models
    }
    outcomes = Outcomes()
    for seed in range(PIPELINE_CASES):
        rng = random.Random(f"pipeline {seed}")
        folder = tmp_path / str(seed)
        shutil.copytree(saved_folder, folder)
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        case = f"seed {seed}, {mutate(rng, file) if file.suffix != '.jinja' else 'nothing'}"
        pipe = outcomes.load(case, lambda f=folder: Kandinsky5T2IPipeline.from_pretrained(f))
        if pipe is not None:
            for name in models:
                state = getattr(pipe, name).state_dict()
                assert {key: tensor.shape for key, tensor in state.items()} == shapes[name], case
                assert all(torch.isfinite(tensor).all() for tensor in state.values()), case
        shutil.rmtree(folder)
    assert outcomes.counts["refused"] > PIPELINE_CASES // 4
