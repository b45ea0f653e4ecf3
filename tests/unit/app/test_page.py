"""The page inside this process: what links, errors and visitors who leave do."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hf_gmar.app import answers
from hf_gmar.app.limits import Limits
from hf_gmar.app.models import ModelSet
from hf_gmar.app.page import Page, error_html, progress_html, shown_error
from hf_gmar.app.server import launched
from hf_gmar.app.work import Job, Progress, StoppedError, stop_if_told
from hf_gmar.errors import InputError
from tests.reference.tolerances import PATIENCE
from tests.support.hostile import MARKUP
from tests.support.page_server import METHODS, free_port

SERVED = ["example:18", "bundled", "", "", "", *METHODS]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(ModelSet(["bundled"], "cpu"), Limits(workers=1))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["example:18", "bundled", "", "", "gmar", "attn-lrp"]),
        (
            {"example": "5", "model": "bundled", "class": "index:6", "contrast": "cross",
             "methods": "legrad"},
            ["example:5", "bundled", "index:6", "cross", "legrad", ""],
        ),
        (
            {"example": "/etc/passwd", "model": "other", "methods": "a,b,gmar,grad-sam,random"},
            ["example:18", "bundled", "", "", "gmar", "grad-sam"],
        ),
        ({"class": "x" * 999}, ["example:18", "bundled", "x" * 300, "", "gmar", "attn-lrp"]),
    ],
)  # fmt: skip
def test_a_link_sets_what_is_allowed(page: Page, query: dict[str, str], expected: Any) -> None:
    request: Any = SimpleNamespace(query_params=query)
    image, model, _, *rest = page.first_state(request)
    assert [image, model, *rest] == expected


def test_messages_are_text() -> None:
    for page_part in (error_html(InputError(MARKUP)), progress_html(Progress(MARKUP, 0.5))):
        assert "<img" not in page_part
        assert "<b>" not in page_part
    assert "<" not in str(shown_error(InputError(MARKUP)))


def test_an_unexpected_error_tells_visitors_nothing(caplog: pytest.LogCaptureFixture) -> None:
    error = shown_error(KeyError("/home/owner/secret"))
    assert "secret" not in str(error)
    assert "secret" in caplog.text


@pytest.fixture
def served(page: Page) -> Iterator[tuple[Page, str]]:
    with launched(page, "127.0.0.1", free_port()) as address:
        yield page, address.rstrip("/")


def test_a_visitor_who_leaves_stops_the_work(
    served: tuple[Page, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, address = served
    begun, ended = threading.Event(), threading.Event()

    def endless(_answer: Any, job: Job) -> Any:
        begun.set()
        try:
            while True:
                job.report("Working", 0.5)
                stop_if_told()
        except StoppedError:
            ended.set()
            raise

    monkeypatch.setattr(answers, "reveal", endless)
    function = next(number for number, fn in page.blocks.fns.items() if fn.api_name == "reveal")
    body = {"data": SERVED, "fn_index": function, "session_hash": "visitor"}
    request = urllib.request.Request(  # noqa: S310
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    urllib.request.urlopen(request).close()  # noqa: S310
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stream:
        path = "/gradio_api/queue/data?session_hash=visitor"
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert begun.wait(PATIENCE)
        assert stream.recv(100)
    assert ended.wait(60)
    end = time.monotonic() + PATIENCE
    while page.desk.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert page.desk.busy == 0


def test_nothing_is_kept_of_a_visitor(served: tuple[Page, str]) -> None:
    page, address = served
    text = "a text that nobody else writes"
    body = json.dumps({"data": [*SERVED[:3], text, *SERVED[4:]], "session_hash": "mine"}).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{address}/gradio_api/call/explain", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:  # noqa: S310
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/explain/{event}") as reply:  # noqa: S310
        reply.read()
    kept = page.blocks.app.state_holder.session_data
    for state in kept.values():
        assert text not in repr(list(state.components))
        assert "example:18" not in repr([part["props"].get("value") for part in state.components])
