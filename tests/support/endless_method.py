"""A method without end: only a visitor who leaves stops it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hf_gmar import RandomAttribution, register_method
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec


class Endless(RandomAttribution):
    """Asks the model again and again."""

    title = "Endless"

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        while True:
            super()._explain(request, target_specs)


def register() -> None:
    """Register it in this process."""
    register_method("endless", Endless)
