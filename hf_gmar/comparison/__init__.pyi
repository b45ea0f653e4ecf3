from .method_specs import CAPTUM, MethodSpec
from .result import Comparison
from .run import compare

__all__ = [
    "CAPTUM",
    "Comparison",
    "MethodSpec",
    "compare",
]
