from .evaluator import CHEAP, Evaluation, evaluate
from .report.results import ExampleMaps
from .report.summary import Summary, summarise
from .report.writer import write_report

__all__ = [
    "CHEAP",
    "Evaluation",
    "ExampleMaps",
    "Summary",
    "evaluate",
    "summarise",
    "write_report",
]
