"""What every request passes: ids, names, origins, keys, sizes; and the documents that say what may be asked."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from kandinsky5.errors import RequestError
from kandinsky5.server.keys import Keyring, read_keys
from kandinsky5.server.logs import Lines, LogFormat
from kandinsky5.server.metrics import METHODS
from kandinsky5.server.shelf import Shelf

from .conftest import RunningServer, start, wait_until

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def client(served: RunningServer) -> Iterator[httpx2.Client]:
    with served.client() as client:
        yield client


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# -- Without a server ---------------------------------------------------------------------------------------------


def test_keys_come_from_a_file_and_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may draw\nalice {ALICE}\n\n{BOB}\n")
    assert read_keys(file, None) == {"alice": ALICE, "key2": BOB}
    assert read_keys(None, f"bob {BOB}, {ALICE}") == {"bob": BOB, "key2": ALICE}
    assert read_keys(None, None) == read_keys(None, "") == {}
    file.write_bytes(f"\ufeffalice {ALICE}\r\n\r\n{BOB}\r\n".encode())
    assert read_keys(file, None) == {"alice": ALICE, "key2": BOB}, "as Windows' editors write it"


@pytest.mark.parametrize(
    "text",
    [
        *("short", f"a b {ALICE}", f"a {ALICE}\na {BOB}", f"a {ALICE}\nb {ALICE}", "#\n"),
        *(f"a ü{ALICE}", f"a \0{ALICE}"),
    ],
)
def test_keys_that_will_not_do_are_refused_without_being_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(RequestError) as error:
        read_keys(file, None)
    assert ALICE not in str(error.value)
    with pytest.raises(RequestError, match="cannot be read"):
        read_keys(tmp_path / "none", None)


@pytest.mark.parametrize("variable", [",", " ", "#"])
def test_a_variable_that_was_to_hold_keys_lets_nobody_in_without_one(variable: str) -> None:
    with pytest.raises(RequestError, match="API_KEYS holds none"):
        read_keys(None, variable)


def test_a_key_is_known_by_its_name_and_nothing_near_it_is() -> None:
    ring = Keyring({"alice": ALICE, "bob": BOB})
    assert ring.name_of(f"Bearer {ALICE}") == "alice" and ring.name_of(f"bearer {BOB}") == "bob"
    for wrong in (
        None,
        "",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        "Bearer \udcff",
    ):
        assert ring.name_of(wrong) is None
    assert Keyring({}).name_of(None) == ""


def test_a_shelf_forgets_by_time_and_by_room() -> None:
    now = [0.0]
    shelf = Shelf(seconds=10, most_bytes=25, now=lambda: now[0])
    first, second = shelf.put(b"x" * 10, "image/png", ""), shelf.put(b"y" * 10, "image/png", "")
    assert first != second and shelf.get(first) is not None
    third = shelf.put(b"z" * 10, "image/png", "")
    assert shelf.get(first) is None and shelf.get(second) is not None
    now[0] = 10.0
    assert shelf.get(second) is None and shelf.get(third) is None


def test_what_a_client_made_up_stays_within_its_line_and_its_fact() -> None:
    """A path with a newline, an escape of a terminal, and what looks like facts; names of people are left readable."""
    record = logging.LogRecord("kandinsky5.server", logging.INFO, "", 0, "request\nforged \x1b[2J", (), None)
    record.facts = {
        "path": "/a\n2026 INFO accepted key=root\x1b[31m\x9b",
        "user": "a status=200",
        "key": "zoë",
        "n": 1,
    }
    line = Lines(LogFormat.text).format(record)
    assert line.isprintable()
    path = r'path="/a\n2026 INFO accepted key=root\u001b[31m\u009b"'
    assert line.endswith(rf'INFO request\nforged \x1b[2J {path} user="a status=200" key=zoë n=1')
    told = Lines(LogFormat.json).format(record)
    assert "\n" not in told and json.loads(told)["user"] == "a status=200"


# -- On a server ----------------------------------------------------------------------------------------------------


def test_ids_are_given_and_kept_and_logged(client: httpx2.Client, served: RunningServer) -> None:
    given = client.get("/health").headers["x-request-id"]
    assert len(given) == 16
    kept = client.post("/v1/images/generations", json={}, headers={"x-request-id": "mine.1"})
    assert kept.headers["x-request-id"] == "mine.1"
    assert len(client.get("/health", headers={"x-request-id": "a b\\n{}"}).headers["x-request-id"]) == 16
    wait_until(lambda: "mine.1" in {line["id"] for line in served.events("request")})
    (line,) = [line for line in served.events("request") if line["id"] == "mine.1"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/images/generations", 400)
    assert line["seconds"] >= 0 and line["client"] == "127.0.0.1"


def test_prompts_are_not_logged(served: RunningServer) -> None:
    served.openai.images.generate(
        prompt="a very secret star " * 200, size="64x64", user="u-17", extra_body={"steps": 1}
    )
    wait_until(lambda: any(line["user"] == "u-17" for line in served.events("accepted")))
    assert "secret" not in "".join(served.lines)


def test_pages_of_other_origins_and_other_names_are_refused(
    client: httpx2.Client, served: RunningServer
) -> None:
    host = served.address.removeprefix("http://")
    assert client.get("/v1/models", headers={"origin": f"http://{host}"}).status_code == 200
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://[",
        "http://[::1",
        "http://]",
    ):
        assert code(client.get("/v1/models", headers={"origin": origin})) == (403, "origin_not_allowed")
    other = client.get("/v1/models", headers={"host": "evil.example"})
    assert code(other) == (403, "host_not_allowed")
    assert "127.0.0.1, [::1], localhost only, not to 'evil.example'" in other.json()["error"]["message"]
    hidden = client.get("/v1/models", headers={"origin": "https://draw.example"})
    assert f"'https://draw.example', and this server was asked as '{host}'. A proxy" in hidden.text
    script = client.get("/web/page.js", headers={"origin": "https://draw.example"})
    assert script.status_code == 200, "or the page behind such a proxy could not say so"
    asked = client.options("/v1/images/generations", headers={"access-control-request-method": "POST"})
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_refused(client: httpx2.Client, kind: str) -> None:
    answer = client.post("/v1/images/generations", content=b'{"prompt": "a"}', headers={"content-type": kind})
    assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"\xff",
        b'{"prompt": NaN}',
        b"[" * 100_000,
        b'{"seed": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_object_is_refused(client: httpx2.Client, body: bytes) -> None:
    answer = client.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert code(answer) == (400, "invalid_json")


@pytest.mark.parametrize("name", ["\ud800", "é" * 200, "a\nb"])
def test_names_that_a_client_made_up_are_sent_back_harmless(client: httpx2.Client, name: str) -> None:
    answer = client.post(
        "/v1/images/generations",
        content=json.dumps({"prompt": "a", name: 1}),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    param = answer.json()["error"]["param"]
    assert param is None or (param.isascii() and param.isprintable() and len(param) <= 480)


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(client: httpx2.Client) -> None:
    large = b'{"prompt": "' + b"a" * 2_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    assert code(client.post("/v1/images/generations", content=large, headers=headers)) == (
        413,
        "body_too_large",
    )
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
    assert code(client.post("/v1/images/generations", content=pieces, headers=headers)) == (
        413,
        "body_too_large",
    )


@pytest.mark.parametrize(
    ("files", "param", "words"),
    [
        (
            [("image[0]", ("a.png", b"x"))],
            "image[0]",
            "the source is 'image' or 'image[]', and 'mask' its mask",
        ),
        ([("image", ("a.png", b"x")), ("mask", ("b.png", b"x")), ("mask", ("c.png", b"x"))], "mask", "twice"),
        ([("image", ("a.heic", b"ftypheic"))], "image", "JPEG"),
        ([], "image", "Missing"),
    ],
)
def test_forms_hold_what_belongs_there(client: httpx2.Client, files: list, param: str, words: str) -> None:
    boundary = {} if files else {"headers": {"content-type": "multipart/form-data; boundary=x"}}
    content = {"files": files, "data": {"prompt": "a"}} if files else {"content": FORM}
    answer = client.post("/v1/images/edits", **content, **boundary)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert words in answer.json()["error"]["message"]


FORM = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("method", "path", "expected", "words"),
    [
        ("GET", "/nowhere", (404, "not_found"), "/openapi.json lists"),
        ("POST", "/images/generations", (404, "not_found"), "begin with /v1/"),
        ("OPTIONS", "/v1/images/generations", (405, "method_not_allowed"), "takes POST."),
        ("GET", "/v1/models/", (404, "model_not_found"), "this server has '"),
    ],
)
def test_other_paths_and_methods(
    client: httpx2.Client, method: str, path: str, expected: tuple[int, str], words: str
) -> None:
    answer = client.request(method, path)
    assert code(answer) == expected and words in answer.json()["error"]["message"]


def test_a_form_without_its_boundary_is_refused(client: httpx2.Client) -> None:
    answer = client.post("/v1/images/edits", content=b"x", headers={"content-type": "multipart/form-data"})
    assert code(answer) == (400, "invalid_form") and "boundary" in answer.json()["error"]["message"]


def test_methods_that_nobody_has_heard_of_are_one_series(
    client: httpx2.Client, served: RunningServer
) -> None:
    def series() -> set[str]:
        with served.client() as asking:
            return set(re.findall(r'method="([^"]+)"', asking.get("/metrics").text))

    for number in range(3):
        assert client.request(f"MAKE{number}", "/health").status_code == 405
        assert client.request(f"MAKE{number}", "/v1/jobs/a/cancel").status_code == 405
    assert "other" in series() and series() <= {*METHODS, "other", "any"}


def test_a_connection_that_sends_half_a_body_and_goes_leaves_nothing(served: RunningServer) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt"'
        )
    with served.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
    assert served.metric("drawing_requests") == served.metric("waiting_requests") == 0


def test_metrics_tell_times_and_sizes(served: RunningServer) -> None:
    pictures = served.metric("pictures_total")
    waits = served.metric("wait_seconds_count")
    served.openai.images.generate(prompt="a", size="64x64", n=2, extra_body={"steps": 2})
    wait_until(lambda: served.metric("pictures_total") == pictures + 2)
    assert served.metric("wait_seconds_count") == waits + 1
    for stage in ("encode", "denoise", "decode"):
        assert served.metric(f'stage_seconds_sum{{stage="{stage}"}}') > 0
    assert served.metric("memory_bytes") > 1e8
    assert served.metric("last_batch_pictures") >= 1


def test_the_document_names_every_path_and_every_field(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path, operations in document["paths"].items():
        for method in operations:
            plain = path.replace("{name}", "x").replace("{id}", "x")
            answer = client.request(method.upper(), plain, json={} if method == "post" else None)
            assert str(answer.status_code) in operations[method]["responses"], (path, answer.text)
    body = document["components"]["schemas"]["GenerationBody"]
    assert body["additionalProperties"] is False
    assert body["properties"]["steps"]["anyOf"][0]["maximum"] == 200
    for name in ("EditForm", "EditJobForm"):
        form = document["components"]["schemas"][name]
        assert form["required"] == ["prompt"]
        assert form["anyOf"] == [{"required": ["image"]}, {"required": ["image[]"]}]
    text = json.dumps(document)
    assert '"408"' not in text, "nothing here waits for a body that does not come"
    for name in [part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]]:
        assert name in document["components"]["schemas"], name


# -- Keys, and a server's end -----------------------------------------------------------------------------------------


def test_keys_keep_strangers_out_and_jobs_apart_and_what_is_accepted_is_finished_at_the_end(
    saved_editing_folder: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {ALICE}\n")
    server = start("--model", saved_editing_folder, "--api-keys", str(file), KANDINSKY5_API_KEYS=f"bob {BOB}")
    try:
        with (
            server.client() as stranger,
            server.client(headers={"authorization": f"Bearer {ALICE}"}) as alice,
        ):
            assert stranger.get("/health").status_code == 200
            loading = {"status": "loading", "reason": "The model is being loaded."}
            assert stranger.get("/ready").json() == loading
            early = alice.post("/v1/images/generations", json={"prompt": "a"})
            assert code(early) == (503, "not_ready")
            server.wait_ready()
            for path in ("/v1/models", "/metrics", "/v1/jobs"):
                refused = stranger.get(path)
                assert code(refused) == (401, "invalid_api_key")
                assert refused.headers["www-authenticate"] == "Bearer"
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0).models.list()
            job = alice.post(
                "/v1/jobs/generations", json={"prompt": "a", "size": "64x64", "steps": 150}
            ).json()
            with server.client(headers={"authorization": f"Bearer {BOB}"}) as bob:
                assert code(bob.get(f"/v1/jobs/{job['id']}")) == (404, "not_found")
                assert bob.get("/v1/jobs").json()["data"] == []
            with alice.stream(
                "POST",
                "/v1/images/generations",
                json={"prompt": "a", "size": "64x64", "steps": 150, "stream": True},
            ) as stream:
                lines = stream.iter_lines()
                assert next(lines).startswith(":"), "it has begun"
                server.process.terminate()
                assert any(line == "event: image_generation.completed" for line in lines)
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()
    assert ALICE not in "".join(server.lines) and BOB not in "".join(server.lines)
    (closing,) = server.events("shutting down")
    assert closing["drawing"] == 2


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{")
    server = start("--model", str(tmp_path))
    assert server.process.wait(60) == 3
    wait_until(lambda: any("config.json" in line for line in server.lines if line.startswith("kandinsky5: ")))


def test_an_address_that_is_taken_is_said_before_anything_is_loaded(embedded: RunningServer) -> None:
    port = embedded.address.rpartition(":")[2]
    server = start("--port", port)
    assert server.process.wait(60) == 2
    wait_until(lambda: any(f"port {port}" in line for line in server.lines))
