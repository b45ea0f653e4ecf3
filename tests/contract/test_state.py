"""A call leaves no trace: on the model, its config, the inputs or the caller's settings."""

from __future__ import annotations

import copy
import functools
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hf_gmar import GMAR
from hf_gmar.errors import ModelOutputError, TargetError
from tests.reference import oracles
from tests.reference.cases import (
    ENGINE_OPTIONS,
    TARGETS,
    VIT,
    Around,
    MethodCase,
    ModelCase,
    every_engine,
    every_model,
    every_resolution_too,
)
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY
from tests.support.state import PLACES, HalfWayError, fail_halfway, live_tensors, unchanged, used

loadings = pytest.mark.parametrize("attention", ["sdpa", "eager"])


_used = functools.cache(used)
"""One for all methods: each must leave it as it was."""


@pytest.mark.sampled(6)
@loadings
@every_resolution_too
@every_model
def test_a_call_leaves_the_model_as_it_was(
    case: ModelCase, method: MethodCase, attention: str, engine: str
) -> None:
    model = _used(case, attention)
    explain = method.made(model, engine)
    with unchanged(model):
        explain.attribute(case.images(), TARGETS, **case.forward_kwargs)
        explain.attribute_patches(case.images(), **case.forward_kwargs)


@every_engine
def test_building_a_method_changes_nothing(engine: str) -> None:
    model = used(VIT)
    with unchanged(model):
        GMAR(model, **ENGINE_OPTIONS[engine])


@every_engine
def test_models_that_share_a_config(engine: str) -> None:
    one = VIT.build()
    other = type(one)(one.config).eval()
    assert one.config is other.config
    wanted = other(VIT.images()).logits
    with unchanged(one, other):
        GMAR(one, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)
    assert same(other(VIT.images()).logits, wanted)


@every_engine
def test_a_model_whose_attention_was_asked_for_before(engine: str) -> None:
    """Transformers then keeps hooks of its own in the layers; they are the model's by now."""
    model = VIT.build(attention="eager")
    wanted = GMAR(model, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), 3)
    assert len(model(VIT.images(), output_attentions=True).attentions) == 3
    with unchanged(model):
        again = GMAR(model, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), 3)
    assert same(again, wanted)
    assert len(model(VIT.images(), output_attentions=True).attentions) == 3


@every_engine
def test_attention_can_be_asked_for_afterwards(engine: str) -> None:
    model = VIT.build(attention="eager")
    GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)
    output = model(VIT.images(), output_attentions=True)
    assert [layer.shape[-1] for layer in output.attentions] == [17, 17, 17]
    assert model(VIT.images()).attentions is None


@every_engine
@loadings
@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_raises_half_way(place: str, attention: str, engine: str) -> None:
    model = used(VIT, attention)
    handle = PLACES[place](model).register_forward_hook(fail_halfway)
    gmar = GMAR(model, **ENGINE_OPTIONS[engine])
    with unchanged(model), pytest.raises(HalfWayError):
        gmar.attribute(VIT.images(), 3)
    handle.remove()
    wanted = oracles.gmar(oracles.trace(VIT.build(), VIT.images(), TARGETS))
    assert near(gmar.attribute_patches(VIT.images(), TARGETS), wanted.patches, PARITY)


@every_engine
def test_a_backward_that_raises(engine: str) -> None:
    def fails_backwards(vit: Any, pixels: Tensor) -> Tensor:
        logits: Tensor = vit(pixels).logits
        logits.register_hook(fail_halfway)
        return logits

    model = Around(used(VIT), fails_backwards)
    with unchanged(model), pytest.raises(HalfWayError):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


@every_engine
@loadings
@pytest.mark.parametrize("target", [99, -1, [1, 2]])
def test_a_target_that_does_not_exist(target: Any, attention: str, engine: str) -> None:
    model = used(VIT, attention)
    with unchanged(model), pytest.raises(TargetError):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), target)


@every_engine
def test_a_result_that_is_not_finite(engine: str) -> None:
    model = used(VIT)
    model.vit.layers[1].mlp.fc2.weight.data *= 1e38
    with unchanged(model), pytest.raises(ModelOutputError):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


@every_engine
@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_are_not_touched(requires_grad: bool, engine: str) -> None:
    images = VIT.images().requires_grad_(requires_grad)
    target = torch.tensor(TARGETS)
    if requires_grad:
        images.grad = torch.full_like(images, 0.25)
    before = copy.deepcopy((images.detach(), images.grad, target))
    versions = images._version, target._version
    attribution = GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute(images, target)
    attribution += 1  # the result is no view of the inputs either
    assert torch.equal(images.detach(), before[0])
    assert images.requires_grad == requires_grad
    assert (images.grad is None) == (before[1] is None)
    assert before[1] is None or torch.equal(images.grad, before[1])  # type: ignore[arg-type]
    assert torch.equal(target, before[2])
    assert (images._version, target._version) == versions
    assert images.is_leaf
    assert images._backward_hooks is None


MODES: dict[str, Callable[[], Any]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@every_engine
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_grad_mode_stays(mode: str, engine: str) -> None:
    model = used(VIT)
    wanted = GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)
    with MODES[mode](), unchanged(model):
        assert same(GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3), wanted)
        with pytest.raises(TargetError):
            GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 99)


@every_engine
def test_dropout_is_off(engine: str) -> None:
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model, images = VIT.build(**dropout).train(), VIT.images()
    assert not torch.equal(model(images).logits, model(images).logits)
    wanted = GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute(images, TARGETS)
    with unchanged(model):
        for _ in range(2):
            assert same(GMAR(model, **ENGINE_OPTIONS[engine]).attribute(images, TARGETS), wanted)
    assert model.training


@every_engine
def test_gradient_checkpointing_while_training(engine: str) -> None:
    model, images = VIT.build().train(), VIT.images()
    # The old name still works, but warns.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    wanted = GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute(images, TARGETS)
    with unchanged(model):
        assert same(GMAR(model, **ENGINE_OPTIONS[engine]).attribute(images, TARGETS), wanted)


@every_engine
def test_twenty_calls_keep_nothing(engine: str) -> None:
    """With the garbage collector off: nothing waits for it, or memory would pile up meanwhile."""
    model, images = VIT.build(), VIT.images()
    gmar = GMAR(model, **ENGINE_OPTIONS[engine])
    gmar.attribute(images, TARGETS)
    gc.collect()
    gc.disable()
    try:
        with unchanged(model):
            before = live_tensors()
            for _ in range(20):
                gmar.attribute(images, TARGETS)
                with pytest.raises(TargetError):
                    gmar.attribute(images, 99)
            assert live_tensors() == before
    finally:
        gc.enable()


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int) -> None:
        """Start with nothing."""
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.messages.append(record.getMessage())


@pytest.mark.pairwise
@every_engine
@loadings
@every_model
def test_transformers_has_nothing_to_warn_about(
    case: ModelCase, attention: str, engine: str
) -> None:
    """Its warnings are log records, and some are shown once only: pytest would not see them."""
    transformers_logging.warning_once.cache_clear()
    handler = Records(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        explain = GMAR(case.build(attention=attention), **ENGINE_OPTIONS[engine])
        explain.attribute(case.images(), **case.forward_kwargs)
    finally:
        logger.removeHandler(handler)
    assert handler.messages == []
