"""OpenAI's own Python package against running servers."""

import base64
import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from kandinsky5.provenance import Provenance, stored_json

from .conftest import LORA, RunningServer, start, wait_until

FEW = {"steps": 2, "seed": 7}


def opened(item) -> Image.Image:
    assert item.url is None
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_the_embedded_model_draws(embedded: RunningServer) -> None:
    client = embedded.openai
    answer = client.images.generate(prompt="a red circle", size="64x48", n=2, extra_body=FEW)
    assert (answer.size, answer.output_format, answer.background, answer.quality) == (
        *("64x48", "png", "opaque"),
        "auto",
    )
    assert answer.data is not None and len(answer.data) == 2
    pictures = [opened(item) for item in answer.data]
    assert [picture.size for picture in pictures] == [(64, 48)] * 2
    assert np.abs(pixels(pictures[0]) - pixels(pictures[1])).max() > 8
    assert answer.usage is not None and answer.usage.output_tokens == 2 * 4 * 3
    assert answer.usage.input_tokens_details.text_tokens == answer.usage.input_tokens > 0
    assert answer.model_dump()["model_parameters"]["seed"] == 7
    again = client.images.generate(prompt="a red circle", size="64x48", extra_body={"steps": 2, "seed": 8})
    assert again.data is not None and again.data[0].model_dump()["seed"] == 8
    assert np.abs(pixels(opened(again.data[0])) - pixels(pictures[1])).max() <= 1, "seed + i draws picture i"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what a process has mapped")
def test_pictures_reach_clients_through_a_process_without_torch(embedded: RunningServer) -> None:
    """What the worker sends, previews too, holds no tensors, so the server's process needs no library for them."""
    import psutil

    events = embedded.openai.images.generate(
        prompt="a red circle", size="64x48", stream=True, partial_images=1, extra_body=FEW
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "completed"]
    process = psutil.Process(embedded.process.pid)
    mapped = {
        of: {Path(file.path).name for file in of.memory_maps()} for of in (process, worker_of(embedded))
    }
    assert [any(name.startswith("libtorch") for name in names) for names in mapped.values()] == [False, True]


def test_models_are_listed(embedded: RunningServer, served: RunningServer) -> None:
    (model,) = embedded.openai.models.list().data
    assert (model.id, model.object) == ("embedded", "model")
    assert model.model_dump()["defaults"]["size"] == "256x256"
    assert embedded.openai.models.retrieve("demo").id == "embedded"
    with pytest.raises(openai.NotFoundError) as error:
        embedded.openai.models.retrieve("dall-e-3")
    assert error.value.code == "model_not_found"
    (other,) = served.openai.models.list().data
    assert other.model_dump()["defaults"]["tasks"] == ["text-to-image", "editing"]
    assert served.openai.models.retrieve(other.id).id == other.id, "a folder's name has slashes"


def test_a_prompt_is_written_out_and_told(served: RunningServer, embedded: RunningServer) -> None:
    expand = {**FEW, "expand_prompt": True}
    answer = served.openai.images.generate(prompt="a red circle", size="64x64", extra_body=expand)
    (item,) = answer.data or []
    longer = item.revised_prompt
    assert longer and longer != "a red circle"
    assert Provenance.from_json(stored_json(opened(item)) or "").request.prompt == longer
    direct = served.openai.images.generate(prompt=longer, size="64x64", extra_body=FEW)
    assert direct.data and direct.data[0].revised_prompt is None
    assert np.abs(pixels(opened(item)) - pixels(opened(direct.data[0]))).max() <= 1
    with pytest.raises(openai.BadRequestError, match="only reads"):
        embedded.openai.images.generate(prompt="a red circle", extra_body=expand)


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_what_a_picture_says_of_itself(
    served: RunningServer, output_format: str, kind: str
) -> None:
    answer = served.openai.images.generate(
        prompt="a red circle",
        size="64x64",
        output_format=output_format,  # type: ignore[arg-type]
        output_compression=100 if output_format == "png" else 80,
        extra_body={**FEW, "guidance": 2.5, "negative_prompt": "grey"},
    )
    assert answer.data is not None
    picture = opened(answer.data[0])
    assert picture.format == kind
    told = Provenance.from_json(stored_json(picture) or "").request
    assert (told.prompt, told.negative_prompt, told.seed, told.steps, told.guidance) == (
        *("a red circle", "grey", 7),
        *(2, 2.5),
    )


def test_compression_changes_the_size_of_a_file(served: RunningServer) -> None:
    def length(compression: int) -> int:
        answer = served.openai.images.generate(
            prompt="a", output_format="jpeg", output_compression=compression, extra_body=FEW
        )
        return len(answer.data[0].b64_json)  # type: ignore[index, arg-type]

    assert length(10) < 0.7 * length(95)


@pytest.mark.parametrize(("quality", "steps"), [("low", 2), ("medium", 3), ("high", 4), ("auto", 3)])
def test_quality_is_steps(served: RunningServer, quality, steps: int) -> None:
    answer = served.openai.images.generate(prompt="a", size="64x64", quality=quality)
    assert answer.model_dump()["model_parameters"]["steps"] == steps
    assert answer.quality == ("medium" if quality == "auto" else quality)


def test_a_url_can_be_fetched_without_a_key_and_is_not_guessed(served: RunningServer) -> None:
    answer = served.openai.images.generate(prompt="a", size="64x64", response_format="url", extra_body=FEW)
    assert answer.data is not None and answer.data[0].b64_json is None
    url = answer.data[0].url
    assert url is not None and url.startswith(served.address)
    with served.client() as client:
        found = client.get(url)
        assert Image.open(io.BytesIO(found.content)).size == (64, 64)
        assert found.headers["content-type"] == "image/png"
        for name in ("x" * 32, "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd"):
            assert client.get(f"/v1/images/files/{name}").status_code == 404


def test_a_stream_shows_the_picture_on_its_way(embedded: RunningServer) -> None:
    """Documented events in order; the last preview is nearer to the picture than a plain one would be.

    At the model's own size: where it never learnt to draw, three quarters of the steps leave half of it open.
    """
    events = list(
        embedded.openai.images.generate(
            prompt="a red circle on a blue ground",
            size="256x256",
            stream=True,
            partial_images=3,
            extra_body={"steps": 8, "seed": 1},
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + [
        "image_generation.completed"
    ]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]  # type: ignore[union-attr]
    assert all((event.size, event.output_format) == ("256x256", "png") for event in events)
    shown = [pixels(opened(_Item(event.b64_json))) for event in events]
    assert all(picture.shape == (256, 256, 3) for picture in shown)
    distances = [np.abs(picture - shown[-1]).mean() for picture in shown[:-1]]
    assert distances[2] < distances[0]
    assert distances[2] < np.abs(shown[-1] - shown[-1].mean((0, 1))).mean()
    assert events[-1].usage.output_tokens == 256  # type: ignore[union-attr]


class _Item:
    url = None

    def __init__(self, b64_json: str) -> None:
        self.b64_json = b64_json


def test_the_streamed_picture_is_the_one_that_is_waited_for(served: RunningServer) -> None:
    asked = {"prompt": "a star", "size": "64x64", "extra_body": FEW}
    waited = served.openai.images.generate(**asked).data[0]
    (event,) = served.openai.images.generate(**asked, stream=True)
    assert event.type == "image_generation.completed"
    assert np.abs(pixels(opened(_Item(event.b64_json))) - pixels(opened(waited))).max() <= 1


# -- Edits ------------------------------------------------------------


def mask_file(size: tuple[int, int] = (128, 128)) -> bytes:
    """Transparent, that is to be edited, on the left half."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_edit_depends_on_its_source(served: RunningServer, png: Path) -> None:
    edit = {"prompt": "make it blue", "extra_body": FEW}
    answer = served.openai.images.edit(image=png, **edit)
    assert answer.size == "128x128" and answer.data is not None
    assert answer.usage is not None and answer.usage.input_tokens_details.image_tokens > 0
    other = io.BytesIO()
    Image.new("RGB", (128, 128), "white").save(other, "PNG")
    second = served.openai.images.edit(image=("other.png", other.getvalue()), **edit)
    assert np.abs(pixels(opened(answer.data[0])) - pixels(opened(second.data[0]))).max() > 8


def test_outside_the_mask_the_pixels_are_the_sources(served: RunningServer, png: Path) -> None:
    answer = served.openai.images.edit(
        image=[png], mask=("mask.png", mask_file()), prompt="make it blue", n=2, extra_body=FEW
    )
    assert answer.data is not None and len(answer.data) == 2
    source = pixels(Image.open(png))
    for item in answer.data:
        edited = pixels(opened(item))
        assert np.array_equal(edited[:, 64:], source[:, 64:])
        assert np.abs(edited[:, :64] - source[:, :64]).mean() > 8
        assert "mask" in Provenance.from_json(stored_json(opened(item)) or "").software


def test_an_edit_streams_with_its_own_events(served: RunningServer, png: Path) -> None:
    events = list(
        served.openai.images.edit(
            image=png,
            mask=("mask.png", mask_file()),
            prompt="make it blue",
            stream=True,
            partial_images=1,
            extra_body={"steps": 4},
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    source = pixels(Image.open(png))
    for event in events:
        assert np.array_equal(pixels(opened(_Item(event.b64_json)))[:, 64:], source[:, 64:])


def test_an_edit_as_json_is_the_same_edit(served: RunningServer, png: Path) -> None:
    data = f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"
    body = {"prompt": "make it blue", "images": [{"image_url": data}], **FEW}
    form = served.openai.images.edit(image=png, prompt="make it blue", extra_body=FEW).data[0]  # type: ignore[index]
    with served.client() as client:
        answer = client.post("/v1/images/edits", json=body)
        assert answer.status_code == 200, answer.text
        item = _Item(answer.json()["data"][0]["b64_json"])
        assert np.abs(pixels(opened(item)) - pixels(opened(form))).max() <= 1
        for url in ("https://example.com/a.png", "file:///etc/passwd", "data:image/png,notbase64"):
            refused = client.post("/v1/images/edits", json={**body, "images": [{"image_url": url}]})
            assert refused.status_code == 400, url


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"image": [("a.png", mask_file()), ("b.png", mask_file())]}, "image", "one source picture"),
        ({"image": ("a.png", b"no picture")}, "image", "not a picture"),
        ({"mask": ("m.png", mask_file((64, 64)))}, "mask", "of one size"),
        ({"mask": ("m.png", b"\x89PNG\r\n\x1a\n cut short")}, "mask", "mask"),
    ],
)
def test_files_that_will_not_do(served: RunningServer, png: Path, change, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        served.openai.images.edit(**{"image": png, "prompt": "x", **change})
    assert (error.value.code, error.value.param) == ("invalid_image", param)


def test_a_mask_needs_transparency(served: RunningServer, png: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="no transparency"):
        served.openai.images.edit(image=png, mask=png, prompt="x")


# -- Refusals ------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": "   "}, "invalid_value", "prompt"),
        ({"size": "65x64"}, "invalid_value", "size"),
        ({"size": "large"}, "invalid_value", "size"),
        ({"size": "4096x4096"}, "invalid_value", "size"),
        ({"n": 11}, "invalid_value", "n"),
        ({"background": "transparent"}, "invalid_value", "background"),
        ({"output_format": "gif"}, "invalid_value", "output_format"),
        ({"output_compression": 50}, "invalid_value", "output_compression"),
        ({"quality": "max"}, "invalid_value", "quality"),
        ({"quality": "high", "extra_body": {"steps": 3}}, "invalid_value", "quality"),
        ({"partial_images": 2}, "invalid_value", "partial_images"),
        ({"stream": True, "n": 2}, "invalid_value", "n"),
        ({"stream": True, "partial_images": 4}, "invalid_value", "partial_images"),
        ({"stream": True, "response_format": "url"}, "invalid_value", "response_format"),
        ({"moderation": "low"}, "unknown_parameter", "moderation"),
        ({"style": "vivid"}, "unknown_parameter", "style"),
        ({"extra_body": {"steps": 201}}, "invalid_value", "steps"),
        ({"extra_body": {"steps": "2"}}, "invalid_value", "steps"),
        ({"extra_body": {"seed": -1}}, "invalid_value", "seed"),
        ({"extra_body": {"guidance": 51}}, "invalid_value", "guidance"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_words(
    served: RunningServer, fields: dict, code: str, param: str
) -> None:
    asked = {"prompt": "a", "size": "64x64", **fields}
    extra = {"style": asked.pop("style")} if "style" in asked else {}
    if extra:
        asked["extra_body"] = extra
    with pytest.raises(openai.BadRequestError) as error:
        served.openai.images.generate(**asked)
    assert (error.value.code, error.value.param, error.value.type) == (code, param, "invalid_request_error")
    assert error.value.request_id


def test_another_model_is_not_found(served: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        served.openai.images.generate(prompt="a", model="gpt-image-2")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_a_model_that_cannot_edit_says_so(saved_folder: str, png: Path) -> None:
    server = start("--model", saved_folder)
    try:
        server.wait_ready()
        with pytest.raises(openai.BadRequestError, match="editing model"):
            server.openai.images.edit(image=png, prompt="make it blue")
    finally:
        server.process.kill()
        server.process.wait()


# -- Adapters ----------------------------------------------------------------------------------


def test_each_request_wears_its_own_adapters(served: RunningServer, embedded: RunningServer) -> None:
    client = served.openai
    told = client.models.list().data[0].model_dump()["loras"]
    assert told == [LORA] and embedded.openai.models.list().data[0].model_dump()["loras"] == []

    def drawn(**lora: float) -> tuple[Image.Image, dict]:
        extra = {**FEW, "lora": lora} if lora else FEW
        answer = client.images.generate(prompt="a star", size="64x64", extra_body=extra)
        assert answer.data is not None
        return opened(answer.data[0]), answer.model_dump()["model_parameters"]

    plain, parameters = drawn()
    assert parameters["lora"] == {}
    styled, parameters = drawn(**{LORA: 0.5})
    assert parameters["lora"] == {LORA: 0.5}
    assert np.abs(pixels(styled) - pixels(plain)).max() > 8
    assert np.array_equal(pixels(drawn()[0]), pixels(plain)), "the next request wears nothing"
    said = stored_json(styled)
    assert said is not None
    provenance = Provenance.from_json(said)
    assert provenance.request.lora == ((LORA, 0.5),) and len(provenance.software[f"lora {LORA}"]) == 64


def test_an_edit_wears_adapters_in_a_form_too(served: RunningServer, png: Path) -> None:
    def edited(**lora: float) -> np.ndarray:
        asked = {"image": png, "prompt": "make it blue", "size": "64x64"}
        answer = served.openai.images.edit(**asked, extra_body={**FEW, "lora": lora} if lora else FEW)
        assert answer.data is not None
        return pixels(opened(answer.data[0]))

    assert np.abs(edited(**{LORA: 1.0}) - edited()).max() > 8


@pytest.mark.parametrize(
    ("lora", "param", "words"),
    [
        ({"../style.safetensors": 1.0}, "lora", "no adapter '../style.safetensors' here; loaded are"),
        ({LORA: 11.0}, f"lora.{LORA}", "less than or equal to 10"),
        ({LORA: "much"}, f"lora.{LORA}", "valid number"),
        ([LORA], "lora", "valid dictionary"),
    ],
)
def test_adapters_that_will_not_do(served: RunningServer, lora: object, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        served.openai.images.generate(prompt="a", size="64x64", extra_body={"lora": lora})
    assert error.value.param == param


# -- The line, cancellation, death ------------------------------------------------------------

LONG = {"prompt": "a", "size": "512x512", "extra_body": {"steps": 200}}


def in_background(target) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_client_that_hangs_up_frees_its_place(served: RunningServer) -> None:
    """Waiting and streaming: the request ends within a step, is counted as cancelled, and the next one is served."""
    before = served.metric("cancelled_requests_total")
    with pytest.raises(openai.APITimeoutError):
        served.openai.with_options(timeout=0.5).images.generate(**LONG)
    wait_until(lambda: served.metric("drawing_requests") == 0, 5)
    assert served.metric("cancelled_requests_total") == before + 1
    stream = served.openai.images.generate(**LONG, stream=True, partial_images=3)
    assert next(iter(stream)).type == "image_generation.partial_image"
    stream.close()
    wait_until(lambda: served.metric("drawing_requests") == 0, 5)
    assert served.metric("cancelled_requests_total") == before + 2
    assert served.openai.images.generate(prompt="a", size="64x64", extra_body=FEW).data


def test_a_full_line_is_429_with_when_to_come_back(served: RunningServer) -> None:
    """Four are drawn and six wait; the eleventh is refused; when their clients hang up every place is free again."""
    body = {"prompt": "a", "size": "512x512", "steps": 200, "stream": True}
    hang_up = threading.Event()

    def occupy() -> None:
        with served.client() as client, client.stream("POST", "/v1/images/generations", json=body):
            hang_up.wait(30)

    clients = [in_background(occupy) for _ in range(4)]
    wait_until(lambda: served.metric("drawing_requests") == 4)
    with served.client() as client:
        jobs = [client.post("/v1/jobs/generations", json={"prompt": "a"}) for _ in range(7)]
        assert [job.status_code for job in jobs] == [202] * 6 + [429]
        assert jobs[6].json()["error"]["code"] == "queue_full"
        assert [job.json()["before_it"] for job in jobs[:6]] == list(range(6))
        with pytest.raises(openai.RateLimitError) as error:
            served.openai.images.generate(prompt="a")
        assert error.value.code == "queue_full"
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert served.metric("refused_requests_total") == 2
        hang_up.set()
        for thread in clients:
            thread.join(30)
        for job in jobs[:6]:
            path = f"/v1/jobs/{job.json()['id']}"
            wait_until(lambda path=path: client.get(path).json()["status"] == "succeeded")
    assert served.metric("waiting_requests") == served.metric("drawing_requests") == 0


def test_when_the_worker_is_killed_its_requests_fail_and_the_others_are_served(served: RunningServer) -> None:
    outcomes: dict[str, object] = {}

    def ask(name: str, steps: int) -> None:
        try:
            answer = served.openai.images.generate(
                prompt="a", size="128x128", n=4 if steps > 9 else 1, extra_body={"steps": steps}
            )
            outcomes[name] = len(answer.data or [])
        except openai.APIStatusError as error:
            outcomes[name] = error

    threads = [in_background(lambda: ask("drawn", 200))]
    wait_until(lambda: served.metric("drawing_requests") == 1)
    threads += [in_background(lambda: ask("waiting", 2))]
    wait_until(lambda: served.metric("waiting_requests") == 1)
    killed = time.monotonic()
    worker = worker_of(served)
    worker.kill()
    for thread in threads:
        thread.join(90)
    seconds = time.monotonic() - killed
    lost = outcomes["drawn"]
    assert isinstance(lost, openai.InternalServerError), lost
    assert (lost.status_code, lost.code) == (503, "worker_lost") and "signal 9" in lost.message
    assert outcomes["waiting"] == 1, f"served by the next worker, {seconds:.0f} s later"
    assert served.metric("worker_restarts_total") == 1
    assert served.metric('failed_requests_total{kind="worker"}') == 1
    served.wait_ready()


def worker_of(server: RunningServer):
    import psutil

    children = psutil.Process(server.process.pid).children()
    return next(child for child in children if "resource_tracker" not in " ".join(child.cmdline()))
