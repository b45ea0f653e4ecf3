"""Figures: what is drawn is what was computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.errors import InputError, OptionError
from hf_gmar.models import ImageView
from hf_gmar.visualization import overlay_figure, overlay_image, save_figure
from hf_gmar.visualization.overlay import COLOUR_MAP, SIGNED_COLOUR_MAP, colour_scale


def test_the_heatmap_covers_the_image_and_keeps_its_values() -> None:
    patches = torch.rand(3, 5)
    figure = overlay_figure(Image.new("RGB", (50, 30)), patches, "cat")
    heat = figure.axes[1].images[1]
    assert np.allclose(np.asarray(heat.get_array()), patches)
    assert tuple(heat.get_extent()) == (-0.5, 49.5, 29.5, -0.5)
    assert figure.axes[2].get_ylim() == pytest.approx((0, float(patches.max())))
    assert figure.axes[1].get_legend() is None


@pytest.mark.parametrize(
    "box", [(0.0, 12.5, 30.0, 37.5), (3.0, 5.0, 27.0, 45.0), (-10.0, -8.0, 40.0, 45.5)]
)
def test_the_heatmap_lies_where_the_model_saw_the_image(
    box: tuple[float, float, float, float],
) -> None:
    figure = overlay_figure(
        Image.new("RGB", (50, 30)), torch.rand(3, 5), "cat", view=ImageView((30, 50), box)
    )
    heated = figure.axes[1]
    top, left, bottom, right = box
    assert tuple(heated.images[1].get_extent()) == (
        left - 0.5,
        right - 0.5,
        bottom - 0.5,
        top - 0.5,
    )
    assert heated.get_xlim() == (-0.5, 49.5)  # never more than the image
    assert heated.get_ylim() == (29.5, -0.5)


def rendered(figure: Figure) -> tuple[NDArray[np.uint8], Any]:
    """All dots of a figure, (height, width, 3), and what draws them."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3], canvas.get_renderer()


def around(figure: Figure, x: int, y: int) -> NDArray[np.uint8]:
    """What the overlay shows around a pixel of the image: (dots, 3)."""
    dots, _ = rendered(figure)
    column, row = figure.axes[1].transData.transform((x, y)).astype(int)
    return dots[::-1][row - 8 : row + 8, column - 8 : column + 8].reshape(-1, 3)


PARTLY_SEEN = ImageView((200, 100), (15.0, 40.0, 185.0, 80.0))


@pytest.mark.parametrize("place", [(20, 100), (90, 100), (20, 8), (90, 190), (50, 7), (50, 193)])
def test_what_the_model_did_not_see_is_dark_grey(place: tuple[int, int]) -> None:
    red = Image.new("RGB", (100, 200), "red")
    dots = around(overlay_figure(red, torch.zeros(4, 4), "", view=PARTLY_SEEN), *place)
    assert np.abs(dots - 0.4 * 76).max() <= 2  # the luminance of red is 76


@pytest.mark.parametrize("place", [(45, 22), (60, 100), (75, 178)])
def test_what_the_model_saw_is_under_the_map(place: tuple[int, int]) -> None:
    red = Image.new("RGB", (100, 200), "red")
    dots = around(overlay_figure(red, torch.zeros(4, 4), "", view=PARTLY_SEEN), *place)
    assert np.abs(dots - np.array([102, 0, 2])).max() <= 2  # the colour of zero over red
    signed = torch.tensor([[0.0, 0.0], [0.0, -1e-9]])
    dots = around(overlay_figure(red, signed + 1e-12, "", view=PARTLY_SEEN), *place)
    assert np.ptp(dots, axis=1).max() < 20  # no red below: the colours of the map over grey


def test_the_dark_part_is_explained() -> None:
    view = ImageView((30, 50), (0.0, 10.0, 30.0, 40.0))
    figure = overlay_figure(Image.new("RGB", (50, 30)), torch.rand(2, 2), "cat", view=view)
    legend: Any = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["not seen by the model"]


def test_a_view_of_another_image_is_refused() -> None:
    view = ImageView((50, 30), (0.0, 0.0, 50.0, 30.0))
    with pytest.raises(
        InputError, match=r"the view has the size \(50, 30\) and the image \(30, 50\)"
    ):
        overlay_figure(Image.new("RGB", (50, 30)), torch.rand(2, 2), "cat", view=view)


@pytest.mark.parametrize(
    "size", [(300, 300), (640, 480), (480, 640), (900, 300), (200, 700), (3000, 100), (20, 1000)]
)
@pytest.mark.parametrize(
    "title", ["cat  51.3%", "German shepherd, German police dog, alsatian, " * 2]
)
def test_nothing_overlaps_or_is_cut_off(size: tuple[int, int], title: str) -> None:
    """Whatever the shape of the image."""
    width, height = size
    view = ImageView((height, width), (height * 0.1, 0.0, height * 0.9, width))
    figure = overlay_figure(Image.new("RGB", size), torch.rand(2, 2), title, "a caption " * 8, view)
    _, renderer = rendered(figure)
    plain, heated, bar = figure.axes
    legend: Any = heated.get_legend()
    parts: list[Any] = [
        bar.get_tightbbox(renderer),
        *(
            part.get_window_extent()
            for part in (plain, heated, plain.title, heated.title, legend, *figure.texts)
        ),
    ]
    for index, part in enumerate(parts):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1
        assert not any(part.overlaps(other) for other in parts[:index])
    assert plain.bbox.width / plain.bbox.height == pytest.approx(width / height)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_of_any_mode_can_be_drawn(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (16, 9))
    figure = overlay_figure(image, torch.rand(2, 2), "cat")
    save_figure(figure, tmp_path / "out.png")
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (9, 16, 3)
    assert overlay_image(image, torch.rand(9, 16)).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 1)])
def test_the_smallest_pictures_can_be_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    save_figure(overlay_figure(Image.new("RGB", size), torch.rand(2, 2), "cat"), tmp_path / "a.png")


def test_a_large_photo_is_drawn_small() -> None:
    figure = overlay_figure(Image.new("RGB", (4000, 3000)), torch.rand(2, 2), "cat")
    assert np.asarray(figure.axes[0].images[0].get_array()).shape[0] < 2000
    assert tuple(figure.axes[0].images[0].get_extent()) == (-0.5, 3999.5, 2999.5, -0.5)


@pytest.mark.parametrize(
    "label", ["$5 bill", r"\frac{", "a_b^c", "犬 🐕", "", "long " * 60, "x" * 200]
)
def test_any_label_can_be_drawn(tmp_path: Path, label: str) -> None:
    figure = overlay_figure(Image.new("RGB", (16, 16)), torch.rand(2, 2), label, label)
    save_figure(figure, tmp_path / "out.png")  # without a warning
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_flat_map_can_be_drawn(tmp_path: Path, value: float) -> None:
    figure = overlay_figure(Image.new("RGB", (16, 16)), torch.full((2, 2), value), "flat")
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


def random_photo(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_every_pixel_of_the_overlay() -> None:
    image, heat = random_photo(7, 11), torch.rand(7, 11)
    heat[2, 3] = heat[5] = float("nan")
    before = image.tobytes()
    drawn = np.asarray(overlay_image(image, heat)).astype(float)
    top = max(float(value) for value in heat.flatten() if not value.isnan())
    for y in range(7):
        for x in range(11):
            pixel = np.array(image.getpixel((x, y)))
            if heat[y, x].isnan():
                expected = np.full(3, pixel @ [0.299, 0.587, 0.114] * 0.4)
            else:
                colour = np.array(mpl.colormaps[COLOUR_MAP](float(heat[y, x]) / top))[:3] * 255
                expected = 0.4 * pixel + 0.6 * colour
            assert np.abs(drawn[y, x] - expected).max() < 5  # 256 colours
    assert image.tobytes() == before


def test_a_map_of_zeros_is_all_one_colour() -> None:
    drawn = overlay_image(Image.new("RGB", (5, 4), "white"), torch.zeros(4, 5))
    assert drawn.getcolors() == [(20, (102, 102, 103))]


def test_a_map_that_explains_nothing_is_grey() -> None:
    drawn = overlay_image(Image.new("RGB", (5, 4), "red"), torch.full((4, 5), float("nan")))
    assert drawn.getcolors() == [(20, (30, 30, 30))]


def test_heat_of_another_size_is_refused() -> None:
    message = r"the heatmap has the size \(5, 4\) and the image \(4, 5\)"
    with pytest.raises(InputError, match=message):
        overlay_image(Image.new("RGB", (5, 4)), torch.rand(5, 4))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_heat_of_any_kind_of_float(kind: torch.dtype) -> None:
    heat = torch.tensor([[0.0, 1.0]], dtype=kind, requires_grad=True)
    drawn = overlay_image(Image.new("RGB", (2, 1)), heat)
    assert drawn.getpixel((0, 0)) != drawn.getpixel((1, 0))


@pytest.mark.parametrize("values", [[[0.25, -1.0], [0.0, 0.5]], [[0.5, -0.25], [1.0, 0.0]]])
def test_negative_values_have_a_scale_about_zero(values: list[list[float]]) -> None:
    figure = overlay_figure(Image.new("RGB", (50, 30)), torch.tensor(values), "cat")
    heat = figure.axes[1].images[1]
    assert np.allclose(np.asarray(heat.get_array()), values)
    assert heat.get_clim() == (-1, 1)
    assert heat.get_cmap().name == SIGNED_COLOUR_MAP
    assert "below 0: against the class" in figure.axes[2].get_ylabel()


def test_values_without_a_negative_one_look_as_ever() -> None:
    figure = overlay_figure(Image.new("RGB", (50, 30)), torch.tensor([[0.0, 0.5]]), "cat")
    heat = figure.axes[1].images[1]
    assert heat.get_clim() == (0, 0.5)
    assert heat.get_cmap().name == COLOUR_MAP
    assert figure.axes[2].get_ylabel() == "relevance, per patch"


def test_the_meaning_of_negative_values_is_not_cut_off() -> None:
    for size in ((300, 300), (900, 300), (200, 700), (3000, 100)):
        figure = overlay_figure(Image.new("RGB", size), -torch.rand(2, 2), "cat", "caption")
        _, renderer = rendered(figure)
        bar: Any = figure.axes[2]
        box = bar.get_tightbbox(renderer)
        assert box.x1 <= figure.bbox.x1, size
        assert box.y0 >= 0, size
        assert box.y1 <= figure.bbox.y1, size
        assert not box.overlaps(figure.texts[0].get_window_extent()), size


def test_every_pixel_of_a_signed_overlay() -> None:
    image, heat = random_photo(7, 11), torch.randn(7, 11)
    heat[2, 3] = float("nan")
    drawn = np.asarray(overlay_image(image, heat)).astype(float)
    top = heat[~heat.isnan()].abs().max().item()
    for y in range(7):
        for x in range(11):
            if heat[y, x].isnan():
                continue
            colour = mpl.colormaps[SIGNED_COLOUR_MAP]((heat[y, x].item() / top + 1) / 2)[:3]
            grey = np.array([image.convert("L").getpixel((x, y))] * 3)
            expected = 0.4 * grey + 0.6 * np.array(colour) * 255
            assert np.abs(drawn[y, x] - expected).max() < 8  # 256 colours


@pytest.mark.parametrize(
    ("values", "scale", "low", "high"),
    [
        ([0.0, 1.0, 3.0], "max", 0, 3),
        ([-1.0, 3.0], "max", -3, 3),
        ([0.0, 0.0], "max", 0, 1),
        ([*range(101)], "percentile", 2, 98),
        ([*range(-100, 1)], "percentile", -98, 98),
        ([5.0, 5.0], "percentile", 5, 6),
        ([0.0, 1.0], (0.25, 0.5), 0.25, 0.5),
    ],
)
def test_the_ends_of_the_colours(values: list[float], scale: Any, low: float, high: float) -> None:
    colours = colour_scale(torch.tensor([*values, float("nan")]), scale)
    assert (colours.low, colours.high) == pytest.approx((low, high))
    assert colours.name == (SIGNED_COLOUR_MAP if min(values) < 0 else COLOUR_MAP)


@pytest.mark.parametrize("scale", ["most", (1, 0), (0, 0), (0,), None, (0, float("inf")), 3])
def test_scales_that_are_none(scale: Any) -> None:
    with pytest.raises(OptionError, match="scale must be 'max', 'percentile' or a pair"):
        colour_scale(torch.ones(3), scale)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colormap": "rainbows"}, "colormap must be one of matplotlib's"),
        ({"opacity": 1.5}, "opacity must be"),
        ({"opacity": True}, "opacity must be"),
    ],
)
def test_overlays_that_can_not_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        overlay_image(Image.new("RGB", (2, 1)), torch.ones(1, 2), **options)


def test_a_transparent_overlay_is_the_image() -> None:
    image = random_photo(7, 11)
    assert overlay_image(image, torch.rand(7, 11), opacity=0) == image


def test_blue_is_against_and_red_is_for() -> None:
    heat = torch.tensor([[-1.0, 0.0, 1.0]])
    drawn = overlay_image(Image.new("RGB", (3, 1), "white"), heat)
    against, nothing, favour = (np.array(drawn.getpixel((x, 0))).astype(int) for x in range(3))
    assert against[2] > against[0] + 30
    assert favour[0] > favour[2] + 30
    assert np.ptp(nothing) <= 3
