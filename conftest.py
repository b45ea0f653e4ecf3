"""Runs the Python blocks of the Markdown pages as tests."""

import os
from collections.abc import Iterator

# Read when huggingface_hub is imported: no test may depend on what the Hub says today.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"]
).pytest()


@pytest.fixture(autouse=True)
def _own_registries() -> Iterator[None]:
    """What a test or an example registers is gone afterwards."""
    from hf_gmar.methods import METHODS  # after the setting above
    from hf_gmar.metrics import METRICS
    from hf_gmar.perturbations import PERTURBATIONS

    before = [(one, dict(one._classes)) for one in (METHODS, METRICS, PERTURBATIONS)]
    yield
    for registry, classes in before:
        registry._classes = classes
