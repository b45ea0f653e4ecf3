"""Models that lose their weights, and the questions of the metrics put to real models."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from hf_gmar import GMAR, AttentionRollout, GradientRollout, LogitsModel, RandomAttribution
from hf_gmar._core.head_masking import single_head_ablation
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._utils.stats import rank_correlations
from hf_gmar.errors import InputError, OptionError, UnsupportedModelError
from hf_gmar.metrics import METRICS, Cascade, ContextBuilder, randomized_models, second_class
from hf_gmar.metrics.weight_randomization import _cut_after
from hf_gmar.models import LoadedModel, load_model
from tests.reference.cases import (
    LAYERS,
    MODELS,
    MORE_MODELS,
    VIT,
    Around,
    ModelCase,
    build,
    every_model,
)
from tests.reference.parity import same

NAMES = [
    "infidelity",
    "max-sensitivity",
    "class-sensitivity",
    "parameter-randomization",
    "head-ablation",
]


def lost(case: ModelCase, model: Any, **options: Any) -> Cascade:
    return Cascade(model, case.images(batch=1), **options, **case.options, **case.forward_kwargs)


def seen_by_layers(case: ModelCase, model: Any) -> list[Tensor]:
    """What enters the lowest layer, what each layer gives, and the scores."""
    adapter, found = ModelAdapter.of(model, case.options.get("readout")), []
    layers = layer_modules(adapter)

    def first(_module: Any, args: Any, kwargs: Any) -> None:
        found.append((args or tuple(kwargs.values()))[0].detach().clone())

    def after(_module: Any, _args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).detach())

    handles = [layers[0].register_forward_pre_hook(first, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    with torch.no_grad():
        scores = adapter(case.images(batch=1), **case.forward_kwargs)
    for handle in handles:
        handle.remove()
    return [*found, scores]


@every_model
def test_weights_are_lost_from_the_head_down(case: ModelCase) -> None:
    model = case.build()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    cascade, own = lost(case, model), seen_by_layers(case, model)
    assert len(cascade.parts) == LAYERS + 2
    for parts in (*range(LAYERS + 3), 1, 0):
        cascade.randomize(parts)
        kept = [
            same(left, right)
            for left, right in zip(own, seen_by_layers(case, cascade.model), strict=True)
        ]
        # The scores go first, then the top layer's output; what enters the lowest layer goes last.
        assert kept == [True] * (LAYERS + 2 - parts) + [False] * parts
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name])


def test_every_weight_of_a_vit_is_in_one_part() -> None:
    model = VIT.build()
    named = [name for part in lost(VIT, model).parts for name in part]
    assert sorted(named) == sorted(dict(model.named_parameters()))
    head, *layers, below = lost(VIT, model).parts
    assert {name.rpartition(".")[0] for name in head} == {"vit.layernorm", "classifier"}
    assert all(name.startswith("vit.embeddings.") for name in below)
    assert [f".{LAYERS - 1 - number}." in one[0] for number, one in enumerate(layers)] == [
        True
    ] * LAYERS


def weights_of(cascade: Cascade, parts: int) -> dict[str, Tensor]:
    cascade.randomize(parts)
    return {name: one.detach().clone() for name, one in cascade.model.named_parameters()}


def test_new_weights_have_the_mean_and_spread_of_the_old_ones() -> None:
    model = VIT.build()
    constant = "vit.layernorm.weight"
    with torch.no_grad():
        dict(model.named_parameters())["classifier.weight"].add_(3)
    own = {name: one.detach() for name, one in model.named_parameters()}
    new = weights_of(lost(VIT, model), LAYERS + 2)
    assert own[constant].std(correction=0) == 0
    for name, one in own.items():
        if not one.std(correction=0):
            torch.testing.assert_close(new[name], one)
            continue
        assert not torch.isclose(new[name], one).all()
        expected = float(one.std(correction=0))
        tolerance = 4 * expected / math.sqrt(one.numel())
        assert float(new[name].mean()) == pytest.approx(float(one.mean()), abs=tolerance)
        assert float(new[name].std(correction=0)) == pytest.approx(expected, abs=tolerance)
    assert float(new["classifier.weight"].mean()) > 2.5


def test_new_weights_follow_the_seed() -> None:
    model = VIT.build()
    first, again, other = (weights_of(lost(VIT, model, seed=seed), 5) for seed in (1, 1, 2))
    layers = [name for name in first if name.endswith("q_proj.weight")]
    assert len(layers) == LAYERS
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in layers)
    # Each layer has its own, and going by another way makes no difference.
    drawn = torch.corrcoef(torch.stack([first[name].flatten() for name in layers]))
    assert float(drawn.fill_diagonal_(0).abs().max()) < 0.2
    cascade = lost(VIT, model, seed=1)
    for parts in (2, 0, 5):
        cascade.randomize(parts)
    assert all(torch.equal(first[name], one) for name, one in cascade.model.named_parameters())


def test_the_model_itself_is_left_alone() -> None:
    model = VIT.build(hidden_dropout_prob=0.5).train().requires_grad_(False)
    state = torch.get_rng_state()
    places = {name: one.data_ptr() for name, one in model.named_parameters()}
    cascade = lost(VIT, model)
    # Until weights are lost the copy has no memory of its own.
    assert {name: one.data_ptr() for name, one in cascade.model.named_parameters()} == places
    cascade.randomize(5)
    GMAR(cascade.model).attribute_patches(VIT.images(batch=1))
    assert model.training
    assert cascade.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert {name: one.data_ptr() for name, one in model.named_parameters()} == places
    assert not any(one.requires_grad or one.grad is not None for one in model.parameters())
    for modules in (model.modules(), cascade.model.modules()):
        assert not any(part._forward_hooks for part in modules)
    cascade.model.config.id2label[0] = "another"
    assert model.config.id2label[0] != "another"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_weights_have_the_precision_of_the_model(dtype: torch.dtype) -> None:
    new = weights_of(Cascade(VIT.build().to(dtype), VIT.images(dtype, 1)), 5)
    assert {one.dtype for one in new.values()} == {dtype}


@pytest.mark.parametrize(
    "case", [one for one in MODELS if one.name in {"vit", "clip-prompts"}], ids=lambda one: one.name
)
def test_a_cascade_made_in_inference_mode(case: ModelCase) -> None:
    model = case.build()
    with torch.inference_mode():
        cascade = lost(case, model)
        cascade.randomize(3)
    assert len(cascade.parts) == LAYERS + 2
    assert torch.isfinite(GMAR(cascade.model).attribute_patches(case.images(batch=1))).all()


def test_models_in_other_things_and_weights_that_are_shared() -> None:
    model = VIT.build()
    for around in (
        LogitsModel(model),
        functools.partial(model),
        torch.compile(model, backend="eager"),
    ):
        assert [len(part) for part in Cascade(around, VIT.images(batch=1)).parts] == [
            len(part) for part in lost(VIT, model).parts
        ]
    compiled = Cascade(torch.compile(model, backend="eager"), VIT.images(batch=1))
    assert isinstance(compiled.model, ViTForImageClassification)
    tied = VIT.build()
    query, key = (
        next(one for name, one in tied.named_modules() if name.endswith(end))
        for end in ("q_proj", "k_proj")
    )
    key.weight = query.weight
    cascade = lost(VIT, tied)
    cascade.randomize(5)
    again = [
        next(one for name, one in cascade.model.named_modules() if name.endswith(end))
        for end in ("q_proj", "k_proj")
    ]
    assert again[0].weight is again[1].weight
    assert not torch.equal(again[0].weight, query.weight)


def test_layers_that_give_more_than_their_tokens() -> None:
    class Pair(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            """Tokens, and what else."""
            return super().forward(inputs), None

    layer = Pair(2, 2)
    with _cut_after([layer]):
        assert not layer(torch.ones(1, 2))[0].requires_grad
    assert layer(torch.ones(1, 2))[0].requires_grad


def test_a_head_without_weights_of_its_own() -> None:
    model = Around(VIT.build(), lambda inner, pixels: inner.vit(pixels).last_hidden_state[:, 0])
    model.model.vit.layernorm = nn.Identity()
    cascade = Cascade(model, VIT.images(batch=1), readout="cls")
    assert len(cascade.parts) == LAYERS + 1
    assert all("layers.2" in name for name in cascade.parts[0])


def test_weights_that_are_not_used_come_last() -> None:
    model = Around(VIT.build(), lambda inner, pixels: inner(pixels).logits)
    model.other = nn.Linear(2, 2)
    assert not any("other" in name for part in Cascade(model, VIT.images()).parts for name in part)


def test_what_can_not_be_copied() -> None:
    model = VIT.build()
    model.kept = torch.ones(2, requires_grad=True) * 2  # a part of a graph
    with pytest.raises(UnsupportedModelError, match="ViTForImageClassification can't be copied"):
        lost(VIT, model)


def test_stages_are_even() -> None:
    cascade = lost(VIT, VIT.build())  # of five parts
    assert cascade.stages(1) == [5]
    assert cascade.stages(2) == [2, 5]
    assert cascade.stages(5) == [1, 2, 3, 4, 5]
    assert cascade.stages(100) == [1, 2, 3, 4, 5]


def test_stages_and_parts_that_are_none() -> None:
    cascade = lost(VIT, VIT.build())
    for bad in (-1, 6, 1.5):
        with pytest.raises(OptionError, match="parts must be a whole number from 0 to 5"):
            cascade.randomize(bad)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="stages must be"):
        cascade.stages(0)
    with pytest.raises(OptionError, match="seed must be"):
        lost(VIT, VIT.build(), seed=-1)
    with pytest.raises(InputError, match="pixel values"):
        Cascade(VIT.build(), torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match="refused images of 40 x 16"):
        Cascade(VIT.build(), torch.zeros(1, 3, 40, 16))


def test_copies_after_each_stage() -> None:
    model, pixels = VIT.build(), VIT.images(batch=1)
    cascade = lost(VIT, model, seed=4)
    scores = [copy(pixels).logits.detach() for copy in randomized_models(model, pixels, 2, 4)]
    for parts, found in zip((2, 5), scores, strict=True):
        cascade.randomize(parts)
        assert same(found, cascade.model(pixels).logits)


# The builder


@pytest.fixture
def pixels(bundled: LoadedModel, scene: Any) -> Tensor:
    found: Tensor = bundled.processor(images=scene, return_tensors="pt").pixel_values
    return found


@pytest.mark.parametrize("method", [GMAR, AttentionRollout, RandomAttribution])
def test_metrics_of_real_methods(bundled: LoadedModel, pixels: Tensor, method: Any) -> None:
    context = ContextBuilder(bundled.model).context(method, pixels, 6)
    for name in NAMES:
        (found,) = METRICS.build(name).values(context).tolist()
        if name == "head-ablation":
            assert math.isnan(found) == (method is not GMAR)
        elif name == "class-sensitivity":
            assert (found == 1) == (method is not GMAR)
        elif name == "parameter-randomization":
            assert (found == 1) == (method is RandomAttribution)  # it knows nothing of weights
        else:
            assert found > 0


def test_randomization_by_hand(bundled: LoadedModel, pixels: Tensor) -> None:
    builder = ContextBuilder(bundled.model)
    context = builder.context(GradientRollout, pixels, 6)
    (found,) = METRICS.build("parameter-randomization", stages=3, seed=8).values(context).tolist()
    own, cascade = GradientRollout(bundled.model).attribute_patches(pixels, 6), None
    cascade = Cascade(bundled.model, pixels, 8)
    expected = []
    for parts in (3, 5, 8):
        cascade.randomize(parts)
        there = GradientRollout(cascade.model).attribute_patches(pixels, 6)
        expected.append(float(rank_correlations([own, there])[0, 1]))
    assert found == pytest.approx(sum(expected) / 3)


def test_scores_of_either_kind_in_batches(bundled: LoadedModel) -> None:
    images = torch.rand(5, 3, 96, 96)
    with torch.no_grad():
        logits = bundled.model(images).logits
    by_logit = ContextBuilder(bundled.model, score="logit", batch=2).scores(images)
    torch.testing.assert_close(by_logit, logits)
    probabilities = ContextBuilder(bundled.model).scores(images)
    # The bundled model says of each class whether it is there.
    torch.testing.assert_close(probabilities, logits.sigmoid())


def test_an_example_of_the_second_class_and_of_heads(bundled: LoadedModel, pixels: Tensor) -> None:
    builder = ContextBuilder(bundled.model, score="logit", batch=3)
    context = builder.context(GMAR, pixels, 6, seed=9)
    logits = bundled.model(pixels).logits[0]
    assert context.other_class == max(
        (one for one in range(8) if one != 6), key=lambda one: logits[one]
    )
    assert context.seed == 9
    assert context.head_importance is not None
    assert context.masked_scores is not None
    torch.testing.assert_close(
        context.head_importance(), GMAR(bundled.model).head_importance(pixels, 6)[0].double()
    )
    masks = torch.eye(24, dtype=torch.bool).reshape(24, 6, 4)
    drops = logits[6] - context.masked_scores(masks)[:, 6]
    expected = single_head_ablation(bundled.model, pixels, 6).flatten()
    torch.testing.assert_close(drops, expected, rtol=1e-4, atol=1e-4)


def test_whose_config_says_what_a_probability_is(bundled: LoadedModel) -> None:
    (case,) = (one for one in MODELS if one.name == "siglip-prompts")
    model, images = case.build(), case.images()
    torch.testing.assert_close(
        ContextBuilder(model).scores(images), model(images).sigmoid().detach()
    )
    around = Around(bundled.model, lambda inner, pixels: inner(pixels).logits)
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(
        ContextBuilder(around).scores(images), ContextBuilder(bundled.model).scores(images)
    )


def test_no_more_images_at_a_time_than_said(pixels: Tensor) -> None:
    model, counts = load_model("bundled").model, []
    model.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    context = ContextBuilder(model, batch=3).context(GMAR, pixels, 6)
    counts.clear()
    context.scores(pixels.expand(7, -1, -1, -1))
    assert counts == [3, 3, 1]
    assert context.masked_scores is not None
    context.masked_scores(torch.zeros(7, 6, 4, dtype=torch.bool))
    assert counts == [3, 3, 1] * 2


def test_a_map_that_is_there_already(bundled: LoadedModel, pixels: Tensor) -> None:
    known = torch.rand(1, 8, 8)
    context = ContextBuilder(bundled.model).context(GMAR, pixels, 6, known_map=known)
    assert torch.equal(context.relevance(), known[0].double())


def test_probabilities_with_masked_heads(bundled: LoadedModel, pixels: Tensor) -> None:
    context = ContextBuilder(bundled.model).context(GMAR, pixels, 6)
    assert context.masked_scores is not None
    none = torch.zeros(1, 6, 4, dtype=torch.bool)
    torch.testing.assert_close(context.masked_scores(none), context.scores(pixels))


def test_layers_that_a_method_leaves_out_come_last(bundled: LoadedModel, pixels: Tensor) -> None:
    build_it = functools.partial(GMAR, start_layer=2)
    context = ContextBuilder(bundled.model).context(build_it, pixels, 6)
    assert context.head_importance is not None
    importance = context.head_importance()
    assert importance.shape == (6, 4)
    assert importance[:2].max() < importance[2:].min()
    assert (importance[2:].sum(1) - 1).abs().max() < 1e-5


def test_a_method_is_built_once_for_each_model(bundled: LoadedModel, pixels: Tensor) -> None:
    built: list[Any] = []

    def build_it(model: Any) -> GMAR:
        built.append(model)
        return GMAR(model)

    builder, metric = (
        ContextBuilder(bundled.model),
        METRICS.build("parameter-randomization", stages=2),
    )
    first, second = (metric.update(builder.context(build_it, pixels, target)) for target in (6, 4))
    assert first != second
    assert built[0] is bundled.model
    assert len(built) == 2
    again = METRICS.build("parameter-randomization", stages=2, seed=1)
    assert again.values(builder.context(build_it, pixels, 6)) != first
    assert len(built) == 3


def test_readouts_and_keywords_reach_all_calls() -> None:
    (case,) = (one for one in MORE_MODELS if one.name == "dinov2-patches")  # with a head of ours
    builder = ContextBuilder(case.build(), score="logit", **case.options)
    build_it = functools.partial(GMAR, **case.options)
    context = builder.context(build_it, case.images(batch=1), 3)
    assert all(torch.isfinite(METRICS.build(name).values(context)).all() for name in NAMES)
    tall = torch.rand(1, 3, 40, 16)
    larger = ContextBuilder(VIT.build(), forward_kwargs={"interpolate_pos_encoding": True})
    context = larger.context(GMAR, tall, 3)
    assert context.relevance().shape == (5, 2)
    assert all(torch.isfinite(METRICS.build(name).values(context)).all() for name in NAMES)


def test_one_class_has_no_second() -> None:
    model = build(ViTForImageClassification, ViTConfig, num_labels=1)
    context = ContextBuilder(model).context(GMAR, VIT.images(batch=1), 0)
    assert context.other_class is None
    assert second_class(torch.tensor([0.5, 0.7, 0.7]), 0) == 1
    assert second_class(torch.tensor([0.5, 0.7, 0.7]), 1) == 2


def test_options_of_the_examiner(bundled: LoadedModel) -> None:
    with pytest.raises(OptionError, match="score must be one of 'probability', 'logit'"):
        ContextBuilder(bundled.model, score="odds")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch must be"):
        ContextBuilder(bundled.model, batch=0)
    with pytest.raises(UnsupportedModelError, match="exactly one Transformers model"):
        ContextBuilder(nn.Linear(2, 2))
