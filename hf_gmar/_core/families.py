"""Tables of the model families: prefix tokens, readouts, and families that are not supported.

:mod:`hf_gmar._core.token_layout` turns the tables into token layouts. The key of a vision tower is
the ``model_type`` of its own config: ``clip_vision_model`` in any model with a CLIP tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_gmar.errors import UnsupportedModelError

Rest: TypeAlias = Literal["patches", "tokens", "attention", "place"]
Medium: TypeAlias = Literal["images", "videos", "sound"]


@dataclass(frozen=True)
class ByModel:
    """A fact that depends on the vision model.

    Attributes:
        text: the possible values, in words.
        look_up: returns the value for a vision model.
    """

    text: str
    look_up: Callable[[Any], Any]

    def __call__(self, vision_model: Any) -> Any:
        return self.look_up(vision_model)


@dataclass(frozen=True)
class Readout:
    """The output tokens that a class head pools.

    Attributes:
        tokens: kinds of prefix tokens that the head reads one by one.
        share: total share of these tokens, spread evenly over them.
        rest: tokens that get the remaining share: all patches evenly, all tokens evenly, all tokens
            by the attention of a pooling head, or the patches under the explained place.
        text: the readout in words.
    """

    tokens: tuple[str, ...]
    share: float
    rest: Rest
    text: str


READOUTS: dict[str, Readout] = {
    "cls": Readout(("CLS",), 1.0, "patches", "CLS"),
    "cls+distillation": Readout(
        ("CLS", "distillation"), 1.0, "patches", "half CLS, half distillation token"
    ),
    "cls+patches": Readout(("CLS",), 0.5, "patches", "half CLS, half mean of the patches"),
    "patches": Readout((), 0.0, "patches", "mean of the patches"),
    "tokens": Readout((), 0.0, "tokens", "mean of all tokens"),
    "pooling": Readout((), 0.0, "attention", "attention of the pooling head"),
    "place": Readout((), 0.0, "place", "the patches under the explained place"),
}
"""Readouts by their name in the methods' ``readout``."""


@dataclass(frozen=True)
class Family:
    """A vision tower, or a model of sound, with the same patch tokens in all layers.

    Attributes:
        title: the family's name in tables.
        prefix: kinds of the prefix tokens, in their order; may depend on the tower.
        heads: readout of each class with scores, a key of ``READOUTS``; may depend on the tower.
        prompts: image-text models around the tower, with the readout of their image features.
        layers: number of attention layers of a tower; ``None`` if the config has none.
        patch_size: patch size of a tower, an int or its size along each of the axes; ``None`` if
            unknown.
        engines: engines that can explain the family; none if its tokens do not all attend to all.
        note: further facts for users.
        embedding: readout of the tower's own embedding of an image, without any class head; may
            depend on the tower.
        medium: what the model takes.
        axes: the dimensions of the input that are cut into patches, see
            :class:`~hf_gmar.TokenLayout`.
        stride: the distance of neighbouring patches, where they overlap.
    """

    title: str
    prefix: tuple[str, ...] | ByModel
    heads: Mapping[str, str | ByModel] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    layers: Callable[[Any], Any] = lambda vision_model: getattr(
        vision_model.config, "num_hidden_layers", None
    )
    patch_size: Callable[[Any], Any] = lambda vision_model: getattr(
        vision_model.config, "patch_size", None
    )
    engines: tuple[str, ...] = ("streaming", "dense")
    note: str = ""
    embedding: str | ByModel = "cls"
    medium: Medium = "images"
    axes: tuple[int, ...] = (-2, -1)
    stride: Callable[[Any], tuple[int, ...] | None] = lambda _: None


_CLS_AND_REGISTERS = ByModel(
    "CLS, registers",
    lambda vision_model: ("CLS", *["register"] * vision_model.config.num_register_tokens),
)
_SEVERAL_CLS = ByModel(
    "several CLS", lambda vision_model: ("CLS",) * int(vision_model.config.n_cls_tokens)
)
_MEAN_OR_CLS = ByModel(
    "mean of the patches, or CLS, as its config says",
    lambda vision_model: "patches" if vision_model.config.use_mean_pooling else "cls",
)
_TIMM_CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit")


def _video_mae_readout(vision_model: Any) -> str:
    if vision_model.config.use_mean_pooling:
        return "patches"
    raise UnsupportedModelError(
        "the class head of this VideoMAE reads the first patch alone (use_mean_pooling=False in "
        "its config), and not the mean of all patches, from which maps start"
    )


def _timesformer_prefix(vision_model: Any) -> tuple[str, ...]:
    if vision_model.config.attention_type == "space_only":
        raise UnsupportedModelError(
            "this TimeSformer looks at each frame alone (attention_type='space_only'), and no "
            "layer has the tokens of all frames; explain its frames one by one as images"
        )
    return _CLS


def _timm(vision_model: Any) -> Any:
    """Return the timm model in Transformers' wrapper; it must have global attention."""
    timm_model = vision_model.timm_model
    if (name := type(timm_model).__name__) not in _TIMM_CLASSES:
        raise UnsupportedModelError(
            f"the timm model {vision_model.config.architecture} is a {name}; of "
            f"timm, {', '.join(_TIMM_CLASSES)} can be explained, as they have global attention "
            "over patches"
        )
    return timm_model


def _timm_prefix(vision_model: Any) -> tuple[str, ...]:
    timm_model = _timm(vision_model)
    kinds = ["CLS"] if timm_model.cls_token is not None else []
    if getattr(timm_model, "dist_token", None) is not None:
        kinds.append("distillation")
    return (*kinds, *["register"] * (timm_model.num_prefix_tokens - len(kinds)))


def _timm_readout(vision_model: Any) -> str:
    timm_model = _timm(vision_model)
    if type(timm_model).__name__ == "VisionTransformerDistilled":
        return "cls+distillation"
    mean = "tokens" if getattr(timm_model, "pool_include_prefix", False) else "patches"
    readout = {"token": "cls", "avg": mean}.get(timm_model.global_pool)
    if readout is None:
        raise UnsupportedModelError(
            f"the timm model {vision_model.config.architecture} pools its tokens by "
            f"{timm_model.global_pool!r}; 'token' and 'avg' can be explained"
        )
    return readout


_CLS = ("CLS",)
_VIDEO_AXES = (-4, -2, -1)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return height, width


FAMILIES: dict[str, Family] = {
    "vit": Family("ViT", _CLS, {"ViTForImageClassification": "cls"}),
    "deit": Family(
        "DeiT",
        ("CLS", "distillation"),
        {
            "DeiTForImageClassification": "cls",
            "DeiTForImageClassificationWithTeacher": "cls+distillation",
        },
    ),
    "vit_msn": Family("ViT-MSN", _CLS, {"ViTMSNForImageClassification": "cls"}),
    "beit": Family(
        "BEiT", _CLS, {"BeitForImageClassification": _MEAN_OR_CLS}, embedding=_MEAN_OR_CLS
    ),
    "data2vec-vision": Family(
        "Data2VecVision",
        _CLS,
        {"Data2VecVisionForImageClassification": _MEAN_OR_CLS},
        note="fixes its attention when it is built: streaming if loaded as it is (SDPA), dense if "
        "loaded eager",
        embedding=_MEAN_OR_CLS,
    ),
    "dinov2": Family("DINOv2", _CLS, {"Dinov2ForImageClassification": "cls+patches"}),
    "dinov2_with_registers": Family(
        "DINOv2 with registers",
        _CLS_AND_REGISTERS,
        {"Dinov2WithRegistersForImageClassification": "cls+patches"},
    ),
    "dinov3_vit": Family("DINOv3 ViT", _CLS_AND_REGISTERS),
    "ijepa": Family("I-JEPA", (), {"IJepaForImageClassification": "patches"}, embedding="patches"),
    "pixio": Family("Pixio", _SEVERAL_CLS),
    "mlcd_vision_model": Family("MLCD", _CLS),
    "clip_vision_model": Family(
        "CLIP", _CLS, {"CLIPForImageClassification": "patches"}, {"CLIPModel": "cls"}
    ),
    "metaclip_2_vision_model": Family(
        "MetaCLIP 2",
        _CLS,
        {"MetaClip2ForImageClassification": "patches"},
        {"MetaClip2Model": "cls"},
    ),
    "altclip_vision_model": Family("AltCLIP", _CLS, prompts={"AltCLIPModel": "cls"}),
    "chinese_clip_vision_model": Family("Chinese-CLIP", _CLS, prompts={"ChineseCLIPModel": "cls"}),
    "clipseg_vision_model": Family("CLIPSeg", _CLS, prompts={"CLIPSegModel": "cls"}),
    "timm_wrapper": Family(
        "timm ViT, DeiT, EVA and BEiT",
        ByModel("what the timm model has", _timm_prefix),
        {
            "TimmWrapperForImageClassification": ByModel(
                "what the timm model pools: CLS, mean of the patches or of all tokens",
                _timm_readout,
            )
        },
        layers=lambda vision_model: len(_timm(vision_model).blocks),
        patch_size=lambda vision_model: _timm(vision_model).patch_embed.patch_size,
        engines=("streaming",),
        note="through Transformers' wrapper; gives no attention maps, so streaming alone",
        embedding=ByModel("what the timm model pools", _timm_readout),
    ),
    "siglip_vision_model": Family(
        "SigLIP, SigLIP 2 of fixed resolution",
        (),
        {"SiglipForImageClassification": "patches"},
        {"SiglipModel": "pooling"},
        embedding=ByModel(
            "attention of the pooling head, or mean of the patches without one",
            lambda vision_model: "pooling" if vision_model.use_head else "patches",
        ),
    ),
    "videomae": Family(
        "VideoMAE",
        (),
        {"VideoMAEForVideoClassification": ByModel("mean of the patches", _video_mae_readout)},
        patch_size=lambda vision_model: (
            vision_model.config.tubelet_size,
            *_pair(vision_model.config.patch_size),
        ),
        embedding="patches",
        medium="videos",
        axes=_VIDEO_AXES,
    ),
    "vivit": Family(
        "ViViT",
        _CLS,
        {"VivitForVideoClassification": "cls"},
        patch_size=lambda vision_model: tuple(vision_model.config.tubelet_size),
        medium="videos",
        axes=_VIDEO_AXES,
    ),
    "timesformer": Family(
        "TimeSformer",
        ByModel("CLS", _timesformer_prefix),
        {"TimesformerForVideoClassification": "cls"},
        patch_size=lambda vision_model: (*_pair(vision_model.config.patch_size), 1),
        engines=(),
        note="attends over time and over space in turn, so that no attention matrix has all "
        "tokens: methods on tokens alone",
        medium="videos",
        axes=(-2, -1, -4),
    ),
    "audio-spectrogram-transformer": Family(
        "AST",
        ("CLS", "distillation"),
        {"ASTForAudioClassification": "cls+distillation"},
        patch_size=lambda model: (model.config.patch_size, model.config.patch_size),
        embedding="cls+distillation",
        medium="sound",
        axes=(-1, -2),
        stride=lambda model: (model.config.frequency_stride, model.config.time_stride),
    ),
}
"""Families by the ``model_type`` of the vision tower's config."""

ZERO_SHOT_CLASSES = {
    name: reads for family in FAMILIES.values() for name, reads in family.prompts.items()
}
"""Models that score images by text prompts, with the readout of their image features."""

_NO_ATTENTION = "it has no attention at all"
_WINDOWED = "it attends within windows and merges patches, so each stage has other tokens"
_REDUCED = "its keys are pooled, so queries and keys are different tokens"
_CELLS = "it attends within cells of feature maps"
_VIDEOS = "it takes videos, and its layers do not all have the tokens of all frames"
_SHRINKS = "it shrinks the token grid, so each stage has other tokens"
UNSUPPORTED: dict[str, str] = {
    "align": _NO_ATTENTION,
    "bit": _NO_ATTENTION,
    "convnext": _NO_ATTENTION,
    "convnextv2": _NO_ATTENTION,
    "cvt": _REDUCED,
    "dinat": "it attends within neighbourhoods and shrinks the token grid between its stages",
    "donut-swin": _WINDOWED,
    "efficientnet": _NO_ATTENTION,
    "focalnet": _NO_ATTENTION,
    "hgnet_v2": _NO_ATTENTION,
    "hiera": _WINDOWED,
    "imagegpt": "it reads an image as a sequence of colours, without patches or a class token",
    "levit": _SHRINKS,
    "mobilenet_v1": _NO_ATTENTION,
    "mobilenet_v2": _NO_ATTENTION,
    "mobilevit": _CELLS,
    "mobilevitv2": _CELLS,
    "perceiver": "its attention goes from latent vectors to pixels, so it is not square",
    "poolformer": _NO_ATTENTION,
    "pp_lcnet": "its class in Transformers returns no logits",
    "pvt": _REDUCED,
    "pvt_v2": _REDUCED,
    "regnet": _NO_ATTENTION,
    "resnet": _NO_ATTENTION,
    "segformer": _REDUCED,
    "shieldgemma2": "it is a language model that answers questions on an image, without a class "
    "head over patches",
    "siglip2": "it takes lists of patches of any resolution (NaFlex) instead of images; SigLIP 2 "
    "models of fixed resolution have model_type 'siglip' and are supported",
    "siglip2_vision_model": "it takes lists of patches of any resolution (NaFlex), not images",
    "swiftformer": "its attention is additive, without a matrix of tokens by tokens",
    "swin": _WINDOWED,
    "swinv2": _WINDOWED,
    "textnet": _NO_ATTENTION,
    "videoprism": _VIDEOS,
    "vit_mae": "it hides a random share of the patches and shuffles the others; trained further as "
    "ViTForImageClassification, its weights are supported",
    "vitdet": "it attends within windows in most layers",
    "xclip": _VIDEOS,
    "yolos": "it has tokens for objects after the patches, and scores for each of them",
}
"""Unsupported families by ``model_type``, with the reason."""

CELL_FAMILIES: dict[str, str] = {
    "bit": "BiT",
    "convnext": "ConvNeXt",
    "convnextv2": "ConvNeXt V2",
    "cvt": "CvT",
    "efficientnet": "EfficientNet",
    "focalnet": "FocalNet",
    "hgnet_v2": "HGNet V2",
    "hiera": "Hiera",
    "levit": "LeViT",
    "mobilenet_v1": "MobileNet V1",
    "mobilenet_v2": "MobileNet V2",
    "mobilevit": "MobileViT",
    "mobilevitv2": "MobileViT V2",
    "poolformer": "PoolFormer",
    "pvt": "PVT",
    "pvt_v2": "PVT v2",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "segformer": "SegFormer",
    "swiftformer": "SwiftFormer",
    "swin": "Swin",
    "swinv2": "Swin V2",
    "textnet": "TextNet",
}
"""Titles by ``model_type`` of families without a fixed grid of patches. Methods that need no tokens
explain them on cells of pixels; ``UNSUPPORTED`` has the reason why the others can't."""

FEATURE_MODULE = {"hgnet_v2": "encoder"}
"""Modules whose output is the last feature map, where it is not the base model's."""

NO_FEATURE_MAP = ("cvt", "pvt")
"""Families whose class head reads a CLS token, and no position of the last feature map."""

UNTESTED = ("blip", "blip-2", "tipsv2")
"""Image-text families that may work but are not tested."""


def has_cells(backbone: Any, vision_model: Any) -> bool:
    """Whether the map of a model is one of pixels, as its tokens are no fixed grid of patches."""
    timm_model = getattr(vision_model, "timm_model", None)
    if model_type(vision_model) == "timm_wrapper" and timm_model is not None:
        return type(timm_model).__name__ not in _TIMM_CLASSES
    return bool({model_type(backbone), model_type(vision_model)} & CELL_FAMILIES.keys())


def model_type(model: Any) -> str:
    """Return the model type of a model's or config's class.

    A config's own ``model_type`` is that of the checkpoint from which the model was loaded, perhaps
    with another class.

    Example:
        >>> from transformers import ViTConfig
        >>> config = ViTConfig()
        >>> config.model_type = "vit_mae"  # as after from_pretrained of such a checkpoint
        >>> model_type(config)
        'vit'
    """
    config = getattr(model, "config", model)
    kind = getattr(type(model), "config_class", None) or type(config)
    kind = type(config) if isinstance(config, kind) else kind
    return str(getattr(kind, "model_type", None) or getattr(config, "model_type", None))


def unlisted() -> list[str]:
    """List the installed Transformers' model types with an image class head that no table has.

    The list is empty for the tested release; a newer release may have new families.

    Example:
        >>> unlisted()
        []
    """
    heads = {name for family in FAMILIES.values() for name in (*family.heads, *family.prompts)}
    library = (
        *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items(),
        *MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.items(),
    )
    return sorted(
        {
            f"{kind} ({name})"
            for kind, names in library
            for name in ((names,) if isinstance(names, str) else names)
            if kind not in UNSUPPORTED and kind not in UNTESTED and name not in heads
        }
    )
