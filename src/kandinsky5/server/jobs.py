"""Jobs: a request that is submitted, polled, cancelled, and its pictures fetched when they are done.

In: the bodies of generations and edits without what only a waiting client can use. Out: job objects. A job belongs to
the key that made it; it is forgotten some time after its end, and with the process. Refuses to know: how pictures are
drawn.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kandinsky5.server.answers import (
    MEDIA_TYPES,
    Encoded,
    encode_all,
    images_body,
    in_base64,
    parameters_of,
    preview_bytes,
    told_size,
)
from kandinsky5.server.asking import Asking
from kandinsky5.server.bodies import DrawingFields, EditJobBody, EditJobForm, GenerationJobBody
from kandinsky5.server.desk import Desk, desk_of
from kandinsky5.server.intake import edit_body, json_body
from kandinsky5.server.problems import Problem, of_any
from kandinsky5.server.shares import Shares
from kandinsky5.server.translation import Delivery
from kandinsky5.server.uploads import Upload
from kandinsky5.service import Finished, Previewed, Stepped

LOOKS: Final = 8
"""Previews of a job; each is one small matrix product and a picture of a few thousand pixels between processes."""

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(kw_only=True, eq=False)
class Job:
    """One job. Times are of `time.time`; `names` are its pictures on the shelf, with their seeds.

    `request_id` is that of the request that submitted it: the log has what went wrong under it.
    `upload` and `preview`, the newest look at its first picture, are kept until it ends.
    """

    id: str
    kind: Literal["generation", "edit"]
    key: str
    request_id: str
    created: float
    asking: Asking
    delivery: Delivery
    status: Status = "queued"
    done: int = 0
    total: int | None = None
    ended: float | None = None
    problem: Problem | None = None
    names: list[tuple[str, int | None]] = field(default_factory=list)
    upload: Upload | None = None
    preview: Previewed | None = None
    following: "asyncio.Task[None] | None" = None

    def told(self, desk: Desk) -> dict[str, Any]:
        """As the API shows it."""
        begun = self.asking.begun
        return {
            "id": self.id,
            "object": "image.job",
            "kind": self.kind,
            "status": self.status,
            "created_at": int(self.created),
            "ended_at": None if self.ended is None else int(self.ended),
            "before_it": desk.service.place(self.asking.ticket) if self.status == "queued" else 0,
            "steps_done": self.done,
            "steps_total": self.total,
            "previews": 0 if self.preview is None else self.preview.index + 1,
            "size": None if begun is None else told_size(begun.request),
            "model_parameters": None if begun is None else parameters_of(begun.request),
            "error": None if self.problem is None else self.problem.body()["error"],
        }


class Jobs:
    """All jobs of an app."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._jobs: dict[str, Job] = {}
        self._ended = Shares(desk.settings.keep_jobs)

    def add(
        self,
        request: Request,
        kind: Literal["generation", "edit"],
        body: DrawingFields,
        upload: Upload | None,
    ) -> Job:
        """A new job, in the line. Raises Problem, or what the service raises."""
        asking, delivery = self._desk.ask(request, body, upload, previews=LOOKS)
        job = Job(
            id=f"job_{secrets.token_hex(12)}",
            kind=kind,
            key=request.state.key,
            request_id=request.state.request_id,
            created=time.time(),
            asking=asking,
            delivery=delivery,
            upload=upload,
        )
        self._jobs[job.id] = job
        job.following = asyncio.ensure_future(self._follow(job))
        return job

    def of(self, key: str) -> list[Job]:
        """The jobs of a key, the newest first."""
        self._forget()
        return [job for job in reversed(self._jobs.values()) if job.key == key]

    def find(self, request: Request) -> Job:
        """The job that a path names. Raises Problem where it is not there, or another key's."""
        self._forget()
        job = self._jobs.get(request.path_params["id"])
        if job is None or job.key != request.state.key:
            raise Problem(404, "There is no such job, or no longer.", code="not_found")
        return job

    async def _follow(self, job: Job) -> None:
        try:
            async for report in job.asking.reports():
                if job.status == "queued":
                    job.status = "running"
                if isinstance(report, Stepped):
                    job.done, job.total = report.done, report.total
                elif isinstance(report, Previewed):
                    job.preview = report
                elif isinstance(report, Finished):
                    encoded = await to_thread.run_sync(encode_all, report.pictures, job.delivery, job.upload)
                    job.names = [self._shelved(one, job) for one in encoded]
                    job.status = "succeeded"
        except Exception as error:
            job.problem = of_any(error, id=job.request_id, job=job.id)
            job.status = "cancelled" if job.problem.code == "cancelled" else "failed"
        job.ended, job.upload, job.preview = time.time(), None, None
        self._ended.add(job.id, job.key)
        self._forget()

    def _shelved(self, encoded: Encoded, job: Job) -> tuple[str, int | None]:
        media_type = MEDIA_TYPES[job.delivery.output_format]
        return self._desk.shelf.put(encoded.data, media_type, job.key), encoded.seed

    def _forget(self) -> None:
        """Drop jobs whose time is over, and ended ones where there are too many. Those that are not done stay."""
        over = time.time() - self._desk.settings.keep
        for job in [job for job in self._jobs.values() if job.ended is not None and job.ended < over]:
            self._drop(job.id)
        while (id := self._ended.first_to_go()) is not None:
            self._drop(id)

    def _drop(self, id: str) -> None:
        del self._jobs[id]
        self._ended.remove(id)


async def submit_generation(request: Request) -> Response:
    """A job for pictures from text."""
    body = await json_body(request, GenerationJobBody, desk_of(request).decoding)
    return _submitted(request, "generation", body, None)


async def submit_edit(request: Request) -> Response:
    """A job for edits."""
    body, upload = await edit_body(request, EditJobBody, EditJobForm, desk_of(request).decoding)
    return _submitted(request, "edit", body, upload)


def _submitted(
    request: Request, kind: Literal["generation", "edit"], body: DrawingFields, upload: Upload | None
) -> Response:
    job = jobs_of(request).add(request, kind, body, upload)
    return JSONResponse(job.told(desk_of(request)), 202, headers={"location": f"/v1/jobs/{job.id}"})


async def listed(request: Request) -> Response:
    """The jobs of the key that asks."""
    data = [job.told(desk_of(request)) for job in jobs_of(request).of(request.state.key)]
    return JSONResponse({"object": "list", "data": data})


async def polled(request: Request) -> Response:
    """One job."""
    return JSONResponse(jobs_of(request).find(request).told(desk_of(request)))


async def cancelled(request: Request) -> Response:
    """One job, which is given up if it has not ended."""
    job = jobs_of(request).find(request)
    job.asking.cancel()
    if job.following is not None and job.ended is None:
        await asyncio.wait({job.following}, timeout=5)
    return JSONResponse(job.told(desk_of(request)))


async def preview(request: Request) -> Response:
    """How the first picture of a running job looks by now."""
    job, limiter = jobs_of(request).find(request), desk_of(request).decoding
    if job.preview is None or job.asking.begun is None:
        raise Problem(404, "The job has no preview: not yet, or no longer.", code="not_found")
    wanted = job.asking.begun.request
    data = await to_thread.run_sync(
        preview_bytes, job.preview.image, wanted, job.delivery, job.upload, limiter=limiter
    )
    media_type = MEDIA_TYPES[job.delivery.output_format]
    return Response(data, media_type=media_type, headers={"cache-control": "no-store"})


async def result(request: Request) -> Response:
    """The pictures of a job that has succeeded: OpenAI's answer, in base64, or as urls with ?response_format=url."""
    wanted = request.query_params.get("response_format", "b64_json")
    if wanted not in ("b64_json", "url"):
        message = f"Invalid value for 'response_format': {wanted!r:.80} is neither b64_json nor url."
        raise Problem(400, message, code="invalid_value", param="response_format")
    job, desk = jobs_of(request).find(request), desk_of(request)
    if job.problem is not None:
        how = "was cancelled" if job.status == "cancelled" else f"has failed: {job.problem.message}"
        raise Problem(409, f"The job {how.rstrip('.')}.", code=job.problem.code)
    if job.status != "succeeded":
        raise Problem(409, f"The job is {job.status}; poll it until it has succeeded.", code="not_done")
    assert job.asking.begun is not None and job.ended is not None
    data = []
    for name, seed in job.names:
        kept = desk.shelf.get(name)
        if kept is None:
            raise Problem(410, "The pictures of this job are not kept any longer.", code="expired")
        as_url = wanted == "url"
        data.append(
            desk.link(name, seed, request) if as_url else in_base64(Encoded(data=kept.data, seed=seed))
        )
    return JSONResponse(images_body(data, job.asking.begun, job.delivery, created=int(job.ended)))


def jobs_of(request: Request) -> Jobs:
    """The jobs of the app that handles a request."""
    return request.app.state.jobs
