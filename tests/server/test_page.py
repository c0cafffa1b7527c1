"""The web page as it is sent: whole, from here only, with a policy that allows nothing else."""

import re
from collections.abc import Iterator

import httpx2
import pytest

from kandinsky5.webui import parts

from .conftest import RunningServer

STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' blob:",
    "frame-ancestors": "'none'",
}


@pytest.fixture
def client(served: RunningServer) -> Iterator[httpx2.Client]:
    with served.client() as client:
        yield client


def test_the_page_and_every_part_of_it_are_sent_with_a_strict_policy(client: httpx2.Client) -> None:
    for path in ("/", *(f"/web/{name}" for name in parts())):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.content, path
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert {name: policy[name] for name in STRICT} == STRICT
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/web/page.js").headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("name", ["none.js", "..%2fparts.py", "%2e%2e/__init__.py", "../app.py"])
def test_nothing_else_is_sent(client: httpx2.Client, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404


def test_the_page_names_only_what_is_sent_and_holds_nothing_inline() -> None:
    texts = {name: part.data.decode() for name, part in parts().items()}
    page = texts["index.html"]
    named = set(re.findall(r'(?:src|href)="web/([^"]+)"', page))
    for name, text in texts.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text))
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
    assert named | {"index.html"} == set(texts)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*src=)", page)


def test_the_page_asks_only_paths_that_the_document_names(client: httpx2.Client) -> None:
    known = [re.sub(r"{\w+}", "X", path) for path in client.get("/openapi.json").json()["paths"]]
    asked = re.findall(r'["`](v1/[^"`]+)["`]', parts()["api.js"].data.decode())
    assert len(asked) == 7
    for path in asked:
        assert "/" + re.sub(r"\$\{\w+}", "X", path) in known, path


def test_the_models_limits_are_those_that_are_kept(client: httpx2.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    limits, defaults = model["limits"], model["defaults"]
    assert (limits["max_body_bytes"], limits["max_steps"], limits["max_n"]) == (2_000_000, 200, 10)
    assert defaults["sizes"] == ["128x128"] and limits["size_multiple"] == 16
    asked = {"prompt": "a", "size": "64x64", "steps": 1}
    for field, most in (
        ("steps", limits["max_steps"]),
        ("n", limits["max_n"]),
        ("guidance", limits["max_guidance"]),
    ):
        body = {**asked, field: most + 1}
        refused = client.post("/v1/images/generations", json=body).json()["error"]
        assert refused["param"] == field
