"""Measure whether the maps of an image-text model follow its prompt.

    python examples/train_prompt_model.py FOLDER
    python -m benchmarks.prompts FOLDER
    python -m benchmarks.prompts FOLDER --output benchmarks/results     writes prompts.md, too

Each scene has two objects with exact masks. Every method explains four prompts of each scene: one
for each object, one that names both, and one of an object that is absent. Shares are of the
positive relevance. Each patch counts by the share of its area in the mask. "Difference" is the
share on the named object minus the share on the other one. "With contrast" is the same where the
other object's prompt is the contrast, for methods that take one.
Intervals are 95 % bootstrap intervals over scenes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hf_gmar import load_model
from hf_gmar._utils.files import whole_file
from hf_gmar._utils.stats import bootstrap
from hf_gmar.data import CLASSES, Scene, draw_scene
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.metrics import LocalizationInput, PointingGame, RelevanceMass
from hf_gmar.models import LoadedModel

BATCH = 25
PAIRS = tuple(combinations(range(len(CLASSES)), 2))
PROMPTS = (
    *(f"a photo of a {name}" for name in CLASSES),
    *(f"a photo of a {CLASSES[one]} and a {CLASSES[other]}" for one, other in PAIRS),
)
"""A prompt for each class, then one for each pair of classes."""

ABSENT = "The prompts of both objects score higher than those of the six absent classes"


@dataclass(frozen=True)
class Scenes:
    """Scenes of two objects, and the prompts of each.

    Attributes:
        pixels: (N, 3, height, width).
        cover: each patch's share inside each object's mask, (N, 2, rows, columns).
        named: prompts of the two objects, (N, 2).
        both: the prompt that names both objects, (N,).
        absent: the prompt of a class that is not in the scene, (N,).
        scores: the model's score of each prompt, (N, prompts).
    """

    pixels: Tensor
    cover: Tensor
    named: Tensor
    both: Tensor
    absent: Tensor
    scores: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, scenes: list[Scene]) -> Scenes:
        """Score the prompts of each scene, and choose those that are explained."""
        named = torch.tensor([scene.classes for scene in scenes])
        pixels = torch.cat([loaded.pixels(scene.image) for scene in scenes])
        with torch.no_grad():
            scores = torch.cat([loaded.model(part) for part in pixels.split(BATCH)])
        masks = torch.from_numpy(np.stack([scene.masks for scene in scenes])).float()
        patch = loaded.model.model.config.vision_config.patch_size
        both = [len(CLASSES) + PAIRS.index((min(pair), max(pair))) for pair in named.tolist()]
        absent = [_absent(scene) for scene in scenes]
        return cls(
            pixels,
            avg_pool2d(masks, patch),
            named,
            torch.tensor(both),
            torch.tensor(absent),
            scores,
        )

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.pixels)

    def found(self) -> float:
        """Return the share of the scenes whose two objects have the best of the eight prompts."""
        best = self.scores[:, : len(CLASSES)].topk(2).indices
        return (best.sort().values == self.named.sort().values).all(1).double().mean().item()


def _absent(scene: Scene) -> int:
    others = [kind for kind in range(len(CLASSES)) if kind not in scene.classes]
    return int(np.random.default_rng(scene.seed).choice(others))


def maps_of(
    method: AttributionMethod, scenes: Scenes, prompts: Tensor, contrast: Tensor | None = None
) -> Tensor:
    """Explain a prompt (N,) of each scene; return maps (N, 1, rows, columns)."""
    parts = []
    for part in torch.arange(len(scenes)).split(BATCH):
        other = None if contrast is None else contrast[part].tolist()
        pixels, target = scenes.pixels[part], prompts[part].tolist()
        parts.append(method.attribute_patches(pixels, target, contrast=other))
    return torch.cat(parts)[:, None]


def share(maps: Tensor, cover: Tensor) -> Tensor:
    """Return the share of positive relevance in each mask, (N, masks).

    Args:
        maps: (N, 1, rows, columns).
        cover: each patch's share inside each mask, (N, masks, rows, columns).
    """
    return _values(RelevanceMass(), maps, cover)


def _values(metric: RelevanceMass | PointingGame, maps: Tensor, cover: Tensor) -> Tensor:
    values = [
        metric.values(LocalizationInput(maps[:, 0], cover[:, place]))
        for place in range(cover.shape[1])
    ]
    return torch.stack(values, 1)


def _interval(values: Tensor) -> str:
    return str(bootstrap(values[~values.isnan()].numpy()))


def named_maps(method: AttributionMethod, scenes: Scenes, contrast: bool = False) -> list[Tensor]:
    """Explain the prompt of each object, (2) maps (N, 1, rows, columns).

    Args:
        method: the method.
        scenes: the scenes.
        contrast: whether the other object's prompt is the contrast of each prompt.
    """
    first, second = scenes.named.T
    return [
        maps_of(method, scenes, prompts, other if contrast else None)
        for prompts, other in ((first, second), (second, first))
    ]


def shares_of_named(maps: list[Tensor], scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the maps of the prompts that name one object.

    Returns:
        The share on the named object (N,), the share on the other one, and the pointing game on the
        named object, which is NaN if no patch is half inside a mask. Each is the mean over both
        prompts of a scene.
    """
    shares = torch.stack([share(part, scenes.cover) for part in maps], 1)  # (N, prompt, object)
    hits = torch.stack([_values(PointingGame(), part, scenes.cover) for part in maps], 1)
    on_named = shares.diagonal(dim1=1, dim2=2).mean(1)
    on_other = shares.flip(2).diagonal(dim1=1, dim2=2).mean(1)
    return on_named, on_other, hits.diagonal(dim1=1, dim2=2).nanmean(1)


def rows_of(method: AttributionMethod, scenes: Scenes) -> tuple[list[str], list[str]]:
    """Return the method's row of both tables."""
    maps = named_maps(method, scenes)
    named, other, hits = shares_of_named(maps, scenes)
    contrast = "-"
    if type(method).class_specific:
        with_contrast = shares_of_named(named_maps(method, scenes, contrast=True), scenes)
        contrast = _interval(with_contrast[0] - with_contrast[1])
    first = [*map(_interval, (named, other, named - other)), contrast, _interval(hits)]
    cover = scenes.cover.sum(1, keepdim=True)
    maps += [maps_of(method, scenes, prompts) for prompts in (scenes.both, scenes.absent)]
    on_objects = torch.cat([share(part, cover) for part in maps], 1)
    means = (on_objects[:, :2].mean(1), on_objects[:, 2], on_objects[:, 3])
    return [method.title, *first], [method.title, *map(_interval, means)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def report(loaded: LoadedModel, scenes: Scenes) -> str:
    """Return the page with both tables, as Markdown."""
    methods = [METHODS.build(name, loaded.model) for name in METHODS if METHODS[name].by_default]
    columns = (
        "method", "on the named object", "on the other object", "difference", "with contrast",
        "pointing game",
    )  # fmt: skip
    rows = [rows_of(method, scenes) for method in methods]
    even = _interval(scenes.cover.double().mean((1, 2, 3)))
    return "\n".join(
        [
            "# Maps by prompts",
            "",
            f"{len(scenes)} scenes with two objects. {ABSENT} in {scenes.found():.1%} of them.",
            "",
            "## Prompts that name one object",
            "",
            _table(
                columns,
                [*(named for named, _ in rows), ["Even relevance", even, even, "0", "-", "-"]],
            ),
            "## Share on both objects together",
            "",
            _table(
                ("method", "prompt of one object", "of both", "of an absent object"),
                [*(both for _, both in rows), ["Score of the model", *_scores(scenes)]],
            ),
        ]
    )


def _scores(scenes: Scenes) -> list[str]:
    rows = torch.arange(len(scenes))
    present = scenes.scores[rows[:, None], scenes.named].mean(1)
    both, absent = (scenes.scores[rows, prompts] for prompts in (scenes.both, scenes.absent))
    return [_interval(scores.double()) for scores in (present, both, absent)]


def main(
    folder: Annotated[Path, typer.Argument(help="Made by examples/train_prompt_model.py.")],
    scenes: Annotated[int, typer.Option(min=2, help="Scenes that are drawn.")] = 300,
    output: Annotated[Path | None, typer.Option(help="Folder for prompts.md.")] = None,
) -> None:
    """Print the tables."""
    loaded = load_model(folder, prompts=PROMPTS)
    drawn = [draw_scene(seed, objects=2) for seed in range(scenes)]
    text = report(loaded, Scenes.of(loaded, drawn))
    typer.echo(text)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        with whole_file(output / "prompts.md") as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
