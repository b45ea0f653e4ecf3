"""The benchmark of head importance runs, and measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from benchmarks import heads
from benchmarks.heads import (
    CHANCE,
    L1,
    L2,
    MICHEL,
    SIDES,
    SIGNED,
    UNSHARED,
    importances,
    spearman,
)
from hf_gmar.heads.ablation import LERF, MORF
from hf_gmar.methods.layer_rules import NORMS
from hf_gmar.models import LoadedModel, sample_image
from tests.reference import oracles
from tests.reference.cases import TARGETS, VIT

KINDS = [L1, L2, UNSHARED, MICHEL, SIGNED]


def _run(*words: object) -> Result:
    app = typer.Typer()
    app.command()(heads.main)
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.example
def test_on_scenes(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = _run(
        "--scenes", 10, "--steps", 2, "--random-orders", 1, "--singles", 3, "--output", file
    )
    found = json.loads(file.read_text())
    assert list(found["areas"]) == KINDS
    assert list(found["correlations"]) == [*KINDS, CHANCE]
    for name, cells in found["areas"].items():
        assert set(cells) == {MORF, LERF, "mean of both ways"}
        for mean, low, high in cells.values():
            assert low <= mean <= high
            assert f"{mean:.3f} ({low:.3f} to {high:.3f})" in done.output, name
    assert set(found["correlations"][CHANCE]) == set(SIDES)
    assert "10 images" in done.output
    assert "Rank correlation, 3 images" in done.output


def test_on_labelled_photos(tmp_path: Path) -> None:
    rows = "\n".join(f"{sample_image().name},{kind},x" for kind in ("heart", "6", "cross"))
    (tmp_path / "labels.csv").write_text(f"path,kind,other\n{rows}\n")
    done = _run(
        "--images", sample_image().parent, "--labels", tmp_path / "labels.csv", "--column", "kind",
        "--photos", 2, "--steps", 2, "--random-orders", 1, "--within-layers",
    )  # fmt: skip
    assert "2 images" in done.output


def test_kinds_of_importance_are_those_of_the_oracle() -> None:
    model, images = VIT.build().double(), VIT.images().double()
    found = importances(LoadedModel("vit", model, None), images, TARGETS)  # type: ignore[arg-type]
    traced = oracles.trace(model, images, TARGETS)
    norms = np.abs(traced.gradient).sum((3, 4))
    products = (traced.attention * traced.gradient).sum((3, 4))
    assert np.allclose(found[UNSHARED], norms, rtol=1e-4)
    assert np.allclose(found[SIGNED], products, rtol=1e-4, atol=1e-6)
    assert np.allclose(found[MICHEL], np.abs(products), rtol=1e-4, atol=1e-6)
    for name, norm in zip((L1, L2), NORMS, strict=True):
        wanted = oracles.gmar(traced, norm).heads
        assert wanted is not None
        assert np.allclose(found[name], wanted, rtol=1e-4)


def test_rank_correlation_by_hand() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(one, np.array([0.1, 0.2, 5.0, 9.0])) == pytest.approx(1)
    assert spearman(one, -(one**3)) == pytest.approx(-1)
    # d = 1, 1, 0, 0: 1 - 6 * 2 / (4 * 15)
    assert spearman(one, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(0.8)
    # Ranks 1.5, 1.5, 3 and 1, 2, 3: by Pearson's formula over the ranks.
    assert spearman(np.array([5.0, 5.0, 7.0]), one[:3]) == pytest.approx(3**0.5 / 2)
    assert spearman(np.zeros(3), one[:3]) == 0
