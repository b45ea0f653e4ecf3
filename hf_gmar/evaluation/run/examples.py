"""Saves and loads the maps of a few images for the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_gmar._utils.files import save_arrays
from hf_gmar._utils.text import visible
from hf_gmar.comparison.result import picture_of
from hf_gmar.errors import InputError
from hf_gmar.evaluation.report.results import ExampleMaps
from hf_gmar.evaluation.run.per_image import Sample
from hf_gmar.evaluation.run.plan import Plan
from hf_gmar.evaluation.run.store import EXAMPLES
from hf_gmar.models.labels import label_of

_SIZE = (384, 384)  # the largest size of a picture


def save_example(folder: Path, sample: Sample, plan: Plan) -> None:
    """Write the maps of one image below the folder of a run."""
    path = _file(folder, sample.index)
    path.parent.mkdir(exist_ok=True)
    if not sample.maps:
        return
    label = visible(label_of(plan.model.hf_config, sample.target))
    save_arrays(
        path,
        picture=np.asarray(_picture(sample)),
        title=f"{label}  {_score_text(plan, sample.before)}\n{visible(sample.example.key)}",
        labels=list(sample.maps),
        maps=np.stack([patches.float().numpy() for patches in sample.maps.values()]),
    )


def _score_text(plan: Plan, score: float) -> str:
    model = plan.model
    return model.kind.text(score) if model.score == "value" else f"{score:.2f}"


def _file(folder: Path, index: int) -> Path:
    return folder / EXAMPLES / f"{index:06}.npz"


def _picture(sample: Sample) -> Image.Image:
    try:
        seen = sample.image.seen
    except InputError:  # the processor's geometry can't be measured
        return picture_of(sample.pixels[0])
    seen.thumbnail(_SIZE)
    return seen


def load_examples(folder: Path, indices: Iterable[int]) -> list[ExampleMaps]:
    """Load the examples of a run for these images, in order, without missing and damaged ones."""
    examples = (_load(_file(folder, index)) for index in sorted(indices))
    return [example for example in examples if example is not None]


def damaged_examples(folder: Path, indices: Iterable[int]) -> list[int]:
    """Return the images whose example is on this machine, but can't be read."""
    files = {index: _file(folder, index) for index in indices}
    return [index for index, file in files.items() if file.is_file() and _load(file) is None]


def _load(path: Path) -> ExampleMaps | None:
    try:
        # ``np.load`` leaves a damaged file open that it opened itself.
        with path.open("rb") as file, np.load(file) as archive:
            labels, arrays, title = archive["labels"], archive["maps"], archive["title"]
            are_texts = labels.dtype.kind == title.dtype.kind == "U" and title.ndim == 0
            are_maps = arrays.dtype.kind == "f" and arrays.ndim == 3 and arrays.size
            if not are_texts or not are_maps or not np.isfinite(arrays).all():
                return None
            maps = zip(labels.tolist(), map(torch.from_numpy, arrays), strict=True)
            picture = Image.fromarray(archive["picture"])
            return ExampleMaps(picture, str(title), dict(maps))
    except Exception:  # noqa: BLE001  # it may be damaged in any way, or on another machine
        return None
