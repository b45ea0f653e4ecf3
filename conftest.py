"""Runs the Python blocks of the Markdown pages as tests."""

import os
from collections.abc import Generator

# Read when huggingface_hub is imported: no test may depend on what the Hub says today.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"]
).pytest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """What a test, an example or a page registers is gone afterwards."""
    from hf_gmar.methods import METHODS  # after the setting above
    from hf_gmar.metrics import METRICS
    from hf_gmar.perturbations import PERTURBATIONS

    before = [(one, dict(one._classes)) for one in (METHODS, METRICS, PERTURBATIONS)]
    try:
        return (yield)
    finally:
        for registry, classes in before:
            registry._classes = classes
