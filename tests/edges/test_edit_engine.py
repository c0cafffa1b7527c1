"""The engine over a real editing pipeline at tiny size: sizes, seeds that know their source, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky5.hub
from kandinsky5.engine import DEFAULT_EDIT_TOKENS, Engine
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.pictures import content_hash
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.request import EditRequest, ImageRequest
from tests.pipelines.conftest import picture


@pytest.fixture
def engine(editing: Kandinsky5I2IPipeline) -> Engine:
    return Engine(editing, source="tiny")


def request_for(source: Image.Image, **fields: object) -> EditRequest:
    return EditRequest(**{"prompt": "make it blue", "source": content_hash(source), "seed": 3, **fields})  # type: ignore[arg-type]


def noise_of(engine: Engine, request: ImageRequest, source: Image.Image | None = None) -> np.ndarray:
    """The noise of the first picture, as the network's first call is given it."""
    seen: list[torch.Tensor] = []
    handle = engine.pipeline.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"][0, ..., :16].clone()), with_kwargs=True
    )
    engine.generate(replace(request, steps=1), picture=source)
    handle.remove()
    return seen[0].flatten().numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_an_edit_does_not_reuse_the_noise_its_source_was_drawn_from(engine: Engine) -> None:
    """Same seed, same size, same network: drawn, then edited. Among 4096 numbers 0.1 would be six deviations."""
    drawing = Engine(Kandinsky5T2IPipeline(**engine.pipeline.components), source="tiny")
    drawn = ImageRequest(prompt="a red circle", seed=3, width=128, height=128)
    source = drawing.generate(replace(drawn, steps=2))[0].image
    noise = noise_of(drawing, drawn)
    assert correlation(noise, noise_of(drawing, drawn)) > 0.999, "a seed is a noise"
    edit = request_for(source, width=128, height=128)
    assert abs(correlation(noise, noise_of(engine, edit, source))) < 0.1
    # Without the fold it would be the same: the pipeline itself takes the caller's generator as it is.
    direct: list[torch.Tensor] = []
    handle = engine.pipeline.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: direct.append(kwargs["hidden_states"][0, ..., :16].clone()), with_kwargs=True
    )
    engine.pipeline(
        image=source, prompt="make it blue", num_inference_steps=1, generator=torch.Generator().manual_seed(3)
    )
    handle.remove()
    assert correlation(noise, direct[0].flatten().numpy()) > 0.999


def test_the_noise_depends_on_source_and_seed_alone(engine: Engine) -> None:
    first, second = picture(seed=0), picture(seed=1)
    noise = noise_of(engine, request_for(first), first)
    assert correlation(noise, noise_of(engine, request_for(first, prompt="add a star"), first)) > 0.999
    assert abs(correlation(noise, noise_of(engine, request_for(second), second))) < 0.1
    assert abs(correlation(noise, noise_of(engine, request_for(first, seed=4), first))) < 0.1


def test_what_is_left_open_comes_from_the_checkpoint_and_the_source(engine: Engine) -> None:
    wide = picture(300, 150)
    resolved = engine.resolve(request_for(wide, seed=None), wide)
    assert (resolved.width, resolved.height, resolved.steps) == (128, 128, 3)
    assert resolved.max_sequence_length == DEFAULT_EDIT_TOKENS and resolved.seed is not None
    shaped = engine.resolve(request_for(wide, size_from="source"), wide)
    assert isinstance(shaped, EditRequest)
    assert (shaped.width, shaped.height, shaped.size_from) == (176, 96, None)
    assert engine.resolve(shaped, wide) == shaped
    one_side = engine.resolve(request_for(wide, height=64), wide)
    assert (one_side.width, one_side.height) == (128, 64)


def test_pictures_say_what_the_fit_did_and_can_be_had_again_alone(engine: Engine) -> None:
    wide = picture(300, 150)
    together = engine.generate(request_for(wide, count=2, fit="pad"), picture=wide)
    assert [made.request.seed for made in together] == [3, 4]
    assert [made.fit.changes for made in together if made.fit] == ["white added above and below"] * 2
    for made in together:
        (alone,) = engine.generate(made.request, picture=wide)
        assert alone.request == made.request
        difference = np.asarray(alone.image, int) - np.asarray(made.image, int)
        assert np.abs(difference).max() <= 1


def test_it_is_what_the_pipeline_draws(engine: Engine, editing: Kandinsky5I2IPipeline) -> None:
    source, request = picture(), request_for(picture(), negative_prompt="grey", guidance=2.0, steps=2)
    (made,) = engine.generate(request, picture=source)
    expected = editing(
        source,
        "make it blue",
        "grey",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(request.noise_seeds[0]),
    ).images[0]
    assert made.image.tobytes() == expected.tobytes()


class TestRefusals:
    def test_another_picture_than_the_request_names(self, engine: Engine) -> None:
        with pytest.raises(RequestError, match=r"is for the picture [0-9a-f]{12}\.\.\., and this one is"):
            engine.generate(request_for(picture(seed=0)), picture=picture(seed=1))

    def test_no_picture(self, engine: Engine) -> None:
        with pytest.raises(RequestError, match="needs its source picture"):
            engine.generate(request_for(picture()))

    def test_the_other_task(self, engine: Engine, pipeline: Kandinsky5T2IPipeline) -> None:
        with pytest.raises(RequestError, match="opened for editing"):
            engine.generate(ImageRequest(prompt="a star"))
        with pytest.raises(RequestError, match="tiny was opened for making pictures from text only"):
            Engine(pipeline, source="tiny").generate(request_for(picture()), picture=picture())

    def test_no_memory(self, engine: Engine) -> None:
        def full(done: int, total: int) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(CapacityError, match="2 of 128x128 at once"):
            engine.generate(request_for(picture(), count=2), picture=picture(), on_step=full)


class TestLoading:
    def test_the_task_chooses_the_class(self, saved_editing_folder: str) -> None:
        editing = load_pipeline(saved_editing_folder, task="editing", device="cpu", dtype="float32")
        drawing = load_pipeline(saved_editing_folder, device="cpu", dtype="float32")
        assert (type(editing), type(drawing)) == (Kandinsky5I2IPipeline, Kandinsky5T2IPipeline)

    def test_a_row_that_cannot_edit_is_refused_before_it_is_fetched(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kandinsky5.hub, "fetch", lambda *_, **__: pytest.fail("fetched"))
        with pytest.raises(RequestError, match="t2i-lite-sft makes pictures from text only"):
            load_pipeline("t2i-lite-sft", task="editing", device="cpu")


@pytest.mark.usefixtures("few_tokens")
def test_an_instruction_is_written_out_for_the_source_that_is_shown(editing: Kandinsky5I2IPipeline) -> None:
    engine = Engine(editing, source="tiny")
    texts = set()
    for seed in (1, 2):
        source = picture(seed=seed)
        request = EditRequest(prompt="make it blue", source=content_hash(source), seed=4)
        longer = engine.expanded(request, source)
        assert replace(longer, prompt=request.prompt) == request
        texts.add(longer.prompt)
    assert len(texts) == 2 and "make it blue" not in texts
