"""What is peculiar to one method, and the contrast of two classes, which gradient methods share."""

from __future__ import annotations

import copy
import inspect
from typing import Any, get_args

import pytest
import torch
from captum.attr import NoiseTunnel
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from hf_gmar import GMAR, AttentionRollout, GradSAM, LeGrad, RandomAttribution, RawAttention
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar._engines.run import ENGINES, run_rules
from hf_gmar.errors import (
    InputError,
    ModelOutputError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.explainer import Explainer
from hf_gmar.methods import METHODS
from hf_gmar.methods.base import PassCount
from hf_gmar.methods.layer_rules import RolloutRule
from hf_gmar.models import load_model
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    ENGINE_OPTIONS,
    LABELS,
    LAYERS,
    TARGETS,
    VIT,
    MethodCase,
    every_engine,
)
from tests.reference.cases import (
    METHODS as CASES,
)
from tests.reference.models import HIDDEN, build
from tests.reference.parity import same

CONTRAST = [1, 4, 0]
"""Another class for each image of a batch."""

every_gradient_method = pytest.mark.parametrize(
    ("method", "engine"),
    [
        pytest.param(method, engine, id=f"{method.name}-{engine}")
        for method in CASES
        if method.about.class_specific
        for engine in method.engines
    ],
)
every_other_method = pytest.mark.parametrize(
    "method",
    [method for method in CASES if not method.about.class_specific],
    ids=lambda method: method.name,
)


class Difference(nn.Module):
    """The tiny ViT with one score: that of an image's target minus its contrast's."""

    def __init__(self, image: int) -> None:
        """Hold the model and the two classes."""
        super().__init__()
        self.model = VIT.build()
        self.target, self.contrast = TARGETS[image], CONTRAST[image]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1)."""
        logits = self.model(pixels).logits
        scores: Tensor = logits[:, self.target] - logits[:, self.contrast]
        return scores[:, None]


@every_gradient_method
def test_a_contrast_explains_the_difference(method: MethodCase, engine: str) -> None:
    images = VIT.images()
    alone = [
        method.made(Difference(image), engine).attribute_patches(images[image : image + 1], 0)
        for image in range(BATCH)
    ]
    wanted = torch.cat(alone)
    explain = method.made(VIT.build(), engine)
    found = explain.attribute_patches(images, TARGETS, contrast=CONTRAST)
    assert same(found, wanted)
    assert not same(found, explain.attribute_patches(images, TARGETS))
    both = explain.attribute_targets(images, [TARGETS, 2], contrast=torch.tensor(CONTRAST))
    assert same(both[0], found)
    pixels = explain.attribute(images, TARGETS, contrast=CONTRAST)
    assert torch.equal(pixels[:, 0, ::8, ::8], found)


def test_the_heads_of_a_contrast() -> None:
    alone = [
        GMAR(Difference(image)).head_importance(VIT.images()[image : image + 1], 0)
        for image in range(BATCH)
    ]
    wanted = torch.cat(alone)
    found = GMAR(VIT.build()).head_importance(VIT.images(), TARGETS, contrast=CONTRAST)
    assert same(found, wanted)


def test_noise_tunnel_passes_the_contrast_on() -> None:
    tunnel, images = NoiseTunnel(GMAR(VIT.build())), VIT.images()
    got = tunnel.attribute(images, nt_samples=2, stdevs=1e-6, target=3, contrast=5)
    wanted = GMAR(VIT.build()).attribute(images, 3, contrast=5)
    assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "contrast", "images"),
    [(3, 3, "[0, 1, 2]"), ([1, 2, 3], [1, 5, 3], "[0, 2]"), (5, [0, 5, 0], "[1]")],
)
def test_a_class_is_no_contrast_to_itself(target: Any, contrast: Any, images: str) -> None:
    with pytest.raises(TargetError) as caught:
        GMAR(VIT.build()).attribute(VIT.images(), target, contrast=contrast)
    assert f"images {images} are the same class" in str(caught.value)


@pytest.mark.parametrize("contrast", [7, [1, 2], 1.5, [1, 2, 9]], ids=str)
def test_a_contrast_is_checked_as_a_target_is(contrast: Any) -> None:
    with pytest.raises(TargetError):
        GMAR(VIT.build()).attribute(VIT.images(), 3, contrast=contrast)


@every_other_method
def test_a_method_without_classes_has_no_contrast(method: MethodCase) -> None:
    with pytest.raises(OptionError, match=r"same map for every class.*contrast=2"):
        method.made(VIT.build()).attribute(VIT.images(), 3, contrast=2)


@every_other_method
def test_a_method_without_classes_has_one_map(method: MethodCase) -> None:
    explain, images = method.made(VIT.build()), VIT.images()
    maps = explain.attribute_targets(images, [3, TARGETS, None])
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])
    with pytest.raises(TargetError, match="out of range"):  # what is wrong is wrong here, too
        explain.attribute(images, 7)


@pytest.mark.parametrize("engine", sorted(ENGINE_OPTIONS))
@pytest.mark.parametrize("method", [AttentionRollout, RawAttention])
def test_rollout_takes_no_gradient(method: Any, engine: str) -> None:
    """A backward through the model would fail."""

    class Barrier(torch.autograd.Function):
        """The identity, without a backward."""

        @staticmethod
        def forward(_: Any, tokens: Tensor) -> Tensor:
            return tokens.clone()

        @staticmethod
        def backward(*_: Any) -> Any:
            raise AssertionError

    model = VIT.build()
    model.classifier.register_forward_pre_hook(
        lambda _, inputs: Barrier.apply(inputs[0])  # type: ignore[no-untyped-call]
    )
    found = method(model, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), 3)
    assert same(found, method(VIT.build()).attribute_patches(VIT.images(), 3))
    with pytest.raises(AssertionError):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), 3)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_rollout_keeps_no_graph_of_the_layers_below(checkpoint: bool) -> None:
    """Only the top layer's tokens have a graph, which says of what the scores are made."""
    model = VIT.build()
    with_graph, replaced = [], []

    def look(layer: nn.Module, _: Any, tokens: Tensor) -> None:
        with_graph.append(tokens.requires_grad)
        replaced.append("forward" in layer.__dict__)

    for layer in model.vit.layers:
        layer.register_forward_hook(look)
    AttentionRollout(model, checkpoint=checkpoint).attribute(VIT.images(), 3)
    assert with_graph == [False] * (LAYERS - 1) + [True]
    assert not any(replaced)  # there is nothing to run again


class SumOfGradient:
    """A rule that adds up the gradient, (B, N)."""

    def accumulate(self, block: Block) -> Sums:
        """Over heads and queries."""
        return (block.gradient.abs().sum((1, 2)),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """As it is."""
        return LayerResult(relevance, addition=sums[0])


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_rule_that_needs_no_gradient_gets_zeros(engine: str) -> None:
    adapter = ModelAdapter.of(VIT.build())
    for gradient, is_zero in (("none", True), ("score", False)):
        request = ForwardRequest(VIT.images(), gradient=gradient)  # type: ignore[arg-type]
        spans = [(SumOfGradient(), range(LAYERS))]
        ((found,),) = run_rules(adapter, request, [TargetSpec(3)], spans, engine)
        assert (found.patches == 0).all() == is_zero
        assert found.heads is None


def test_discarding_nothing_and_fusions_differ() -> None:
    images = VIT.images()
    maps = [
        AttentionRollout(VIT.build(), **options).attribute_patches(images, 0)
        for options in (
            {},
            {"head_fusion": "max"},
            {"head_fusion": "min"},
            {"discard_ratio": 0.5},
            {"alpha": 0.5},
        )
    ]
    for index, one in enumerate(maps):
        assert all(not same(one, other) for other in maps[:index])
    barely = AttentionRollout(VIT.build(), discard_ratio=1 / 18).attribute_patches(images, 0)
    assert same(barely, maps[0])  # less than one of 17 keys


def test_a_query_that_may_look_nowhere() -> None:
    """Its row is zero, and stays so: dividing by its sum would give NaN."""
    attention = torch.tensor([[[[0.0, 0.0], [0.5, 0.5]]]])
    rule, relevance = RolloutRule("mean", 0.0, 1.0), torch.tensor([[0.5, 0.5]])
    sums = rule.accumulate(Block(attention, torch.zeros_like(attention), relevance))
    assert rule.finish(sums, relevance).relevance.tolist() == [[0.375, 0.375]]


@every_engine
def test_raw_attention_counts_layers_from_both_ends(engine: str) -> None:
    images, model = VIT.images(), VIT.build()
    found = oracles.trace(model, images, TARGETS)
    seen = []
    for layer in range(-LAYERS, LAYERS):
        raw = RawAttention(model, layer=layer, **ENGINE_OPTIONS[engine])
        assert raw.layer == layer % LAYERS
        seen.append(raw.attribute_patches(images, 0))
        wanted = torch.from_numpy(oracles.raw_attention(found, layer).patches)
        assert torch.allclose(seen[-1].double(), wanted, atol=1e-6)
    assert not same(seen[0], seen[1])


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (
        AttentionRollout,
        {"head_fusion": "median"},
        "head_fusion must be one of 'mean', 'max'",
    ),
    (
        AttentionRollout,
        {"discard_ratio": 1.0},
        "must be a finite number >= 0 and < 1, got 1.0",
    ),
    (AttentionRollout, {"discard_ratio": -0.1}, "discard_ratio must be"),
    (AttentionRollout, {"discard_ratio": "0.5"}, "discard_ratio must be a number >= 0 and < 1"),
    (AttentionRollout, {"alpha": -1}, "alpha must be a finite number >= 0, got -1"),
    (RawAttention, {"layer": 3}, "layer must be a whole number from -3 to 2, got 3"),
    (RawAttention, {"layer": -4}, "layer must be a whole number from -3 to 2"),
    (RawAttention, {"layer": True}, "layer must be"),
    (LeGrad, {"layer_scores": "last"}, "layer_scores must be one of 'own', 'final'"),
    (RandomAttribution, {"seed": -1}, "seed must be a whole number from 0"),
    (RandomAttribution, {"seed": 0.5}, "seed must be a whole number"),
    (GradSAM, {"start_layer": 3}, "start_layer must be"),
    (GradSAM, {"engine": "quick"}, "engine must be one of"),
]


@pytest.mark.parametrize(("method", "options", "said"), WRONG, ids=str)
def test_options_out_of_range(method: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        method(VIT.build(), **options)
    assert said in str(caught.value)


def test_random_maps_are_of_the_seed_and_the_image() -> None:
    images, model = VIT.images(), VIT.build()
    state = torch.random.get_rng_state()
    one = RandomAttribution(model).attribute_patches(images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(RandomAttribution(model).attribute_patches(images), one)
    other = RandomAttribution(model, seed=1).attribute_patches(images)
    changed = RandomAttribution(model).attribute_patches(images + 1e-3)
    for different in (other, changed, one.roll(1, 0)):
        assert (different != one).all()
    many = RandomAttribution(model).attribute_patches(torch.randn(200, 3, 32, 32))
    assert 0 <= float(many.min()) < 0.01
    assert 0.99 < float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_legrad_asks_each_layer() -> None:
    images, model = VIT.images(), VIT.build()
    own = LeGrad(model).attribute_patches(images, TARGETS)
    final = LeGrad(model, layer_scores="final").attribute_patches(images, TARGETS)
    assert not same(own, final)
    # In the top layer they are the same score.
    top = {"start_layer": LAYERS - 1}
    own, final = (
        LeGrad(model, layer_scores=which, **top).attribute_patches(images, TARGETS)  # type: ignore[arg-type]
        for which in ("own", "final")
    )
    assert same(own, final)


@every_engine
def test_legrad_needs_layers_that_can_be_told(engine: str) -> None:
    model = VIT.build()
    model.vit.spare = copy.deepcopy(model.vit.layers[0])
    with pytest.raises(UnsupportedModelError, match="3 layers of ViTModel are needed, and 4"):
        LeGrad(model, **ENGINE_OPTIONS[engine])
    found = LeGrad(model, layer_scores="final", **ENGINE_OPTIONS[engine])
    wanted = LeGrad(VIT.build(), layer_scores="final")
    images = VIT.images()
    assert same(found.attribute_patches(images, 3), wanted.attribute_patches(images, 3))


@every_engine
def test_legrad_of_a_layer_that_runs_twice(engine: str) -> None:
    """Which of its outputs is the layer's can't be said."""
    model = VIT.build()
    first = model.vit.layers[0]

    def again(_module: Any, _inputs: Any, tokens: Tensor) -> None:
        first(tokens)

    model.vit.embeddings.register_forward_hook(again)
    with pytest.raises(ModelOutputError, match=r"ran 4 times in all|made 4 calls"):
        LeGrad(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


def test_options_of_the_methods() -> None:
    shared = ["start_layer", "engine", "chunk_size", "checkpoint", "readout", "resolution"]
    assert list(METHODS.options("gmar")) == ["norm", "alpha", *shared]
    assert list(METHODS.options("attention-rollout")) == [
        "head_fusion",
        "discard_ratio",
        "alpha",
        *shared,
    ]
    assert list(METHODS.options("raw-attention")) == ["layer", *shared[1:]]
    assert list(METHODS.options("legrad")) == ["layer_scores", *shared]
    assert list(METHODS.options("grad-sam")) == shared
    assert list(METHODS.options("random")) == ["seed", "readout", "grid", "resolution"]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert method.source
    assert method.cost in get_args(PassCount)
    assert isinstance(method.class_specific, bool)
    assert isinstance(method.signed, bool)
    assert not inspect.isabstract(method)
    assert name in {
        known for known in METHODS if any(case.about is METHODS[known] for case in CASES)
    }
    explain = METHODS.build(name, VIT.build())
    assert explain.attribute_patches(VIT.images(), 3).shape == (BATCH, *VIT.grid)
    with pytest.raises(OptionError, match="has no option sharpness"):
        METHODS.build(name, VIT.build(), sharpness=1)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_refuses_bad_inputs(name: str) -> None:
    explain = METHODS.build(name, VIT.build())
    with pytest.raises(InputError, match="NaN or infinity"):
        explain.attribute(torch.full((1, 3, 32, 32), float("nan")), 3)
    with pytest.raises(InputError, match="refused images of 40 x 40"):
        explain.attribute(torch.randn(1, 3, 40, 40), 3)
    with pytest.raises(TargetError, match="out of range"):
        explain.attribute(VIT.images(), 7)
    with pytest.raises(OptionError, match="unknown keyword sharper"):
        explain.attribute(VIT.images(), 3, sharper=True)


class Probe(nn.Module):
    """A linear head on CLS of the last two layers, as probes of DINOv2 read them."""

    def __init__(self) -> None:
        """Hold the model."""
        super().__init__()
        self.model = build(ViTModel, ViTConfig)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.head = nn.Linear(2 * HIDDEN, LABELS)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, LABELS)."""
        states = self.model(pixels, output_hidden_states=True).hidden_states
        scores: Tensor = self.head(torch.cat([states[-1][:, 0], states[-2][:, 0]], -1))
        return scores


@every_engine
def test_legrad_of_a_head_that_reads_two_layers(engine: str) -> None:
    """A layer's own score has a gradient through that layer alone."""
    probe, images = Probe(), VIT.images()
    found = LeGrad(probe, readout="cls", **ENGINE_OPTIONS[engine]).attribute_patches(images, 3)
    plain = copy.deepcopy(probe)
    plain.model.set_attn_implementation("eager")
    seen = plain.model(images, output_attentions=True, output_hidden_states=True)
    wanted = torch.zeros(BATCH, 17)
    for layer in range(LAYERS):
        top = seen.hidden_states[layer + 1][:, 0]
        below = seen.hidden_states[-2][:, 0].detach()
        score = plain.head(torch.cat([top, below], -1))[:, 3].sum()
        (gradient,) = torch.autograd.grad(score, seen.attentions[layer], retain_graph=True)
        wanted += gradient.clamp(min=0).mean((1, 2)) / LAYERS
    assert same(found, wanted[:, 1:].reshape(found.shape))


@pytest.mark.pairwise
@every_engine
@pytest.mark.parametrize("inner", [GMAR, LeGrad, AttentionRollout])
@pytest.mark.parametrize("outer", [GMAR, LeGrad, AttentionRollout])
@pytest.mark.parametrize("place", ["vit.layers.1", "classifier"])
def test_an_explanation_inside_an_explanation(
    outer: Any, inner: Any, place: str, engine: str
) -> None:
    """A hook of the model explains the model; neither sees what the other does."""
    images, options = VIT.images(), ENGINE_OPTIONS[engine]
    wanted = outer(VIT.build(), **options).attribute_patches(images, 3)
    model = VIT.build()
    explain = inner(model)
    found: list[Tensor] = []

    def hook(*_: Any) -> None:
        if not found:
            found.append(torch.zeros(0))  # it explains once, not itself
            found.append(explain.attribute_patches(images, 3))

    model.get_submodule(place).register_forward_hook(hook)
    assert same(outer(model, **options).attribute_patches(images, 3), wanted)
    assert same(found[1], inner(VIT.build()).attribute_patches(images, 3))


@every_engine
def test_attention_that_is_overwritten(engine: str) -> None:
    """The model may change in place what attention gave."""
    images = VIT.images()
    for method in (AttentionRollout, RawAttention, GMAR, LeGrad):
        maps = []
        for in_place in (False, True):
            model = VIT.build()
            for layer in model.vit.layers:
                layer.attention.o_proj.register_forward_pre_hook(
                    (lambda _, args: args[0].mul_(1.5)) if in_place else _larger
                )
            explain = method(model, **ENGINE_OPTIONS[engine])
            maps.append(explain.attribute_patches(images, 3))
        assert same(maps[1], maps[0])


def _larger(_: nn.Module, args: tuple[Tensor]) -> Tensor:
    return args[0] * 1.5


@pytest.mark.parametrize("name", list(METHODS))
def test_weights_made_in_inference_mode(name: str) -> None:
    with torch.inference_mode():
        model = VIT.build()
    with pytest.raises(UnsupportedModelError, match=r"made inside torch.inference_mode\(\)"):
        METHODS.build(name, model)


def test_legrad_runs_the_head_for_explained_layers_alone() -> None:
    for start in range(LAYERS):
        model = VIT.build()
        runs: list[None] = []
        model.classifier.register_forward_hook(lambda *_, runs=runs: runs.append(None))
        LeGrad(model, start_layer=start).attribute(VIT.images(), 3)
        assert len(runs) == LAYERS - start


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_a_share_sums_to_at_most_one_and_keeps_its_size(name: str, scene: Image.Image) -> None:
    """What the colour bar says of a map's values holds, also where the scores are larger."""
    loaded = load_model("bundled")
    pixels = loaded.processor(images=scene, return_tensors="pt").pixel_values
    options: Any = {"samples": 2, "groups": (2, 2)} if name == "shapley-values" else {}
    method = METHODS.build(name, loaded.model, **options)
    before = method.attribute_patches(pixels, 6)
    with torch.no_grad():
        loaded.model.get_parameter("classifier.weight").mul_(100)
    after = method.attribute_patches(pixels, 6)
    is_share = METHODS[name].unit.startswith("share of")
    assert is_share == bool(after.abs().sum() < 1.0001)
    assert is_share == torch.allclose(before, after, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", METHODS.built_in)
def test_the_colour_bar_has_the_unit_of_the_method(name: str, scene: Image.Image) -> None:
    options: Any = {"samples": 2, "groups": (4, 4)} if name == "shapley-values" else {}
    result = Explainer(load_model("bundled"), name, **options)(scene, target=6)
    label = " ".join(result.figure().axes[2].get_ylabel().split())
    signed = " (below 0: against the class)" if METHODS[name].signed else ""
    assert label == f"{' '.join(METHODS[name].unit.split())}, per patch{signed}"
