from .evaluator import CHEAP, Evaluation, evaluate
from .report.results import ExampleMaps
from .report.summary import Summary, summarize
from .report.writer import write_report

__all__ = [
    "CHEAP",
    "Evaluation",
    "ExampleMaps",
    "Summary",
    "evaluate",
    "summarize",
    "write_report",
]
