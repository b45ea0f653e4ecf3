"""The kinds of score that metrics measure; the command line reads them without PyTorch."""

from typing import Literal, TypeAlias

ScoreKind: TypeAlias = Literal["probability", "logit"]
