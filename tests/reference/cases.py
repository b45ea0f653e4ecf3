"""One table of models and one of methods. Each generic test runs over all rows.

A new model family is one row in ``MODELS`` (and its readout in ``oracles.read_out``); a new
method is one row in ``METHODS``, with a function in ``oracles`` that says what it should give.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BeitConfig,
    BeitForImageClassification,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaForImageClassification,
    MetaClip2Config,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    MLCDVisionConfig,
    MLCDVisionModel,
    PixioConfig,
    PixioModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from hf_gmar.methods import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    AttributionMethod,
    GradientRollout,
    GradSAM,
    InputXGradient,
    LeGrad,
    RandomAttribution,
    RawAttention,
    ShapleyValues,
    TokenGradCAM,
)
from tests.reference import oracles
from tests.reference.models import (
    HEADS,
    LABELS,
    LAYERS,
    PROMPTS,
    Around,
    build,
    of_two,
    own_head,
    prompted,
    state_of,
)

__all__ = ["HEADS", "LABELS", "LAYERS", "PROMPTS", "Around", "build"]

BATCH = 3
TARGETS = [5, 0, 3]
"""One target for each image of a batch."""

ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"engine": "dense"},
    "streaming": {"engine": "streaming"},
    "streaming-5-rows": {"engine": "streaming", "chunk_size": 5},
    "streaming-checkpoint": {"engine": "streaming", "checkpoint": True},
}
"""Every way to feed the layers, as options of a method."""

ENGINE_NAMES = list(ENGINE_OPTIONS)
ANY_LOADING: dict[str, list[str]] = {"sdpa": ENGINE_NAMES, "eager": ENGINE_NAMES}


@dataclass(frozen=True, eq=False)
class ModelCase:
    """One row of the table of models.

    Attributes:
        name: shown in the names of tests.
        build: makes the model; takes ``attention`` and further settings of its config.
        shape: channels, height and width of its images.
        grid: rows and columns of patches of such an image.
        prefix: tokens before the patches.
        forward_kwargs: keywords that the model needs for such images.
        options: of a method on this model: what a head of the tests' own reads.
        casts: the model casts images to its own precision.
        loadings: attention implementation that it is loaded with, with the engines that can
            explain it then.
    """

    name: str
    build: Callable[..., Any]
    shape: tuple[int, int, int]
    grid: tuple[int, int]
    prefix: int
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    casts: bool = True
    loadings: Mapping[str, Sequence[str]] = field(default_factory=lambda: ANY_LOADING)

    def images(self, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> Tensor:
        """Images for the model, the same each time."""
        generator = torch.Generator().manual_seed(7)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True, eq=False)
class MethodCase:
    """One row of the table of methods.

    Attributes:
        name: shown in the names of tests.
        build: makes the method for a model; takes ``engine`` too, if the method has engines.
        reference: what the method should give, from a dense trace; ``None`` if the tests of that
            method alone say it.
        trace: makes that trace.
        has_heads: it has ``head_importance``.
        shares: its map sums to at most 1.
        engines: names in ``ENGINE_OPTIONS``; one that stands for none if it has no engine.
    """

    name: str
    build: functools.partial[Any]
    reference: Callable[[oracles.Trace], oracles.Reference] | None
    trace: Callable[..., oracles.Trace] = oracles.trace
    has_heads: bool = False
    shares: bool = False
    engines: Sequence[str] = tuple(ENGINE_NAMES)

    @property
    def about(self) -> type[AttributionMethod]:
        """The class, which says whether maps are signed and depend on the class."""
        return cast("type[AttributionMethod]", self.build.func)

    def made(self, model: Any, engine: str | None = None, **options: Any) -> Any:
        """The method on a model, fed by an engine if it has any."""
        chosen = ENGINE_OPTIONS[engine or self.engines[0]] if len(self.engines) > 1 else {}
        return self.build(model, **chosen, **options)


def _gmar(name: str, **options: Any) -> MethodCase:
    return MethodCase(
        name,
        functools.partial(GMAR, **options),
        functools.partial(oracles.gmar, **options),
        has_heads=True,
        shares=True,
    )


def _baseline(
    name: str, method: type[AttributionMethod], reference: Callable[..., Any], **options: Any
) -> MethodCase:
    return MethodCase(
        name,
        functools.partial(method, **options),
        functools.partial(reference, **options),
        trace=oracles.trace_of_cut_models if method is LeGrad else oracles.trace,
        shares=method in (AttentionRollout, RawAttention),
    )


_vit = functools.partial(build, ViTForImageClassification, ViTConfig)

_SQUARE, _SQUARES = (3, 32, 32), (4, 4)
_TALL, _TALLS = (3, 40, 16), (5, 2)
_INTERPOLATED = {"interpolate_pos_encoding": True}


def _pair(
    name: str, builder: Callable[..., Any], prefix: int, tall: Mapping[str, Any], **more: Any
) -> tuple[ModelCase, ModelCase]:
    """A model at its own size, and at another one with the keywords ``tall``."""
    return (
        ModelCase(name, builder, _SQUARE, _SQUARES, prefix, **more),
        ModelCase(f"{name}-tall", builder, _TALL, _TALLS, prefix, tall, **more),
    )


def _two(config_class: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(of_two, config_class)


def _cls(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


def _after(prefix: int) -> Callable[[Tensor], Tensor]:
    return lambda tokens: tokens[:, prefix:].mean(1)


def _both(prefix: int) -> Callable[[Tensor], Tensor]:
    return lambda tokens: torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)


_vit = functools.partial(build, ViTForImageClassification, ViTConfig)
_beit = functools.partial(build, BeitForImageClassification, BeitConfig)
_registers = functools.partial(
    build,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersConfig,
    num_register_tokens=3,
)
_dinov3 = functools.partial(own_head, DINOv3ViTModel, DINOv3ViTConfig, num_register_tokens=2)

_PAIRS = (
    _pair(
        "vit-msn",
        functools.partial(build, ViTMSNForImageClassification, ViTMSNConfig),
        1,
        _INTERPOLATED,
    ),
    _pair(
        "beit-mean",
        functools.partial(_beit, use_mean_pooling=True, use_relative_position_bias=True),
        1,
        {},
        casts=False,
    ),
    _pair(
        "beit-cls",
        functools.partial(_beit, use_mean_pooling=False, use_shared_relative_position_bias=True),
        1,
        {},
        casts=False,
    ),
    _pair("dinov2", functools.partial(build, Dinov2ForImageClassification, Dinov2Config), 1, {}),
    _pair("dinov2-registers", _registers, 4, {}),
    _pair(
        "ijepa",
        functools.partial(build, IJepaForImageClassification, IJepaConfig),
        0,
        _INTERPOLATED,
    ),
    _pair(
        "clip",
        functools.partial(build, CLIPForImageClassification, _two(CLIPConfig), sharper=12),
        1,
        _INTERPOLATED,
    ),
    _pair(
        "metaclip2",
        functools.partial(
            build, MetaClip2ForImageClassification, _two(MetaClip2Config), sharper=12
        ),
        1,
        _INTERPOLATED,
    ),
    _pair(
        "siglip",
        functools.partial(build, SiglipForImageClassification, _two(SiglipConfig), sharper=3),
        0,
        _INTERPOLATED,
    ),
    _pair(
        "clip-prompts",
        functools.partial(prompted, CLIPModel, CLIPConfig, sharper=12),
        1,
        _INTERPOLATED,
    ),
    _pair(
        "siglip-prompts",
        functools.partial(prompted, SiglipModel, SiglipConfig, sharper=3),
        0,
        _INTERPOLATED,
    ),
)

MODELS = (
    ModelCase("vit", _vit, _SQUARE, _SQUARES, 1),
    ModelCase("vit-oblong", functools.partial(_vit, image_size=(24, 40)), (3, 24, 40), (3, 5), 1),
    ModelCase(
        "vit-oblong-patches",
        functools.partial(_vit, image_size=(24, 32), patch_size=(8, 4)),
        (3, 24, 32),
        (3, 8),
        1,
    ),
    ModelCase("vit-interpolated", _vit, _TALL, _TALLS, 1, _INTERPOLATED),
    ModelCase(
        "deit",
        functools.partial(build, DeiTForImageClassification, DeiTConfig),
        _SQUARE,
        _SQUARES,
        2,
    ),
    ModelCase(
        "deit-teacher",
        functools.partial(build, DeiTForImageClassificationWithTeacher, DeiTConfig),
        _SQUARE,
        _SQUARES,
        2,
    ),
    *(own_size for own_size, _ in _PAIRS),
)
"""What every generic test runs on: the families at their own size, from any loading."""

_FIXED = {"sdpa": [name for name in ENGINE_NAMES if name != "dense"], "eager": ["dense"]}


def _heads(name: str, builder: Callable[..., Any], prefix: int, reads: str) -> Sequence[ModelCase]:
    return _pair(f"{name}-{reads}", builder, prefix, {}, options={"readout": reads})


_LIKE_CLIP: dict[str, tuple[Any, Any]] = {
    "altclip-prompts": (AltCLIPModel, AltCLIPConfig),
    "chinese-clip-prompts": (ChineseCLIPModel, ChineseCLIPConfig),
    "clipseg-prompts": (CLIPSegModel, CLIPSegConfig),
}

MORE_MODELS = (
    *(other_size for _, other_size in _PAIRS),
    ModelCase(
        "deit-tall",
        functools.partial(build, DeiTForImageClassification, DeiTConfig),
        _TALL,
        _TALLS,
        2,
        _INTERPOLATED,
    ),
    ModelCase(
        "deit-teacher-tall",
        functools.partial(build, DeiTForImageClassificationWithTeacher, DeiTConfig),
        _TALL,
        _TALLS,
        2,
        _INTERPOLATED,
    ),
    *itertools.chain.from_iterable(
        _pair(name, functools.partial(prompted, *classes, sharper=6), 1, _INTERPOLATED)
        for name, classes in _LIKE_CLIP.items()
    ),
    *_pair(
        "metaclip2-prompts",
        functools.partial(prompted, MetaClip2Model, MetaClip2Config, sharper=12),
        1,
        _INTERPOLATED,
    ),
    *_pair(
        "data2vec-mean",
        functools.partial(
            build,
            Data2VecVisionForImageClassification,
            Data2VecVisionConfig,
            use_mean_pooling=True,
            use_relative_position_bias=True,
        ),
        1,
        _INTERPOLATED,
        loadings=_FIXED,
    ),
    *_pair(
        "data2vec-cls",
        functools.partial(
            build,
            Data2VecVisionForImageClassification,
            Data2VecVisionConfig,
            use_mean_pooling=False,
            use_shared_relative_position_bias=True,
        ),
        1,
        _INTERPOLATED,
        loadings=_FIXED,
    ),
    *_heads("dinov3", functools.partial(_dinov3, read=_cls), 3, "cls"),
    *_heads("dinov3", functools.partial(_dinov3, read=_after(3)), 3, "patches"),
    *_heads("dinov3", functools.partial(_dinov3, read=_both(3)), 3, "cls+patches"),
    *_heads(
        "dinov2", functools.partial(own_head, Dinov2Model, Dinov2Config, _after(1)), 1, "patches"
    ),
    *_heads("mlcd", functools.partial(own_head, MLCDVisionModel, MLCDVisionConfig, _cls), 1, "cls"),
    *_heads(
        "pixio",
        functools.partial(
            own_head, PixioModel, PixioConfig, lambda tokens: tokens[:, :3].mean(1), n_cls_tokens=3
        ),
        3,
        "cls",
    ),
    ModelCase(
        "vit-tokens",
        functools.partial(own_head, ViTModel, ViTConfig, _after(0)),
        _SQUARE,
        _SQUARES,
        1,
        options={"readout": "tokens"},
    ),
    ModelCase(
        "clip-vision-cls",
        functools.partial(own_head, CLIPVisionModel, CLIPVisionConfig, _cls),
        _SQUARE,
        _SQUARES,
        1,
        options={"readout": "cls"},
    ),
)
"""Other sizes and readouts, for the tests of parity alone."""

METHODS = (
    _gmar("gmar-l1"),
    _gmar("gmar-l2-alpha0.3-start1", norm="l2", alpha=0.3, start_layer=1),
    _baseline("rollout", AttentionRollout, oracles.attention_rollout),
    _baseline("raw-attention", RawAttention, oracles.raw_attention),
    _baseline("gradient-rollout", GradientRollout, oracles.gradient_rollout),
    _baseline("grad-sam", GradSAM, oracles.grad_sam),
    _baseline("legrad", LeGrad, oracles.legrad),
    *(
        MethodCase(method.__name__, functools.partial(method), None, engines=("any",))
        for method in (TokenGradCAM, InputXGradient, AttnLRP)
    ),
    MethodCase(
        "shapley-values",
        functools.partial(ShapleyValues, samples=2, groups=(2, 2)),
        None,
        engines=("any",),
    ),
    MethodCase("random", functools.partial(RandomAttribution), None, engines=("any",)),
)
"""What every generic test runs."""

FINE_METHODS = (
    MethodCase("gmar-resolution2", functools.partial(GMAR, resolution=2), None, engines=("any",)),
    MethodCase(
        "attn-lrp-resolution2", functools.partial(AttnLRP, resolution=2), None, engines=("any",)
    ),
)
"""Maps finer than the patch, for the test of the model's state alone."""

MORE_METHODS = (
    _gmar("gmar-l2", norm="l2"),
    _gmar("gmar-l1-alpha0.3", alpha=0.3),
    _gmar("gmar-l1-alpha0", alpha=0.0),
    _gmar("gmar-l1-start1", start_layer=1),
    _baseline("rollout-max", AttentionRollout, oracles.attention_rollout, head_fusion="max"),
    _baseline(
        "rollout-min-discard",
        AttentionRollout,
        oracles.attention_rollout,
        head_fusion="min",
        discard_ratio=0.4,
        alpha=0.3,
        start_layer=1,
    ),
    _baseline("raw-attention-1", RawAttention, oracles.raw_attention, layer=1),
    _baseline("gradient-rollout-start1", GradientRollout, oracles.gradient_rollout, start_layer=1),
    _baseline("grad-sam-start1", GradSAM, oracles.grad_sam, start_layer=1),
    MethodCase("legrad-final", functools.partial(LeGrad, layer_scores="final"), oracles.legrad),
    _baseline("legrad-start1", LeGrad, oracles.legrad, start_layer=1),
)
"""Other options, for the tests of parity alone."""

VIT = MODELS[0]


@functools.cache
def shared(case: ModelCase, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The model of a case, built once for all tests that only read it.

    When the tests are over, ``changed_models`` must find it as it was.
    """
    model = case.build(attention=attention).to(dtype)
    _AS_BUILT.append((f"{case.name}-{attention}-{dtype}", model, state_of(model)))
    return model


_AS_BUILT: list[tuple[str, Any, dict[str, Any]]] = []


def changed_models() -> list[str]:
    """What is no longer as it was built, of the shared models."""
    found = []
    for name, model, before in _AS_BUILT:
        after = state_of(model)
        keys = {key for key in before | after if before.get(key) != after.get(key)}
        found += [f"{name}: {key}" for key in sorted(keys)]
    return found


every_model = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_engine = pytest.mark.parametrize("engine", ENGINE_NAMES)


def _with_engines(methods: Sequence[MethodCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("method", "engine"),
        [
            pytest.param(method, engine, id=f"{method.name}-{engine}")
            for method in methods
            for engine in method.engines
        ],
    )


every_method_and_engine = _with_engines(METHODS)
every_resolution_too = _with_engines((*METHODS, *FINE_METHODS))
