"""Several methods in one pass give what each gives alone, and what they share is done once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.contest import Case
from benchmarks.together import SETS, rows
from hf_gmar import (
    GMAR,
    AttentionRollout,
    GradientRollout,
    GradSAM,
    InputXGradient,
    LeGrad,
    RandomAttribution,
    RawAttention,
    TokenGradCAM,
    attribute_jointly,
)
from hf_gmar._core.execution import gradients_of
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines import blocks, streaming
from hf_gmar._engines.propagation import Block, LayerResult, LayerRule, Sums
from hf_gmar._engines.run import run_rules
from hf_gmar.errors import HfGmarError, InputError, ModelOutputError, OptionError, TargetError
from hf_gmar.methods import AttentionMethod
from hf_gmar.methods.layer_rules import GmarRule, PositiveGradientRule, RolloutRule
from tests.reference.cases import (
    ENGINE_NAMES,
    ENGINE_OPTIONS,
    LAYERS,
    METHODS,
    MODELS,
    MORE_METHODS,
    TARGETS,
    VIT,
    Around,
    MethodCase,
    ModelCase,
    every_engine,
    shared,
)
from tests.support.state import unchanged, used

ALL = (*METHODS, *MORE_METHODS)
READERS = tuple(method for method in ALL if len(method.engines) > 1)
"""Those that read attention."""


def equal(got: Any, wanted: Tensor) -> bool:
    """The same map up to the order of sums."""
    assert isinstance(got, Tensor), got
    assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
    assert not got.requires_grad
    few = 100 * torch.finfo(wanted.dtype).eps
    return bool((got - wanted).abs().max() <= few * wanted.abs().max())


@contextmanager
def forwards(model: nn.Module) -> Iterator[list[int]]:
    """Inside, forwards of the model are noted, by the number of images."""
    noted: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: noted.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    try:
        yield noted
    finally:
        handle.remove()


def _methods(case: ModelCase, engine: str) -> list[MethodCase]:
    """Those that read attention; as the engine "any", those that have none."""
    chosen = ALL if case is VIT else METHODS
    return [method for method in chosen if (method in READERS) == (engine != "any")]


class Way(NamedTuple):
    """A method on a model, by one engine; each is a factor."""

    case: ModelCase
    attention: str
    engine: str
    method: MethodCase


def _ways() -> Iterator[Any]:
    """Each model by each engine; one of them from each loading and by more methods, too."""
    for case in MODELS:
        for attention, engines in case.loadings.items():
            for engine in (*engines, "any") if case is VIT or attention == "sdpa" else ():
                for method in _methods(case, engine):
                    name = f"{case.name}-{attention}-{engine}-{method.name}"
                    yield pytest.param(Way(case, attention, engine, method), id=name)


@functools.cache
def together(case: ModelCase, attention: str, engine: str) -> dict[str, Any]:
    """The map of each method in one pass of all, by the method's name."""
    model, chosen = shared(case, attention), _methods(case, engine)
    methods = [method.made(model, engine, **case.options) for method in chosen]
    found = attribute_jointly(methods, case.images(), TARGETS, **case.forward_kwargs)
    return {method.name: got for method, got in zip(chosen, found, strict=True)}


@functools.cache
def by_itself(way: Way) -> Tensor:
    """The map of one method alone."""
    case, attention, engine, method = way
    one = method.made(shared(case, attention), engine, **case.options)
    wanted: Tensor = one.attribute_patches(case.images(), TARGETS, **case.forward_kwargs)
    return wanted


@pytest.mark.sampled(6)
@pytest.mark.parametrize("way", list(_ways()))
def test_each_is_as_alone(way: Way) -> None:
    case, attention, engine, method = way
    assert equal(together(case, attention, engine)[method.name], by_itself(way))


@functools.cache
def alone(engine: str) -> tuple[Any, list[Any], list[Tensor]]:
    """A model, the methods that read attention, and the map of each by itself."""
    model = shared(VIT)
    methods = [method.made(model, engine) for method in READERS]
    return model, methods, [by_itself(Way(VIT, "sdpa", engine, method)) for method in READERS]


def _pairs() -> Iterator[Any]:
    """Each method before each; those of MORE_METHODS follow each other below in any case."""
    for pair in itertools.product(READERS, repeat=2):
        marks = [pytest.mark.extended] if {*pair} & {*MORE_METHODS} else []
        yield pytest.param(*pair, marks=marks, id="-then-".join(method.name for method in pair))


@pytest.mark.parametrize(("one", "other"), list(_pairs()))
def test_every_pair_in_both_orders(one: MethodCase, other: MethodCase) -> None:
    """The first is in a group with whoever comes; which of the two it is must not matter."""
    _, methods, maps = alone("streaming")
    pair = READERS.index(one), READERS.index(other)
    found = attribute_jointly([methods[number] for number in pair], VIT.images(), TARGETS)
    for number, got in zip(pair, found, strict=True):
        assert equal(got, maps[number])


@pytest.mark.parametrize("start", range(len(READERS)))
def test_each_right_after_each(start: int) -> None:
    """All in one list; from one list to the next all numbers grow by one, so that each pair comes.

    That is so if two neighbours are as far apart as no other two: by 1, -2, 3, -4 and so on.
    """
    count = len(READERS)
    steps = [-(step // 2) if step % 2 == 0 else step // 2 + 1 for step in range(count)]
    apart = {(later - sooner) % count for sooner, later in itertools.pairwise(steps)}
    assert apart == set(range(1, count))
    order = [(start + step) % count for step in steps]
    _, methods, maps = alone("streaming")
    found = attribute_jointly([methods[number] for number in order], VIT.images(), TARGETS)
    for number, got in zip(order, found, strict=True):
        assert equal(got, maps[number]), READERS[number].name


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, len(READERS) - 1), min_size=1, max_size=8),
    st.sampled_from(ENGINE_NAMES),
)
def test_any_list_of_methods(numbers: list[int], engine: str) -> None:
    """Also the same method twice."""
    model, methods, maps = alone(engine)
    with forwards(model) as noted:
        found = attribute_jointly([methods[number] for number in numbers], VIT.images(), TARGETS)
    for number, got in zip(numbers, found, strict=True):
        assert equal(got, maps[number]), READERS[number].name
    own = {methods[number].gradient for number in numbers}
    starts = [methods[number].start_layer for number in numbers if _is_legrad(methods[number])]
    heads = LAYERS - min(starts) if starts else 0  # the forward among them
    scores = 1 if "score" in own or own == {"none"} else 0
    assert len(noted) == scores + heads


def _is_legrad(method: Any) -> bool:
    return bool(method.gradient == "layers")


def readers(model: Any, **options: Any) -> list[Any]:
    """One of each that takes the gradient of the score or none."""
    return [
        GMAR(model, **options),
        GMAR(model, norm="l2", alpha=0.3, **options),
        GradientRollout(model, **options),
        GradSAM(model, **options),
        AttentionRollout(model, **options),
        RawAttention(model, **options),
        LeGrad(model, layer_scores="final", **options),
    ]


@every_engine
def test_they_share_one_forward(engine: str) -> None:
    model = shared(VIT)
    with forwards(model) as noted:
        attribute_jointly(readers(model, **ENGINE_OPTIONS[engine]), VIT.images(), TARGETS)
    assert noted == [len(VIT.images())]


def walks(work: Callable[[], object]) -> list[tuple[bool, bool]]:
    """For each layer that was walked: whether with a gradient, and for layers below."""
    noted = []
    walk = blocks.BlockWalker.walk

    def noting(self: Any, layer: Any, gradient: Any, propagation: Any, below: Any = None) -> None:
        noted.append((gradient is not None, below is not None))
        walk(self, layer, gradient, propagation, below)

    with patch.object(blocks.BlockWalker, "walk", noting):
        work()
    return noted


def test_they_share_one_backward_and_each_layer() -> None:
    model = shared(VIT)
    with patch.object(streaming, "gradients_of", wraps=gradients_of) as gradients:
        noted = walks(lambda: attribute_jointly(readers(model), VIT.images(), TARGETS))
    assert noted == [(True, True)] * (LAYERS - 1) + [(True, False)]
    assert gradients.call_count == 1


def test_no_gradient_goes_below_those_who_need_it() -> None:
    model = shared(VIT)
    methods = [GradSAM(model, start_layer=1), GMAR(model, start_layer=2), AttentionRollout(model)]
    noted = walks(lambda: attribute_jointly(methods, VIT.images(), TARGETS))
    assert noted == [(True, True)] * (LAYERS - 2) + [(True, False), (False, False)]


def test_no_graph_is_built_below_those_who_need_it() -> None:
    model, with_graph = VIT.build(), []
    for layer in model.vit.layers:
        layer.register_forward_hook(lambda _, __, tokens: with_graph.append(tokens.requires_grad))
    attribute_jointly([GMAR(model, start_layer=2), AttentionRollout(model)], VIT.images(), TARGETS)
    assert with_graph == [False] * 2 + [True] * (LAYERS - 2)


@every_engine
def test_layers_that_nobody_reads_are_not_recomputed(engine: str) -> None:
    model = shared(VIT)
    methods = [RawAttention(model, layer=layer, **ENGINE_OPTIONS[engine]) for layer in (0, 2)]
    with patch.object(blocks, "_live_rows", wraps=blocks._live_rows) as live:
        found = attribute_jointly(methods, VIT.images(), TARGETS)
    assert live.call_count == (0 if engine == "dense" else 2)
    for method, got in zip(methods, found, strict=True):
        assert equal(got, method.attribute_patches(VIT.images(), TARGETS))


def test_images_in_blocks_of_their_own() -> None:
    _, methods, maps = alone("streaming")
    with patch.object(blocks, "_CPU_SHARED_BYTES", 1):
        found = attribute_jointly(methods, VIT.images(), TARGETS)
    assert all(map(equal, found, maps))


class UpTo(AttentionMethod):
    """A method whose top layer is not the model's."""

    source, cost = "none", "forward + backward"

    def __init__(self, model: Any, stop: int, **options: Any) -> None:
        """Grad-SAM below a layer."""
        super().__init__(model, **options)
        self.stop = stop
        self.rule = PositiveGradientRule(stop, weighted=True)

    def _request(self, inputs: Any, args: Any, kwargs: Any) -> ForwardRequest:
        return replace(super()._request(inputs, args, kwargs), stop_layer=self.stop)


@every_engine
def test_a_gradient_passes_layers_that_nobody_reads(engine: str) -> None:
    model, options = VIT.build(num_hidden_layers=5), ENGINE_OPTIONS[engine]
    methods = [UpTo(model, 2, **options), RawAttention(model, layer=4, **options)]
    with forwards(model) as noted:
        found = attribute_jointly(methods, VIT.images(), TARGETS)
    assert len(noted) == 1
    for method, got in zip(methods, found, strict=True):
        assert equal(got, method.attribute_patches(VIT.images(), TARGETS))


def _one_model(build: Callable[[Any], Sequence[Any]]) -> Callable[[], tuple[Any, Sequence[Any]]]:
    def made() -> tuple[Any, Sequence[Any]]:
        model = shared(VIT)
        return model, build(model)

    return made


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        pytest.param(_one_model(build), wanted, id=name)
        for name, build, wanted in [
            ("same", lambda model: [GMAR(model), GMAR(model, chunk_size=None)], 1),
            ("forward", lambda model: [GMAR(model), GMAR(model.forward)], 1),
            ("said-readout", lambda model: [GMAR(model), GMAR(model, readout="cls")], 1),
            ("engines", lambda model: [GMAR(model), GMAR(model, engine="dense")], 2),
            ("chunks", lambda model: [GMAR(model), GMAR(model, chunk_size=5)], 2),
            ("checkpoint", lambda model: [GMAR(model), GMAR(model, checkpoint=True)], 2),
            ("readouts", lambda model: [GMAR(model), GMAR(model, readout="patches")], 2),
            ("tokens", lambda model: [TokenGradCAM(model), InputXGradient(model)], 2),
            ("none", lambda model: [AttentionRollout(model), RawAttention(model)], 1),
            ("legrad", lambda model: [LeGrad(model), LeGrad(model, start_layer=1)], LAYERS),
            ("legrad-rollout", lambda model: [AttentionRollout(model), LeGrad(model)], LAYERS),
            (
                "legrad-above-rollout",
                lambda model: [LeGrad(model, start_layer=1), AttentionRollout(model)],
                LAYERS - 1,
            ),
            ("legrad-gmar", lambda model: [LeGrad(model), GMAR(model)], LAYERS + 1),
            ("random", lambda model: [RandomAttribution(model), GMAR(model)], 2),
            ("nobody", lambda _: [], 0),
        ]
    ],
)
def test_who_shares(made: Callable[[], tuple[Any, Sequence[Any]]], wanted: int) -> None:
    model, methods = made()
    alone_ = [method.attribute_patches(VIT.images(), TARGETS) for method in methods]
    with forwards(model) as noted:
        found = attribute_jointly(methods, VIT.images(), TARGETS)
    assert len(noted) == wanted
    assert all(map(equal, found, alone_))
    assert len(found) == len(methods)


def test_several_models() -> None:
    models = [VIT.build(), VIT.build(num_hidden_layers=4)]
    methods = [build(model) for build in (GMAR, GradSAM, AttentionRollout) for model in models]
    with forwards(models[0]) as one, forwards(models[1]) as other:
        found = attribute_jointly(methods, VIT.images(), TARGETS)
    assert (len(one), len(other)) == (1, 1)
    for method, got in zip(methods, found, strict=True):
        assert equal(got, method.attribute_patches(VIT.images(), TARGETS))


def test_a_partial_of_a_model_is_one_model() -> None:
    """A method looks inside a partial, and each makes one of its own."""
    model = shared(VIT)
    part = functools.partial(model.forward, interpolate_pos_encoding=True)
    with forwards(model) as noted:
        found = attribute_jointly([GMAR(part), GradSAM(part)], VIT.images(), 3)
    assert len(noted) == 1
    assert equal(found[0], GMAR(part).attribute_patches(VIT.images(), 3))


def _targets_and_precisions() -> Iterator[Any]:
    """Each target in single precision and each precision with one target; the rest is extended."""
    targets = [None, 4, TARGETS, torch.tensor(TARGETS)]
    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    for target, dtype in itertools.product(targets, dtypes):
        usual = target is TARGETS or dtype == torch.float32
        marks = [] if usual else [pytest.mark.extended]
        yield pytest.param(target, dtype, marks=marks, id=f"{target}-{dtype}")


@pytest.mark.parametrize(("target", "dtype"), list(_targets_and_precisions()))
def test_targets_and_precisions(target: Any, dtype: torch.dtype) -> None:
    model, images = shared(VIT, dtype=dtype), VIT.images(dtype)
    methods = readers(model)
    found = attribute_jointly(methods, (images,), target, contrast=None)
    for method, got in zip(methods, found, strict=True):
        assert equal(got, method.attribute_patches(images, target))


def test_further_arguments_reach_the_model() -> None:
    model, images = shared(VIT), torch.randn(2, 3, 40, 16)
    for call in ({"additional_forward_args": (None, True)}, {"interpolate_pos_encoding": True}):
        methods = [*readers(model), TokenGradCAM(model)]
        found = attribute_jointly(methods, images, 3, **call)
        for method, got in zip(methods, found, strict=True):
            assert equal(got, method.attribute_patches(images, 3, **call))


def test_a_contrast_is_for_those_who_know_classes() -> None:
    model = shared(VIT)
    methods = [*readers(model), RandomAttribution(model), TokenGradCAM(model)]
    with forwards(model) as noted:
        found = attribute_jointly(methods, VIT.images(), TARGETS, contrast=1, return_errors=True)
    assert len(noted) == 2
    for method, got in zip(methods, found, strict=True):
        if method.class_specific:
            wanted = method.attribute_patches(VIT.images(), TARGETS, contrast=1)
            assert equal(got, wanted)
        else:
            assert isinstance(got, OptionError)
            assert type(method).__name__ in str(got)


class Broken:
    """A rule whose map is not finite."""

    def accumulate(self, block: Block) -> Sums:
        """Nothing in particular."""
        return (block.relevance.sum(1),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Too large."""
        return LayerResult(relevance, addition=relevance + torch.inf * sums[0][:, None].exp())


def test_one_that_fails_fails_alone() -> None:
    model = shared(VIT)
    methods = readers(model)
    methods[2].rule = Broken()
    methods.append(TokenGradCAM(model))
    with pytest.raises(ModelOutputError, match="not finite"):
        attribute_jointly(methods, VIT.images(), TARGETS)
    found = attribute_jointly(methods, VIT.images(), TARGETS, return_errors=True)
    for number, (method, got) in enumerate(zip(methods, found, strict=True)):
        if number == 2:
            assert isinstance(got, ModelOutputError)
            assert "not finite" in str(got)
        else:
            assert equal(got, method.attribute_patches(VIT.images(), TARGETS))


@every_engine
def test_scores_without_gradient_fail_those_who_need_one(engine: str) -> None:
    model = Around(shared(VIT), lambda vit, pixels: vit(pixels).logits.detach())
    methods = readers(model, **ENGINE_OPTIONS[engine])
    found = attribute_jointly(methods, VIT.images(), TARGETS, return_errors=True)
    for method, got in zip(methods, found, strict=True):
        if method.class_specific:
            assert isinstance(got, ModelOutputError)
        else:
            assert equal(got, method.attribute_patches(VIT.images(), TARGETS))


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        pytest.param({"inputs": torch.full((1, 3, 32, 32), torch.nan)}, InputError, id="NaN"),
        pytest.param({"inputs": "an image"}, InputError, id="no tensor"),
        pytest.param({"inputs": torch.zeros(1, 3, 40, 16)}, InputError, id="another size"),
        pytest.param({"target": 99}, TargetError, id="no class"),
        pytest.param({"target": 1, "contrast": 1}, TargetError, id="no contrast"),
        pytest.param({"interpolate": True}, OptionError, id="unknown keyword"),
    ],
)
def test_errors_are_those_of_each_alone(call: dict[str, Any], kind: type[HfGmarError]) -> None:
    model = shared(VIT)
    methods = [GMAR(model), GradSAM(model), TokenGradCAM(model)]
    given = {"inputs": VIT.images(), "target": 3, **call}
    with pytest.raises(kind):
        attribute_jointly(methods, **given)
    found = attribute_jointly(methods, **given, return_errors=True)
    for method, got in zip(methods, found, strict=True):
        with pytest.raises(kind) as raised:
            method.attribute_patches(**given)
        assert type(got) is kind
        assert str(got) == str(raised.value)


def test_errors_of_others_are_raised() -> None:
    def fail(*_: Any) -> None:
        raise LookupError("of the user's own")

    model = VIT.build()
    handle = model.vit.layers[1].register_forward_hook(fail)
    with pytest.raises(LookupError, match="of the user's own"), unchanged(model):
        attribute_jointly(readers(model), VIT.images(), TARGETS)
    handle.remove()


class Doubled(GMAR):
    """A method that does more with its map than its rule says."""

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        return [2 * found for found in super()._explain(request, target_specs)]


class Mixin:
    """Changes a step of whatever method it is mixed into."""

    def _maps(self, *args: Any) -> list[Tensor]:
        return [3 * patches for patches in super()._maps(*args)]  # type: ignore[misc]


class Mixed(Mixin, GMAR):
    """A method whose own body changes nothing."""


def replaced(model: Any) -> GMAR:
    """A method that one instance changes."""
    gmar, original = GMAR(model), GMAR(model).attribute_patches
    gmar.attribute_patches = lambda *args, **kwargs: 4 * original(*args, **kwargs)  # type: ignore[method-assign]
    return gmar


class Logged(Doubled):
    """A method that says itself that its map is the rule's, which here is not so."""

    shares_pass = True


def test_a_method_may_say_that_its_map_is_the_rules() -> None:
    model = shared(VIT)
    gmar, logged = attribute_jointly([GMAR(model), Logged(model)], VIT.images(), TARGETS)
    assert torch.equal(gmar, logged)


class Shifted(GMAR):
    """A method that is asked about other images than those given."""

    def _request(self, inputs: Any, args: Any, kwargs: Any) -> ForwardRequest:
        return super()._request(inputs + 1, args, kwargs)


@pytest.mark.parametrize("kind", [Doubled, Shifted, Mixed, replaced])
def test_subclasses_keep_their_own_ways(kind: Callable[[Any], Any]) -> None:
    model = shared(VIT)
    methods = [GMAR(model), kind(model), GradSAM(model)]
    found = attribute_jointly(methods, VIT.images(), TARGETS)
    for method, got in zip(methods, found, strict=True):
        assert equal(got, method.attribute_patches(VIT.images(), TARGETS))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_engine
def test_the_model_comes_back_as_it_was(engine: str, attention: str) -> None:
    model = used(VIT, attention)
    methods = readers(model, **ENGINE_OPTIONS[engine])
    methods += [LeGrad(model, **ENGINE_OPTIONS[engine]), TokenGradCAM(model)]
    with unchanged(model):
        attribute_jointly(methods, VIT.images(), TARGETS)
        attribute_jointly(methods, VIT.images(), 99, return_errors=True)


def test_threads_take_turns() -> None:
    model = VIT.build(attention="eager")
    methods = readers(model)
    wanted = [method.attribute_patches(VIT.images(), TARGETS) for method in methods]
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(attribute_jointly, methods[: number % 3 + 4], VIT.images(), TARGETS)
            for number in range(12)
        ]
        for number, future in enumerate(asked):
            found = future.result(20)
            assert len(found) == number % 3 + 4
            assert all(map(equal, found, wanted))
    assert model.config._attn_implementation == "eager"


def test_inside_inference_mode_and_without_gradients() -> None:
    model = shared(VIT)
    wanted = attribute_jointly(readers(model), VIT.images(), TARGETS)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = attribute_jointly(readers(model), VIT.images(), TARGETS)
        for got, before in zip(found, wanted, strict=True):
            assert isinstance(before, Tensor)
            assert equal(got, before)


@every_engine
def test_several_questions_of_several_rules(engine: str) -> None:
    """Every question starts from the readout again, for every rule."""
    options = {**ENGINE_OPTIONS[engine]}
    name = options.pop("engine")
    adapter, request = ModelAdapter.of(shared(VIT)), ForwardRequest(VIT.images(), **options)
    rules: list[LayerRule] = [GmarRule("l1", 1.0), RolloutRule("mean", 0, 1.0), GmarRule("l2", 0.5)]
    target_specs = [TargetSpec(3), TargetSpec(TARGETS), TargetSpec(5, contrast=1)]
    spans = [(rule, range(LAYERS)) for rule in rules]
    found = run_rules(adapter, request, target_specs, spans, name)
    for rule, number in itertools.product(range(3), range(3)):
        spec = target_specs[number]
        ((wanted,),) = run_rules(adapter, request, [spec], [spans[rule]], name)
        got = found[number][rule]
        assert equal(got.patches, wanted.patches)
        assert (got.heads is None) == (wanted.heads is None)
        if got.heads is not None and wanted.heads is not None:
            assert equal(got.heads, wanted.heads)


def test_the_benchmark_has_a_row_for_each_set() -> None:
    lines = rows(Case("T", 32), 1, torch.device("cpu"))
    assert [line.split(" | ")[1:3] for line in lines] == [
        [name, count] for name, count in zip(SETS, ("8", "12", "6"), strict=True)
    ]
