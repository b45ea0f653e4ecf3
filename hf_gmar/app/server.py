"""The server of the page."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_gmar.app.limits import Limits
from hf_gmar.errors import OptionError
from hf_gmar.models.defaults import BUNDLED

if TYPE_CHECKING:  # Gradio is imported when the page is built
    from hf_gmar.app.page import Page

PORT = 7860
HOST = "127.0.0.1"

_SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def serve(
    models: Sequence[str] = (BUNDLED,),
    *,
    host: str = HOST,
    port: int = PORT,
    device: str = "auto",
    prompts: Sequence[str] | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: the models that visitors may choose, the first of them at the beginning; names for
            :func:`~hf_gmar.load_model`.
        host: the address to listen on; ``"0.0.0.0"`` takes visitors from other machines.
        port: the port.
        device: where the models are loaded.
        prompts: the first classes of models of image and text.
        limits: what one visitor may ask.
        ready: called with the address once the page can be opened.

    Raises:
        OptionError: Gradio is not installed, or the port is taken.
        HfGmarError: a model can't be loaded.
    """
    with running(models, host, port, device, prompts, limits) as address:
        ready(address)
        threading.Event().wait()


@contextmanager
def running(
    models: Sequence[str] = (BUNDLED,),
    host: str = HOST,
    port: int = PORT,
    device: str = "auto",
    prompts: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Iterator[str]:
    """Serve the page inside the context; yield its address. See :func:`serve`."""
    limits = limits or Limits()
    with (
        TemporaryDirectory(prefix="hf-gmar-app-") as folder,
        _environment(**_SETTINGS, **_no_proxy(host), GRADIO_TEMP_DIR=folder),
    ):
        gradio_or_error()
        _check_address(host, port)
        from hf_gmar.app.models import PROMPTS, ModelSet
        from hf_gmar.app.page import Page

        page = Page(ModelSet(models, device, prompts or PROMPTS), limits)
        with launched(page, host, port) as address:
            page.desk.prepare(page.warm_up)
            yield address


@contextmanager
def launched(page: Page, host: str, port: int) -> Iterator[str]:
    """Serve a page inside the context; yield its address."""
    from starlette.middleware import Middleware

    from hf_gmar.app.guard import Guard
    from hf_gmar.app.style import page_script, page_style, page_theme

    blocks = page.blocks.queue(
        max_size=2 * page.limits.waiting, default_concurrency_limit=None, api_open=False
    )
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            blocked_paths=[Path.cwd().anchor],
            max_file_size=1,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=page_theme(),
            css=page_style(),
            head=page_script(),
            app_kwargs={"middleware": [Middleware(Guard, limits=page.limits)]},
        )
        yield address
    finally:
        page.desk.close()
        blocks.close(verbose=False)


def _no_proxy(host: str) -> dict[str, str]:
    """Return variables that keep Gradio from asking a proxy for the page of this machine."""
    before = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    hosts = ",".join(filter(None, [before, host, "localhost", "127.0.0.1"]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


@contextmanager
def _environment(**settings: str) -> Iterator[None]:
    """Set environment variables, which Gradio reads, inside the context."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def gradio_or_error() -> Any:
    """Return Gradio; an OptionError that says how to install it if it is missing."""
    try:
        import gradio
    except ImportError as error:
        raise OptionError(
            'the page needs Gradio, which is not installed: pip install "hf-gmar[app]"'
        ) from error
    return gradio


def _check_address(host: str, port: int) -> None:
    """Raise an OptionError for an address on which this machine can't listen."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"the page can't listen on {host}, port {port}: {error}; name another --host or --port"
        ) from None
