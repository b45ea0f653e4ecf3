"""A page in a process of its own, seen from inside: Gradio leaves event loops open.

``python -m tests.support.page_inside`` prints what the tests look at, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

from hf_gmar.app import answers
from hf_gmar.app.limits import Limits
from hf_gmar.app.models import ModelSet
from hf_gmar.app.page import Page
from hf_gmar.app.server import launched
from hf_gmar.app.work import Job, StoppedError, stop_if_told
from tests.reference.tolerances import PATIENCE
from tests.support.page_server import METHODS, free_port

INPUTS = ["example:18", "bundled", "", "", "", *METHODS]
QUERIES: list[dict[str, str]] = [
    {},
    {"example": "5", "model": "bundled", "class": "index:6", "contrast": "cross",
     "methods": "legrad"},
    {"example": "/etc/passwd", "model": "other", "methods": "a,b,gmar,grad-sam,random"},
    {"class": "x" * 999},
]  # fmt: skip
TEXT = "a text that nobody else writes"


def links(page: Page) -> list[Any]:
    """The first state for each query: image, model, classes and methods."""
    states = []
    for query in QUERIES:
        request: Any = SimpleNamespace(query_params=query)
        image, model, _, *rest = page.first_state(request)
        states.append([image, model, *rest])
    return states


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    """The reply to a request."""
    request = urllib.request.Request(  # noqa: S310
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:  # noqa: S310
        return json.load(reply)


def stops_when_its_visitor_leaves(page: Page, address: str) -> bool:
    """Whether work without end stops after the visitor's connection is closed."""
    begun, ended = threading.Event(), threading.Event()

    def endless(_: Any, job: Job) -> Any:
        begun.set()
        try:
            while True:
                job.report("Working", 0.5)
                stop_if_told()
        except StoppedError:
            ended.set()
            raise

    function = next(number for number, fn in page.blocks.fns.items() if fn.api_name == "reveal")
    before, answers.reveal = answers.reveal, endless  # type: ignore[assignment]
    try:
        body = {"data": INPUTS, "fn_index": function, "session_hash": "visitor"}
        post(address, "/gradio_api/queue/join", body)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stream:
            path = "/gradio_api/queue/data?session_hash=visitor"
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert begun.wait(PATIENCE)
            seen = b""  # until the progress changes no more
            while b"Working" not in seen:
                part = stream.recv(4096)
                assert part, seen
                seen += part
        return ended.wait(60) and idle(page)
    finally:
        answers.reveal = before


def idle(page: Page) -> bool:
    """Whether all requests end."""
    end = time.monotonic() + 60
    while page.desk.busy and time.monotonic() < end:
        time.sleep(0.01)
    return page.desk.busy == 0


def keeps(page: Page, address: str) -> list[str]:
    """The visitor's inputs that the server has after an answer."""
    body = {"data": [*INPUTS[:2], TEXT, *INPUTS[3:]], "session_hash": "mine"}
    event = post(address, "/gradio_api/call/explain", body)["event_id"]
    path = f"{address}/gradio_api/call/explain/{event}"
    with urllib.request.urlopen(path) as reply:  # noqa: S310
        assert b"event: complete" in reply.read()
    kept: list[str] = []
    sessions = page.blocks.app.state_holder.session_data
    assert len(sessions) > 0
    kept += [name for name in ("visitor", "mine") if name not in sessions]
    for state in sessions.values():
        for part in state.components:
            value = part.get("props", {}).get("value")
            kept += [f"{part['type']}: {text}" for text in (TEXT, "<section") if text in str(value)]
    return kept


def main() -> None:
    """Print all of it."""
    hosts = set()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            hosts.add(str(arguments[0]))
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            hosts.add(str(arguments[1][0]))

    sys.addaudithook(watch)
    page = Page(ModelSet(["bundled"], "cpu"), Limits(workers=1))
    found: dict[str, Any] = {"links": links(page)}
    with launched(page, "127.0.0.1", free_port()) as address:
        found["stops"] = stops_when_its_visitor_leaves(page, address.rstrip("/"))
        found["keeps"] = keeps(page, address.rstrip("/"))
    found["hosts"] = sorted(hosts)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
