"""A local server that answers as the Hub does, for one or more model folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    """The two kinds of address that a download uses: facts on a repository, and its files."""

    repositories: ClassVar[dict[str, Path]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            self._facts(path.removeprefix("api/models/"))
        else:
            self._file(path)

    do_HEAD = do_GET  # noqa: N815

    def _facts(self, path: str) -> None:
        name = "/".join(path.split("/")[:2])
        folder = self.repositories.get(name)
        if folder is None:
            self._missing("RepoNotFound", 401)
            return
        files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
        if "/tree/" in path:
            tree = [_entry(file) for file in sorted(folder.iterdir())]
            self._answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        facts = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False}
        self._answer(json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        folder = self.repositories.get(name)
        if folder is None:
            self._missing("RepoNotFound", 401)
            return
        file = folder / rest.partition("/")[2]
        if not file.is_file():
            self._missing("EntryNotFound", 404)
            return
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        self._answer(content, headers)

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str, status: int) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are kept in a list instead of on the terminal."""


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file.name, "size": len(content), "oid": oid}


@contextmanager
def serve_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under repository names; gives the address and the list of requests."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
