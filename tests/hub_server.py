"""A Hugging Face Hub on the loopback: enough of its HTTP API for huggingface_hub's snapshot_download.

Folders are served as repositories. Safetensors files are answered as the real hub answers large files: by a
redirect to another origin, which carries the checksum. Faults can be ordered: connections cut midway, refused
repositories.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One request that reached the server. path: unquoted, without the query; range: the Range header."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Refusal:
    """How a repository is refused. code: the hub's X-Error-Code; files_only: the API answers (a gate)."""

    status: int
    code: str
    files_only: bool = False


@dataclass
class Repository:
    """revisions: branch or tag -> commit; commits: commit -> folder that holds its files."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Path] = field(default_factory=dict)
    refusal: Refusal | None = None


class HubServer:
    """Serves while used as a context manager. url: for HF_ENDPOINT; requests: all that came, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cuts: dict[str, list[int]] = {}
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        """Another origin of the same server, where large files lie."""
        return f"http://localhost:{self.port}"

    def add(self, hub_id: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder as that revision of a repository. Returns the commit: a hash of its file list."""
        files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in _files(folder)]
        commit = hashlib.sha1(json.dumps([hub_id, revision, files]).encode()).hexdigest()
        repository = self.repositories.setdefault(hub_id, Repository())
        repository.revisions[revision] = commit
        repository.commits[commit] = folder
        return commit

    def refuse(self, hub_id: str, status: int, code: str, files_only: bool = False) -> None:
        """Answer every request for a repository (or only those for its files) with an error."""
        self.repositories.setdefault(hub_id, Repository()).refusal = Refusal(status, code, files_only)

    def cut(self, file: str, *after_bytes: int) -> None:
        """Close the connection after so many bytes of a file's body, once for each number given."""
        self.cuts.setdefault(file, []).extend(after_bytes)

    def asked_for(self, method: str = "GET") -> list[str]:
        """Names of the files that were requested, in order."""
        return [
            request.path.rsplit("/", 1)[1]
            for request in self.requests
            if request.method == method and ("/resolve/" in request.path or "/storage/" in request.path)
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        raw = urlsplit(self.path).path
        parts = [unquote(part) for part in raw.strip("/").split("/")]
        ranged, token = self.headers.get("Range"), self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, unquote(raw), ranged, token))
        match parts:
            case ["api", "models", owner, name, "revision", revision]:
                self._with_commit(f"{owner}/{name}", revision, self._model)
            case ["api", "models", owner, name]:
                self._with_commit(f"{owner}/{name}", "main", self._model)
            case ["api", "models", owner, name, "tree", revision]:
                self._with_commit(f"{owner}/{name}", revision, self._tree)
            case [owner, name, "resolve", revision, *path] if path:
                self._with_commit(f"{owner}/{name}", revision, self._resolve, "/".join(path))
            case ["storage", owner, name, commit, file]:
                self._file(self.hub.repositories[f"{owner}/{name}"].commits[commit] / file, {})
            case _:
                self._error(404, "NotFound")

    def _with_commit(self, hub_id: str, revision: str, answer: Any, *args: str) -> None:
        repository = self.hub.repositories.get(hub_id)
        refusal = repository.refusal if repository else Refusal(404, "RepoNotFound")
        if refusal and not (refusal.files_only and answer != self._resolve):
            self._error(refusal.status, refusal.code)
            return
        assert repository is not None
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound")
            return
        answer(hub_id, commit, repository.commits[commit], *args)

    def _model(self, hub_id: str, commit: str, folder: Path) -> None:
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
        self._json({"id": hub_id, "modelId": hub_id, "sha": commit, "private": False, "siblings": siblings})

    def _tree(self, hub_id: str, commit: str, folder: Path) -> None:
        recursive = "recursive=true" in self.path.lower()
        entries: list[dict[str, Any]] = []
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            if "/" in name and not recursive:
                directory = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name.split("/")[0]}
                if directory not in entries:
                    entries.append(directory)
                continue
            entries.append({"type": "file", "oid": _sha(path, "sha1"), "size": path.stat().st_size, "path": name})
        self._json(entries)

    def _resolve(self, hub_id: str, commit: str, folder: Path, name: str) -> None:
        path = folder / name
        if path not in _files(folder):
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(path, "sha1")}"'}
        if path.suffix != ".safetensors":
            self._file(path, headers)
            return
        headers["X-Linked-Etag"] = f'"{_sha(path, "sha256")}"'
        headers["X-Linked-Size"] = str(path.stat().st_size)
        self._send(302, {**headers, "Location": f"{self.hub.storage_url}/storage/{hub_id}/{commit}/{name}"}, b"")

    def _file(self, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        ranged = self.headers.get("Range")
        if ranged is None:
            self._send(200, headers, content, path.name)
            return
        first = int(ranged.removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206, headers, content[first:], path.name)

    def _json(self, document: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {**(headers or {}), "X-Error-Code": code, "X-Error-Message": code}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes, name: str | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cuts.get(name) if name else None
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha(path: Path, algorithm: str) -> str:
    return hashlib.new(algorithm, path.read_bytes()).hexdigest()
