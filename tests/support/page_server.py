"""The page as visitors reach it: the command in a process, and its interface by plain HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reference.tolerances import PATIENCE
from tests.support.interpreter import Interpreter

_COMMAND = """
import os, tempfile
tempfile.tempdir = os.environ["TEMPORARY"]  # this process knows another one already
from hf_gmar.cli import app
"""
METHODS = ("gmar", "attn-lrp")
IN_PYTHON = ("gmar", "attn-lrp:resolution=pixel")  # the same maps


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@dataclass(frozen=True)
class Reply:
    """What an address answers.

    Attributes:
        status: the status.
        content: the content.
        headers: the headers, in lower case.
    """

    status: int
    content: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Server:
    """The page in a process.

    Attributes:
        address: where it is, without a slash at the end.
        process: the process.
        folder: its temporary folder.
    """

    address: str
    process: Interpreter
    folder: Path

    def request(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> Reply:
        """The reply to one request."""
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}{path}", body, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:  # noqa: S310
                content, status = reply.read(), reply.status
                found = dict(reply.headers.items())
        except urllib.error.HTTPError as error:
            content, status, found = error.read(), error.code, dict(error.headers.items())
        return Reply(status, content, {name.lower(): value for name, value in found.items()})

    def ask(self, kind: str, *values: Any) -> Any:
        """The outputs of a request, or its error as a text."""
        body = json.dumps({"data": values}).encode()
        reply = self.request(f"/gradio_api/call/{kind}", body)
        assert reply.status == 200, reply
        event = json.loads(reply.content)["event_id"]
        lines = self.request(f"/gradio_api/call/{kind}/{event}").content.decode().splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith("event: "))
        data = json.loads(lines[last + 1].removeprefix("data: "))
        if lines[last] == "event: complete":
            return data
        assert lines[last] == "event: error", lines[last]
        return str(data["error"] if isinstance(data, dict) else data)

    def explain(
        self,
        image: Any = "example:18",
        model: Any = "bundled",
        target: Any = "",
        contrast: Any = "",
        methods: Sequence[Any] = METHODS,
        prompts: Any = "",
    ) -> Any:
        """The outputs of an explanation, or its error as a text."""
        return self.ask("explain", image, model, prompts, target, contrast, *methods)

    def files(self) -> list[Path]:
        """The files in its temporary folder."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@contextmanager
def page_server(
    folder: Path, *words: str, before: str = "", **environment: str
) -> Iterator[Server]:
    """The command ``hf-gmar app`` with further words, until the end of the context.

    Args:
        folder: where it runs.
        words: what follows the command.
        before: code that runs first.
        environment: what is added to its environment.
    """
    port, temporary = free_port(), folder / "temporary"
    temporary.mkdir(parents=True)
    settings = {"TEMPORARY": str(temporary), "HF_HUB_OFFLINE": "1", **environment}
    process = Interpreter(
        ["-c", f"{_COMMAND}\n{before}\napp()", "app", "--port", port, *words], folder, settings
    )
    server = Server(f"http://127.0.0.1:{port}", process, temporary)
    with until_stopped(server):
        yield server


@contextmanager
def until_stopped(server: Server) -> Iterator[Server]:
    """A server once its page is there; at the end of the context it is interrupted."""
    try:
        _wait(server)
        yield server
    finally:
        if server.process.returncode is None:
            os.kill(server.process.pid, signal.SIGINT)
            server.process.communicate()


def _wait(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.process.returncode is None, server.process.communicate()
        with suppress(urllib.error.URLError, ConnectionError):
            if server.request("/").status == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the page does not start")
