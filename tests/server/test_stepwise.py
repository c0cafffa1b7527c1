"""Several requests at once over real pipelines at tiny size: each picture as if it were alone."""

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from kandinsky5 import denoise
from kandinsky5.denoise import RunGroup
from kandinsky5.engine import Engine
from kandinsky5.lora import LoraFormat, write_lora
from kandinsky5.pictures import content_hash
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.pipelines.remembered import KEPT
from kandinsky5.placement import use_mode
from kandinsky5.request import EditRequest, ImageRequest
from kandinsky5.service.messages import Begin, Begun, Failed, Finished, Previewed, Report, Stepped
from kandinsky5.service.preview import LatentPreview
from kandinsky5.service.stepwise import Stepwise
from tests.lora.conftest import make_lora
from tests.pipelines.conftest import LONG, MIDDLE, SHORT, picture


@pytest.fixture
def engines(editing: Kandinsky5I2IPipeline) -> dict:
    drawing = Kandinsky5T2IPipeline.from_pipe(editing)
    drawing.set_progress_bar_config(disable=True)
    return {
        "text-to-image": Engine(drawing, source="tiny"),
        "editing": Engine(editing, source="tiny"),
    }


@pytest.fixture
def stepwise(engines: dict) -> Stepwise:
    return Stepwise(engines, most=4)


def asked(prompt: str, seed: int, **settings) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "seed": seed, "width": 64, "height": 64, "steps": 3, **settings})


def run(stepwise: Stepwise) -> Iterator[Report]:
    while stepwise.busy:
        yield from stepwise.step()


def finished(reports) -> dict[str, Finished]:
    return {report.id: report for report in reports if isinstance(report, Finished)}


def difference(ours, theirs) -> int:
    return int(np.abs(np.asarray(ours, dtype=np.int16) - np.asarray(theirs, dtype=np.int16)).max())


def test_a_picture_does_not_depend_on_its_neighbours(stepwise: Stepwise, engines: dict) -> None:
    """Other prompts, lengths, guidance, numbers of steps, sizes, an edit, and one that joins later; each as alone."""
    source = picture(64, 64)
    requests = {
        "short": asked(SHORT, 1, guidance=5.0),
        "long": asked(LONG, 2, guidance=1.0, steps=5),
        "two": asked(MIDDLE, 3, count=2, negative_prompt="grey"),
        "wide": asked(SHORT, 4, width=96),
        "edit": EditRequest(
            prompt="make it blue", seed=5, width=64, height=64, steps=4, source=content_hash(source)
        ),
    }
    for name in ("short", "long", "two", "wide"):
        assert isinstance(stepwise.begin(Begin(id=name, request=requests[name])), Begun)
    reports = list(stepwise.step()) + list(stepwise.step())
    assert isinstance(stepwise.begin(Begin(id="edit", request=requests["edit"], picture=source)), Begun)
    reports += list(run(stepwise))
    found = finished(reports)
    assert set(found) == set(requests)
    for name, request in requests.items():
        edit = name == "edit"
        engine = engines["editing" if edit else "text-to-image"]
        alone = engine.generate(request, picture=source if edit else None)
        assert len(alone) == len(found[name].pictures) == request.count
        for ours, theirs in zip(found[name].pictures, alone, strict=True):
            assert ours.request == theirs.request
            # Levels of 255: rounding in float32 is all that a neighbour may change.
            assert difference(ours.image, theirs.image) <= 1, name
    assert difference(found["short"].pictures[0].image, found["edit"].pictures[0].image) > 20


@pytest.fixture
def multistep(editing: Kandinsky5I2IPipeline) -> dict:
    """An engine whose scheduler makes each step from the velocities of this one and the one before."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    )
    drawing = Kandinsky5T2IPipeline.from_pipe(editing, scheduler=scheduler)
    drawing.set_progress_bar_config(disable=True)
    return {"text-to-image": Engine(drawing, source="tiny")}


@pytest.mark.parametrize("room", [True, False], ids=["at once", "no memory for two rows"])
def test_a_scheduler_that_remembers_steps_remembers_those_of_its_own_picture(
    multistep: dict, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Pictures of other lengths that join and leave: each as alone, each step told to its scheduler once."""
    engine = multistep["text-to-image"]
    requests = {
        "long": asked(SHORT, 1, steps=7, guidance=5.0),
        "two": asked(MIDDLE, 2, steps=4, count=2, guidance=3.0),
        "late": asked(LONG, 3, steps=5, guidance=1.0),
    }
    alone = {name: engine.generate(request) for name, request in requests.items()}
    stepped, real_step, real_pass = [], DPMSolverMultistepScheduler.step, denoise._velocity

    def step(self: DPMSolverMultistepScheduler, *args, **kwargs):
        stepped.append(self)
        return real_step(self, *args, **kwargs)

    def velocity(transformer, latents, *args):
        if len(latents) > 1 and not room:
            raise torch.OutOfMemoryError("full")
        return real_pass(transformer, latents, *args)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", step)
    monkeypatch.setattr(denoise, "_velocity", velocity)
    stepwise = Stepwise(multistep, most=4)
    for name in ("long", "two"):
        assert isinstance(stepwise.begin(Begin(id=name, request=requests[name])), Begun)
    reports = list(stepwise.step()) + list(stepwise.step())
    assert isinstance(stepwise.begin(Begin(id="late", request=requests["late"])), Begun)
    found = finished(reports + list(run(stepwise)))
    for name, pictures in alone.items():
        for ours, theirs in zip(found[name].pictures, pictures, strict=True):
            assert difference(ours.image, theirs.image) <= 1, name
    assert sorted(Counter(map(id, stepped)).values()) == [4, 4, 5, 7]
    assert engine.pipeline.scheduler not in stepped


def test_a_preview_is_where_a_scheduler_that_remembers_steps_is_heading(
    multistep: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepwise = Stepwise(multistep, most=4)
    stepwise.begin(Begin(id="a", request=asked(SHORT, 0, steps=8), previews=3))
    estimates, real = [], DPMSolverMultistepScheduler.step

    def step(self: DPMSolverMultistepScheduler, *args, **kwargs):
        taken = real(self, *args, **kwargs)
        estimates.append(stepwise._preview.picture(self.model_outputs[-1]))
        return taken

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", step)
    looks = [report.image for report in run(stepwise) if isinstance(report, Previewed)]
    assert [difference(look, estimates[at]) <= 1 for look, at in zip(looks, (1, 3, 5), strict=True)] == [
        True
    ] * 3


def test_a_scheduler_that_fails_fails_its_own_request_only(multistep: dict, monkeypatch) -> None:
    stepwise = Stepwise(multistep, most=4)
    for name, seed in (("bad", 0), ("good", 1)):
        stepwise.begin(Begin(id=name, request=asked(SHORT, seed)))
    bad = next(d for d in stepwise._drawings if d.work.begin.id == "bad")

    def step(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(bad.scheduler, "step", step)
    reports = list(run(stepwise))
    assert [(r.id, r.kind) for r in reports if isinstance(r, Failed)] == [("bad", "capacity")]
    assert set(finished(reports)) == {"good"}


def test_passes_are_shared_and_never_larger_than_allowed(stepwise: Stepwise, monkeypatch) -> None:
    sizes, real = [], RunGroup.velocities
    monkeypatch.setattr(
        RunGroup,
        "velocities",
        lambda group, *args, **kwargs: sizes.append(len(group.runs)) or real(group, *args, **kwargs),
    )
    for seed in range(6):
        stepwise.begin(Begin(id=str(seed), request=asked(SHORT, seed)))
    list(run(stepwise))
    assert sizes == [4, 4, 4, 2, 2, 2]


def test_adapters_are_worn_by_those_who_ask_for_them(
    engines: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of working at once, and the same adapter at two weights: each as alone, and no pass is shared."""
    drawing, editing = engines["text-to-image"], engines["editing"]
    own = copy.deepcopy(editing.pipeline.transformer)  # adapters stay in a network
    editing = Engine(Kandinsky5I2IPipeline.from_pipe(editing.pipeline, transformer=own), source="tiny")
    drawing = editing.over(Kandinsky5T2IPipeline.from_pipe(editing.pipeline))
    for engine in (drawing, editing):
        engine.pipeline.set_progress_bar_config(disable=True)
    for seed, name in enumerate(("one", "two")):
        write_lora(make_lora(10 * seed), tmp_path / f"{name}.safetensors", LoraFormat.comfyui)
        editing.adapters.add(name, str(tmp_path / f"{name}.safetensors"))
    stepwise = Stepwise({"text-to-image": drawing, "editing": editing}, most=4)
    source = picture(64, 64)
    edit = {"prompt": "make it blue", "width": 64, "height": 64, "steps": 3, "source": content_hash(source)}
    requests = {
        "plain": asked(SHORT, 1),
        "one": asked(SHORT, 1, lora=[["one", 1.0]]),
        "half": asked(SHORT, 1, lora=[["one", 0.5]]),
        "both": asked(SHORT, 1, lora=[["one", 1.0], ["two", -1.0]]),
        "edited": EditRequest(**edit, seed=1, lora=(("one", 1.0),)),
    }
    for name, request in requests.items():
        begin = Begin(id=name, request=request, picture=source if name == "edited" else None)
        assert isinstance(stepwise.begin(begin), Begun)
    worn, real = [], RunGroup.velocities
    monkeypatch.setattr(
        RunGroup,
        "velocities",
        lambda group, *args, **kwargs: worn.append(len(group.runs)) or real(group, *args, **kwargs),
    )
    found = finished(run(stepwise))
    assert worn == [1, 2, 1, 1] * 3, "the edit and the drawing with the same adapter share a pass"
    pictures = []
    for name, request in requests.items():
        engine = editing if name == "edited" else drawing
        alone = engine.generate(request, picture=source if name == "edited" else None)[0]
        ours = found[name].pictures[0]
        assert difference(ours.image, alone.image) <= 1, name
        assert {key for key in ours.software if key.startswith("lora")} == {
            f"lora {adapter}" for adapter, _ in request.lora or ()
        }
        pictures.append(ours.image)
    for other in pictures[1:4]:
        assert difference(pictures[0], other) > 8


def test_steps_are_told_for_all_pictures_together(stepwise: Stepwise) -> None:
    stepwise.begin(Begin(id="a", request=asked(SHORT, 0, count=2, steps=2)))
    told = [(report.done, report.total) for report in run(stepwise) if isinstance(report, Stepped)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_is_dropped_takes_no_more_steps(stepwise: Stepwise) -> None:
    for name in "ab":
        stepwise.begin(Begin(id=name, request=asked(SHORT, 0)))
    list(stepwise.step())
    assert stepwise.drop("a") and not stepwise.drop("a")
    assert {report.id for report in run(stepwise)} == {"b"}


def failing_above(pictures: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Forward passes of more runs than that raise."""
    sizes, real = [], RunGroup.velocities

    def velocities(group: RunGroup, *args, **kwargs):
        sizes.append(len(group.runs))
        if len(group.runs) > pictures:
            raise error
        return real(group, *args, **kwargs)

    monkeypatch.setattr(RunGroup, "velocities", velocities)
    return sizes


def test_where_memory_ends_the_group_is_halved_and_stays_so(stepwise: Stepwise, monkeypatch) -> None:
    sizes = failing_above(1, torch.OutOfMemoryError("full"), monkeypatch)
    for seed in range(4):
        stepwise.begin(Begin(id=str(seed), request=asked(SHORT, seed, steps=1)))
    assert len(finished(run(stepwise))) == 4
    assert sizes == [4, 2, 1, 1, 1, 1]


def test_without_memory_for_one_only_that_request_fails(stepwise: Stepwise, monkeypatch) -> None:
    real = RunGroup.velocities

    def velocities(group: RunGroup, *args, **kwargs):
        if group.runs[0].latents.shape[3] > 8:
            raise torch.OutOfMemoryError("full")
        return real(group, *args, **kwargs)

    monkeypatch.setattr(RunGroup, "velocities", velocities)
    stepwise.begin(Begin(id="wide", request=asked(SHORT, 0, width=96)))
    stepwise.begin(Begin(id="fits", request=asked(SHORT, 0)))
    reports = list(run(stepwise))
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    assert (failed.id, failed.kind) == ("wide", "capacity") and "96x64" in failed.reason
    assert set(finished(reports)) == {"fits"}


def test_numbers_that_are_none_fail_their_own_request_only(stepwise: Stepwise, engines: dict) -> None:
    for name, seed in (("bad", 0), ("good", 1)):
        stepwise.begin(Begin(id=name, request=asked(SHORT, seed)))
    bad = next(d for d in stepwise._drawings if d.work.begin.id == "bad")
    bad.run.latents[0, 0, 0, 0, 0] = float("nan")
    reports = list(run(stepwise))
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    assert (failed.id, failed.kind) == ("bad", "numbers") and "--precision fp32" in failed.reason
    alone = engines["text-to-image"].generate(asked(SHORT, 1))[0]
    assert difference(finished(reports)["good"].pictures[0].image, alone.image) <= 1


def test_any_other_error_is_traced_to_its_request(stepwise: Stepwise, monkeypatch) -> None:
    real = RunGroup.velocities

    def velocities(group: RunGroup, *args, **kwargs):
        if any(run.guidance == 7.0 for run in group.runs):
            raise RuntimeError("a bug")
        return real(group, *args, **kwargs)

    monkeypatch.setattr(RunGroup, "velocities", velocities)
    stepwise.begin(Begin(id="bad", request=asked(SHORT, 0, guidance=7.0, count=2)))
    stepwise.begin(Begin(id="good", request=asked(SHORT, 1)))
    reports = list(run(stepwise))
    assert [(r.id, r.kind) for r in reports if isinstance(r, Failed)] == [("bad", "internal")]
    assert "a bug" not in next(r.reason for r in reports if isinstance(r, Failed))
    assert set(finished(reports)) == {"good"}


def test_what_cannot_be_drawn_is_said_at_its_beginning(engines: dict) -> None:
    only_text = Stepwise({"text-to-image": engines["text-to-image"]}, most=2)
    source = picture(64, 64)
    edit = EditRequest(prompt="x", source=content_hash(source))
    failed = only_text.begin(Begin(id="a", request=edit, picture=source))
    assert isinstance(failed, Failed) and failed.kind == "request" and not only_text.busy


def test_tokens_are_counted(stepwise: Stepwise, engines: dict) -> None:
    source = picture(64, 64)
    begun = stepwise.begin(
        Begin(id="a", request=EditRequest(prompt="make it blue", source=content_hash(source)), picture=source)
    )
    assert isinstance(begun, Begun)
    assert begun.image_tokens > 0 and 0 < begun.text_tokens < 20
    plain = stepwise.begin(Begin(id="b", request=asked(SHORT, 0)))
    assert isinstance(plain, Begun) and plain.image_tokens == 0


def test_previews_come_where_they_are_due(stepwise: Stepwise) -> None:
    stepwise.begin(Begin(id="a", request=asked(SHORT, 0, steps=8), previews=3))
    places, step = [], 0
    for report in run(stepwise):
        if isinstance(report, Previewed):
            places.append((report.index, step))
            assert report.image.size == (8, 8)
        step += isinstance(report, Stepped)
    assert places == [(0, 1), (1, 3), (2, 5)], "before the steps 2, 4 and 6 are told"
    stepwise.begin(Begin(id="b", request=asked(SHORT, 0, steps=2), previews=3))
    assert sum(isinstance(report, Previewed) for report in run(stepwise)) == 1


def test_a_preview_of_the_embedded_model_shows_its_colours() -> None:
    """The linear map follows the loaded autoencoder: on a picture it has not seen, colours are near the real ones."""
    from diffusers import AutoencoderKL

    from kandinsky5 import latents
    from kandinsky5.pictures.arrays import to_pixels
    from kandinsky5.variants import embedded_folder

    vae = AutoencoderKL.from_pretrained(embedded_folder() / "vae").eval()
    preview = LatentPreview.of(vae)
    source = picture(128, 128, seed=8)
    with torch.no_grad():
        encoded = latents.encode(
            to_pixels([source]), vae, rows=[0], generator=torch.Generator().manual_seed(0)
        )
    shown = np.asarray(preview.picture(encoded), dtype=float)
    real = np.asarray(source.resize(shown.shape[1::-1], 4), dtype=float)
    assert shown.shape == (16, 16, 3)
    assert np.abs(shown - real).mean() < 15, "levels of 255"
    assert np.abs(shown - real.mean((0, 1))).mean() > 30, "a plain colour would not do"


@pytest.mark.usefixtures("few_tokens")
def test_a_prompt_is_written_out_between_the_steps_of_others(stepwise: Stepwise, engines: dict) -> None:
    """The other request is drawn meanwhile, both are what they would be alone, and one can be given up."""
    engine, request = engines["text-to-image"], asked("a red circle", 1)
    longer = engine.expanded(request)
    other = asked("a star", 2, steps=20)
    assert isinstance(stepwise.begin(Begin(id="other", request=other)), Begun)
    for name in ("short", "dropped"):
        assert stepwise.begin(Begin(id=name, request=request, expand=True)) is None
    reports = list(stepwise.step())
    assert stepwise.drop("dropped") and not stepwise.drop("dropped")
    reports += list(run(stepwise))
    (begun,) = [report for report in reports if isinstance(report, Begun)]
    assert (begun.id, begun.expanded, begun.request.prompt) == ("short", True, longer.prompt)
    found = finished(reports)
    assert set(found) == {"other", "short"}
    stepped = [report.done for report in reports[: reports.index(begun)] if isinstance(report, Stepped)]
    assert 2 < len(stepped) < 20, "it joins while the other is drawn"
    for name, alone in (("short", longer), ("other", other)):
        assert difference(found[name].pictures[0].image, engine.generate(alone)[0].image) <= 1


def test_a_prompt_that_cannot_be_written_out_fails_alone(stepwise: Stepwise) -> None:
    assert isinstance(stepwise.begin(Begin(id="fine", request=asked(SHORT, 1))), Begun)
    assert stepwise.begin(Begin(id="odd", request=asked("a <|image_pad|>", 2), expand=True)) is None
    reports = list(run(stepwise))
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    assert (failed.id, failed.kind) == ("odd", "request") and set(finished(reports)) == {"fine"}


@pytest.fixture
def expected(engines: dict, monkeypatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the times that the network is told to expect, in its fast mode, and tables that it makes alone."""
    network = engines["text-to-image"].pipeline.transformer
    use_mode(network, "exact")
    found, real = [], network.fast_path.expect
    monkeypatch.setattr(
        network.fast_path, "expect", lambda times: found.append(tuple(times.shape)) or real(times)
    )
    yield found
    use_mode(network, None)


def test_drawings_that_stay_together_say_which_times_follow(
    stepwise: Stepwise, engines: dict, expected
) -> None:
    """So one table serves the steps they take together, from the second on; when they part nothing is expected."""
    engine = engines["text-to-image"]
    requests = {"first": asked(SHORT, 1, steps=6), "second": asked(MIDDLE, 2, steps=3, guidance=1.0)}
    alone = {name: engine.generate(request)[0].image for name, request in requests.items()}
    path = engine.pipeline.transformer.fast_path
    expected.clear()
    stepwise.begin(Begin(id="first", request=requests["first"]))
    reports = list(stepwise.step())
    assert expected == [] and path._tables == [], "the next pass may be of others"
    reports += list(stepwise.step())
    assert expected == [(5,)] and len(path._tables) == 1
    stepwise.begin(Begin(id="second", request=requests["second"]))
    reports += list(stepwise.step())
    assert expected == [(5,), (0,)]
    reports += list(stepwise.step())
    assert expected == [(5,), (0,), (2, 3)], (
        "two steps together: a guided one's branches, and the other's row"
    )
    assert len(path._tables) == 1
    table = path._tables[0]
    reports += list(stepwise.step())
    assert len(table._steps) == 2, "made at once"
    reports += list(run(stepwise))
    assert expected[3:] == [(0, 3)] and path._tables == [], "the last step is taken alone"
    for name, image in alone.items():
        assert difference(finished(reports)[name].pictures[0].image, image) <= 1


def test_nothing_is_made_ahead_where_sizes_take_turns(stepwise: Stepwise, expected) -> None:
    expected.clear()
    for name, width in (("small", 64), ("wide", 96)):
        stepwise.begin(Begin(id=name, request=asked(SHORT, 1, width=width)))
    assert len(finished(run(stepwise))) == 2 and expected == []


def test_a_prompt_that_comes_again_is_not_encoded_again(engines: dict) -> None:
    """With another seed, number, size or step; its picture has the bytes of the same request asked alone."""
    engine, encoded = engines["text-to-image"], []
    handle = engine.pipeline.text_encoder.register_forward_hook(lambda *_: encoded.append(1))

    def states(prompt: str = SHORT, seed: int = 1, **settings) -> torch.Tensor:
        return engine.begin(engine.resolve(asked(prompt, seed, **settings)))[0].positive.text

    first = states()
    assert torch.equal(states(seed=2, width=96, steps=9), first) and len(encoded) == 1
    assert len(states(count=3)) == 3 and len(encoded) == 1
    for others, settings in enumerate(
        [{"negative_prompt": "grey"}, {"guidance": 1.0}, {"max_sequence_length": 64}, {"prompt": LONG}],
        start=2,
    ):
        states(**settings)
        states(seed=7, **settings)
        assert len(encoded) == others, settings
    for i in range(KEPT):
        states(f"{SHORT} {i}")
    states()
    assert len(encoded) == 5 + KEPT + 1, "the oldest has gone"
    handle.remove()
    engine.begin(engine.resolve(asked(MIDDLE, 1)))
    again = engine.resolve(asked(MIDDLE, 2, guidance=4.0))
    fresh = Engine(engine.pipeline, source="tiny")
    pictures = [finished(run_alone(one, again))["x"].pictures[0].image for one in (engine, fresh)]
    assert difference(*pictures) == 0


def run_alone(engine: Engine, request: ImageRequest) -> list[Report]:
    stepwise = Stepwise({"text-to-image": engine}, most=1)
    assert isinstance(stepwise.begin(Begin(id="x", request=request)), Begun)
    return list(run(stepwise))


def test_an_edit_is_encoded_with_its_own_picture(engines: dict) -> None:
    engine, sources = engines["editing"], [picture(64, 64), picture(64, 64).rotate(90)]
    states = []
    for source in sources:
        request = EditRequest(prompt=SHORT, seed=5, width=64, height=64, source=content_hash(source))
        states.append(engine.begin(engine.resolve(request, source), source)[0].positive.text)
    assert not torch.equal(*states)
