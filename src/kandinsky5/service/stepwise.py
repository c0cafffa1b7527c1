"""Several requests drawn at once, one forward pass at a time; requests join and leave between passes.

In: `Begin`s. Out: reports. Each picture of a request is a drawing of its own, with its own times; drawings of one size
and with the same adapters share a pass, whatever their prompts, guidance, number of steps, and whether they edit. No
picture depends on what else is drawn. The file refuses to know processes, queues and who asks.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5 import denoise, flow
from kandinsky5.adapters import Worn
from kandinsky5.denoise import Run, RunGroup
from kandinsky5.engine import Engine
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.generated import GeneratedImage
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.pictures import Fit
from kandinsky5.prompts import Task
from kandinsky5.request import EditRequest, ImageRequest
from kandinsky5.service.messages import (
    Begin,
    Begun,
    Failed,
    FailureKind,
    Finished,
    Previewed,
    Report,
    Stepped,
)
from kandinsky5.service.preview import LatentPreview

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
Kind = tuple[Shape, Worn | None]

TOKENS_A_STEP: Final = 4
"""Tokens of a prompt that are written between two steps: about the time of a step, at full size."""


@dataclass(kw_only=True, eq=False)
class _Writing:
    """A request whose prompt is being written out; `prompt` is what is there."""

    begin: Begin
    texts: Iterator[str]
    started: float
    prompt: str = ""


@dataclass(kw_only=True, eq=False)
class _Work:
    """A request on its way. `steps` have been taken of all its pictures together."""

    begin: Begin
    engine: Engine
    request: ImageRequest
    fit: Fit | None
    seconds: dict[str, float]
    started: float
    steps: int = 0
    pictures: dict[int, GeneratedImage] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class _Drawing:
    """One picture of a work: where its latents are, and the step that comes next."""

    work: _Work
    index: int
    run: Run
    scheduler: Any
    at: int = 0

    @property
    def timestep(self) -> Tensor:
        return self.scheduler.timesteps[self.at]

    @property
    def shape(self) -> Shape:
        return tuple(self.run.latents.shape)

    @property
    def kind(self) -> Kind:
        """What has to be the same in a pass."""
        return self.shape, self.work.request.lora


@dataclass(kw_only=True, eq=False)
class _Group:
    """The drawings of the last pass, which may be those of the next.

    When they are, the network is told which times follow: `times`, as `RunGroup.times`, from the step `since` of the
    first drawing on. Not sooner, for where kinds take turns what is made ahead would be thrown away.
    """

    drawings: Sequence[_Drawing]
    runs: RunGroup
    network: Any
    times: Tensor | None = None
    since: int = 0

    @classmethod
    def of(cls, drawings: Sequence[_Drawing]) -> "_Group":
        """Of drawings that take a pass together."""
        return cls(
            drawings=list(drawings),
            runs=RunGroup(runs=[drawing.run for drawing in drawings]),
            network=drawings[0].work.engine.pipeline.transformer,
        )

    def expect(self) -> None:
        """The group goes on until one of it is done; said once."""
        if self.times is None:
            self.times = self.runs.times([one.scheduler.timesteps[one.at :] for one in self.drawings])
            self.since = self.drawings[0].at
            denoise.expect(self.network, self.times)

    def velocities(self) -> list[Tensor]:
        """Of the step that all are at."""
        return self.runs.velocities(
            [drawing.timestep for drawing in self.drawings],
            transformer=self.network,
            row_times=None if self.times is None else self.times[self.drawings[0].at - self.since],
        )

    def end(self) -> None:
        """Nothing is expected of the network any more."""
        if self.times is not None:
            denoise.expect(self.network, self.times[:0])


class Stepwise:
    """What is being drawn. `most`: pictures in one forward pass; less where memory has shown that it must be."""

    def __init__(self, engines: Mapping[Task, Engine], *, most: int) -> None:
        self.engines = engines
        self.most = most
        self.last_group = 0
        self._drawings: list[_Drawing] = []
        self._writings: list[_Writing] = []
        self._fitting: dict[Shape, int] = {}
        self._order: list[Kind] = []
        self._group: _Group | None = None
        any_engine = next(iter(engines.values()))
        self._preview = LatentPreview.of(any_engine.pipeline.vae)

    @property
    def busy(self) -> bool:
        """Whether there is a step to take, or a prompt to write."""
        return bool(self._drawings or self._writings)

    def begin(self, begin: Begin) -> Report | None:
        """Take a request in; the report says that it has begun, or why not. None: its prompt is written out first."""
        started = time.perf_counter()
        if not begin.expand:
            return self._begun(begin, started)
        try:
            texts = self._engine_for(begin.request).expanding(begin.request, begin.picture)
        except Exception as error:
            return _failed(begin.id, error)
        self._writings.append(_Writing(begin=begin, texts=texts, started=started))
        return None

    def _begun(self, begin: Begin, started: float) -> Report:
        try:
            engine = self._engine_for(begin.request)
            request = engine.resolve(begin.request, begin.picture)
            run, fit = engine.begin(request, begin.picture)
            work = _Work(begin=begin, engine=engine, request=request, fit=fit, seconds={}, started=started)
            drawings = self._drawings_of(work, run)
        except Exception as error:
            return _failed(begin.id, error)
        work.seconds["encode"] = time.perf_counter() - started
        self._drawings += drawings
        return Begun(
            id=begin.id,
            request=request,
            text_tokens=int(run.positive.lengths[0]) - (shown := engine.image_tokens(request, begin.picture)),
            image_tokens=shown,
            expanded=begin.expand,
        )

    def drop(self, id: str) -> bool:
        """Stop drawing a request; False if it is not being drawn."""
        before = len(self._drawings) + len(self._writings)
        self._drawings = [drawing for drawing in self._drawings if drawing.work.begin.id != id]
        self._writings = [writing for writing in self._writings if writing.begin.id != id]
        self._part()
        return len(self._drawings) + len(self._writings) < before

    def step(self) -> Iterator[Report]:
        """One forward pass, and what came of it; before it a few tokens of the oldest prompt that is written out."""
        if self._writings:
            yield from self._write(self._writings[0])
        if not self._drawings:
            return
        chosen = self._choose()
        started = time.perf_counter()
        for drawings, result in self._velocities(chosen):
            if isinstance(result, Exception):
                yield from self._fail([drawing for drawing in drawings if drawing in self._drawings], result)
                continue
            self.last_group = len(drawings)
            for work in {id(d.work): d.work for d in drawings}.values():
                spent = time.perf_counter() - started
                work.seconds["denoise"] = work.seconds.get("denoise", 0.0) + spent
            for drawing, velocity in zip(drawings, result, strict=True):
                if drawing in self._drawings:  # its request may have failed at another of its pictures
                    yield from self._advance(drawing, velocity)

    def _write(self, writing: _Writing) -> Iterator[Report]:
        """Some tokens; after the last of them the request begins."""
        try:
            texts = list(islice(writing.texts, TOKENS_A_STEP))
            writing.prompt = texts[-1] if texts else writing.prompt
            if len(texts) == TOKENS_A_STEP:
                return
            longer = replace(writing.begin.request, prompt=writing.prompt)
        except Exception as error:
            self._writings.remove(writing)
            yield _failed(writing.begin.id, error)
            return
        self._writings.remove(writing)
        yield self._begun(replace(writing.begin, request=longer), writing.started)

    # -- Parts of a step ----------------------------------------------------------------------------------------------

    def _choose(self) -> list[_Drawing]:
        """The drawings of the next pass: of the kind that waits longest, the oldest first."""
        kinds = list(dict.fromkeys(drawing.kind for drawing in self._drawings))
        self._order = [kind for kind in self._order if kind in kinds]
        self._order += [kind for kind in kinds if kind not in self._order]
        kind = self._order.pop(0)
        self._order.append(kind)
        most = min(self.most, self._fitting.get(kind[0], self.most))
        return [drawing for drawing in self._drawings if drawing.kind == kind][:most]

    def _velocities(
        self, drawings: list[_Drawing]
    ) -> Iterator[tuple[list[_Drawing], list[Tensor] | Exception]]:
        """Groups that took the pass together, with their velocities or what went wrong.

        Where memory ends the group is halved, and stays so for this size. Any other error is traced to the drawing
        that causes it by evaluating each alone.
        """
        while True:
            velocities, failure = self._pass(drawings)
            if failure is None or len(drawings) == 1:
                yield drawings, failure or velocities
                return
            self._part()
            if not is_out_of_memory(failure):
                log.warning("A pass of %d failed (%r); each is tried alone.", len(drawings), failure)
                for drawing in drawings:
                    yield from self._velocities([drawing])
                return
            drawings = drawings[: len(drawings) // 2]
            self._fitting[drawings[0].shape] = len(drawings)
            log.warning("No memory for more; from now on %d of this size at once.", len(drawings))
            torch.cuda.empty_cache()

    def _pass(self, drawings: list[_Drawing]) -> tuple[list[Tensor], Exception | None]:
        """Velocities of one forward pass, or what it raised."""
        if self._group is None or self._group.drawings != drawings:
            self._part()
            self._group = _Group.of(drawings)
        else:
            self._group.expect()
        engine, lora = drawings[0].work.engine, drawings[0].work.request.lora
        try:
            engine.adapters.wear(lora)
            return self._group.velocities(), None
        except Exception as error:
            return [], error.with_traceback(None) if is_out_of_memory(error) else error

    def _part(self) -> None:
        """The group of the last pass is not that of the next."""
        if self._group is not None:
            self._group.end()
        self._group = None

    def _advance(self, drawing: _Drawing, velocity: Tensor) -> Iterator[Report]:
        """Take the step, tell of it, and finish the picture and its request where it was the last."""
        work, run = drawing.work, drawing.run
        try:
            shown = self._look(drawing, velocity)
            # Once for each step of each drawing: a scheduler of several steps remembers what it was given.
            run.latents = drawing.scheduler.step(velocity, drawing.timestep, run.latents, return_dict=False)[
                0
            ]
        except Exception as error:
            yield from self._fail([drawing], error)
            return
        if shown is not None:
            yield shown
        drawing.at += 1
        work.steps += 1
        total = len(drawing.scheduler.timesteps) * work.request.count
        yield Stepped(id=work.begin.id, done=work.steps, total=total)
        if drawing.at < len(drawing.scheduler.timesteps):
            return
        self._drawings.remove(drawing)
        self._part()
        try:
            self._develop(drawing)
        except Exception as error:
            yield from self._fail([drawing], error)
            return
        if len(work.pictures) == work.request.count:
            pictures = [work.pictures[i] for i in range(work.request.count)]
            yield Finished(id=work.begin.id, pictures=pictures, seconds=work.seconds)

    def _look(self, drawing: _Drawing, velocity: Tensor) -> Previewed | None:
        """Where the picture is heading before this step, if a look at it is due."""
        due = _preview_steps(drawing.work)
        if drawing.index > 0 or drawing.at + 1 not in due:
            return None
        now = float(drawing.scheduler.sigmas[drawing.at])
        image = self._preview.picture(flow.step(drawing.run.latents, velocity, now, 0.0))
        return Previewed(id=drawing.work.begin.id, index=due.index(drawing.at + 1), image=image)

    def _develop(self, drawing: _Drawing) -> None:
        work, started = drawing.work, time.perf_counter()
        image = work.engine.develop(drawing.run.latents)
        now = time.perf_counter()
        work.seconds["decode"] = work.seconds.get("decode", 0.0) + now - started
        work.pictures[drawing.index] = work.engine.told(
            image,
            work.request,
            seed=work.request.seeds[drawing.index],
            seconds=now - work.started,
            fit=work.fit,
        )

    def _fail(self, drawings: Sequence[_Drawing], error: Exception) -> Iterator[Report]:
        for work in {id(drawing.work): drawing.work for drawing in drawings}.values():
            self.drop(work.begin.id)
            yield _failed(work.begin.id, error, work.request)

    # -- Parts of a beginning -----------------------------------------------------------------------------------------

    def _engine_for(self, request: ImageRequest) -> Engine:
        task: Task = "editing" if isinstance(request, EditRequest) else "text-to-image"
        if task not in self.engines:
            raise RequestError("The model that is served makes pictures from text only; it cannot edit.")
        return self.engines[task]

    def _drawings_of(self, work: _Work, run: Run) -> list[_Drawing]:
        assert work.request.steps
        drawings = []
        for index, row in enumerate(run.rows()):
            scheduler = copy.deepcopy(work.engine.pipeline.scheduler)
            denoise.set_times(scheduler, work.request.steps, row.latents.device)
            drawings.append(_Drawing(work=work, index=index, run=row, scheduler=scheduler))
        return drawings


def _preview_steps(work: _Work) -> list[int]:
    """After which steps to show a preview: spread evenly, each once, none after the last."""
    steps, wanted = work.request.steps or 1, work.begin.previews
    places = {round(steps * (i + 1) / (wanted + 1)) for i in range(wanted)}
    return sorted(place for place in places if 0 < place < steps)


def _failed(id: str, error: Exception, request: ImageRequest | None = None) -> Failed:
    """What an error says to the asker. What is not theirs or the machine's is ours, and is logged in full."""
    kind: FailureKind = "internal"
    if isinstance(error, RequestError):
        kind = "request"
    elif isinstance(error, CapacityError):
        kind = "capacity"
    elif isinstance(error, FloatingPointError):
        kind = "numbers"
    elif is_out_of_memory(error):
        size = f"a picture of {request.width}x{request.height}" if request is not None else "this request"
        return Failed(id=id, kind="capacity", reason=f"No memory for {size}; ask for a smaller one.")
    else:
        log.error("request %s failed", id, exc_info=error)
        return Failed(
            id=id, kind=kind, reason="The model failed at this request; the server's log says where."
        )
    return Failed(id=id, kind=kind, reason=str(error))
