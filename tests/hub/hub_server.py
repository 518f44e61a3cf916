"""A Hub on 127.0.0.1: the endpoints that the huggingface_hub client calls to publish and to fetch.

Two servers, as there are two kinds of host: the Hub itself, which asks for a token, and the storage that
keeps large files behind signed addresses and must never see one. ``fail`` plants faults: a status, a
connection dropped in mid-transfer, a byte changed on its way.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repository import REGULAR_LIMIT, Conflict, Repository, Stored

TOKEN = "hf_neverToBeSeenAnywhere0123456789"
PAGE = 4  # entries of a listing, so that every listing has several pages
PIECE = 1 << 12  # bytes read or sent at a time


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose method and path match ``pattern``."""

    pattern: str
    times: int
    status: int | None = None
    drop_after: int | None = None  # bytes of the body, received or sent
    corrupt: bool = False
    silent: bool = False  # no answer for as long as the client waits
    lose_answer: bool = False  # the request is obeyed, the connection cut before the answer


@dataclass
class Hub:
    """The state behind both servers, and what they were asked."""

    url: str = ""
    storage_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    multipart_from: int = 1 << 40
    part_size: int = 1 << 16
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploaded: list[tuple[str, int]] = field(default_factory=list)  # (sha256, bytes that arrived)
    ranges: list[str | None] = field(default_factory=list)  # what each GET of a file asked for
    sent_again: list[str] = field(default_factory=list)  # sha256 of what was held when it was sent
    stray_tokens: list[str] = field(default_factory=list)
    on_piece: Callable[[str, int], bool] = lambda path, count: False  # whether to cut the connection

    def fail(self, pattern: str, times: int = 1, **how: Any) -> None:
        self.faults.append(Fault(pattern, times, **how))

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{method} {path}"):
                fault.times -= 1
                return fault
        return None

    def files(self, repo: str, revision: str = "main") -> dict[str, Stored]:
        """What a revision of a repository holds."""
        repository = self.repositories[repo]
        return repository.commits[repository.resolve(revision) or ""]

    def content(self, repo: str, path: str, revision: str = "main") -> bytes:
        stored = self.files(repo, revision)[path]
        return self.storage[stored.sha256] if stored.content is None else stored.content

    def asked(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, f"{method} {path}") is not None for method, path in self.requests)


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        self.status, self.code, self.message, self.more = status, code, message, more


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    servers = [_server(hub, HubHandler), _server(hub, StorageHandler)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _server(hub: Hub, kind: type[Handler]) -> ThreadingHTTPServer:
    class Bound(kind):  # type: ignore[misc, valid-type]
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class Handler(BaseHTTPRequestHandler):
    """Reads a request, plants the fault that is due, and answers by the table ``routes``."""

    hub: Hub
    routes: ClassVar[list[tuple[str, str]]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        path = unquote(split.path)
        self.hub.requests.append((self.command, path))
        self.due = self.hub.fault(self.command, path)
        try:
            self.body = self.read_body(path)
            try:
                self.dispatch(path)
            except Refused as refused:
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                headers = {name: text for name, text in headers.items() if text}
                self.answer({"error": refused.message, **refused.more}, refused.status, **headers)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def dispatch(self, path: str) -> None:
        if self.due and self.due.silent:
            self.connection.settimeout(30)
            self.rfile.read(1)  # until the client hangs up
            raise ConnectionResetError
        if self.due and self.due.status:
            raise Refused(self.due.status)
        for pattern, method in self.routes:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, method)(**found.groupdict())
                return
        raise Refused(404)

    def read_body(self, path: str) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        body = bytearray()
        while len(body) < length:
            piece = self.rfile.read(min(PIECE, length - len(body)))
            if not piece:
                self.received(path, len(body))
                raise ConnectionResetError
            body += piece
            dropped = self.due and self.due.drop_after is not None and len(body) >= self.due.drop_after
            if self.hub.on_piece(path, len(body)) or dropped:
                self.received(path, len(body))
                self.cut()
        self.received(path, len(body))
        return bytes(body)

    def received(self, path: str, count: int) -> None:
        """Called once a request, with the bytes of its body that arrived."""

    def cut(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError

    def answer(self, value: Any = None, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        if self.due and self.due.lose_answer:
            self.cut()
        data = json.dumps(value).encode() if body is None else body
        if self.due and self.due.corrupt and self.command == "GET":
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.due and self.due.drop_after is not None:
            self.wfile.write(data[: self.due.drop_after])
            self.wfile.flush()
            self.cut()
        self.wfile.write(data)

    def answer_file(self, data: bytes, **headers: str) -> None:
        """The whole of ``data``, or the range that is asked for."""
        if self.command == "GET":
            self.hub.ranges.append(self.headers.get("Range"))
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(body=data, Accept_Ranges="bytes", **headers)
            return
        start = int(wanted[1])
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(body=data[start:], status=206, Content_Range=span, **headers)


class HubHandler(Handler):
    routes: ClassVar = [
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/validate-yaml", "validate_yaml"),
        (r"POST /api/repos/create", "create"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?", "info"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        (r"PUT /api/models/(?P<repo>[^/]+/[^/]+)/settings", "settings"),
        (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (r"POST /lfs/complete/(?P<oid>\w+)", "complete"),
        (r"POST /lfs/verify", "verify"),
        (r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    @property
    def authorized(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, message="Invalid credentials in Authorization header")
        return given is not None

    def repository(self, repo: str, write: bool = False) -> Repository:
        authorized = self.authorized
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not authorized):
            raise Refused(404 if authorized else 401, "RepoNotFound", "Repository not found")
        if write and not authorized:
            raise Refused(401, message="Invalid username or password.")
        return found

    def revision(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def whoami(self) -> None:
        if not self.authorized:
            raise Refused(401, message="Invalid username or password.")
        self.answer({"name": "someone", "type": "user", "orgs": []})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        values = yaml.safe_load(front[1]) if front else None
        errors = [] if isinstance(values, dict) and "license" in values else [{"message": "no license"}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        asked = json.loads(self.body)
        if not self.authorized:
            raise Refused(401, message="Invalid username or password.")
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.hub.repositories:
            raise Refused(409, message="You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.answer({"url": f"{self.hub.url}/{name}"})

    def settings(self, repo: str) -> None:
        self.repository(repo, write=True).private = json.loads(self.body)["visibility"] == "private"
        self.answer({})

    def info(self, repo: str, revision: str | None) -> None:
        repository = self.repository(repo)
        commit = self.revision(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        self.answer(
            {
                "id": repo,
                "modelId": repo,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def tree(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        files = sorted(repository.commits[self.revision(repository, revision)].items())
        start = int(self.query.get("cursor", 0))
        page = [stored.entry(path) for path, stored in files[start : start + PAGE]]
        more = {}
        if start + PAGE < len(files):
            url = f"{self.hub.url}{urlsplit(self.path).path}?recursive=True&cursor={start + PAGE}"
            more = {"Link": f'<{url}>; rel="next"'}
        self.answer(page, **more)

    def paths_info(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        files = repository.commits[self.revision(repository, revision)]
        # The client sends a form or JSON, by version.
        text = self.body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        self.answer([files[path].entry(path) for path in paths if path in files])

    def preupload(self, repo: str, revision: str) -> None:
        files = self.repository(repo, write=True).commits[self.repository(repo).head]
        answers = []
        for asked in json.loads(self.body)["files"]:
            known = files.get(asked["path"])
            large = asked["size"] > REGULAR_LIMIT
            oid = None if known is None else known.sha256 if known.content is None else known.blob_id
            answers.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        self.answer({"files": answers})

    def batch(self, repo: str) -> None:
        self.repository(repo, write=True)
        objects = [self.upload_of(o["oid"], o["size"]) for o in json.loads(self.body)["objects"]]
        self.answer({"transfer": "basic", "objects": objects})

    def upload_of(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.hub.storage:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{self.hub.storage_url}/put/{oid}"}
        if size >= self.hub.multipart_from:
            count = -(-size // self.hub.part_size)
            header = {str(n): f"{self.hub.storage_url}/part/{oid}/{n}" for n in range(1, count + 1)}
            upload = {
                "href": f"{self.hub.url}/lfs/complete/{oid}",
                "header": {"chunk_size": str(self.hub.part_size), **header},
            }
        verify = {"href": f"{self.hub.url}/lfs/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def complete(self, oid: str) -> None:
        parts = json.loads(self.body)["parts"]
        data = [self.hub.parts[oid, part["partNumber"]] for part in parts]
        if [hashlib.md5(d).hexdigest() for d in data] != [p["etag"].strip('"') for p in parts]:
            raise Refused(400, message="a part's etag is another")
        store(self.hub, oid, b"".join(data))
        self.answer({})

    def verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.storage.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, message="no such object")
        self.answer({})

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        try:
            oid = repository.commit([json.loads(line) for line in self.body.splitlines()], self.hub.storage)
        except Conflict as conflict:
            raise Refused(412, message=str(conflict)) from None
        except LookupError as error:
            raise Refused(400, message=f"no such object or operation: {error}") from None
        self.answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self.repository(repo)
        commit = self.revision(repository, revision)
        stored = repository.commits[commit].get(path)
        if stored is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        if stored.content is not None:
            self.answer_file(stored.content, ETag=f'"{stored.blob_id}"', X_Repo_Commit=commit)
            return
        self.answer(
            status=302,
            body=b"",
            Location=f"{self.hub.storage_url}/get/{stored.sha256}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{stored.sha256}"',
            X_Linked_Size=str(stored.size),
        )


class StorageHandler(Handler):
    routes: ClassVar = [
        (r"PUT /put/(?P<oid>\w+)", "put"),
        (r"PUT /part/(?P<oid>\w+)/(?P<number>\d+)", "put_part"),
        (r"GET /get/(?P<oid>\w+)", "get"),
    ]

    def received(self, path: str, count: int) -> None:
        if "Authorization" in self.headers:
            self.hub.stray_tokens.append(path)
        if self.command == "PUT":
            oid = path.split("/")[2]
            self.hub.uploaded.append((oid, count))
            if oid in self.hub.storage:
                self.hub.sent_again.append(oid)

    def put(self, oid: str) -> None:
        store(self.hub, oid, self.body)
        self.answer({})

    def put_part(self, oid: str, number: str) -> None:
        self.hub.parts[oid, int(number)] = self.body
        self.answer({}, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def get(self, oid: str) -> None:
        self.answer_file(self.hub.storage[oid], ETag=f'"{oid}"')


def store(hub: Hub, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, message="the content has another sha256")
    hub.storage[oid] = data
