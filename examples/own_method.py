"""A method of your own in 20 lines: gradient times attention, with its sign.

python examples/own_method.py [--output FOLDER]
"""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_gmar import ModelLike, load_model
from hf_gmar.data import draw_scene
from hf_gmar.methods import AttentionMethod, Block, LayerResult, Sums
from hf_gmar.visualization import overlay_figure, save_figure


class SignedRule:
    """Sum A * dscore/dA over the heads and queries of a layer, (images, tokens)."""

    def accumulate(self, block: Block) -> Sums:
        """Reduce a block of query rows: (images, heads, rows, tokens) to (images, tokens)."""
        return ((block.attention * block.gradient).sum(dim=(1, 2)),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Add the sums to the map, without rollout."""
        return LayerResult(relevance, addition=sums[0])


class SignedAttention(AttentionMethod):
    """Evidence for and against a class that attention carries."""

    source = "this example"
    cost = "forward + backward"
    signed = True

    def __init__(self, model: ModelLike, **options: Any) -> None:
        """Take the common options of methods on attention."""
        super().__init__(model, **options)
        self.rule = SignedRule()


def main() -> None:
    """Explain a scene and draw the evidence for the class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path())
    folder = parser.parse_args().output
    loaded, scene = load_model("bundled"), draw_scene(18)
    pixels = loaded.processor(images=scene.image, return_tensors="pt").pixel_values
    relevance = SignedAttention(loaded.model).attribute_patches(pixels, target=6)[0]
    print(f"evidence for the heart: {relevance.clamp(min=0).sum():.3f}")
    print(f"evidence against it: {relevance.clamp(max=0).sum():.3f}")
    figure = overlay_figure(scene.image, relevance.clamp(min=0), "heart, evidence for it")
    save_figure(figure, folder / "own_method.png")
    print(folder / "own_method.png")


if __name__ == "__main__":
    main()
