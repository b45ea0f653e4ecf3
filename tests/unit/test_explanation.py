"""The files of one explained image: none overwrites another, whatever the names."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_gmar.explanation import Explainer, Explanation
from hf_gmar.models import ImageView, LoadedModel
from hf_gmar.models.score_kind import ScoreKind
from tests.support.figures import drawn_texts
from tests.support.hostile import ESCAPES, HOSTILE, hidden_in

PICTURE = Image.new("RGB", (8, 8))
LONG = "a very long label of a class that has no end " * 20


def explained(label: str = "heart", target: int = 6, **others: Any) -> Explanation:
    """An explanation that no model made."""
    settings = {"model": "m", "method": "gmar", **others.pop("settings", {})}
    return Explanation(
        "a.png", PICTURE, ImageView.whole(PICTURE), torch.rand(2, 2), target, label, 0.973,
        ScoreKind.SOFTMAX, settings, **others,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tests of names write an empty picture."""
    if "names" in request.node.name:
        monkeypatch.setattr(
            "hf_gmar.visualization.overlay.save_figure", lambda _, path: path.write_bytes(b"")
        )


SAME = ("", " ", "-", "heart", "heart ", "heart-not-4", "HEART", LONG, LONG + "2", "😀", *HOSTILE)
"""Labels, some of which give the same part of a file name."""


def test_names_of_contrasts_with_any_labels_are_different(tmp_path: Path) -> None:
    """And each archive says which contrast it is of."""
    indices = itertools.count(7)
    results = [
        explained(label, contrast=contrast, contrast_target=next(indices))
        for label, contrast in itertools.product(SAME[:3], SAME)
    ]
    results += [explained(label, next(indices)) for label in SAME]
    files = [result.save(tmp_path, "a") for result in results]
    names = [path.name.lower() for pair in files for path in pair]
    assert len(set(names)) == len(names) == len(list(tmp_path.iterdir()))
    for result, (_, archive) in zip(results, files, strict=True):
        with np.load(archive) as stored:
            assert stored["target"] == result.target
            assert str(stored["label"]) == result.label.rstrip("\0")


def test_names_of_methods_with_other_options_are_different(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {}, {"norm": "l2"}, {"alpha": 0.5}, {"alpha": 5}, {"norm": "l2", "alpha": 0.5},
        {"method": "grad-sam"}, {"method": "attention-rollout"},
        {"method": "attention-rollout", "head_fusion": "max"},
        {"method": "attention-rollout", "head_fusion": "m x"},
        {"method": "attention-rollout", "head_fusion": "m/x"},
        {"method": "attention-rollout", "head_fusion": LONG},
    ]  # fmt: skip
    files = [explained(settings=each).save(tmp_path, "a")[0].name for each in options]
    assert len(set(files)) == len(options)
    assert files[:3] == [
        "a.6-heart.png",
        "a.6-heart.gmar-norm=l2.png",
        "a.6-heart.gmar-alpha=0.5.png",
    ]
    assert files[5] == "a.6-heart.grad-sam.png"


@pytest.mark.parametrize("letter", ["a", "é", "视", "🐈", "\udce9"])
def test_names_of_any_length_are_written(letter: str, tmp_path: Path) -> None:
    """Of images and of classes, in all bytes that a file system takes."""
    label = letter * 300 if letter != "\udce9" else "x"
    stems = [(letter * 255).encode("utf-8", "surrogateescape")[:most] for most in range(230, 252)]
    texts = {stem.decode("utf-8", "surrogateescape") for stem in stems}
    for stem in texts:
        result = explained(
            label, contrast=label, contrast_target=4,
            settings={"method": "attention-rollout", "head_fusion": label},
        )  # fmt: skip
        for path in result.save(tmp_path, stem):
            assert path.is_file()
    assert len(list(tmp_path.iterdir())) == 2 * len(texts)


def test_two_contrasts_of_one_label_of_a_model(tiny: LoadedModel, tmp_path: Path) -> None:
    config: Any = tiny.model.config
    before = config.id2label
    config.id2label = {**before, 4: "", 5: ""}
    try:
        explainer = Explainer.build(tiny)
        image = Image.new("RGB", (96, 96))
        for contrast in (4, 5):
            for result in explainer.explain(image, "a.png", 6, contrast=contrast):
                (_, archive) = result.save(tmp_path, "a")
                assert archive.name == f"a.6-{before[6]}-not-{contrast}.npz"
                with np.load(archive) as stored:
                    settings = json.loads(str(stored["settings"]))
                assert (settings["contrast"], settings["contrast_target"]) == ("", contrast)
                title = " ".join(
                    " ".join(text.get_text().split()) for text in drawn_texts(result.figure())
                )
                assert f"rather than class {contrast}" in title
    finally:
        config.id2label = before
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("contrast", [None, "cross", LONG])
@pytest.mark.parametrize("label", ["heart", LONG, "x" * 999, "视" * 200, f"{LONG}  {LONG}"])
def test_the_title_shortens_labels_and_never_the_probability(
    label: str, contrast: str | None
) -> None:
    figure = explained(label, contrast=contrast, contrast_target=4).figure()
    (title,) = [text.get_text() for text in drawn_texts(figure) if "97.3%" in text.get_text()]
    assert title.startswith(label[0])
    assert (contrast is None) != ("rather than" in " ".join(title.split()))
    assert title.count("\n") < 3


@pytest.mark.parametrize("name", HOSTILE)
def test_figures_show_hidden_characters(name: str) -> None:
    figure = explained(name, contrast=name, contrast_target=4, settings={"model": name}).figure()
    texts = [text.get_text() for text in drawn_texts(figure)]
    assert hidden_in("".join(texts)) <= {"\n"}
    if name == ESCAPES:
        assert any(r"\x1b]52" in text.replace("\n", "") for text in texts)
