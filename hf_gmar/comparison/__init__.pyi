from .method_specs import CAPTUM, Column
from .result import Comparison
from .run import compare

__all__ = ["CAPTUM", "Column", "Comparison", "compare"]
