"""The values of evaluation options; the command line reads them without PyTorch."""

from typing import Literal, TypeAlias

ExplainedClass: TypeAlias = Literal["predicted", "label"]
Autocast: TypeAlias = Literal["bfloat16", "float16"]
