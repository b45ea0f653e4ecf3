"""Messages of the page."""

from __future__ import annotations

import pytest

from hf_gmar.app.messages import error_html, progress_html, shown_error
from hf_gmar.app.work import Progress
from hf_gmar.errors import InputError
from tests.support.hostile import MARKUP


def test_messages_are_text() -> None:
    for part in (error_html(InputError(MARKUP)), progress_html(Progress(MARKUP, 0.5))):
        assert "<img" not in part
        assert "<b>" not in part
    assert "<" not in str(shown_error(InputError(MARKUP)))


def test_an_unexpected_error_tells_visitors_nothing(caplog: pytest.LogCaptureFixture) -> None:
    error = shown_error(KeyError("/home/owner/secret"))
    assert "secret" not in str(error)
    assert "secret" in caplog.text
