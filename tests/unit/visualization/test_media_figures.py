"""Pictures of videos and of sound: each patch has its colour at its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.errors import InputError, OptionError
from hf_gmar.models import ImageView
from hf_gmar.visualization import film_strip, spectrogram_figure

WIDTH, HEIGHT = 96, 72
FRAMES = [Image.new("RGB", (WIDTH, HEIGHT), (0, 10 * number, 255)) for number in range(16)]


def colour(name: str, share: float) -> NDArray[np.float64]:
    """A colour of a colour map, from 0 to 255."""
    return np.asarray(colormaps[name](round(share * 255)))[:3] * 255


def tiles(picture: Image.Image, across: int, rows: int) -> Any:
    """The frames and the maps of a strip, found by the white between them.

    Returns:
        (2 * rows, across) arrays of (height, width, 3): a row of frames, one of their maps, ...
    """
    dots = np.asarray(picture)
    drawn = (dots != 255).any(-1)
    high = [part for part in _runs(drawn.mean(1) > 0.2) if part.stop - part.start > 20]
    assert len(high) == 2 * rows
    found = []
    for part in high:
        wide = _runs(drawn[part].all(0))
        assert len(wide) == across
        found.append([dots[part, column].astype(float) for column in wide])
    return found


def _runs(values: NDArray[np.bool_]) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], values, [False])).astype(int)))
    return [slice(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def at(tile: NDArray[np.float64], row: int, column: int, rows: int, columns: int) -> Any:
    """The dot in the middle of a patch."""
    height, width = tile.shape[:2]
    return tile[int((row + 0.5) / rows * height), int((column + 0.5) / columns * width)]


def test_a_patch_has_its_colour_in_all_frames_of_its_tubelet_and_nowhere_else() -> None:
    maps = torch.zeros(8, 3, 4)
    maps[5, 2, 1], maps[0, 0, 0] = 2.0, 1.0
    found = tiles(film_strip(FRAMES, maps, "waving", colormap="viridis", opacity=1), 8, 2)
    for number in range(16):
        row, column = divmod(number, 8)
        frame, overlay = found[2 * row][column], found[2 * row + 1][column]
        assert np.abs(frame - np.asarray(FRAMES[number])[0, 0]).max() <= 1
        for place in np.ndindex(3, 4):
            share = {(5, 2, 1): 1.0, (0, 0, 0): 0.5}.get((number // 2, *place), 0.0)
            seen = at(overlay, place[0], place[1], 3, 4)
            assert np.abs(seen - colour("viridis", share)).max() <= 40, (number, place)


def test_an_overlay_blends_frame_and_map() -> None:
    maps = torch.ones(1, 1, 1)
    (_, (overlay,)) = tiles(film_strip(FRAMES[3:4], maps, opacity=0.25, colormap="viridis"), 1, 1)
    expected = 0.75 * np.array([0, 30, 255]) + 0.25 * colour("viridis", 1)
    assert np.abs(overlay - expected).max() <= 1


def test_one_negative_value_makes_all_frames_grey_and_zero_white() -> None:
    maps = torch.zeros(2, 1, 2)
    maps[1, 0, 0], maps[0, 0, 1] = -1.0, 4.0
    strip = film_strip(np.stack([np.asarray(frame) for frame in FRAMES[:2]]), maps)
    ((first, _), (plain, signed)) = tiles(strip, 2, 1)
    assert np.abs(first - [0, 0, 255]).max() <= 1  # the frame above keeps its colours
    for tile, share in ((plain, 0.5), (signed, 0.375)):  # 0 and -1 from -4 to 4
        grey = np.asarray(FRAMES[tile is signed].convert("L"))[0, 0]
        expected = 0.4 * grey + 0.6 * colour("RdBu_r", share)
        assert np.abs(at(tile, 0, 0, 1, 2) - expected).max() <= 4
        assert np.abs(at(plain, 0, 1, 1, 2) - 0.6 * colour("RdBu_r", 1) - 0.4 * 29).max() <= 4


def test_the_scale_clips_values() -> None:
    maps = torch.tensor([1.0, 5.0]).view(2, 1, 1)
    _, overlays = tiles(film_strip(FRAMES[:2], maps, opacity=1, scale=(0, 2)), 2, 1)
    for overlay, share in zip(overlays, (0.5, 1.0), strict=True):
        assert np.abs(overlay - colour("inferno", share)).max() <= 4


def test_what_the_model_did_not_see_is_dark() -> None:
    view = ImageView((HEIGHT, WIDTH), (0.0, 24.0, 72.0, 72.0))
    red = [Image.new("RGB", (WIDTH, HEIGHT), "red")]
    strip = film_strip(red, torch.zeros(1, 2, 2), view=view, opacity=0)
    ((_,), (overlay,)) = tiles(strip, 1, 1)
    assert np.abs(overlay[:, : overlay.shape[1] // 5] - 0.4 * 76).max() <= 2
    assert np.abs(at(overlay, 0, 0, 1, 1) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 32, 33])
def test_a_strip_fits_a_page(count: int) -> None:
    frames = [Image.new("RGB", (320, 240), "blue")] * count
    picture = film_strip(frames, torch.ones(count, 2, 2), "a long name of a class " * 9)
    assert 5 * 120 < picture.width < 8 * 120
    rows = -(-count // 8)
    assert picture.height < (1.5 + rows * 3) * 120


@pytest.mark.parametrize(
    ("frames", "maps", "words"),
    [
        (FRAMES, torch.ones(1, 8, 3, 4), r"\(1, 8, 3, 4\).*attribute_patches\(\.\.\.\)\[0\]"),
        (FRAMES, torch.ones(3, 4), r"\(3, 4\); needed is \(frames or tubelets"),
        (FRAMES[:7], torch.ones(4, 3, 4), "7 frames do not fit 4 maps"),
        (FRAMES[:4], torch.ones(8, 3, 4), "4 frames do not fit 8 maps"),
        (FRAMES, torch.ones(0, 3, 4), r"\(0, 3, 4\)"),
        ([], torch.ones(1, 3, 4), "got none"),
        (["a.png"], torch.ones(1, 3, 4), "images of Pillow.*got str"),
        ([FRAMES[0], Image.new("RGB", (5, 4))], torch.ones(2, 3, 4), r"\(5, 4\) and \(96, 72\)"),
        (np.zeros((2, 8, 8, 3)), torch.ones(2, 3, 4), "array of float64.*needed is uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), torch.ones(2, 3, 4), r"\(2, 3, 8, 8\)"),
    ],
)
def test_a_strip_of_other_shapes_says_what_is_needed(frames: Any, maps: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        film_strip(frames, maps)


def test_a_view_of_another_size_is_refused() -> None:
    view = ImageView((9, 9), (0.0, 0.0, 9.0, 9.0))
    with pytest.raises(InputError, match=r"\(9, 9\).*\(72, 96\)"):
        film_strip(FRAMES, torch.ones(8, 3, 4), view=view)


@pytest.mark.parametrize(
    "options", [{"opacity": 1.5}, {"scale": (2, 1)}, {"colormap": "none"}, {"opacity": True}]
)
def test_options_outside_their_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        film_strip(FRAMES, torch.ones(8, 3, 4), **options)
    with pytest.raises(OptionError):
        spectrogram_figure(torch.ones(8, 4), torch.ones(8, 4), **options)


def test_time_runs_to_the_right_and_frequency_upwards() -> None:
    sound, relevance = torch.zeros(50, 8), torch.zeros(50, 8)
    relevance[40:, 6:] = 3.0  # late and high
    figure = spectrogram_figure(sound, relevance, "siren", hop=0.1, opacity=1, colormap="viridis")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    dots = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(float)
    for axes, late in ((figure.axes[0], colour("gray", 0)), (figure.axes[1], colour("viridis", 1))):
        column, row = axes.transData.transform((4.5, 7)).astype(int)  # seconds, mel bin
        assert np.abs(dots[row, column] - late).max() <= 1
    for place in ((4.5, 1), (0.5, 7), (0.5, 1)):
        column, row = figure.axes[1].transData.transform(place).astype(int)
        assert np.abs(dots[row, column] - colour("viridis", 0)).max() <= 1
    assert figure.axes[1].get_xlim() == pytest.approx((0, 5))
    assert figure.axes[1].get_ylim() == (0, 8)
    assert figure.axes[2].get_ylim() == pytest.approx((0, 3))


def test_colours_of_a_signed_map_of_sound_are_symmetric_about_zero() -> None:
    figure = spectrogram_figure(np.ones((9, 4)), torch.linspace(-1, 5, 36).view(9, 4), "siren")
    assert figure.axes[2].get_ylim() == pytest.approx((-5, 5))
    assert "against the class" in figure.axes[2].get_ylabel().replace("\n", " ")


@pytest.mark.parametrize(
    ("sound", "relevance"),
    [((1, 50, 8), (1, 50, 8)), ((50, 8), (7, 2)), ((50,), (50,)), ((0, 8), (0, 8))],
)
def test_a_spectrogram_of_other_shapes_says_what_is_needed(sound: Any, relevance: Any) -> None:
    with pytest.raises(InputError, match=r"attribute\(\.\.\.\)\[0\]"):
        spectrogram_figure(torch.zeros(sound), torch.zeros(relevance))


@pytest.mark.parametrize("hop", [0, -0.1, float("nan"), "10 ms"])
def test_a_hop_must_be_positive(hop: Any) -> None:
    with pytest.raises(OptionError, match="hop"):
        spectrogram_figure(torch.zeros(5, 4), torch.zeros(5, 4), hop=hop)
