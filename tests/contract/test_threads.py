"""A model that several threads use at once: explained by some, simply called by others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks.threads import busy_threads
from hf_gmar import GMAR, AttentionRollout, LeGrad, TokenGradCAM, compare
from hf_gmar._core.model_adapter import scores_of
from hf_gmar._core.request import ForwardRequest
from tests.reference.cases import (
    BATCH,
    ENGINE_OPTIONS,
    TARGETS,
    VIT,
    Around,
    every_engine,
    shared,
)
from tests.reference.parity import same
from tests.reference.tolerances import PATIENCE
from tests.support.threads import Halfway


@functools.cache
def undisturbed(engine: str, one_class: bool = False) -> Tensor:
    """What GMAR gives where no other thread uses the model."""
    gmar = GMAR(shared(VIT), **ENGINE_OPTIONS[engine])
    found: Tensor = gmar.attribute(VIT.images(), 3 if one_class else TARGETS)
    return found


@every_engine
@pytest.mark.parametrize("training", [False, True])
def test_two_threads_explain_one_model(training: bool, engine: str) -> None:
    model = VIT.build(hidden_dropout_prob=0.5).train(training)
    halfway, gmar = Halfway(), GMAR(model, **ENGINE_OPTIONS[engine])
    wanted = undisturbed(engine)
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(2) as pool:
        one = halfway.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        other = pool.submit(lambda: gmar.attribute(VIT.images(), TARGETS))
        with pytest.raises(TimeoutError):  # it waits; it must not switch the model meanwhile
            other.result(0.2)
        halfway.go_on.set()
        assert same(one.result(PATIENCE), wanted)
        assert same(other.result(PATIENCE), wanted)
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training == training for module in model.modules())


@pytest.mark.pairwise
@every_engine
@pytest.mark.parametrize("method", [GMAR, LeGrad, AttentionRollout])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_plain_forward_goes_on_meanwhile(attention: str, method: Any, engine: str) -> None:
    """It gets its own attention function and its own masks, to the last bit."""
    model = VIT.build(attention=attention)
    halfway, gmar = Halfway(), method(model, **ENGINE_OPTIONS[engine])
    mask = torch.ones(BATCH, 17)
    mask[:, 5:] = 0
    wanted = gmar.attribute(VIT.images(), TARGETS)
    logits = model(VIT.images()).logits
    masked = model(VIT.images(), attention_mask=mask).logits
    assert not torch.allclose(logits, masked, atol=1e-3)
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        output = model(VIT.images())
        also_masked = model(VIT.images(), attention_mask=mask).logits
        halfway.go_on.set()
        assert same(explained.result(PATIENCE), wanted)
    assert set(output) == {"logits"}
    assert torch.equal(output.logits, logits)
    assert torch.equal(also_masked, masked)


@every_engine
def test_a_plain_forward_while_the_head_reads_lower_layers(engine: str) -> None:
    """Layers give what they gave before in one thread alone."""
    model, runs = VIT.build(), itertools.count()
    halfway, legrad = Halfway(), LeGrad(model, **ENGINE_OPTIONS[engine])
    wanted, logits = legrad.attribute(VIT.images(), TARGETS), model(VIT.images()).logits
    model.classifier.register_forward_hook(lambda *_: halfway() if next(runs) == 2 else None)
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: legrad.attribute(VIT.images(), TARGETS), pool)
        assert all("forward" in layer.__dict__ for layer in model.vit.layers)
        output = model(VIT.images()).logits
        halfway.go_on.set()
        assert same(explained.result(PATIENCE), wanted)
    assert torch.equal(output, logits)
    assert not any("forward" in layer.__dict__ for layer in model.vit.layers)


@every_engine
def test_attention_maps_for_others_meanwhile(engine: str) -> None:
    """An eager model goes on giving its maps, although its explanation runs another function."""
    model = VIT.build(attention="eager")
    halfway, gmar = Halfway(), GMAR(model, **ENGINE_OPTIONS[engine])
    wanted = model(VIT.images(), output_attentions=True).attentions
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        maps = model(VIT.images(), output_attentions=True).attentions
        halfway.go_on.set()
        explained.result(PATIENCE)
    assert all(torch.equal(one, other) for one, other in zip(maps, wanted, strict=True))


@every_engine
def test_two_models_do_not_wait_for_each_other(engine: str) -> None:
    one, other = VIT.build(), VIT.build()
    halfway = Halfway()
    one.vit.layers[1].register_forward_hook(halfway)
    options = ENGINE_OPTIONS[engine]
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: GMAR(one, **options).attribute(VIT.images(), 3), pool)
        meanwhile = GMAR(other, **options).attribute(VIT.images(), 3)
        assert not explained.done()
        halfway.go_on.set()
        assert same(explained.result(PATIENCE), meanwhile)


@every_engine
def test_models_that_share_a_config_take_turns(engine: str) -> None:
    """What is switched is the config: one model must not switch it under the other's feet."""
    one = VIT.build(attention="eager")
    other = type(one)(one.config).eval()
    options, halfway = ENGINE_OPTIONS[engine], Halfway()
    wanted = GMAR(other, **options).attribute(VIT.images(), 3)
    one.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(2) as pool:
        first = halfway.during(lambda: GMAR(one, **options).attribute(VIT.images(), 3), pool)
        second = pool.submit(lambda: GMAR(other, **options).attribute(VIT.images(), 3))
        with pytest.raises(TimeoutError):
            second.result(0.2)
        halfway.go_on.set()
        first.result(PATIENCE)
        assert same(second.result(PATIENCE), wanted)
    assert one.config._attn_implementation == "eager"


@every_engine
@pytest.mark.parametrize("inner", ENGINE_OPTIONS)
def test_an_explanation_inside_an_explanation(engine: str, inner: str) -> None:
    """By a hook. The locks are reentrant, or this would wait for itself for ever."""
    model = VIT.build()
    gmar = GMAR(model, **ENGINE_OPTIONS[engine])
    found: list[Any] = []
    other = GMAR(model, **ENGINE_OPTIONS[inner])

    def explain(*_: Any) -> None:
        if not found:
            found.append(None)
            found.append(other.attribute(VIT.images(), 3))

    model.vit.layers[2].register_forward_pre_hook(explain)
    assert same(gmar.attribute(VIT.images(), TARGETS), undisturbed(engine))
    assert same(found[1], undisturbed(inner, one_class=True))


@every_engine
def test_a_forward_that_began_before_the_explanation(engine: str) -> None:
    """It has seen hooks that are gone by the time that it calls them."""
    model = VIT.build()
    halfway, inside = Halfway(), Around(model, lambda vit, pixels: vit(pixels))
    wanted = model(VIT.images()).logits
    model.register_forward_pre_hook(halfway)
    explaining = Halfway()
    model.vit.layers[1].register_forward_hook(explaining)
    gmar = GMAR(inside, **ENGINE_OPTIONS[engine])
    with ThreadPoolExecutor(2) as pool:
        explained = explaining.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        plain = halfway.during(lambda: model(VIT.images()).logits, pool)
        explaining.go_on.set()
        explained.result(PATIENCE)
        halfway.go_on.set()
        assert same(plain.result(PATIENCE), wanted)


class Counting:
    """A backend of torch.compile that runs what it is given and counts how often."""

    def __init__(self) -> None:
        """Nothing ran."""
        self.runs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Callable[..., Any]:
        """Compile: hardly."""

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


def two_layers() -> Any:
    """As few as have one above another: compiling takes long for each."""
    return VIT.build(num_hidden_layers=2)


def in_place(backend: Counting) -> Any:
    model = two_layers()
    model.compile(backend=backend)
    return model


def layers_in_place(backend: Counting) -> Any:
    model = two_layers()
    for layer in model.vit.layers:
        layer.compile(backend=backend)
    return model


def inside(backend: Counting) -> Any:
    return Around(torch.compile(two_layers(), backend=backend), lambda vit, pixels: vit(pixels))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What torch.compile compiled counts against limits of its own."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


FORMS = pytest.mark.parametrize("compiled", [in_place, layers_in_place, inside])


@pytest.mark.usefixtures("fresh_compiler")
@FORMS
def test_compiled_models(compiled: Callable[[Counting], Any]) -> None:
    """Explained by each engine as they were written, and compiled again after each."""
    backend, plain = Counting(), two_layers()
    model = compiled(backend)
    with torch.no_grad():
        model(VIT.images())
        once = backend.runs
        assert once
        for engine, options in ENGINE_OPTIONS.items():
            wanted = GMAR(plain, **options).attribute(VIT.images(), TARGETS)
            before = backend.runs
            got = GMAR(model, **options).attribute(VIT.images(), TARGETS)
            assert same(got, wanted), engine
            assert backend.runs == before, engine
            model(VIT.images())
            assert backend.runs == before + once, engine


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("compiled", "engine", "stays"),
    [
        (in_place, "streaming", True),
        (layers_in_place, "streaming", True),
        # Hooks, or layers that are replaced, make PyTorch compile again in the other thread.
        (inside, "streaming", False),
        (layers_in_place, "streaming-checkpoint", False),
    ],
)
def test_compiled_models_run_in_other_threads(
    compiled: Callable[[Counting], Any], engine: str, stays: bool
) -> None:
    backend, halfway = Counting(), Halfway()
    model = compiled(backend)
    with torch.no_grad():
        wanted = scores_of(model(VIT.images()))
    before, call = backend.runs, ForwardRequest.call

    def stopping(*args: Any, **kwargs: Any) -> Tensor:
        halfway()
        return call(*args, **kwargs)

    # A hook of the test would make PyTorch compile again. Here all is switched but nothing runs.
    with patch.object(ForwardRequest, "call", stopping), ThreadPoolExecutor(1) as pool:
        gmar = GMAR(model, **ENGINE_OPTIONS[engine])
        explained = halfway.during(lambda: gmar.attribute(VIT.images(), 3), pool)
        with torch.no_grad():
            assert same(scores_of(model(VIT.images())), wanted)
        halfway.go_on.set()
        explained.result(PATIENCE)
    assert backend.runs > before
    assert not stays or backend.runs == 2 * before


def test_four_threads_explain_and_one_predicts() -> None:
    """The same for a minute, on a larger model: benchmarks/threads.py."""
    assert busy_threads(VIT.build(), VIT.images(), seconds=1.0).wrong == 0


@pytest.mark.parametrize(
    ("method", "engine"),
    [*itertools.product([GMAR, LeGrad], ENGINE_OPTIONS), (TokenGradCAM, None)],
)
def test_a_comparison_takes_its_turn(method: Any, engine: str | None) -> None:
    """What another thread's explanation has on the model meanwhile is not the model's own."""
    model = VIT.build().train()
    halfway, explain = Halfway(), method(model, **(ENGINE_OPTIONS[engine] if engine else {}))
    wanted = explain.attribute(VIT.images(), TARGETS)
    model.classifier.register_forward_hook(halfway)
    before = {name: len(part._forward_hooks) for name, part in model.named_modules()}
    with ThreadPoolExecutor(2) as pool:
        one = halfway.during(lambda: explain.attribute(VIT.images(), TARGETS), pool)
        other = pool.submit(
            lambda: compare(model, VIT.images(), ["grad-sam"], 1, measure=False).maps["grad-sam"]
        )
        with pytest.raises(TimeoutError):
            other.result(0.2)
        halfway.go_on.set()
        assert same(one.result(PATIENCE), wanted)
        other.result(PATIENCE)
    assert all(module.training for module in model.modules())
    assert {name: len(part._forward_hooks) for name, part in model.named_modules()} == before
    assert not any(part._forward_pre_hooks for part in model.modules())
