"""Tiny models without a fixed grid of patches, one or more for each family of cells."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel, ViTImageProcessorPil

LABELS = 3
SIDE = 64


@dataclass(frozen=True)
class CellCase:
    """A tiny model of one family.

    Attributes:
        kind: its model type.
        name: the class.
        settings: what makes its config small.
        conserves: whether relevance sums to the score if no layer has a bias: no softmax.
        has_feature_map: whether its class head reads the last feature map.
    """

    kind: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    conserves: bool = False
    has_feature_map: bool = True

    def __str__(self) -> str:
        """The name of the test."""
        return self.name.removesuffix("ForImageClassification")

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        """The model in evaluation, float64, with running statistics of random images."""
        torch.manual_seed(0)
        config = CONFIG_MAPPING[self.kind](**self.settings)
        config.num_labels = LABELS
        model: PreTrainedModel = getattr(transformers, self.name)(config).double()
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 4 and 1e-3 < weight.std() < 0.1:  # of a convolution
                    weight.mul_(0.3 / weight.std())
                elif weight.dim() == 1:  # a bias, too
                    weight.add_(torch.randn(weight.shape, generator=random).to(weight), alpha=0.1)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                    module.momentum = None  # the statistics of the next images
            model.train()(torch.randn(8, 3, SIDE, SIDE, generator=random).double())
        model.eval()
        return model

    def images(self) -> Tensor:
        """Two images."""
        random = torch.Generator().manual_seed(1)
        return torch.randn(2, 3, SIDE, SIDE, generator=random).double()


_SMALL = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
_HEADS = {**_SMALL, "num_attention_heads": [1, 1, 2, 2], "image_size": SIDE}
_SWIN = {
    "image_size": SIDE, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4,
}  # fmt: skip
_MOBILE = {"image_size": SIDE, "depth_multiplier": 0.25}

CELL_CASES = [
    CellCase(
        "bit", "BitForImageClassification", {**_SMALL, "embedding_size": 8, "num_groups": 4}, True
    ),
    CellCase("convnext", "ConvNextForImageClassification", _SMALL, True),
    CellCase("convnextv2", "ConvNextV2ForImageClassification", _SMALL, True),
    CellCase(
        "cvt",
        "CvtForImageClassification",
        {"embed_dim": [8, 12, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
        has_feature_map=False,
    ),
    CellCase(
        "efficientnet",
        "EfficientNetForImageClassification",
        {
            "image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.3,
            "hidden_dim": 320,
        },
        True,
    ),
    CellCase(
        "focalnet",
        "FocalNetForImageClassification",
        {
            "image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 1],
            "focal_windows": [3, 3], "hidden_sizes": [8, 16],
        },
        True,
    ),
    CellCase(
        "hgnet_v2",
        "HGNetV2ForImageClassification",
        {
            "stem_channels": [3, 8, 12], "stage_in_channels": [12, 16, 24, 32],
            "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 24, 32, 40],
            "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
            "hidden_sizes": [16, 24, 32, 40], "embedding_size": 12,
        },
        True,
    ),
    CellCase(
        "hiera",
        "HieraForImageClassification",
        {
            "image_size": [SIDE, SIDE], "embed_dim": 8, "depths": [1, 1, 1],
            "num_heads": [1, 2, 2], "masked_unit_size": [4, 4], "num_query_pool": 2,
        },
    ),
    *(
        CellCase(
            "levit",
            f"LevitForImageClassification{teacher}",
            {
                "image_size": SIDE, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2],
                "depths": [1, 1, 1], "key_dim": [8, 8, 8],
            },
        )
        for teacher in ("", "WithTeacher")
    ),
    CellCase("mobilenet_v1", "MobileNetV1ForImageClassification", _MOBILE, True),
    CellCase("mobilenet_v2", "MobileNetV2ForImageClassification", _MOBILE, True),
    CellCase(
        "mobilevit",
        "MobileViTForImageClassification",
        {
            "image_size": SIDE, "hidden_sizes": [16, 20, 24],
            "neck_hidden_sizes": [8, 8, 12, 16, 16, 16, 32],
        },
    ),
    CellCase(
        "mobilevitv2",
        "MobileViTV2ForImageClassification",
        {"image_size": SIDE, "width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1]},
    ),
    CellCase("poolformer", "PoolFormerForImageClassification", _SMALL, True),
    CellCase("pvt", "PvtForImageClassification", _HEADS, has_feature_map=False),
    CellCase("pvt_v2", "PvtV2ForImageClassification", _HEADS),
    CellCase(
        "regnet",
        "RegNetForImageClassification",
        {**_SMALL, "embedding_size": 8, "groups_width": 4},
        True,
    ),
    CellCase(
        "resnet", "ResNetForImageClassification", {**_SMALL, "embedding_size": 8}, True
    ),
    CellCase("segformer", "SegformerForImageClassification", _HEADS),
    CellCase(
        "swiftformer",
        "SwiftFormerForImageClassification",
        {"embed_dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
    ),
    CellCase("swin", "SwinForImageClassification", _SWIN),
    CellCase("swinv2", "Swinv2ForImageClassification", _SWIN),
    CellCase(
        "textnet",
        "TextNetForImageClassification",
        {
            "stem_out_channels": 8, "hidden_sizes": [8, 8, 12, 16, 24],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
            "conv_layer_strides": [[2], [2], [2], [2]],
        },
        True,
    ),
]  # fmt: skip


def without_biases(model: nn.Module) -> None:
    """Make each layer linear in its input: no bias, and no running mean."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            tensor.data.zero_()


def saved(kind: str, folder: Path) -> Path:
    """The folder of the first model of a kind, in float32, and of its image processor."""
    case = next(case for case in CELL_CASES if case.kind == kind)
    copy.deepcopy(case.model).float().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
