"""The engine over a real pipeline at tiny size."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

import kandinsky5
from kandinsky5.engine import DEFAULT_TEXT_TOKENS, Engine, OnStep
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.generated import GeneratedImage
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.request import ImageRequest


@pytest.fixture
def engine(pipeline: Kandinsky5T2IPipeline) -> Engine:
    return Engine(pipeline, source="tiny")


def pixels(picture: GeneratedImage) -> np.ndarray:
    return np.asarray(picture.image, dtype=np.int16)


def test_what_is_left_open_comes_from_the_checkpoint(engine: Engine, pipeline: Kandinsky5T2IPipeline) -> None:
    resolved = engine.resolve(ImageRequest(prompt="a red circle"))
    assert (resolved.width, resolved.height) == pipeline.default_size == (64, 64)
    assert (resolved.steps, resolved.guidance) == (3, pipeline.default_guidance)
    assert resolved.seed is not None
    assert engine.resolve(resolved) == resolved


def test_what_is_asked_for_stays(engine: Engine) -> None:
    asked = ImageRequest(prompt="a", width=32, height=48, steps=1, guidance=0, seed=0, max_sequence_length=7)
    assert engine.resolve(asked) == asked
    assert engine.resolve(replace(asked, width=None)).width == 64


def test_the_text_limit_is_the_pipelines_own_default() -> None:
    default = inspect.signature(Kandinsky5T2IPipeline.__call__).parameters["max_sequence_length"].default
    assert default == DEFAULT_TEXT_TOKENS


def test_pictures_are_those_of_the_pipeline(engine: Engine, pipeline: Kandinsky5T2IPipeline) -> None:
    asked = ImageRequest(
        prompt="a red circle", negative_prompt="blue", width=32, height=48, steps=2, guidance=2.5, seed=11
    )
    ours = engine.generate(asked)[0]
    theirs = pipeline(
        "a red circle",
        "blue",
        height=48,
        width=32,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(11),
    ).images[0]
    assert ours.image.size == (32, 48)
    assert ours.image.tobytes() == theirs.tobytes()


def test_each_picture_can_be_had_again_alone_from_its_own_request(engine: Engine) -> None:
    together = engine.generate(ImageRequest(prompt="a red circle", seed=5, count=3))
    assert [picture.request.seed for picture in together] == [5, 6, 7]
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 8
    for picture in together:
        alone = engine.generate(picture.request)
        assert len(alone) == 1 and alone[0].request == picture.request
        # A batch may round otherwise than one row does; a level of 255 is all it may come to.
        assert np.abs(pixels(alone[0]) - pixels(picture)).max() <= 1


def test_a_seed_is_chosen_and_told(engine: Engine) -> None:
    first, second = (engine.generate(ImageRequest(prompt="a", steps=1))[0] for _ in range(2))
    assert first.request.seed != second.request.seed


def test_a_picture_says_what_made_it(engine: Engine) -> None:
    picture = engine.generate(ImageRequest(prompt="a", steps=1))[0]
    assert picture.model == "tiny"
    assert picture.seconds > 0
    assert picture.software["torch"] == torch.__version__
    assert picture.software["kandinsky5"] == kandinsky5.__version__
    assert (picture.software["device"], picture.software["dtype"]) == ("cpu", "float32")


def test_steps_are_reported_as_they_are_done(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    engine.generate(ImageRequest(prompt="a", steps=4), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_run_can_be_stopped_and_the_next_is_as_ever(engine: Engine) -> None:
    request = ImageRequest(prompt="a red circle", seed=3)
    before = engine.generate(request)[0]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(request, on_step=stop)
    assert engine.generate(request)[0].image.tobytes() == before.image.tobytes()


def no_device_memory(done: int, total: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_memory(done: int, total: int) -> None:
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("full", [no_device_memory, no_memory])
def test_no_memory_is_said_with_what_would_help(engine: Engine, full: OnStep) -> None:
    with pytest.raises(CapacityError, match=r"2 of 64x64 at once do not fit .* fewer pictures"):
        engine.generate(ImageRequest(prompt="a", count=2), on_step=full)


@pytest.mark.parametrize(
    ("broken", "words"), [("transformer", "in float32; another seed"), ("vae", "The autoencoder gave values")]
)
def test_values_that_are_no_numbers_are_no_picture(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: str, words: str
) -> None:
    """From either model, in either way of drawing; black is what a picture of them would be."""
    component = getattr(engine.pipeline, broken)
    name = "forward" if broken == "transformer" else "decode"
    real = getattr(component, name)
    monkeypatch.setattr(component, name, lambda *a, **k: tuple(x * float("nan") for x in real(*a, **k)))
    request = ImageRequest(prompt="a", seed=1, steps=2)
    seen: list[int] = []
    with pytest.raises(FloatingPointError, match=words):
        engine.generate(request, on_step=lambda done, total: seen.append(done))
    assert seen == [1, 2]
    latents = torch.full((1, 1, 8, 8, 16), float("nan") if broken == "transformer" else 0.0)
    with pytest.raises(FloatingPointError, match=words):
        engine.develop(latents)


def test_latents_that_overflowed_are_no_picture(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity is clamped to white on the way to a picture."""
    network = engine.pipeline.transformer
    real = network.forward
    monkeypatch.setattr(network, "forward", lambda *a, **k: tuple(x + float("inf") for x in real(*a, **k)))
    with pytest.raises(FloatingPointError, match="no numbers"):
        engine.generate(ImageRequest(prompt="a", seed=1, steps=1, guidance=1))


def test_other_errors_pass_through(engine: Engine) -> None:
    def broken(done: int, total: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        engine.generate(ImageRequest(prompt="a"), on_step=broken)


def test_what_the_pipeline_refuses_is_a_request_error(
    engine: Engine, pipeline: Kandinsky5T2IPipeline
) -> None:
    pipeline.vae_scale_factor_spatial = 16
    with pytest.raises(RequestError, match="48 is not a multiple of 32"):
        engine.generate(ImageRequest(prompt="a", width=48, height=64))
