"""The scores that metrics see; the command line's help needs their names at once."""

from typing import Literal, TypeAlias

ScoreKind: TypeAlias = Literal["probability", "logit"]
