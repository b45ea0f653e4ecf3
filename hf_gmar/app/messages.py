"""What the page says while a request runs, and when it fails; all of it is text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from hf_gmar._utils.html import html_text
from hf_gmar.app.work import Progress
from hf_gmar.errors import HfGmarError, one_line

_LOG = logging.getLogger(__name__)
_LONGEST_ERROR = 600  # letters

ERROR_CLASS = "gmar-error"
"""The class of an error in the style sheet."""


def progress_html(progress: Progress) -> str:
    """Return a line that says how far a request is."""
    share = "" if progress.share is None else f' value="{progress.share:.2f}"'
    text = html_text(progress.text)
    return f'<p role="status"><progress{share} aria-label="{text}"></progress> {text} …</p>'


def error_html(error: Exception) -> str:
    """Return an error as a message."""
    text = html_text(f"No answer: {_message(error)}", _LONGEST_ERROR)
    return f'<p class="{ERROR_CLASS}" role="alert">{text}</p>'


def shown_error(error: Exception) -> gr.Error:
    """Return an error for Gradio, whose text is escaped; log one that hf_gmar does not expect.

    Programs get its text. The page shows :func:`error_html` instead, so Gradio opens no message.
    """
    if not isinstance(error, HfGmarError):
        _LOG.error("a request failed", exc_info=error)
    text = html_text(_message(error), _LONGEST_ERROR)
    return gr.Error(text, title="No answer", print_exception=False, visible=False)


def _message(error: Exception) -> str:
    if isinstance(error, HfGmarError):
        return one_line(error)
    return "the server could not answer this; its owner finds the reason in the log"


@contextmanager
def shown_errors() -> Iterator[None]:
    """Raise errors of hf_gmar for Gradio."""
    try:
        yield
    except HfGmarError as error:
        raise shown_error(error) from None
