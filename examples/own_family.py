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
    """A backbone with known tokens: CLS, then the patches, row by row."""

    config_class = MyViTConfig


class MyViT(ViTForImageClassification):
    """A classifier that pools half CLS and half the mean of all patches."""

    config_class = MyViTConfig

    def __init__(self, config: MyViTConfig) -> None:
        """Replace ViT's backbone."""
        super().__init__(config)
        self.vit = MyViTModel(config, add_pooling_layer=False)

    def forward(self, pixel_values: Tensor) -> Any:
        """Compute class scores, (images, classes)."""
        tokens = self.vit(pixel_values).last_hidden_state
        return self.classifier((tokens[:, 0] + tokens[:, 1:].mean(1)) / 2)


def main() -> None:
    """Show that the family is refused, register it, explain a model."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    model: Any = MyViT(MyViTConfig.from_dict(sizes | counts))
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    try:
        GMAR(model)
    except UnsupportedModelError as error:
        print(f"before: {error}")
    # The one prefix token is half of the pooling; the mean of the patches is the other half.
    register_layout("my-vit", TokenLayout(readout=(0.5,), rest="patches"))
    patches = GMAR(model).attribute_patches(images, target=2)
    print(f"after: a map of {tuple(patches.shape)}, sums {patches.sum(dim=(1, 2)).tolist()}")


if __name__ == "__main__":
    main()
