"""A family of your own: register its tokens, then explain it like any other.

python examples/own_family.py
"""

from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from hf_gmar import GMAR, TokenLayout, register_layout
from hf_gmar.errors import UnsupportedModelError


class MyViTConfig(ViTConfig):
    """A config of your own: its ``model_type`` is the family's name."""

    model_type = "my-vit"


class MyViTModel(ViTModel):
    """A body whose tokens you know: CLS, then the patches, row by row."""

    config_class = MyViTConfig


class MyViT(ViTForImageClassification):
    """A classifier that reads the mean of CLS and of all patches."""

    config_class = MyViTConfig

    def __init__(self, config: MyViTConfig) -> None:
        """Put the body in place of ViT's."""
        super().__init__(config)
        self.vit = MyViTModel(config, add_pooling_layer=False)

    def forward(self, pixel_values: Tensor) -> Any:
        """Class scores, (images, classes)."""
        tokens = self.vit(pixel_values).last_hidden_state
        return self.classifier((tokens[:, 0] + tokens[:, 1:].mean(1)) / 2)


def main() -> None:
    """See it refused, register it, explain it."""
    torch.manual_seed(0)
    small = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    more = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    model: Any = MyViT(MyViTConfig.from_dict(small | more))
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    try:
        GMAR(model)
    except UnsupportedModelError as error:
        print(f"before: {error}")
    # One token before the patches, which is half of what the head reads; their mean is the rest.
    register_layout("my-vit", TokenLayout(readout=(0.5,), rest="patches"))
    patches = GMAR(model).attribute_patches(images, target=2)
    print(f"after: a map of {tuple(patches.shape)}, sums {patches.sum(dim=(1, 2)).tolist()}")


if __name__ == "__main__":
    main()
