"""From the rows of an evaluation to a summary, and to a report that people read."""

from __future__ import annotations

from hf_gmar.evaluation.figures import ExampleMaps
from hf_gmar.evaluation.report import write_report
from hf_gmar.evaluation.summary import Summary, summarise

__all__ = ["ExampleMaps", "Summary", "summarise", "write_report"]
