"""What a refusal is, for the tables of refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from hf_gmar import GMAR
from hf_gmar.errors import HfGmarError
from tests.reference.cases import ENGINE_OPTIONS, VIT, Around

Action = Callable[[str], object]


@dataclass(frozen=True)
class Refused:
    """One row of a table of refusals.

    Attributes:
        name: shown in the names of tests.
        action: what is done, with the engine of that name.
        error: the class of the error.
        words: what its message must have.
    """

    name: str
    action: Action
    error: type[HfGmarError]
    words: tuple[str, ...]

    def __str__(self) -> str:
        """The name of the test."""
        return f"{self.error.__name__}: {self.name}"

    def check(self, engine: str) -> None:
        """Do it, and look at the error."""
        with pytest.raises(self.error) as raised:
            self.action(engine)
        assert type(raised.value) is self.error
        assert isinstance(raised.value, HfGmarError)
        assert isinstance(raised.value, (ValueError, TypeError))
        message = str(raised.value)
        assert [word for word in self.words if word not in message] == [], message
        # A sentence for people: no dump of a tensor or a module.
        assert len(message) < 700
        assert "\n" not in message


def around(how: Callable[[Any, Tensor], Any]) -> Around:
    """A user's module around the tiny ViT."""
    return Around(VIT.build(), how)


def explaining(pixels: Any = None, target: Any = 3, *args: Any, **kwargs: Any) -> Action:
    """A call on the tiny ViT."""
    images = VIT.images() if pixels is None else pixels
    return lambda engine: GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute(
        images, target, *args, **kwargs
    )


def run(make: Callable[[], Any], target: Any = 3, pixels: Tensor | None = None) -> Action:
    """A call on another model, which is accepted at first."""
    images = VIT.images() if pixels is None else pixels
    return lambda engine: GMAR(make(), **ENGINE_OPTIONS[engine]).attribute(images, target)
