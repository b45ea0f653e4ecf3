"""A local server that answers as the Hub does, for one or more folders of models or data sets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

Repositories = Mapping[str, Path | dict[str, Path]]


class _RefusalError(Exception):
    """An answer without content: the status, and the headers by which the Hub's client knows."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.headers = {
            "X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    """The two kinds of address that a download uses: facts on a repository, and its files."""

    repositories: ClassVar[Repositories] = {}
    private: ClassVar[Mapping[str, str]] = {}
    gated: ClassVar[Mapping[str, str]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        try:
            self._check_token()
            if path.startswith("api/models/"):
                self._facts("", path.removeprefix("api/models/"))
            elif path.startswith("api/datasets/"):
                self._facts("datasets/", path.removeprefix("api/datasets/"))
            else:
                self._file(path)
        except _RefusalError as refusal:
            self._answer(b"", refusal.headers, refusal.status)

    do_HEAD = do_GET  # noqa: N815

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given and given.removeprefix("Bearer ")

    def _check_token(self) -> None:
        """A token that no one has is refused for public repositories too."""
        if self._token() not in {None, *self.private.values(), *self.gated.values()}:
            raise _RefusalError(401, message="Invalid credentials in Authorization header")

    def _folder(self, name: str, revision: str) -> tuple[Path, str]:
        """The folder of a revision, and its commit."""
        found = self.repositories.get(name)
        if found is None or self._token() != self.private.get(name, self._token()):
            raise _RefusalError(401 if self._token() is None else 404, "RepoNotFound")
        folders = found if isinstance(found, dict) else {"main": found}
        for known, folder in folders.items():
            if revision in (known, commit_of(name, known)):
                return folder, commit_of(name, known)
        raise _RefusalError(404, "RevisionNotFound")

    def _facts(self, kind_of_repository: str, path: str) -> None:
        owner, model, kind, revision = [*path.split("/"), "", "main"][:4]
        name = f"{kind_of_repository}{owner}/{model}"
        if kind not in ("", "revision", "tree"):
            raise _RefusalError(404)
        folder, commit = self._folder(name, unquote(revision))
        tree = [_entry(file) for file in sorted(folder.iterdir())]
        files = [{"rfilename": entry["path"]} for entry in tree]
        facts = {"id": name, "modelId": name, "sha": commit, "siblings": files, "private": False}
        content = json.dumps(tree if kind == "tree" else facts).encode()
        self._answer(content, {"Content-Type": "application/json", "X-Repo-Commit": commit})

    def _file(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        folder, commit = self._folder(name, unquote(revision))
        if self._token() != self.gated.get(name, self._token()):
            raise _RefusalError(401 if self._token() is None else 403, "GatedRepo")
        if not (folder / file).is_file():
            raise _RefusalError(404, "EntryNotFound", commit=commit)
        content = (folder / file).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        size = str(len(content))
        headers = {"ETag": f'"{etag}"', "X-Linked-Size": size, "X-Repo-Commit": commit}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None:
            self._answer(content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._answer(content[first : last + 1], headers, 206)

    def _answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are kept in a list instead of on the terminal."""


def commit_of(name: str, revision: str = "main") -> str:
    """The commit that a branch or tag of a repository points to."""
    return hashlib.sha1(f"{name}@{revision}".encode(), usedforsecurity=False).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file.name, "size": len(content), "oid": oid}


@contextmanager
def serve_hub(
    repositories: Repositories,
    private: Mapping[str, str] | None = None,
    gated: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under repository names; gives the address and the list of requests.

    Args:
        repositories: the folder of each, or one for each of its branches and tags. The name of a
            data set begins with ``datasets/``.
        private: the token without which a repository does not seem to be there.
        gated: the token without which the files of a repository are refused.
    """
    requests: list[str] = []
    served = {
        "repositories": repositories, "private": private or {}, "gated": gated or {},
        "requests": requests,
    }  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), served))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
