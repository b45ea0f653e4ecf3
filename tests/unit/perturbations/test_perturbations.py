"""Perturbations: what is seen in place of a patch, and the scores of copies without some."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_gmar import GMAR, LogitsModel
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import InputError, ModelOutputError, OptionError, UnsupportedModelError
from hf_gmar.models import LoadedModel
from hf_gmar.perturbations import (
    PERTURBATIONS,
    AttentionMasking,
    Blur,
    DatasetMean,
    MeanColour,
    Noise,
    Perturbation,
    TokenDropping,
    dataset_mean,
    max_batch_size,
)
from hf_gmar.perturbations.memory import LiveBytes
from tests.reference.cases import LABELS, MODELS, MORE_MODELS, VIT, Around, ModelCase, every_model
from tests.reference.parity import same
from tests.reference.tolerances import PATIENCE
from tests.support.state import unchanged, used
from tests.support.threads import Halfway

DOCS = Path(__file__).parents[3] / "docs" / "perturbations.md"
COLOUR = (0.25, -0.5, 1.0)
ALL: tuple[Perturbation, ...] = (
    Blur(),
    MeanColour(),
    DatasetMean(COLOUR),
    Noise(),
    AttentionMasking(),
    TokenDropping(),
)
SOFT = [one for one in ALL if one.soft]
CASES = {case.name: case for case in (*MODELS, *MORE_MODELS)}

every_perturbation = pytest.mark.parametrize("perturbation", ALL, ids=lambda one: one.name)
every_soft = pytest.mark.parametrize("perturbation", SOFT, ids=lambda one: one.name)


def adapter_of(case: ModelCase, **settings: Any) -> ModelAdapter:
    """A model in float64, in which rounding hides no mistake."""
    return ModelAdapter.of(case.build(**settings).double(), case.options.get("readout"))


def image_of(case: ModelCase, number: int = 0) -> Tensor:
    """One image, whose channels have other means and contrasts."""
    image = case.images(torch.float64)[number : number + 1]
    channels = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None, None]
    return image * channels + channels.flip(0)


def some(case: ModelCase, copies: int = 4, seed: int = 0) -> Tensor:
    """Random patches that are kept; everything in the first copy, and always one."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(copies, *case.grid, generator=generator) < 0.5
    kept[0], kept[:, 0, 0] = True, True
    return kept


def plain(adapter: ModelAdapter, case: ModelCase, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return adapter(pixels, **case.forward_kwargs)


def scores(
    perturbation: Perturbation, adapter: ModelAdapter, case: ModelCase, kept: Tensor, **how: Any
) -> Tensor:
    kwargs = case.forward_kwargs
    return perturbation.bind(adapter, image_of(case), forward_kwargs=kwargs, **how).scores(kept)


def seen(perturbation: Perturbation, case: ModelCase, kept: Tensor, **how: Any) -> Tensor:
    """The pixels that the model sees, (K, channels, height, width)."""
    model, found = case.build().double(), []
    model.register_forward_pre_hook(lambda _module, args: found.append(args[0].clone()))
    perturbation.bind(ModelAdapter.of(model), image_of(case), **how).scores(kept)
    return torch.cat(found)


# The table


def test_names() -> None:
    assert list(PERTURBATIONS) == [one.name for one in ALL]
    assert [type(one) for one in ALL] == [kind for _, kind in PERTURBATIONS.items()]
    assert {one.name for one in ALL if not one.soft} == {"attention-masking", "token-dropping"}


def test_the_page_has_them_all() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*?) \|", DOCS.read_text(), re.MULTILINE)
    assert rows == [(one.name, one.summary, one.source) for one in ALL]


@every_perturbation
def test_built_by_name(perturbation: Perturbation) -> None:
    options = dataclasses.asdict(perturbation)
    assert PERTURBATIONS.build(perturbation.name, **options) == perturbation


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("blurr", {}, "no perturbation 'blurr'; there are blur, mean, dataset-mean, noise"),
        ("mean", {"radius": 3}, "'mean' has no option radius; it has none"),
        ("blur", {"radios": 3, "a": 1}, "'blur' has no option a, radios; it has radius"),
        ("dataset-mean", {}, "'dataset-mean' needs a value for colour"),
        ("blur", {"radius": 0}, "radius must be above 0"),
        ("blur", {"radius": -1}, "radius must be a finite number >= 0"),
        ("blur", {"radius": "3"}, "radius must be a number"),
        ("blur", {"radius": math.inf}, "radius must be a finite number"),
        ("dataset-mean", {"colour": ()}, "colour must be a sequence"),
        ("dataset-mean", {"colour": "red"}, "colour must be a sequence.*'red'"),
        ("dataset-mean", {"colour": 0.5}, "colour must be a sequence"),
        ("dataset-mean", {"colour": (0.5, math.nan)}, "colour must be a finite number"),
        ("dataset-mean", {"colour": (0.5, "1")}, "colour must be a number"),
        ("noise", {"seed": -1}, "seed must be a whole number from 0"),
        ("noise", {"seed": 1.5}, "seed must be a whole number"),
        ("noise", {"std": -0.5}, "std must be a finite number >= 0"),
    ],
)
def test_options_that_do_not_exist(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        PERTURBATIONS.build(name, **options)


# What is seen


@every_soft
@pytest.mark.parametrize("name", ["vit", "vit-oblong", "vit-oblong-patches"])
def test_pixels_of_kept_patches_are_the_images(perturbation: Perturbation, name: str) -> None:
    """To the last bit; and other ones elsewhere."""
    case = CASES[name]
    kept, image = some(case), image_of(case)
    found = seen(perturbation, case, kept)
    rows, columns = case.grid
    height, width = case.shape[1] // rows, case.shape[2] // columns
    for copy, patches in zip(found, kept, strict=True):
        for row in range(rows):
            for column in range(columns):
                part = np.s_[
                    :, row * height : (row + 1) * height, column * width : (column + 1) * width
                ]
                same = copy[part] == image[0][part]
                assert same.all() if patches[row, column] else not same.any()


def baseline(perturbation: Perturbation, case: ModelCase = VIT, **how: Any) -> Tensor:
    """What is seen where nothing is kept, (channels, height, width)."""
    return seen(perturbation, case, torch.zeros(1, *case.grid, dtype=torch.bool), **how)[0]


def test_the_mean_colour() -> None:
    image = image_of(VIT)[0].numpy()
    for channel, found in zip(image, baseline(MeanColour()).numpy(), strict=True):
        np.testing.assert_allclose(found, np.full((32, 32), channel.mean()), atol=1e-12)


def test_the_colour_of_a_data_set() -> None:
    for value, found in zip(COLOUR, baseline(DatasetMean(list(COLOUR))), strict=True):
        assert (found == value).all()


@pytest.mark.parametrize("radius", [0.5, 3, 40.0, 1e-100])
def test_the_blur(radius: float) -> None:
    """Each pixel is the mean of all, weighted by a Gaussian of the distance."""
    case = CASES["vit-oblong"]
    image, found = image_of(case)[0].numpy(), baseline(Blur(radius), case).numpy()
    rows, columns = np.mgrid[0:24, 0:40]
    for row, column in [(0, 0), (5, 7), (23, 39), (12, 20)]:
        far = ((rows - row) / radius) ** 2 + ((columns - column) / radius) ** 2
        weights = np.exp(-far / 2)
        wanted = (image * weights).sum((1, 2)) / weights.sum()
        np.testing.assert_allclose(found[:, row, column], wanted, atol=1e-10)


@pytest.mark.parametrize(("name", "side"), [("vit", 8), ("vit-oblong-patches", 8)])
def test_the_blur_is_as_wide_as_a_patch(name: str, side: int) -> None:
    case = CASES[name]
    assert torch.equal(baseline(Blur(), case), baseline(Blur(side), case))
    assert not torch.allclose(baseline(Blur(), case), baseline(Blur(side / 2), case))


def test_a_plain_image_has_no_blur() -> None:
    model, found = VIT.build(), []
    model.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    grey = torch.full((1, 3, 32, 32), 0.7)
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    for perturbation in (Blur(), MeanColour(), Noise()):
        perturbation.bind(ModelAdapter.of(model), grey).scores(nothing)
    for pixels in found:
        torch.testing.assert_close(pixels, grey)


def test_noise_has_the_mean_and_contrast_of_the_image() -> None:
    case, image = CASES["vit-oblong"], image_of(CASES["vit-oblong"])[0]
    drawn = torch.stack([baseline(Noise(seed), case) for seed in range(20)])
    assert torch.unique(drawn).numel() == drawn.numel()
    for number, channel in enumerate(image):
        of_channel = drawn[:, number]
        spread = channel.std(correction=0)
        assert abs(of_channel.mean() - channel.mean()) < 4 * spread / math.sqrt(20 * 24 * 40)
        assert of_channel.std() / spread == pytest.approx(1, abs=0.02)
    strong, mean = baseline(Noise(3, std=2.5), case), image.mean((1, 2))[:, None, None]
    torch.testing.assert_close(strong - mean, 2.5 * (baseline(Noise(3), case) - mean))


def test_noise_depends_on_the_seed_and_the_image_alone() -> None:
    adapter = adapter_of(VIT)
    kept = some(VIT)[1:]

    def drawn(number: int = 0, key: str | None = None, seed: int = 0) -> Tensor:
        begun = Noise(seed).bind(adapter, image_of(VIT, number), key=key)
        return begun.scores(kept)

    first = drawn()
    others = [drawn(1), drawn(seed=1), drawn(key="a.jpg"), drawn(key="b.jpg")]
    torch.manual_seed(5)
    np.random.default_rng(5).random()
    assert torch.equal(drawn(), first)
    assert torch.equal(drawn(key="a.jpg"), others[2])
    found = [first, *others]
    assert all(not torch.allclose(a, b) for n, a in enumerate(found) for b in found[:n])
    # By name, the same numbers are drawn for other pixels.
    one, other = (
        (baseline_of - baseline_of.mean((1, 2), keepdim=True))
        / baseline_of.std((1, 2), keepdim=True)
        for baseline_of in (
            seen_of(Noise(), image_of(VIT, number), key="a.jpg") for number in (0, 1)
        )
    )
    torch.testing.assert_close(one, other)


def seen_of(perturbation: Perturbation, image: Tensor, **how: Any) -> Tensor:
    """What is seen of another image where nothing is kept."""
    model = VIT.build().double()
    found: list[Tensor] = []
    model.register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    begun = perturbation.bind(ModelAdapter.of(model), image, **how)
    begun.scores(torch.zeros(1, 4, 4, dtype=torch.bool))
    return found[0][0]


def test_noise_is_the_same_on_every_machine() -> None:
    """Numbers from the definition: NumPy's generator, seeded by the seed and SHA-256."""
    image = torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.float64).reshape(1, 3, 32, 32)
    found = seen_of(Noise(seed=4), image, key="dog/a.jpg")
    digest = hashlib.sha256(b"dog/a.jpg").hexdigest()[:32]
    drawn = np.random.default_rng([4, int(digest, 16)]).standard_normal((3, 32, 32))
    numbers = image[0].numpy()
    wanted = numbers.mean((1, 2), keepdims=True) + drawn * numbers.std((1, 2), keepdims=True)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


@every_soft
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_a_patch_in_part(perturbation: Perturbation, share: float, seed: int) -> None:
    """Image and baseline are mixed."""
    shares = some(VIT, 1, seed).double() * share
    shares[0, 0, 0] = 1
    found = seen(perturbation, VIT, shares)[0]
    image, missing = image_of(VIT)[0], baseline(perturbation)
    wide = shares[0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found, wide * image + (1 - wide) * missing, rtol=0, atol=1e-12)


@every_soft
def test_flags_are_zero_and_one(perturbation: Perturbation) -> None:
    kept, adapter = some(VIT), adapter_of(VIT)
    flags = scores(perturbation, adapter, VIT, kept)
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert same(scores(perturbation, adapter, VIT, kept.to(dtype)), flags)


def test_the_mean_of_a_data_set() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, 2 + n, 5, generator=generator) + n for n in (1, 4, 2)]
    pixels = np.concatenate([b.permute(1, 0, 2, 3).reshape(3, -1).numpy() for b in batches], 1)
    wanted = pixels.astype(float).mean(1)
    assert dataset_mean(iter(batches)) == pytest.approx(wanted, abs=1e-9)
    assert DatasetMean(dataset_mean(batches)).colour == dataset_mean(batches)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no image"),
        ([torch.zeros(0, 3, 4, 4)], "no image"),
        ([torch.zeros(3, 4, 4)], r"got \(3, 4, 4\)"),
        ([torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)], r"got \(1, 1, 4, 4\)"),
        ([torch.zeros(1, 3, 4, 4, dtype=torch.int64)], "are needed"),
        (["dog.jpg"], "are needed"),
    ],
)
def test_no_mean_of_a_data_set(batches: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataset_mean(batches)


# Scores


@every_perturbation
@every_model
def test_nothing_missing_is_the_plain_score(case: ModelCase, perturbation: Perturbation) -> None:
    adapter = adapter_of(case)
    found = scores(perturbation, adapter, case, some(case), batch=3)
    wanted = plain(adapter, case, image_of(case))[0]
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-10)
    assert found.shape == (4, LABELS)
    assert not found.requires_grad
    assert ((found[1:] - wanted).abs().amax(1) > 1e-3).all()


@every_soft
@every_model
def test_scores_are_of_what_is_seen(case: ModelCase, perturbation: Perturbation) -> None:
    adapter, kept = adapter_of(case), some(case)
    found = scores(perturbation, adapter, case, kept)
    image, begun = image_of(case), perturbation.bind(adapter, image_of(case))
    copies = begun.copies.pixels(kept)
    assert torch.equal(copies[0], image[0])
    wanted = torch.cat([plain(adapter, case, copy[None]) for copy in copies])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@every_model
def test_masking_is_dropping(case: ModelCase) -> None:
    adapter, kept = adapter_of(case), some(case, copies=5)
    dropped = scores(TokenDropping(), adapter, case, kept)
    masked = scores(AttentionMasking(), adapter, case, kept)
    torch.testing.assert_close(masked, dropped, rtol=0, atol=1e-10)


VARIED = ["vit", "beit-mean", "dinov2-registers", "dinov3-cls", "mlcd-cls", "data2vec-cls"]


@every_perturbation
@pytest.mark.parametrize("name", VARIED)
@given(copies=st.integers(1, 6), seed=st.integers(0, 9), batch=st.integers(1, 7))
@settings(max_examples=4, deadline=None)
def test_batches_do_not_matter(
    perturbation: Perturbation, name: str, copies: int, seed: int, batch: int
) -> None:
    """Nor the order of the copies."""
    case = CASES[name]
    if name == "data2vec-cls" and isinstance(perturbation, AttentionMasking):
        return  # refused
    adapter, kept = _KEPT.setdefault(name, adapter_of(case)), some(case, copies, seed)
    one_by_one = torch.cat([scores(perturbation, adapter, case, one[None]) for one in kept])
    order = torch.randperm(copies, generator=torch.Generator().manual_seed(seed))
    together = scores(perturbation, adapter, case, kept[order], batch=batch)
    torch.testing.assert_close(together, one_by_one[order], rtol=0, atol=1e-10)


_KEPT: dict[str, ModelAdapter] = {}


@contextmanager
def counted(adapter: ModelAdapter) -> Iterator[list[int]]:
    """How many images each forward has."""
    sizes: list[int] = []
    handle = adapter.vision_model.register_forward_pre_hook(
        lambda _module, args, kwargs: sizes.append(
            len(args[0] if args else kwargs["pixel_values"])
        ),
        with_kwargs=True,
    )
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "perturbation", "sizes"),
    [
        ("vit", MeanColour(), [4, 3]),
        ("vit", AttentionMasking(), [4, 3]),
        ("dinov2", AttentionMasking(), [2, 4, 1]),
        ("vit", TokenDropping(), [2, 4, 1]),
        ("dinov3-cls", TokenDropping(), [2, 4, 1]),
        ("mlcd-cls", TokenDropping(), [1] * 7),
        ("mlcd-cls", AttentionMasking(), [4, 3]),
    ],
)
def test_copies_run_together(name: str, perturbation: Perturbation, sizes: list[int]) -> None:
    """As many as may; of equal numbers of patches where they make one tensor."""
    kept = torch.ones(7, 16, dtype=torch.bool)
    kept[[0, 2], :3] = False  # two have 13 patches, five have 16
    case = CASES[name]
    adapter = adapter_of(case)
    with counted(adapter) as found:
        scores(perturbation, adapter, case, kept.reshape(7, 4, 4), batch=4)
    assert found == sizes


@every_perturbation
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_lower_precision(perturbation: Perturbation, autocast: torch.dtype) -> None:
    adapter, kept = ModelAdapter.of(CASES["beit-mean"].build()), some(VIT)
    image, inside = CASES["beit-mean"].images()[:1], []
    adapter.vision_model.register_forward_hook(
        lambda *_: inside.append(torch.get_autocast_dtype("cpu") if on() else None)
    )
    low = perturbation.bind(adapter, image, autocast=autocast).scores(kept)
    full = perturbation.bind(adapter, image).scores(kept)
    assert low.dtype == full.dtype == torch.float32
    assert set(inside) == {autocast, None}
    assert not on()
    assert 0 < (low - full).abs().max() < 0.2


def on() -> bool:
    return torch.is_autocast_enabled("cpu")


def test_a_callers_autocast_keeps_no_weights() -> None:
    """Those that were cast for a perturbation have no graph; the caller's training needs one."""
    model = VIT.build()
    adapter, kept = ModelAdapter.of(model), some(VIT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        begun = MeanColour().bind(adapter, VIT.images()[:1], autocast=torch.bfloat16)
        begun.scores(kept)
        model(VIT.images()).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_models_in_half_precision() -> None:
    model, image, kept = VIT.build().bfloat16(), VIT.images(torch.bfloat16)[:1], some(VIT)
    for perturbation in ALL:
        found = perturbation.bind(ModelAdapter.of(model), image, key="a").scores(kept)
        full = begun(perturbation=perturbation, key="a").scores(kept)
        assert found.dtype == torch.float32
        assert (found - full).abs().max() < 0.3


@every_perturbation
def test_models_in_wrappers(perturbation: Perturbation) -> None:
    """Keywords may be the wrapper's or the call's."""
    case, kept = CASES["vit-interpolated"], some(CASES["vit-interpolated"])
    model = case.build().double()
    wanted = scores(perturbation, ModelAdapter.of(model), case, kept)
    wrapped = LogitsModel(model, **case.forward_kwargs)
    found = perturbation.bind(ModelAdapter.of(wrapped), image_of(case)).scores(kept)
    assert same(found, wanted)
    with pytest.raises(OptionError, match="unknown keyword interpolate"):
        perturbation.bind(
            ModelAdapter.of(model), image_of(case), forward_kwargs={"interpolate": True}
        )


@every_perturbation
def test_the_model_comes_back(perturbation: Perturbation) -> None:
    model = used(VIT)
    adapter, image, kept = ModelAdapter.of(model), VIT.images()[:1], some(VIT)
    state = random.getstate()
    with unchanged(model):
        begun = perturbation.bind(adapter, image, autocast=torch.bfloat16)
        begun.scores(kept)
        max_batch_size(adapter, image, 10**6, perturbation=perturbation)
    assert random.getstate() == state
    assert torch.equal(image, VIT.images()[:1])
    model.classifier.register_forward_hook(lambda *_: 1 // 0)
    with unchanged(model):
        with pytest.raises(ZeroDivisionError):
            begun.scores(kept)
        assert not on()


@every_perturbation
def test_modes_of_the_caller(perturbation: Perturbation) -> None:
    adapter, kept = adapter_of(VIT), some(VIT)
    wanted = scores(perturbation, adapter, VIT, kept)
    with torch.inference_mode():
        inside = scores(perturbation, adapter, VIT, kept)
    assert same(inside, wanted)
    image = image_of(VIT).requires_grad_()
    with torch.enable_grad():
        begun = perturbation.bind(adapter, image)
        found = begun.scores(kept)
    assert not found.requires_grad
    assert same(found, wanted)


@every_perturbation
def test_threads_share_a_model(perturbation: Perturbation) -> None:
    model, halfway = VIT.build().double(), Halfway()
    adapter, kept, pixels = ModelAdapter.of(model), some(VIT), image_of(VIT)
    wanted, gmar = scores(perturbation, adapter, VIT, kept), GMAR(model)
    logits, explained = plain(adapter, VIT, pixels), gmar.attribute_patches(pixels, 2)
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(3) as pool:
        work = halfway.during(lambda: scores(perturbation, adapter, VIT, kept), pool)
        assert torch.equal(plain(adapter, VIT, pixels), logits)
        other = pool.submit(lambda: scores(perturbation, adapter, VIT, kept))
        third = pool.submit(lambda: gmar.attribute_patches(pixels, 2))
        halfway.go_on.set()
        assert same(work.result(PATIENCE), wanted)
        assert same(other.result(PATIENCE), wanted)
        assert same(third.result(PATIENCE), explained)


@every_perturbation
def test_the_bundled_model(perturbation: Perturbation, bundled: LoadedModel, scene: Any) -> None:
    adapter = ModelAdapter.of(bundled.model)
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    begun = perturbation.bind(adapter, pixels)
    kept = torch.ones(2, *begun.grid, dtype=torch.bool)
    kept[1, ::2] = False
    with torch.no_grad():
        wanted = adapter(pixels)[0]
    found = begun.scores(kept)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-4)
    assert (found[1] - wanted).abs().max() > 0.1


# What is refused


def begun(**how: Any) -> Any:
    perturbation = how.pop("perturbation", MeanColour())
    pixels = how.pop("pixels", VIT.images()[:1])
    return perturbation.bind(ModelAdapter.of(how.pop("model", VIT.build())), pixels, **how)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"pixels": VIT.images()}, InputError, "one image .* at a time, got 3"),
        ({"pixels": VIT.images()[0]}, InputError, "unsqueeze"),
        ({"pixels": torch.zeros(1, 1, 32, 32)}, InputError, "3 channels, got 1"),
        ({"pixels": torch.zeros(1, 3, 30, 32)}, InputError, "30 x 32"),
        ({"pixels": torch.full((1, 3, 32, 32), math.nan)}, InputError, "NaN"),
        ({"pixels": "dog.jpg"}, InputError, "got str"),
        ({"batch": 0}, OptionError, "batch must be a whole number from 1"),
        ({"batch": 2.0}, OptionError, "batch must be a whole number"),
        ({"batch": True}, OptionError, "batch must be a whole number"),
        ({"autocast": torch.float32}, OptionError, "autocast must be None"),
        ({"autocast": "bfloat16"}, OptionError, "autocast must be None"),
        ({"perturbation": DatasetMean((0.5,))}, InputError, "1 numbers and the image 3 channels"),
    ],
)
def test_images_that_are_refused(how: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        begun(**how)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (torch.ones(4, 4, dtype=torch.bool), r"\(copies, 4, 4\).*got \(4, 4\)"),
        (torch.ones(1, 16, dtype=torch.bool), r"got \(1, 16\)"),
        (torch.ones(2, 5, 4, dtype=torch.bool), r"got \(2, 5, 4\)"),
        (torch.ones(0, 4, 4, dtype=torch.bool), r"got \(0, 4, 4\)"),
        (np.ones((1, 4, 4), dtype=bool), "got ndarray"),
        (torch.ones(1, 4, 4, dtype=torch.int64), "floats from 0.*got torch.int64$"),
        (torch.full((1, 4, 4), 1.01), "with other values"),
        (torch.full((1, 4, 4), -0.01), "with other values"),
        (torch.full((1, 4, 4), math.nan), "with other values"),
    ],
)
def test_kept_patches_that_are_refused(kept: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        begun().scores(kept)


@pytest.mark.parametrize("perturbation", [AttentionMasking(), TokenDropping()])
def test_no_patch_is_there_in_part(perturbation: Perturbation) -> None:
    with pytest.raises(InputError, match=f"{perturbation.name} a patch is there or missing"):
        begun(perturbation=perturbation).scores(torch.ones(1, 4, 4))


@every_perturbation
@pytest.mark.parametrize(
    ("name", "fewest"), [("vit", 0), ("deit-teacher", 0), ("dinov2", 1), ("siglip-prompts", 1)]
)
def test_the_fewest_patches(name: str, fewest: int, perturbation: Perturbation) -> None:
    case = CASES[name]
    adapter = adapter_of(case)
    nothing = torch.zeros(2, *case.grid, dtype=torch.bool)
    nothing[0, 0, 0] = True
    fewest = 0 if perturbation.soft else fewest
    assert perturbation.fewest(adapter) == fewest
    if fewest:
        with pytest.raises(InputError, match=r"needs at least 1 patch.*has 0"):
            scores(perturbation, adapter, case, nothing)
    else:
        assert scores(perturbation, adapter, case, nothing).isfinite().all()
    assert scores(perturbation, adapter, case, nothing[:1]).isfinite().all()


def test_masking_where_attention_is_fixed() -> None:
    case = CASES["data2vec-cls"]
    with pytest.raises(UnsupportedModelError, match="token-dropping"):
        scores(AttentionMasking(), adapter_of(case), case, some(case))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda model, x: model(x).logits.sum(0, keepdim=True), r"3 copies .* \(1, 7\)"),
        (lambda model, x: model(x).logits[..., None], r"\(3, 7, 1\)"),
        (lambda model, x: model(x).logits * math.inf, "scores are not finite"),
    ],
)
def test_scores_that_are_refused(how: Callable[[Any, Tensor], Any], words: str) -> None:
    with pytest.raises(ModelOutputError, match=words):
        begun(model=Around(VIT.build(), how)).scores(some(VIT, copies=3))


def test_images_of_a_size_that_the_model_refuses() -> None:
    case = CASES["vit-interpolated"]
    kept = torch.ones(1, *case.grid, dtype=torch.bool)
    for perturbation in ALL:
        with pytest.raises(InputError, match="interpolate_pos_encoding=True"):
            begun(perturbation=perturbation, pixels=case.images()[:1]).scores(kept)


# Memory


@every_perturbation
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "beit-mean"])
def test_as_many_copies_as_fit(name: str, autocast: Any, perturbation: Perturbation) -> None:
    """The forward of as many stays within the budget, that of one more does not."""
    case = CASES[name]
    adapter, image, how = ModelAdapter.of(case.build()), case.images()[:1], {"autocast": autocast}
    budget = 1_000_000
    most = max_batch_size(adapter, image, budget, perturbation=perturbation, **how)
    assert 3 < most < 100
    peaks = []
    for copies in (most, most + 1):
        kept = torch.ones(copies, *case.grid, dtype=torch.bool)
        begun = perturbation.bind(adapter, image, batch=copies, **how)
        with LiveBytes() as live:
            begun.scores(kept)
        peaks.append(live.peak)
    assert peaks[0] <= budget < peaks[1]


def test_memory_is_measured_once() -> None:
    adapter, image = ModelAdapter.of(VIT.build()), VIT.images()[:1]
    with counted(adapter) as sizes:
        found = [max_batch_size(adapter, image, budget) for budget in (1, 10**6, 10**7)]
        assert sizes == [1, 1, 2]
        max_batch_size(adapter, VIT.images()[1:2], 10**6)
        assert sizes == [1, 1, 2]
        max_batch_size(adapter, image, 10**6, perturbation=TokenDropping())
        max_batch_size(adapter, image, 10**6, autocast=torch.bfloat16)
        max_batch_size(ModelAdapter.of(adapter.model), image.double(), 10**6)
        assert sizes == [1, 1, 2] * 4
    assert found[0] == 1
    assert 1 < found[1] < found[2] // 9


def test_less_precision_takes_less_memory() -> None:
    adapter, image = ModelAdapter.of(VIT.build()), VIT.images()[:1]
    full, low = (
        max_batch_size(adapter, image, 10**7, perturbation=TokenDropping(), autocast=autocast)
        for autocast in (None, torch.bfloat16)
    )
    assert low > 1.2 * full


def test_memory_of_copies_that_run_one_by_one() -> None:
    """Two copies are two forwards; nothing is taken for shared."""
    case = CASES["mlcd-cls"]
    adapter, image = adapter_of(case), image_of(case)
    begun = TokenDropping().bind(adapter, image)
    with LiveBytes() as live:
        begun.scores(torch.ones(1, *case.grid, dtype=torch.bool))
    found = max_batch_size(adapter, image, 10**6, perturbation=TokenDropping())
    assert found == 10**6 // live.peak


def test_larger_images_take_more_memory() -> None:
    case = CASES["vit-interpolated"]
    adapter, keywords = ModelAdapter.of(case.build()), {"interpolate_pos_encoding": True}
    small = max_batch_size(adapter, case.images()[:1], 10**7, forward_kwargs=keywords)
    large = torch.zeros(1, 3, 80, 80)
    assert max_batch_size(adapter, large, 10**7, forward_kwargs=keywords) < small / 4


@pytest.mark.parametrize("budget", [0, -1, 1e9, "1GB"])
def test_budgets_that_are_refused(budget: Any) -> None:
    with pytest.raises(OptionError, match="budget_bytes must be a whole number"):
        max_batch_size(ModelAdapter.of(VIT.build()), VIT.images()[:1], budget)


def test_a_model_itself_will_do() -> None:
    model, image = VIT.build(), image_of(VIT)
    keep_mask = torch.ones(1, *VIT.grid, dtype=torch.bool)
    adapter = ModelAdapter.of(model)
    assert ModelAdapter.of(adapter) is adapter
    of_model, of_adapter = (
        PERTURBATIONS.build("mean").bind(one, image).scores(keep_mask) for one in (model, adapter)
    )
    assert torch.equal(of_model, of_adapter)
