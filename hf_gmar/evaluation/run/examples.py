"""The maps of a few images, kept for the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_gmar._utils.files import whole_file
from hf_gmar.comparison.result import picture_of
from hf_gmar.errors import InputError
from hf_gmar.evaluation.report.results import ExampleMaps
from hf_gmar.evaluation.run.per_image import Sample
from hf_gmar.evaluation.run.plan import Plan
from hf_gmar.evaluation.run.store import EXAMPLES
from hf_gmar.models.image_view import seen_part
from hf_gmar.models.labels import label_of

_SIZE = (384, 384)  # of a picture, at most


def save_example(folder: Path, case: Sample, plan: Plan) -> None:
    """Write one image's maps below the folder of a run."""
    path = _file(folder, case.index)
    path.parent.mkdir(exist_ok=True)
    name = label_of(plan.config, case.target)
    labels = list(case.found)
    if not labels:
        return
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(
            file,
            picture=np.asarray(_picture(plan, case)),
            title=f"{name} {case.before:.2f}\n{case.example.key}",
            labels=labels,
            maps=np.stack([case.found[label].float().numpy() for label in labels]),
        )


def _file(folder: Path, index: int) -> Path:
    return folder / EXAMPLES / f"{index:06}.npz"


def _picture(plan: Plan, case: Sample) -> Image.Image:
    try:
        seen = seen_part(plan.processor, case.example.image)
    except InputError:  # what the processor does to an image is nothing that can be drawn on it
        return picture_of(case.pixels[0])
    seen.thumbnail(_SIZE)
    return seen


def load_examples(folder: Path, wanted: Iterable[int]) -> list[ExampleMaps]:
    """The examples of a run, in the order of its images, as far as they are there.

    Args:
        folder: of the run.
        wanted: which images.
    """
    found = []
    for path in (_file(folder, index) for index in sorted(wanted)):
        if not path.exists():  # it may be on another machine
            continue
        with np.load(path) as archive:
            maps = dict(zip(archive["labels"].tolist(), archive["maps"], strict=True))
            found.append(
                ExampleMaps(
                    Image.fromarray(archive["picture"]),
                    str(archive["title"]),
                    {label: torch.from_numpy(one) for label, one in maps.items()},
                )
            )
    return found
