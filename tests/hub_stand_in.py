"""A stand-in for the hub on loopback, with the part of the HTTP interface that loading needs."""

import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LARGE = (".safetensors", ".parquet")


@dataclass(frozen=True)
class Refusal:
    """A status of the hub, and the code that tells the client the reason."""

    status: int
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


UNKNOWN = Refusal(404, "RepoNotFound")
NO_REVISION = Refusal(404, "RevisionNotFound")
NO_ENTRY = Refusal(404, "EntryNotFound")


@dataclass
class Repository:
    """The files per revision, and the faults of the server.

    `refusal` answers every request for files; the facts of a gated repository are public. The first
    `breaks` downloads of `breaks_in` end after half of the bytes. A download of a file in `pushed`
    replaces the revisions.
    """

    name: str
    revisions: dict[str, dict[str, bytes]]
    refusal: Refusal | None = None
    breaks_in: str | None = None
    breaks: float = math.inf
    pushed: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def files(self, revision: str) -> dict[str, bytes] | None:
        """Return the files of a branch or a commit."""
        known = {self.commit(files): files for files in self.revisions.values()}
        return (known | self.revisions).get(revision)

    def commit(self, files: dict[str, bytes]) -> str:
        """Return the commit of these files: 40 hexadecimal digits."""
        held = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in files.items())
        return hashlib.sha1(json.dumps([self.name, held]).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serve repositories until the block ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._repositories: dict[tuple[str, str], Repository] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, kind: str, name: str, **revisions: dict[str, bytes]) -> Repository:
        """Add a repository; `kind` is models or datasets, and `main` the default revision."""
        self._repositories[kind, name] = repository = Repository(name, revisions)
        return repository

    def find(self, kind: str, name: str) -> Repository | None:
        return self._repositories.get((kind, name))

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Refuse connections until the block ends."""
        self.shutdown()
        self.socket.close()
        try:
            yield
        finally:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()
            self.server_activate()
            self.__enter__()


class _Handler(BaseHTTPRequestHandler):
    """Answer one request, then close the connection."""

    server: Hub

    def do_HEAD(self) -> None:  # noqa: N802  http.server's name
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, body: bytes = b"") -> None:
        path = urlsplit(self.path).path
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        if api:
            self._tell(*api.groups(), body)
        elif file:
            self._deliver("datasets" if file[1] else "models", *file.groups()[1:])
        else:
            self._refuse(NO_ENTRY)

    def _tell(self, kind: str, name: str, what: str | None, where: str | None, body: bytes) -> None:
        """Send the facts of a repository, or of files in it."""
        repository = self.server.find(kind, name)
        revision, _, folder = (where or "main").partition("/")
        files = repository and repository.files(unquote(revision))
        if repository is None:
            self._refuse(UNKNOWN)
        elif repository.refusal and (what not in (None, "revision") or not repository.refusal.code):
            self._refuse(repository.refusal)
        elif files is None:
            self._refuse(NO_REVISION)
        elif what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            entries = _tree(files, unquote(folder), recursive)
            self._send_json(entries) if entries or not folder else self._refuse(NO_ENTRY)
        elif what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            self._send_json([one for one in _tree(files, "", True) if one["path"] in asked])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._send_json({"id": name, "sha": repository.commit(files), "siblings": siblings})

    def _deliver(self, kind: str, name: str, revision: str, path: str) -> None:
        """Send a file, or a part of it."""
        repository, path = self.server.find(kind, name), unquote(path)
        files = repository and repository.files(unquote(revision))
        if repository:
            repository.asked.append(f"{self.command} {path}")
        if repository is None:
            self._refuse(UNKNOWN)
        elif repository.refusal:
            self._refuse(repository.refusal)
        elif files is None:
            self._refuse(NO_REVISION)
        elif path not in files:
            self._refuse(NO_ENTRY, {"X-Repo-Commit": repository.commit(files)})
        else:
            headers = {"X-Repo-Commit": repository.commit(files), **_identity(path, files[path])}
            breaks = False
            if self.command == "GET":
                repository.revisions = repository.pushed.get(path, repository.revisions)
                breaks = path == repository.breaks_in and repository.breaks > 0
                repository.breaks -= breaks
            self._send_file(files[path], headers, breaks)

    def _send_file(self, content: bytes, headers: dict[str, str], breaks: bool) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")
        part, status = content[int(start[1]) :], HTTPStatus.OK
        if "Range" in self.headers:
            status = HTTPStatus.PARTIAL_CONTENT
            last, size = len(content) - 1, len(content)
            headers["Content-Range"] = f"bytes {start[1]}-{last}/{size}"
        # Send half of what is left, so that a resumed download does not reach the end either.
        self._send(status, headers, part, len(part) // 2 if breaks else len(part))

    def _send_json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self._send(HTTPStatus.OK, {"Content-Type": "application/json"}, content, len(content))

    def _refuse(self, refusal: Refusal, headers: dict[str, str] | None = None) -> None:
        codes = {"X-Error-Code": refusal.code} if refusal.code else {}
        self._send(refusal.status, codes | dict(refusal.headers) | (headers or {}), b"", 0)

    def _send(self, status: int, headers: dict[str, str], content: bytes, sent: int) -> None:
        """Send all headers, and only the first `sent` bytes of the content."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])


def _identity(path: str, content: bytes) -> dict[str, str]:
    """Return the headers that tell a client a file's content and size."""
    if not path.endswith(_LARGE):
        return {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
    digest, size = hashlib.sha256(content).hexdigest(), str(len(content))
    return {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": size}


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """Return the files and folders below a folder."""
    prefix, found = f"{folder}/" if folder else "", {}
    for path, content in files.items():
        inner = path.removeprefix(prefix)
        if not path.startswith(prefix):
            continue
        parents = inner.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            name = prefix + "/".join(parents[:depth])
            if recursive or depth == 1:
                found[name] = {"type": "directory", "path": name, "oid": name}
        if recursive or not parents:
            digest = hashlib.sha1(content).hexdigest()
            found[path] = {"type": "file", "path": path, "oid": digest, "size": len(content)}
    return list(found.values())
