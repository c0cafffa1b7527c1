"""A small hub on the loopback address: enough of the protocol for the real `huggingface_hub` client.

It knows repositories of files in commits, says what it was asked (`requests`), and can be told to misbehave: refuse,
break a connection in the middle of a file, or leave it hanging there, stall, lie about lengths, send other bytes.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 2000
"""Files of this many bytes are stored as the hub stores large files: named by SHA-256, served after a redirect."""

LONGEST_STALL = 5.0


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repository:
    """Commits of files, and the names that point to them. `token`: needed to read; `gated`: not even then."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Trouble:
    """What goes wrong with requests whose "METHOD /path" contains `where`, `times` times. One kind is set."""

    where: str
    times: int = 1_000_000
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    hang_after: int | None = None
    stall: float = 0.0
    other_bytes: bool = False
    short_length: int | None = None
    no_ranges: bool = False
    etag: str | None = None
    wrong_range: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    if_range: str | None
    token: str | None
    status: int
    sent: int


class Hub:
    """The state of the server: repositories, troubles, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[Request] = []
        self.address = ""
        self.lock = threading.Lock()
        self.closed = threading.Event()

    @property
    def store_address(self) -> str:
        """Where large files are: another host, as far as the client can tell."""
        return self.address.replace("127.0.0.1", "localhost")

    def add(self, repo_id: str, files: dict[str, bytes], **settings: Any) -> str:
        """A repository of one commit on main; its commit id."""
        commit = hashlib.sha1(repr((repo_id, sorted(files))).encode()).hexdigest()
        self.repositories[repo_id] = Repository({commit: dict(files)}, {"main": commit}, **settings)
        return commit

    def push(self, repo_id: str, files: dict[str, bytes], ref: str = "main") -> str:
        """Another commit, with `ref` on it."""
        repository = self.repositories[repo_id]
        commit = hashlib.sha1(repr((repo_id, ref, len(repository.commits))).encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs[ref] = commit
        return commit

    def trouble_for(self, request: str) -> Trouble | None:
        with self.lock:
            for trouble in self.troubles:
                if trouble.where in request and trouble.times > 0:
                    trouble.times -= 1
                    return trouble
        return None

    def sent(self, method: str = "GET", part: str = "") -> int:
        """Body bytes of files sent so far."""
        return sum(r.sent for r in self.requests if r.method == method and part in r.path)

    def count(self, method: str, part: str) -> int:
        return sum(r.method == method and part in r.path for r in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        trouble = self.hub.trouble_for(f"{self.command} {path}")
        if trouble is not None and trouble.stall:
            time.sleep(min(trouble.stall, LONGEST_STALL))
        if trouble is not None and trouble.status is not None:
            self.say(trouble.status, b"", trouble.headers)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.describe(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3], trouble)
        elif match := re.fullmatch(r"/store/([^/]+/[^/]+)/([0-9a-f]+)", path):
            self.store(match[1], match[2], trouble)
        else:
            self.say(404, b"", {})

    # -- The hub's answers ----------------------------------------------------------------------------------------

    def admitted(self, repo_id: str) -> Repository | None:
        """The repository, or None when the refusal has been sent."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif repository.token is not None and self.token is None:
            # The real hub says the same of private and of missing repositories.
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif repository.token is not None and self.token != repository.token:
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif repository.gated:
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            return repository
        return None

    def describe(self, repo_id: str, revision: str) -> None:
        repository = self.admitted(repo_id)
        if repository is None:
            return
        commit = repository.commit_of(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = []
        for name, content in repository.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
            if len(content) >= LARGE:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings})
        self.say(200, body.encode(), {"Content-Type": "application/json"})

    def resolve(self, repo_id: str, revision: str, name: str, trouble: Trouble | None) -> None:
        repository = self.admitted(repo_id)
        if repository is None:
            return
        commit = repository.commit_of(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        content = repository.commits[commit].get(name)
        if content is None:
            self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        if len(content) < LARGE:
            self.file(content, {"ETag": f'"{git_id(content)}"', "X-Repo-Commit": commit}, trouble)
            return
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
            "Location": f"{self.hub.store_address}/store/{repo_id}/{digest}",
        }
        self.say(302, b"", headers)

    def store(self, repo_id: str, digest: str, trouble: Trouble | None) -> None:
        files = [c for commit in self.hub.repositories[repo_id].commits.values() for c in commit.values()]
        content = next(c for c in files if hashlib.sha256(c).hexdigest() == digest)
        self.file(content, {"ETag": f'"{digest}"'}, trouble)

    # -- HTTP -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str | None:
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def refuse(self, status: int, code: str | None, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **(more or {})}
        self.say(
            status,
            json.dumps({"error": message}).encode(),
            headers | ({"X-Error-Code": code} if code else {}),
        )

    def file(self, content: bytes, headers: dict[str, str], trouble: Trouble | None) -> None:
        trouble = trouble or Trouble(where="")
        body, status = content, 200
        if trouble.other_bytes:
            body = bytes(255 - byte for byte in content)
        if trouble.etag is not None:
            headers = {**headers, "ETag": trouble.etag}
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if (
            match
            and not trouble.no_ranges
            and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        ):
            start, status = 0 if trouble.wrong_range else int(match[1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body = body[start:]
        if trouble.short_length is not None:
            body = body[: trouble.short_length]
        end = trouble.break_after if trouble.hang_after is None else trouble.hang_after
        self.say(status, body, {**headers, "Accept-Ranges": "bytes"}, end)
        if trouble.hang_after is not None:
            self.hub.closed.wait(60)

    def say(self, status: int, body: bytes, headers: dict[str, str], break_after: int | None = None) -> None:
        part = b"" if self.command == "HEAD" else body[:break_after]
        with self.hub.lock:  # before the client can have read anything
            path = unquote(urlsplit(self.path).path)
            is_file = status in (200, 206) and not path.startswith("/api/")
            asked = Request(
                self.command,
                path,
                self.headers.get("Range"),
                self.headers.get("If-Range"),
                self.token,
                status,
                len(part) if is_file else 0,
            )
            self.hub.requests.append(asked)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part)
        if break_after is not None:
            self.wfile.flush()
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; anything else is an error of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of the loopback address, gone at the end."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with Server(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closed.set()
            server.shutdown()
            thread.join(5)
