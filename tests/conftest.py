"""What several test modules share."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from hf_gmar._core import token_layout as tokens
from hf_gmar.models import LoadedModel, load_model, sample_image
from tests.support.pairs import covering_rows, factors_of, sampled_rows

PROCESS = Path(__file__).with_name("process")

# A job that a shell runs in the background ignores Ctrl-C, and so would the commands of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # models this small only wait for a second thread

# The same examples every time, however long a busy machine takes for them.
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")
# Other examples, and many: pytest -m "" tests/fuzz --hypothesis-profile long
settings.register_profile(
    "long", settings.get_profile("same"), derandomize=False, max_examples=2000
)


@pytest.fixture(scope="session")
def bundled() -> Iterator[LoadedModel]:
    """The bundled model; it must come back unchanged from every test."""
    shared, own = load_model("bundled"), load_model("bundled")
    yield shared
    assert shared.model.config.to_dict() == own.model.config.to_dict()
    pairs = zip(shared.model.state_dict().items(), own.model.state_dict().items(), strict=True)
    for (name, left), (_, right) in pairs:
        assert torch.equal(left, right), name


@pytest.fixture(scope="session")
def tiny() -> Iterator[LoadedModel]:
    """A tiny model of the bundled scenes; it must come back unchanged from every test."""
    from tests.reference import models  # most tests of processes need none of it

    shared = models.scene_model()
    before = models.state_of(shared.model)
    yield shared
    after = models.state_of(shared.model)
    assert {key for key in before | after if before.get(key) != after.get(key)} == set()


@pytest.fixture(scope="session", autouse=True)
def _shared_models() -> Iterator[None]:
    """Models that many tests read must come back unchanged from all."""
    yield
    cases = sys.modules.get("tests.reference.cases")  # importing it takes seconds
    assert cases is None or cases.changed_models() == []


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_disks() -> Iterator[None]:
    """Thousands of small files would wait longer for the disk than they take."""
    with patch("os.fsync"):
        yield


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    """The bundled sample scene."""
    with Image.open(sample_image()) as image:
        return image.convert("RGB")


@pytest.fixture
def photos(tmp_path: Path, scene: Image.Image) -> Path:
    """A folder with good, nested, upright and turned, grey and transparent images."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    scene.save(folder / "scene.png")
    scene.resize((200, 130)).save(folder / "wide.jpg")
    scene.convert("L").save(folder / "more" / "grey.png")
    scene.convert("RGBA").save(folder / "more" / "scene.webp")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def few_dots() -> Iterator[None]:
    """Figures are written with few dots per inch, for tests that do not look at the dots."""
    with patch("hf_gmar.visualization.overlay._DOTS", 30):
        yield


@pytest.fixture
def layouts() -> Iterator[None]:
    """Layouts that a test registers are gone afterwards."""
    with patch.dict(tokens._LAYOUTS):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark rows that are left out of tables, and the tests that start processes."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if any(map(item.get_closest_marker, ("pairwise", "sampled"))):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
        if PROCESS in item.path.parents:
            item.add_marker(pytest.mark.process)
    for group in groups.values():
        rows = [factors_of(item.callspec.params) for item in group]  # type: ignore[attr-defined]
        sampled = group[0].get_closest_marker("sampled")
        chosen = covering_rows(rows) if sampled is None else sampled_rows(rows, *sampled.args)
        for place, item in enumerate(group):
            if place not in chosen:
                item.add_marker(pytest.mark.extended)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every garbage collection: reading all of it takes longer."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)
