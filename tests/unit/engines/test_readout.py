"""The readout against the tokens that the scores read: other heads, and scores of places."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    GradientRollout,
    GradSAM,
    InputXGradient,
    LeGrad,
    LogitsModel,
    RawAttention,
    TokenGradCAM,
    head_importance,
    head_maps,
)
from hf_gmar.errors import ModelOutputError, ReadoutWarning
from tests.reference import oracles
from tests.reference.cases import (
    ENGINE_OPTIONS,
    TARGETS,
    VIT,
    Around,
    build,
    every_engine,
)
from tests.reference.models import HIDDEN, own_head
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY

AT_READOUT = (GMAR, AttentionRollout, GradientRollout, RawAttention)
AT_SCORE = (AttnLRP, InputXGradient, TokenGradCAM, GradSAM, LeGrad)


def tokens_of(vit: Any, pixels: Tensor) -> Tensor:
    """The hidden states of the top layer."""
    states: Tensor = vit(pixels, output_hidden_states=True).hidden_states[-1]
    return states


OTHER_HEADS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "patches": (lambda vit, x: vit.classifier(tokens_of(vit, x)[:, 1:].mean(1)), "patches"),
    "cls": (lambda vit, x: vit.classifier(tokens_of(vit, x)[:, 0]), "cls"),
    "tokens": (lambda vit, x: vit.classifier(tokens_of(vit, x).mean(1)), "tokens"),
    "body alone": (
        lambda vit, x: vit.classifier(vit.vit(x).last_hidden_state[:, 1:].mean(1)),
        "patches",
    ),
    "a tuple": (
        lambda vit, x: (vit.classifier(tokens_of(vit, x)[:, 1:].mean(1)), "more"),
        "patches",
    ),
}


def _sum(vit: Any, pixels: Tensor) -> Tensor:
    output = vit(pixels, output_hidden_states=True)
    scores: Tensor = output.logits + vit.classifier(output.hidden_states[-1][:, 1:].mean(1))
    return scores


def _joined(vit: Any, pixels: Tensor) -> Tensor:
    output = vit(pixels, output_hidden_states=True)
    extra = vit.classifier(output.hidden_states[-1][:, 1:].mean(1))
    return torch.cat([output.logits[:, :4], extra[:, 4:]], dim=1)


@every_engine
@pytest.mark.parametrize("name", OTHER_HEADS)
def test_a_head_on_hidden_states_needs_a_readout(name: str, engine: str) -> None:
    how, readout = OTHER_HEADS[name]
    model, images, options = Around(VIT.build(), how), VIT.images(), ENGINE_OPTIONS[engine]
    for method in AT_READOUT:
        target = TARGETS if method.class_specific else None
        with pytest.raises(ModelOutputError, match=r"class head of ViTForImage.*readout= one of"):
            method(model, **options).attribute_patches(images, target)
    with pytest.raises(ModelOutputError, match="readout="):
        head_maps(model, images)
    got = GMAR(model, readout=readout, **options).attribute_patches(images, TARGETS)
    assert got.shape == (3, 4, 4)
    if name == readout:  # the oracle runs the whole model, and reads tensors
        wanted = oracles.gmar(oracles.trace(model, images, TARGETS, reads=readout))
        assert near(got, wanted.patches, PARITY)


@every_engine
@pytest.mark.parametrize("how", [_sum, _joined])
def test_a_head_beside_the_class_head(how: Any, engine: str) -> None:
    model = Around(VIT.build(), how)
    with pytest.raises(ModelOutputError, match="do not come from the class head"):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), TARGETS)


@every_engine
@pytest.mark.parametrize(
    "how",
    [
        lambda vit, x: vit(x).logits / 3,
        lambda vit, x: vit(x).logits[:, [3, 4, 1, 2, 0, 5, 6]].log_softmax(1),
        lambda vit, x: vit(x, return_dict=False)[0] * 2,
        lambda vit, x: torch.cat([vit(x).logits, torch.zeros(len(x), 2)], dim=1),
        lambda vit, x: vit(x).logits + x.mean((1, 2, 3))[:, None],
        lambda vit, x: vit(x).logits[:, :6].reshape(-1, 2, 3).flatten(1),
        lambda vit, x: vit(x).logits.clone().index_fill_(1, torch.tensor([6]), 0),
    ],
)
def test_scores_made_of_the_class_heads(how: Any, engine: str) -> None:
    """Temperature, order, precision and more columns leave the readout."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = AttentionRollout(Around(VIT.build(), how), **ENGINE_OPTIONS[engine])
        got = maps.attribute_patches(VIT.images())
    wanted = AttentionRollout(VIT.build(), **ENGINE_OPTIONS[engine])
    assert same(got, wanted.attribute_patches(VIT.images()))


def test_methods_at_the_score_need_no_readout() -> None:
    """They follow the gradient, wherever the scores come from."""
    how, _ = OTHER_HEADS["patches"]
    model, images = Around(VIT.build(), how), VIT.images()
    for method in AT_SCORE:
        wanted = method(model, readout="patches").attribute_patches(images, TARGETS)
        assert same(method(model).attribute_patches(images, TARGETS), wanted)
    assert head_importance(model, images, TARGETS, criterion="taylor").values.any()


class Segmenter(nn.Module):
    """A 1x1 convolution on the patches: scores (B, 5, rows, columns), perhaps in other forms."""

    def __init__(self, form: Callable[[Tensor], Tensor] = lambda scores: scores) -> None:
        """Keep a body as a submodule."""
        super().__init__()
        self.model = build(ViTModel, ViTConfig)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.head = nn.Conv2d(HIDDEN, 5, 1)
        self.form = form
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of each place."""
        patches = self.model(pixels).last_hidden_state[:, 1:]
        return self.form(self.head(patches.mT.unflatten(2, (4, 4))))


PLACES: dict[str, tuple[Callable[[Tensor], Tensor], Any, Any]] = {
    "rows and columns": (lambda scores: scores, (2, 0, 0), (2, 3, 3)),
    "upsampled": (
        lambda scores: nn.functional.interpolate(scores, scale_factor=8, mode="bilinear"),
        (2, 3, 3),
        (2, 28, 28),
    ),
    "places last": (lambda scores: scores.flatten(2), (2, 0), (2, 15)),
    "classes last": (lambda scores: scores.flatten(2).mT, (0, 2), (15, 2)),
    "flat": (lambda scores: scores.flatten(1), 32, 47),
}


@every_engine
@pytest.mark.parametrize("name", PLACES)
def test_scores_of_a_place_are_said_to_start_elsewhere(name: str, engine: str) -> None:
    form, near_place, far_place = PLACES[name]
    model, images, options = Segmenter(form), VIT.images(), ENGINE_OPTIONS[engine]
    for method in AT_READOUT:
        explain = method(model, readout="patches", **options)
        for place in (near_place, far_place):
            with pytest.warns(ReadoutWarning, match=r"of the 16 output tokens.*AttnLRP") as said:
                explain.attribute_patches(images, place)
            assert len(said) == 1


@pytest.mark.parametrize("name", PLACES)
def test_methods_at_the_score_tell_places_apart(name: str) -> None:
    form, near_place, far_place = PLACES[name]
    model, images = Segmenter(form), VIT.images()
    for method in AT_SCORE:
        explain = method(model, readout="patches")
        near_map, far_map = explain.attribute_targets(images, [near_place, far_place])
        assert not torch.allclose(near_map, far_map)


@every_engine
def test_a_mean_over_the_places_is_the_readout(engine: str) -> None:
    model = Segmenter(lambda scores: scores.mean((2, 3)))
    gmar = GMAR(model, readout="patches", **ENGINE_OPTIONS[engine])
    wanted = oracles.gmar(oracles.trace(model, VIT.images(), [0, 4, 2], reads="patches"))
    assert near(gmar.attribute_patches(VIT.images(), [0, 4, 2]), wanted.patches, PARITY)


@every_engine
@pytest.mark.parametrize(
    ("read", "readout", "words"),
    [
        (lambda tokens: tokens[:, 0], "patches", "on 0 of the 16 .* on 1 others"),
        (lambda tokens: tokens[:, 1:].mean(1), "cls", "on 0 of the 1 .* on 16 others"),
        (lambda tokens: tokens[:, 1:4].mean(1), "patches", "on 3 of the 16 .* on 0 others"),
        (lambda tokens: tokens.mean(1), "patches", "on 16 of the 16 .* on 1 others"),
        (lambda tokens: tokens[:, 1:].mean(1), (0.5,), "on 16 of the 17 .* on 0 others"),
    ],
)
def test_a_readout_that_the_head_does_not_have(
    read: Any, readout: Any, words: str, engine: str
) -> None:
    model = own_head(ViTModel, ViTConfig, read)
    with pytest.warns(ReadoutWarning, match=words):
        GMAR(model, readout=readout, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), TARGETS)


@every_engine
def test_a_head_for_several_tasks_keeps_its_readout(engine: str) -> None:
    """Scores (B, tasks, classes) all come from CLS."""
    model = Around(VIT.build(), lambda vit, x: vit(x).logits[:, :6].reshape(-1, 2, 3))
    got = GMAR(model, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), (1, 0))
    assert same(got, GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), 3))


def test_a_model_of_logits_has_the_class_head() -> None:
    images = VIT.images()
    wanted = GMAR(VIT.build()).attribute_patches(images, TARGETS)
    assert same(GMAR(LogitsModel(VIT.build())).attribute_patches(images, TARGETS), wanted)
