"""Figures: what is drawn is what was computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from hf_gmar.visualize import overlay_figure, save_figure


def test_the_heatmap_covers_the_image_and_keeps_its_values() -> None:
    patches = torch.rand(3, 5)
    figure = overlay_figure(Image.new("RGB", (50, 30)), patches, "cat")
    heat = figure.axes[1].images[1]
    assert np.allclose(np.asarray(heat.get_array()), patches)
    assert tuple(heat.get_extent()) == (-0.5, 49.5, 29.5, -0.5)
    assert figure.axes[2].get_ylim() == pytest.approx((0, float(patches.max())))


@pytest.mark.parametrize(
    "label", ["$5 bill", r"\frac{", "a_b^c", "犬 🐕", "", "long " * 60, "x" * 200]
)
def test_any_label_can_be_drawn(tmp_path: Path, label: str) -> None:
    figure = overlay_figure(Image.new("RGB", (16, 16)), torch.rand(2, 2), label, label)
    save_figure(figure, tmp_path / "out.png")  # without a warning
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 1000


def test_a_flat_map_can_be_drawn(tmp_path: Path) -> None:
    figure = overlay_figure(Image.new("RGB", (16, 16)), torch.full((2, 2), 0.1), "flat")
    save_figure(figure, tmp_path / "out.png")


def test_no_window_and_no_global_figure() -> None:
    before = plt.get_fignums()
    overlay_figure(Image.new("RGB", (16, 16)), torch.rand(2, 2), "cat")
    assert plt.get_fignums() == before


def test_a_failed_save_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    figure = overlay_figure(Image.new("RGB", (16, 16)), torch.rand(2, 2), "cat")
    monkeypatch.setattr(figure, "savefig", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_title_stays_over_its_picture() -> None:
    title = "German shepherd, German shepherd dog, German police dog, alsatian  51.3%"
    figure = overlay_figure(Image.new("RGB", (96, 96)), torch.rand(8, 8), title)
    figure.draw_without_rendering()
    plain, heated = figure.axes[:2]
    assert heated.title.get_window_extent().x0 > plain.get_window_extent().x1
