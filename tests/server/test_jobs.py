"""Jobs: submitted, polled, cancelled, fetched."""

import base64
import io
from collections.abc import Iterator

import httpx2
import pytest
from PIL import Image

from tests.pipelines.conftest import picture

from .conftest import RunningServer, wait_until

FEW = {"prompt": "a red circle", "size": "64x64", "steps": 2, "seed": 3}


@pytest.fixture
def client(served: RunningServer) -> Iterator[httpx2.Client]:
    with served.client() as client:
        yield client


def ended(client: httpx2.Client, id: str) -> dict:
    wait_until(lambda: client.get(f"/v1/jobs/{id}").json()["ended_at"] is not None)
    return client.get(f"/v1/jobs/{id}").json()


def test_a_job_from_its_submission_to_its_pictures(client: httpx2.Client) -> None:
    submitted = client.post("/v1/jobs/generations", json={**FEW, "n": 2})
    assert submitted.status_code == 202
    job = submitted.json()
    assert submitted.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["kind"]) == ("image.job", "generation")
    job = ended(client, job["id"])
    assert (job["status"], job["steps_done"], job["steps_total"], job["size"]) == ("succeeded", 4, 4, "64x64")
    assert job["model_parameters"]["seed"] == 3 and job["error"] is None
    result = client.get(f"/v1/jobs/{job['id']}/result").json()
    waited = client.post("/v1/images/generations", json={**FEW, "n": 2}).json()
    assert [item["seed"] for item in result["data"]] == [3, 4]
    assert {**result, "created": 0, "data": 0} == {**waited, "created": 0, "data": 0}
    opened = Image.open(io.BytesIO(base64.b64decode(result["data"][0]["b64_json"])))
    linked = client.get(f"/v1/jobs/{job['id']}/result?response_format=url").json()
    fetched = Image.open(io.BytesIO(client.get(linked["data"][0]["url"]).content))
    assert opened.size == (64, 64) and fetched.tobytes() == opened.tobytes()


def test_a_running_job_shows_how_its_picture_looks(client: httpx2.Client) -> None:
    job = client.post("/v1/jobs/generations", json={"prompt": "a", "size": "512x512", "steps": 200}).json()
    assert job["previews"] == 0
    path = f"/v1/jobs/{job['id']}"
    wait_until(lambda: client.get(path).json()["previews"] > 0)
    shown = client.get(f"{path}/preview")
    assert shown.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(shown.content)).size == (512, 512)
    client.post(f"{path}/cancel")
    gone = client.get(f"{path}/preview")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_an_edit_is_a_job_too(client: httpx2.Client) -> None:
    buffer = io.BytesIO()
    picture(128, 64).save(buffer, "PNG")
    files = {"image": ("a.png", buffer.getvalue(), "image/png")}
    job = client.post("/v1/jobs/edits", data={"prompt": "make it blue", "fit": "pad"}, files=files).json()
    job = ended(client, job["id"])
    assert (job["status"], job["kind"], job["model_parameters"]["fit"]) == ("succeeded", "edit", "pad")


def test_a_job_is_cancelled_within_a_step(client: httpx2.Client, served: RunningServer) -> None:
    job = client.post("/v1/jobs/generations", json={"prompt": "a", "steps": 200}).json()
    wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["steps_done"] > 0)
    cancelled = client.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert cancelled["status"] == "cancelled" and cancelled["steps_done"] < 200
    wait_until(lambda: served.metric("drawing_requests") == 0, 5)
    refused = client.get(f"/v1/jobs/{job['id']}/result")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "cancelled")
    assert refused.json()["error"]["message"] == "The job was cancelled."
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled", (
        "again changes nothing"
    )


def test_a_job_that_is_not_done_has_no_result(client: httpx2.Client) -> None:
    job = client.post("/v1/jobs/generations", json={"prompt": "a", "steps": 200}).json()
    early = client.get(f"/v1/jobs/{job['id']}/result")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_done")
    client.post(f"/v1/jobs/{job['id']}/cancel")


def test_jobs_are_listed_the_newest_first(client: httpx2.Client) -> None:
    made = [client.post("/v1/jobs/generations", json=FEW).json()["id"] for _ in range(2)]
    listed = client.get("/v1/jobs").json()
    assert listed["object"] == "list"
    assert [job["id"] for job in listed["data"]][:2] == made[::-1]
    for id in made:
        ended(client, id)


@pytest.mark.parametrize("path", ["/v1/jobs/job_none", "/v1/jobs/job_none/result"])
def test_what_is_not_there_is_not_found(client: httpx2.Client, path: str) -> None:
    assert client.get(path).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("field", ["stream", "partial_images", "response_format"])
def test_what_only_a_waiting_client_can_use_is_refused(client: httpx2.Client, field: str) -> None:
    refused = client.post("/v1/jobs/generations", json={**FEW, field: None})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
