"""A local server that answers as the Hub does, for one or more folders of models or data sets.

It serves downloads, and commits of those who may write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
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
    """The addresses of a download: facts on a repository, and its files; and those of a commit."""

    repositories: ClassVar[Repositories] = {}
    private: ClassVar[Mapping[str, str]] = {}
    gated: ClassVar[Mapping[str, str]] = {}
    writers: ClassVar[Mapping[str, str]] = {}
    large: ClassVar[Collection[str]] = ()
    busy: ClassVar[Collection[str]] = ()
    commits: ClassVar[dict[str, int]] = {}
    uploads: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        try:
            self._check_token()
            if path == "api/whoami-v2":
                self._whoami()
            elif path.startswith("api/models/"):
                self._facts("", path.removeprefix("api/models/"))
            elif path.startswith("api/datasets/"):
                self._facts("datasets/", path.removeprefix("api/datasets/"))
            else:
                self._file(path)
        except _RefusalError as refusal:
            self._answer(b"", refusal.headers, refusal.status)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0].strip("/")
        try:
            self._check_token()
            if path == "api/validate-yaml":
                self._validate(json.loads(body)["content"])
            elif match := re.fullmatch(r"api/models/(.+)/(preupload|commit)/([^/]+)", path):
                {"preupload": self._preupload, "commit": self._commit}[match[2]](
                    match[1], unquote(match[3]), body
                )
            elif match := re.fullmatch(r"(.+)\.git/info/lfs/objects/batch", path):
                self._batch(json.loads(body)["objects"])
            else:
                self._answer(b"", {}, 404)
        except _RefusalError as refusal:
            self._answer(b"", refusal.headers, refusal.status)

    def do_PUT(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.uploads[self.path.rpartition("/")[2]] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self._answer(b"", {})

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _whoami(self) -> None:
        if self._token() is None:
            raise _RefusalError(401)
        self._json({"type": "user", "name": f"owner of {self._token()}"})

    def _validate(self, content: str) -> None:
        """Refuse one licence; the real rules are many."""
        bad = "license: of my own" in content
        errors = [{"message": '"license" must be one of a list'}] if bad else []
        self._json({"errors": errors, "warnings": []}, 400 if bad else 200)

    def _check_writer(self, name: str, can_propose: bool) -> None:
        if not can_propose and self._token() != self.writers.get(name):
            raise _RefusalError(403, message="Forbidden: you must use a write token")

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        folder, _ = self._folder(name, revision)
        self._check_writer(name, "create_pr=1" in self.path)
        if name in self.busy:
            self.commits[name] = self.commits.get(name, 0) + 1
        files = []
        for file in json.loads(body)["files"]:
            is_text = file["path"].endswith(".md")
            mode = "regular" if is_text or name not in self.large else "lfs"
            there = folder / file["path"]
            oid = _entry(there, folder)["oid"] if there.is_file() else None
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": files})

    def _batch(self, objects: list[dict[str, object]]) -> None:
        here = f"http://{self.headers['Host']}/lfs"
        actions = [
            {**one, "actions": {"upload": {"href": f"{here}/{one['oid']}"}}} for one in objects
        ]
        self._json({"transfer": "basic", "objects": actions})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        folder, commit = self._folder(name, revision)
        proposed = "create_pr=1" in self.path
        self._check_writer(name, proposed)
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit", commit) != commit:
            raise _RefusalError(412, message="A commit has happened since")
        if not proposed:
            for line in lines[1:]:
                self._apply(folder, line["key"], line["value"])
            self.commits[name] = self.commits.get(name, 0) + 1
        here = f"http://{self.headers['Host']}/{name}"
        self._json({
            "commitUrl": f"{here}/commit/{self._commit_of(name, revision)}",
            "commitOid": self._commit_of(name, revision),
            "pullRequestUrl": f"{here}/discussions/1" if proposed else None,
        })  # fmt: skip

    def _apply(self, folder: Path, key: str, value: dict[str, str]) -> None:
        path = folder / value["path"]
        path.parent.mkdir(exist_ok=True)
        if key == "file":
            path.write_bytes(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            path.write_bytes(self.uploads[value["oid"]])
        else:
            assert key == "deletedFile", key
            path.unlink()

    def _commit_of(self, name: str, revision: str) -> str:
        """The commit of a branch, another one after each commit."""
        return commit_of(f"{name}{self.commits.get(name, '')}", revision)

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given and given.removeprefix("Bearer ")

    def _check_token(self) -> None:
        """A token that no one has is refused for public repositories too."""
        if self._token() not in {
            None,
            *self.private.values(),
            *self.gated.values(),
            *self.writers.values(),
        }:
            raise _RefusalError(401, message="Invalid credentials in Authorization header")

    def _folder(self, name: str, revision: str) -> tuple[Path, str]:
        """The folder of a revision, and its commit."""
        found = self.repositories.get(name)
        if found is None or self._token() != self.private.get(name, self._token()):
            raise _RefusalError(401 if self._token() is None else 404, "RepoNotFound")
        folders = found if isinstance(found, dict) else {"main": found}
        for known, folder in folders.items():
            if revision in (known, self._commit_of(name, known)):
                return folder, self._commit_of(name, known)
        raise _RefusalError(404, "RevisionNotFound")

    def _facts(self, kind_of_repository: str, path: str) -> None:
        owner, model, kind, revision = [*path.split("/"), "", "main"][:4]
        name = f"{kind_of_repository}{owner}/{model}"
        if kind not in ("", "revision", "tree"):
            raise _RefusalError(404)
        folder, commit = self._folder(name, unquote(revision))
        files_in = sorted(file for file in folder.rglob("*") if file.is_file())
        tree = [_entry(file, folder) for file in files_in]
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


def _entry(file: Path, folder: Path) -> dict[str, object]:
    content = file.read_bytes()
    blob = b"blob %d\0" % len(content) + content  # as Git names it
    oid = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


@contextmanager
def serve_hub(
    repositories: Repositories,
    private: Mapping[str, str] | None = None,
    gated: Mapping[str, str] | None = None,
    writers: Mapping[str, str] | None = None,
    large: Collection[str] = (),
    busy: Collection[str] = (),
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under repository names; gives the address and the list of requests.

    Args:
        repositories: the folder of each, or one for each of its branches and tags. The name of a
            data set begins with ``datasets/``.
        private: the token without which a repository does not seem to be there.
        gated: the token without which the files of a repository are refused.
        writers: the token with which commits to a repository's folder are made.
        large: repositories whose pictures go to the storage of large files.
        busy: repositories to which someone else commits while a commit is being prepared.
    """
    requests: list[str] = []
    served = {
        "repositories": repositories, "private": private or {}, "gated": gated or {},
        "requests": requests, "writers": writers or {}, "large": large,
        "busy": busy, "commits": {}, "uploads": {},
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
