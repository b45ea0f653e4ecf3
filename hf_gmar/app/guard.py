"""What reaches Gradio: a few addresses, requests of bounded size, and texts alone."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import gradio as gr

from hf_gmar.app.limits import Limits

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_READ = re.compile(
    r"/|/(assets|static|svelte)/[\w./-]+|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?"
    r"|/gradio_api/(info|app_id|startup-events|queue/data|heartbeat/\w+|call/\w+/\w+)/?"
)
"""The page with its scripts, and the answers to requests: no files of visitors or of the server."""

_WRITE = re.compile(r"/gradio_api/(queue/join|cancel|reset|call/\w+)/?")
"""Requests: no uploads, which the page doesn't need."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self' https://huggingface.co"
)
"""The browser asks no other server, whatever the page holds."""

_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """Lets through what the page needs, and refuses all other requests.

    Gradio has many addresses: uploads, files, proxies, recordings, editing of the application. The
    page needs few.

    Args:
        app: the application of Gradio.
        limits: the largest request.
    """

    def __init__(self, app: Any, limits: Limits) -> None:
        self._app, self._most = app, limits.body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        allowed = _WRITE if method == "POST" else _READ if method in ("GET", "HEAD") else None
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            await _refuse(send, 404, b"there is nothing here")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await _read_away(receive, 4 * self._most)
            await _refuse(send, 413, b"the request is too large")
            return
        await self._app(scope, self._bounded(receive), _with_headers(send))

    def _bounded(self, receive: Receive) -> Receive:
        """Stop a request that sends more than it said."""
        total = 0

        async def bounded() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            return message if total <= self._most else {"type": "http.disconnect"}

        return bounded


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sending


async def _read_away(receive: Receive, most: int) -> None:
    """Drop a body, since a client that still sends would not see the answer."""
    more = True
    while more and most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        more = message.get("more_body", False)


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class NoFiles(gr.Blocks):
    """An application whose inputs are plain values, and which forgets them at once.

    Gradio takes an object in a request for a file: it opens a path that it names, and downloads an
    address. It also keeps the last inputs and outputs of a visitor in memory.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Refuse objects, and keep no input."""
        if not all(value is None or isinstance(value, str) for value in inputs):
            raise gr.Error("each input is a text", print_exception=False)
        values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
        _forget(state)
        return values

    async def postprocess_data(
        self, block_fn: Any, predictions: Any, state: Any, *args: Any, **options: Any
    ) -> Any:
        """Keep no output."""
        values = await super().postprocess_data(block_fn, predictions, state, *args, **options)
        _forget(state)
        return values


def _forget(state: Any) -> None:
    """Drop the values that Gradio keeps for links to a visitor's session, which are not offered."""
    if state is not None:
        state.config_values.clear()
