"""Scenes: deterministic, and masks that say exactly where the objects are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.data import CLASSES, draw_scene, grey_out, scenes
from hf_gmar.data.scenes import GREY
from hf_gmar.models import sample_image


def test_a_seed_draws_the_same_scene_again() -> None:
    first, again, other = draw_scene(7), draw_scene(7), draw_scene(8)
    assert np.array_equal(_pixels(first.image), _pixels(again.image))
    assert np.array_equal(first.masks, again.masks)
    assert first.classes == again.classes
    assert not np.array_equal(_pixels(first.image), _pixels(other.image))


def test_drawing_leaves_numpys_random_state_alone() -> None:
    before = repr(np.random.get_state())  # noqa: NPY002
    draw_scene(7)
    assert repr(np.random.get_state()) == before  # noqa: NPY002


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    size=st.sampled_from([32, 96, 128]),
    difficulty=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_scene_is_well_formed(seed: int, size: int, difficulty: float) -> None:
    scene = draw_scene(seed, size, difficulty)
    assert scene.image.size == (size, size)
    assert scene.image.mode == "RGB"
    assert 2 <= len(scene.classes) == len(set(scene.classes)) <= 3
    assert scene.masks.shape == (len(scene.classes), size, size)
    assert scene.masks.sum(axis=0).max() == 1, "objects must not overlap"
    assert (scene.masks.mean(axis=(1, 2)) > 0.005).all(), "every object is seen"


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_is_where_its_object_is_painted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint each object black or white, without noise: only the masks' pixels may differ."""

    def painted(colour: str) -> NDArray[np.int_]:
        def paint(_rng: object, canvas: Image.Image, stencil: Image.Image, _: float) -> None:
            canvas.paste(Image.new("RGB", canvas.size, colour), mask=stencil)

        monkeypatch.setattr(scenes, "_paint", paint)
        return np.asarray(draw_scene(seed).image).astype(int)

    share = (painted("white") - painted("black")).mean(axis=2) / 255
    union = np.asarray(draw_scene(seed).masks.any(axis=0))
    # Both pictures have the same noise, so the share of object in each pixel is all that is left,
    # but for pixels where noise meets the end of the scale.
    assert share[union].min() > 0.35
    assert share[~union].max() < 0.65
    assert share[union].mean() > 0.9
    assert share[~_grown(union)].max() == 0


def test_grey_out_covers_the_object_and_nothing_far_from_it() -> None:
    scene = draw_scene(5)
    covered = np.asarray(grey_out(scene.image, scene.masks[0]))
    assert (covered[scene.masks[0]] == GREY[0]).all()
    far = ~_grown(scene.masks[0])
    assert np.array_equal(covered[far], np.asarray(scene.image)[far])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0, "size": 8}, "size"),
        ({"seed": 0, "difficulty": 1.5}, "difficulty"),
        ({"seed": 0, "objects": 9}, "objects"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        draw_scene(**arguments)


def test_the_bundled_sample_is_a_scene_that_can_be_drawn_again() -> None:
    with Image.open(sample_image()) as sample:
        seed = int(sample.text["seed"])  # type: ignore[attr-defined]
        assert np.array_equal(_pixels(sample), _pixels(draw_scene(seed).image))


def test_there_are_at_least_eight_classes() -> None:
    assert len(CLASSES) >= 8


def _grown(mask: NDArray[np.bool_], margin: int = 2) -> NDArray[np.bool_]:
    window = np.lib.stride_tricks.sliding_window_view(np.pad(mask, margin), (2 * margin + 1,) * 2)
    return np.asarray(window.any(axis=(2, 3)))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))
