"""The scores that metrics can measure; the command line reads them without PyTorch."""

from typing import Literal, TypeAlias

ScoreChoice: TypeAlias = Literal["probability", "logit"]
