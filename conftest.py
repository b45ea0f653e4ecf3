"""Runs the Python blocks of the Markdown pages as tests."""

import os

# Read when huggingface_hub is imported: no test may depend on what the Hub says today.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"]
).pytest()
