"""Methods on models of videos and sound, against plain oracles."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessorPil,
    VivitConfig,
    VivitForVideoClassification,
)

from hf_gmar import (
    GMAR,
    LogitsModel,
    TokenLayout,
    compare,
    evaluate,
    explain,
    head_importance,
    head_maps,
    register_layout,
)
from hf_gmar._core.families import FAMILIES
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import InputError, ModelOutputError, OptionError, UnsupportedModelError
from hf_gmar.heads import scores_with_masked_heads
from hf_gmar.methods import (
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
from hf_gmar.models import sample_image
from hf_gmar.perturbations import MeanColour
from hf_gmar.pipeline import ImageAttributionPipeline
from tests.reference import oracle_tokens, oracles
from tests.reference.cases import VIT
from tests.reference.media_models import (
    AST,
    CLASSES,
    MEDIA,
    TIMESFORMER,
    VIDEO_MAE,
    VIVIT,
    MediaCase,
)
from tests.reference.models import LAYERS, build, state_of

TARGETS = [4, 1]
WITH_ATTENTION = [case for case in MEDIA if case.has_attention]
ON_ATTENTION: dict[type[AttributionMethod], Any] = {
    GMAR: oracles.gmar,
    AttentionRollout: oracles.attention_rollout,
    RawAttention: oracles.raw_attention,
    GradientRollout: oracles.gradient_rollout,
    GradSAM: oracles.grad_sam,
    LeGrad: oracles.legrad,
}
TOKEN_MAPS: dict[type[AttributionMethod], tuple[int, Any]] = {
    InputXGradient: (0, oracle_tokens.input_x_gradient),
    TokenGradCAM: (LAYERS - 1, oracle_tokens.grad_cam),
}

cases = pytest.mark.parametrize("case", MEDIA, ids=lambda case: case.name)


def near(got: Tensor, wanted: Any, limit: float = 1e-10) -> bool:
    wanted = np.asarray(wanted)
    return got.shape == wanted.shape and bool(
        np.abs(got.numpy() - wanted).max() <= limit * np.abs(wanted).max()
    )


def test_the_table_has_each_family() -> None:
    others = {family.title for family in FAMILIES.values() if family.medium != "images"}
    assert {case.name for case in MEDIA} == others


@pytest.mark.parametrize("engine", ["streaming", "dense"])
@pytest.mark.parametrize("method", ON_ATTENTION)
@pytest.mark.parametrize("case", WITH_ATTENTION, ids=lambda case: case.name)
def test_methods_on_attention_equal_the_oracle(
    case: MediaCase, method: type[Any], engine: str
) -> None:
    model = case.make("sdpa").double()
    explained = method(model, engine=engine)
    with oracles.unrounded_softmax():
        got = explained.attribute_patches(
            case.inputs().double(), TARGETS if method.class_specific else None
        )
    trace = case.trace_of_cut_models(TARGETS) if method is LeGrad else case.trace(TARGETS)
    wanted = ON_ATTENTION[method](trace)
    assert near(got, [case.to_map(item.flatten()) for item in wanted.patches])
    if method is GMAR:
        heads = head_importance(model, case.inputs().double(), target=TARGETS).values
        assert near(heads, wanted.heads)


@pytest.mark.parametrize("method", TOKEN_MAPS)
@cases
def test_methods_on_tokens_equal_the_oracle(case: MediaCase, method: type[Any]) -> None:
    model, inputs = case.make("sdpa").double(), case.inputs().double()
    layer, token_map = TOKEN_MAPS[method]
    got = method(model).attribute_patches(inputs, TARGETS)
    for item, target, values in zip(inputs, TARGETS, got, strict=True):
        tokens, gradient = oracle_tokens.entering(model, item, target, layer, {})
        prefix = len(case.readout)
        assert near(values, case.to_map(token_map(tokens[prefix:], gradient[prefix:])))


@pytest.mark.parametrize("attention", ["joint_space_time", "divided_space_time"])
def test_relevance_of_one_frame_is_that_of_an_image(attention: str) -> None:
    """A TimeSformer of one frame is a ViT, if its temporal attention gives nothing."""
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "image_size": 16, "patch_size": 8, "num_labels": 5,
        "num_frames": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    model = TimesformerForVideoClassification(
        TimesformerConfig(**sizes, attention_type=attention)
    ).eval()
    model = model.double()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.4)
        if "temporal_dense" in name:
            nn.init.zeros_(parameter)
    seen: list[Tensor] = []
    handle = model.timesformer.encoder.layer[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    video = torch.randn(1, 1, 3, 16, 16, dtype=torch.float64)
    model(video)
    handle.remove()
    wanted = _as_vit(model).of(seen[0][0].detach().numpy(), 3)
    got = AttnLRP(model).attribute_patches(video, 3)
    assert near(got[0], wanted.tokens[1:].reshape(1, 2, 2))


def _as_vit(model: Any) -> oracle_tokens.VitRelevance:
    """The oracle of a ViT with the weights of a TimeSformer of one frame."""

    class Named:
        config = model.config

        def state_dict(self) -> dict[str, Tensor]:
            weights = {}
            for name, value in model.state_dict().items():
                if "temporal" in name:
                    continue
                new = name.replace("timesformer.encoder.layer.", "vit.layers.")
                new = new.replace("timesformer.layernorm", "vit.layernorm")
                new = new.replace("attention.output.dense", "attention.o_proj")
                new = new.replace("intermediate.dense", "mlp.fc1")
                new = re.sub(r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2", new)
                if ".attention.attention.qkv." in name:
                    for part, piece in zip("qkv", value.chunk(3), strict=True):
                        weights[new.replace("attention.qkv", f"{part}_proj")] = piece
                else:
                    weights[new] = value
            return weights

    return oracle_tokens.VitRelevance(Named())


@cases
def test_attribute_spreads_the_map_over_the_input(case: MediaCase) -> None:
    """Each position has the mean of the patches that cover it; without any it is 0."""
    method = AttnLRP(case.make("sdpa").double())
    inputs = case.inputs().double()
    maps = method.attribute_patches(inputs, TARGETS).numpy()
    wanted = np.zeros(inputs.shape)
    for place in np.ndindex(*inputs.shape):
        at = [place[1 + axis] for axis in case.axes]
        covering = [
            [number for number, (start, end) in enumerate(ranges) if start <= position < end]
            for position, ranges in zip(at, case.patch, strict=True)
        ]
        if all(covering):
            wanted[place] = maps[place[0]][np.ix_(*covering)].mean()
    attribution = method.attribute(inputs, TARGETS)
    assert attribution.is_contiguous()
    assert near(attribution, wanted, 1e-12)


@pytest.mark.parametrize("method", [*ON_ATTENTION, *TOKEN_MAPS, AttnLRP, RandomAttribution])
@cases
def test_each_input_alone_gives_the_same(case: MediaCase, method: type[Any]) -> None:
    """Also: the map follows the class, the dtype is kept, and the model comes back as it was."""
    if method in ON_ATTENTION and not case.has_attention:
        with pytest.raises(UnsupportedModelError, match=r"no attention matrix .* AttnLRP"):
            method(case.make("sdpa"))
        return
    model, inputs = case.make("sdpa").train(), case.inputs()
    before = state_of(model)
    explain_ = method(model)
    together = explain_.attribute_patches(inputs, [4, 4])
    assert together.shape == (2, *case.map_shape)
    alone = torch.cat([explain_.attribute_patches(item[None], 4) for item in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(together.abs().max()))
    assert together[0].ne(together[1]).any()
    if method.class_specific:
        assert explain_.attribute_patches(inputs, [1, 1]).ne(together).any()
    assert state_of(model) == before


def test_captums_noise_tunnel_takes_videos() -> None:
    video = VIVIT.inputs(1)
    tunnel = NoiseTunnel(GMAR(VIVIT.make("sdpa")))
    assert tunnel.attribute(video, nt_samples=2, stdevs=0.1, target=2).shape == video.shape


def test_what_the_processors_give_goes_in() -> None:
    frames = [np.full((30, 40, 3), 20 * number, np.uint8) for number in range(6)]
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 32}
    )
    videos = processor(frames, return_tensors="pt")
    for given in (videos, dict(videos)):
        assert GMAR(VIDEO_MAE.make("sdpa")).attribute(given, target=1).shape == (1, 6, 3, 24, 32)
    extractor = ASTFeatureExtractor(max_length=35, num_mel_bins=24)
    sound = extractor(np.random.default_rng(0).normal(size=16_000), 16_000, return_tensors="pt")
    assert GMAR(AST.make("sdpa")).attribute(**sound, target=1).shape == (1, 35, 24)


@pytest.mark.parametrize("case", WITH_ATTENTION, ids=lambda case: case.name)
def test_heads_have_maps_of_the_same_shape(case: MediaCase) -> None:
    model, inputs = case.make("sdpa").double(), case.inputs().double()
    maps = head_maps(model, inputs)
    assert maps.shape[3:] == case.map_shape
    trace = case.trace(TARGETS)
    for image, layer, head in np.ndindex(*maps.shape[:3]):
        row = trace.readout[image] @ trace.attention[image, layer, head]
        assert near(maps[image, layer, head], case.to_map(row[trace.prefix :]))
    masked = torch.zeros(2, maps.shape[1], maps.shape[2], dtype=torch.bool)
    scores = scores_with_masked_heads(model, inputs, masked)
    torch.testing.assert_close(scores, model(inputs).logits)


SMALL: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}

REFUSALS: dict[str, tuple[Any, type[Exception], str]] = {
    "finer than the patch": (
        lambda: AttnLRP(VIVIT.make("sdpa"), resolution="pixel"),
        OptionError,
        r"finer than the patch is for images, and VivitFor.* takes videos",
    ),
    "Shapley values": (
        lambda: ShapleyValues(AST.make("sdpa")),
        UnsupportedModelError,
        r"ShapleyValues is for images, and ASTFor.* takes sound",
    ),
    "perturbations": (
        lambda: MeanColour().bind(VIDEO_MAE.make("sdpa"), VIDEO_MAE.inputs(1)),
        UnsupportedModelError,
        r"perturbation is for images, and VideoMAE.* takes videos",
    ),
    "an image": (
        lambda: explain(sample_image(), VIVIT.make("sdpa")),
        UnsupportedModelError,
        r"images are needed here, and VivitFor.* takes videos; in Python",
    ),
    "a comparison": (
        lambda: compare(VIDEO_MAE.make("sdpa"), VIDEO_MAE.inputs(1), ["gmar"]),
        UnsupportedModelError,
        r"compare is for images, and VideoMAE.* takes videos",
    ),
    "the pipeline": (
        lambda: ImageAttributionPipeline(
            model=VIVIT.make("sdpa"), image_processor=VideoMAEImageProcessorPil()
        ),
        UnsupportedModelError,
        r"images are needed here, and VivitFor.* takes videos",
    ),
    "an evaluation": (
        lambda: evaluate(VIVIT.make("sdpa"), "scenes:2", methods=["gmar"]),
        UnsupportedModelError,
        r"images are needed here, and VivitFor.* takes videos",
    ),
    "an image for TimeSformer": (
        lambda: explain(sample_image(), TIMESFORMER.make("eager")),
        UnsupportedModelError,
        r"methods such as AttnLRP\(model\)",
    ),
    "one patch": (
        lambda: AttentionRollout(VIVIT.make("sdpa"), readout=(0, 0)).attribute(VIVIT.inputs()),
        UnsupportedModelError,
        r"a readout at one patch is for images",
    ),
    "frames alone": (
        lambda: AttnLRP(
            TimesformerForVideoClassification(
                TimesformerConfig(**SMALL, attention_type="space_only")
            )
        ),
        UnsupportedModelError,
        r"each frame alone",
    ),
    "the first patch": (
        lambda: GMAR(
            VideoMAEForVideoClassification(VideoMAEConfig(**SMALL, use_mean_pooling=False))
        ),
        UnsupportedModelError,
        r"reads the first patch alone",
    ),
    "images": (
        lambda: GMAR(VIVIT.make("sdpa")).attribute(torch.rand(1, 3, 24, 32)),
        InputError,
        r"\(videos, frames, channels, height, width\).*got 4 dim.*unsqueeze",
    ),
    "four channels": (
        lambda: GMAR(VIVIT.make("sdpa")).attribute(torch.rand(1, 6, 4, 24, 32)),
        InputError,
        r"takes 3 channels, got 4",
    ),
    "half a tubelet": (
        lambda: GMAR(VIVIT.make("sdpa")).attribute(torch.rand(1, 5, 3, 24, 32)),
        InputError,
        r"5 x 24 x 32 positions.*patches of 2 x 8 x 8",
    ),
    "more frames": (
        lambda: GMAR(VIDEO_MAE.make("sdpa")).attribute(torch.rand(1, 8, 3, 24, 32)),
        InputError,
        r"refused videos of shape \(1, 8, 3, 24, 32\)",
    ),
    "a short sound": (
        lambda: AttnLRP(AST.make("sdpa")).attribute(torch.rand(1, 20, 24)),
        InputError,
        r"refused sound of shape \(1, 20, 24\)",
    ),
    "no whole patch": (
        lambda: AttnLRP(AST.make("sdpa")).attribute(torch.rand(1, 7, 24)),
        InputError,
        r"7 x 24 positions.*patches of 8 x 8",
    ),
    "axes from the front": (
        lambda: TokenLayout((1.0,), axes=(1, 2)),
        OptionError,
        r"axes must be different dimensions",
    ),
    "sizes of other axes": (
        lambda: TokenLayout((1.0,), patch_size=(8, 8), axes=(-4, -2, -1)),
        OptionError,
        r"each of the axes",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_can_not_be_explained_is_said(name: str) -> None:
    action, kind, words = REFUSALS[name]
    with pytest.raises(kind, match=words):
        action()


class _Around(nn.Module):
    """A module that changes the inputs of a model."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the model by position, or by keyword."""
        given = self.change(inputs)
        output: Any = self.model(**given) if isinstance(given, dict) else self.model(given)
        scores: Tensor = output.logits
        return scores


@cases
def test_a_model_may_be_inside_a_module(case: MediaCase) -> None:
    model, inputs = case.make("sdpa"), case.inputs()
    name = "input_values" if case is AST else "pixel_values"
    wanted = AttnLRP(model).attribute(inputs, 2)
    for around in (
        _Around(model, lambda given: given),
        _Around(model, lambda given: {name: given}),
        LogitsModel(model),
    ):
        torch.testing.assert_close(AttnLRP(around).attribute(inputs, 2), wanted)


def test_a_module_that_leaves_out_some_time_is_noticed() -> None:
    shorter = _Around(AST.make("sdpa"), lambda given: given[:, 2:])
    with pytest.raises(ModelOutputError, match="must keep number, order and size"):
        AttnLRP(shorter).attribute(torch.rand(1, 37, 24), 2)


@pytest.mark.parametrize("case", WITH_ATTENTION, ids=lambda case: case.name)
def test_heads_of_batches(case: MediaCase) -> None:
    """From a DataLoader, and as a Trainer's batches."""
    model, inputs = case.make("sdpa"), case.inputs()
    wanted = head_importance(model, inputs, target=TARGETS).values
    name = "input_values" if case is AST else "pixel_values"
    pairs: Any = DataLoader(TensorDataset(inputs, torch.tensor(TARGETS)), batch_size=1)
    named: Any = [{name: inputs, "labels": torch.tensor(TARGETS)}]
    for batches in (pairs, named):
        torch.testing.assert_close(head_importance(model, batches).values, wanted)
    with pytest.raises(InputError, match="a single input of the shape"):
        head_importance(model, [inputs[0]])


@pytest.mark.usefixtures("layouts")
def test_a_family_of_ones_own_may_take_videos() -> None:
    """Also one whose own head reads the tokens: axes and patches are those that are registered."""

    class OwnConfig(VivitConfig):
        model_type = "own_video"

    class Own(VivitForVideoClassification):
        config_class = OwnConfig

    model = VIVIT.make("sdpa")
    own: Any = Own(OwnConfig(**{**model.config.to_dict(), "model_type": "own_video"}))
    own.eval().load_state_dict(model.state_dict())
    layout = TokenLayout((1.0,), patch_size=(2, 8, 8), axes=(-4, -2, -1))
    register_layout("own_video", layout)
    register_layout("Own", layout)
    wanted = GMAR(model).attribute(VIVIT.inputs(), 2)
    torch.testing.assert_close(GMAR(own).attribute(VIVIT.inputs(), 2), wanted)
    around = _Around(own, lambda given: given)
    torch.testing.assert_close(GMAR(around, readout=(1.0,)).attribute(VIVIT.inputs(), 2), wanted)


def test_patches_without_overlap_leave_out_the_last_positions() -> None:
    """As AST's convolution does: 35 time frames are four patches of 8, and 3 more."""
    model = build(
        ASTForAudioClassification, ASTConfig, num_labels=CLASSES, patch_size=8,
        frequency_stride=8, time_stride=8, max_length=35, num_mel_bins=24,
    )  # fmt: skip
    attribution = AttnLRP(model).attribute(AST.inputs(), 2)
    assert AttnLRP(model).attribute_patches(AST.inputs(), 2).shape == (2, 4, 3)
    assert not attribution[:, 32:].any()
    assert attribution[:, :32].any()


def test_relevance_in_a_vivit() -> None:
    """A ViViT is a ViT from its tokens on."""
    model = VIVIT.make("sdpa").double()
    seen: list[Tensor] = []
    handle = model.vivit.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs = VIVIT.inputs(1).double()
    model(inputs)
    handle.remove()

    class Named:
        config = model.config

        def state_dict(self) -> dict[str, Tensor]:
            return {
                name.replace("vivit.", "vit."): value for name, value in model.state_dict().items()
            }

    oracle = oracle_tokens.VitRelevance(Named(), activation=_gelu_fast)
    wanted = oracle.of(seen[0][0].detach().numpy(), 4)
    got = AttnLRP(model).attribute_patches(inputs, 4)
    assert near(got[0], VIVIT.to_map(wanted.tokens[1:]))


def _gelu_fast(x: oracles.Array) -> oracles.Array:
    inside: oracles.Array = np.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * (1 + inside)


@pytest.mark.usefixtures("layouts")
def test_a_registered_stride_stays_with_a_readout() -> None:
    """Also of images, whose axes are the default."""
    model = VIT.build()
    register_layout(type(model).__name__, TokenLayout((1.0,), patch_size=(8, 8), stride=(4, 4)))
    layout = ModelAdapter.of(nn.Sequential(model), readout=(1.0,)).tokens
    assert layout.stride == (4, 4)
    assert layout.map_shape((1, 3, 16, 24)) == (3, 5)
