"""A command line over an engine that paints plain squares, so that an edge is tested without a model."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from kandinsky5.budget import Budget
from kandinsky5.cli.app import run
from kandinsky5.engine import OnStep
from kandinsky5.generated import GeneratedImage
from kandinsky5.pictures import fit_picture
from kandinsky5.prompts import Task
from kandinsky5.request import EditRequest, ImageRequest
from tests.pipelines.conftest import (
    components,
    editing,
    editing_components,
    editing_network,
    pipeline,
    saved_editing_folder,
    saved_folder,
)

__all__ = [
    "components",
    "editing",
    "editing_components",
    "editing_network",
    "pipeline",
    "saved_editing_folder",
    "saved_folder",
]


@dataclass
class PlainAdapters:
    """Takes note of adapters; a plain square wears none."""

    added: list[tuple[str, object]] = field(default_factory=list)

    def add(self, name: str, source: object) -> None:
        self.added.append((name, source))


@dataclass
class PlainEngine:
    """Paints each picture in one colour taken from its seed. `before` is called at the start of each run."""

    before: Callable[[ImageRequest], None] = lambda request: None
    drawn: list[ImageRequest] = field(default_factory=list)
    sources: list[Image.Image | None] = field(default_factory=list)
    adapters: PlainAdapters = field(default_factory=PlainAdapters)

    def expanded(self, request: ImageRequest, picture: Image.Image | None = None) -> ImageRequest:
        return replace(request, prompt=f"{request.prompt}, in every detail")

    def resolve(self, request: ImageRequest, picture: Image.Image | None = None) -> ImageRequest:
        return replace(
            replace(request, size_from=None) if isinstance(request, EditRequest) else request,
            width=request.width or 64,
            height=request.height or 48,
            steps=request.steps or 4,
            guidance=2.5 if request.guidance is None else request.guidance,
            max_sequence_length=request.max_sequence_length or 512,
        )

    def generate(
        self,
        request: ImageRequest,
        *,
        picture: Image.Image | None = None,
        on_step: OnStep | None = None,
    ) -> list[GeneratedImage]:
        self.before(request)
        self.drawn.append(request)
        self.sources.append(picture)
        request = self.resolve(request, picture)
        assert request.steps and request.width and request.height
        for step in range(request.steps):
            if on_step is not None:
                on_step(step + 1, request.steps)
        fit = None
        if isinstance(request, EditRequest) and picture is not None:
            fit = fit_picture(picture, (request.width, request.height), request.fit)[1]
        return [
            GeneratedImage(
                image=Image.new("RGB", (request.width, request.height), (seed % 256, 90, 160)),
                request=replace(request, seed=seed, count=1),
                model="embedded",
                seconds=1.25,
                software={"kandinsky5": "0", "device": "cpu"},
                fit=fit,
            )
            for seed in request.seeds
        ]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class CommandLine:
    """`kandinsky5 ...` in a folder of its own. `opened` lists what engines were asked for."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    engine: PlainEngine = field(default_factory=PlainEngine)
    opened: list[tuple[str, str, str]] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    budgets: list[Budget | None] = field(default_factory=list)

    def open(
        self,
        model: str,
        device: str,
        dtype: str,
        task: Task,
        budget: Budget | None = None,
        mode: str | None = None,
    ) -> PlainEngine:
        self.opened.append((model, device, dtype))
        self.tasks.append(task)
        self.budgets.append(budget)
        return self.engine

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Outcome:
        self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(arguments, self.open)  # type: ignore[arg-type]
        captured = self.capture.readouterr()
        return Outcome(code, captured.out, captured.err)

    def files(self) -> list[str]:
        """Every file below the folder, hidden ones too."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path, capsys, monkeypatch)
