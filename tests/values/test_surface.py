"""What users may rely on: exported names, command-line options, request fields. A change here is a decision."""

import dataclasses
import importlib.metadata

import pytest
import typer

import kandinsky5
from kandinsky5.cli.app import ExitCode, app
from kandinsky5.request import EditRequest

OPTIONS = {
    "generate": [
        "prompt",
        "-o --output",
        "--model",
        "--size",
        "--steps",
        "--guidance",
        "--negative",
        "--seed",
        "-n --n",
        "--expand",
        "--from-file",
        "--like",
        "--lora",
        "--device",
        "--precision",
        "--mode",
        "--memory",
        "--format",
        "--quality",
        "--overwrite",
        "--quiet -q",
        "--json",
    ],
    "edit": [
        "source",
        "instruction",
        "-o --output",
        "--model",
        "--size",
        "--fit",
        "--compare",
        "--steps",
        "--guidance",
        "--negative",
        "--seed",
        "-n --n",
        "--expand",
        "--from-file",
        "--like",
        "--lora",
        "--device",
        "--precision",
        "--mode",
        "--memory",
        "--format",
        "--quality",
        "--overwrite",
        "--quiet -q",
        "--json",
    ],
    "show": ["file", "--json"],
    "info": ["--device", "--precision", "--memory", "--size", "--json"],
    "models": ["--cache-dir", "--json"],
    "verify": ["model", "--files", "--device", "--precision", "--cache-dir", "--quiet -q", "--json"],
    "serve": [
        "--model",
        "--host",
        "--port",
        "--device",
        "--precision",
        "--mode",
        "--memory",
        "--lora",
        "--api-keys",
        "--max-batch",
        "--max-queue",
        "--max-queue-per-key",
        "--max-pixels",
        "--max-steps",
        "--max-n",
        "--max-body-mb",
        "--timeout",
        "--keep",
        "--grace",
        "--log-format",
    ],
    "train": ["config", "file", "--set", "--overwrite", "--quiet -q"],
    "quantize": [
        "model",
        "out",
        "--format",
        "--network",
        "--encoder",
        "--device",
        "--cache-dir",
        "--quiet -q",
        "--json",
    ],
    "pull": ["model", "--revision", "--token-file", "--cache-dir", "--quiet -q", "--json"],
    "demo score": [
        "model",
        "-o --output",
        "--set",
        "--count",
        "--steps",
        "--guidance",
        "--seed",
        "--batch",
        "--device",
        "--precision",
        "--mode",
        "--quiet -q",
        "--json",
    ],
    "demo judge": ["folder", "-o --output", "--json"],
    "demo pictures": [
        "model",
        "-o --output",
        "--page",
        "--count",
        "--steps",
        "--guidance",
        "--seed",
        "--batch",
        "--device",
        "--precision",
        "--quiet -q",
    ],
}


def test_exported_names() -> None:
    assert kandinsky5.__all__ == [
        "CapacityError",
        "CheckpointError",
        "ImageRequest",
        "Kandinsky5I2IPipeline",
        "Kandinsky5T2IPipeline",
        "Kandinsky5Transformer3DModel",
        "KandinskyImagePipelineOutput",
        "RequestError",
        "__version__",
    ]
    assert set(kandinsky5.__all__) <= set(dir(kandinsky5))
    for name in kandinsky5.__all__:
        assert getattr(kandinsky5, name).__name__ == name if name != "__version__" else kandinsky5.__version__
    with pytest.raises(AttributeError, match="nothing"):
        kandinsky5.nothing  # noqa: B018


def test_the_version_is_one() -> None:
    assert kandinsky5.__version__ == importlib.metadata.version("kandinsky5")


def test_request_fields() -> None:
    assert [field.name for field in dataclasses.fields(kandinsky5.ImageRequest)] == [
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "steps",
        "guidance",
        "seed",
        "count",
        "max_sequence_length",
        "lora",
    ]


def test_fields_of_an_edit_come_after_those_of_any_request() -> None:
    ours = [field.name for field in dataclasses.fields(EditRequest)]
    shared = [field.name for field in dataclasses.fields(kandinsky5.ImageRequest)]
    assert ours == [*shared, "source", "fit", "size_from"]


def test_options_of_the_command_line() -> None:
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    group = commands.pop("demo")
    commands |= {f"demo {name}": command for name, command in group.commands.items()}
    found = {
        name: [" ".join(parameter.opts) for parameter in command.params if parameter.name != "help"]
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_exit_codes() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "REQUEST": 2,
        "CHECKPOINT": 3,
        "CAPACITY": 4,
        "INTERRUPTED": 130,
    }
