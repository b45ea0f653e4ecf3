"""The words that options of an evaluation take; the command line's help needs them at once."""

from typing import Literal, TypeAlias

ExplainedClass: TypeAlias = Literal["predicted", "label"]
Autocast: TypeAlias = Literal["bfloat16", "float16"]
