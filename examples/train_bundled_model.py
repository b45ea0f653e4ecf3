"""Train the bundled scene classifier from scratch: under an hour on two CPU cores.

    python examples/train_bundled_model.py OUTPUT_FOLDER

The folder then holds a model for ``from_pretrained`` (config, safetensors, preprocessor file) and
the training log as JSON lines; ``examples/measure_bundled_model.py`` prints its figures. On glibc,
MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ set to 4000000000 make it faster: large blocks of
memory are then kept for the next step. A processor that has no instructions for bfloat16 emulates
it slowly: pass ``--no-half`` there.

A ViT without convolutions learns shapes slowly. So the curriculum starts with plain backgrounds,
and position embeddings start as waves. In the first stages an auxiliary head also classifies the
object on each patch; the last and longest stage has image labels alone. Part of every batch has
grey areas, and greyed-out objects count as absent. So grey is in distribution when explanations
are evaluated by covering parts of an image.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_gmar.data import CLASSES, draw_scene

SIZE, PATCH, BATCH, LOG_EVERY = 96, 12, 64, 250


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum."""

    difficulty: tuple[float, float]
    turn: bool  # whether scenes may stand on their sides
    scenes: int
    steps: int
    hide: float  # share of the images that get grey areas
    hint: float  # weight of the patch labels in the loss


STAGES = (
    Stage((0.0, 0.2), turn=False, scenes=8_000, steps=1_250, hide=0.0, hint=1.0),
    Stage((0.2, 0.8), turn=True, scenes=24_000, steps=2_000, hide=0.2, hint=1.0),
    Stage((0.8, 1.0), turn=True, scenes=72_000, steps=9_000, hide=0.5, hint=0.0),
)


def new_model() -> ViTForImageClassification:
    """Build a small ViT with one independent sigmoid for each class."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=384,
        initializer_range=0.08,  # wider than the default: the model is narrow
        problem_type="multi_label_classification",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    model = ViTForImageClassification(config)
    # The fused CPU kernel's backward is slower than plain matrix products at this size.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 1:] += waves(SIZE // PATCH, 128)
    return model


def waves(side: int, width: int) -> Tensor:
    """Build 2-D sine and cosine positions (side * side, width), similar for neighbours."""
    rates = 1.0 / 100.0 ** torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    down, across = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return 0.3 * torch.cat([down, across], dim=2).reshape(side * side, width)


def _draw(job: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (H, W, 3) and a class map (H, W): 0 is background, else class index + 1."""
    seed, difficulty = job
    scene = draw_scene(seed, SIZE, difficulty)
    classes = np.zeros((SIZE, SIZE), np.uint8)
    for index, mask in zip(scene.classes, scene.masks, strict=True):
        classes[mask] = index + 1
    return np.asarray(scene.image), classes


def draw_pool(stage: Stage, first_seed: int) -> tuple[Tensor, Tensor]:
    """Draw the images (N, 3, H, W) and class maps (N, H, W) of a stage, as bytes."""
    low, high = stage.difficulty
    steps = np.linspace(low, high, stage.scenes)
    jobs = [(first_seed + i, difficulty) for i, difficulty in enumerate(steps)]
    if stage.scenes < 1_000:  # drawn before processes would have started
        pairs = [_draw(job) for job in jobs]
    else:
        with multiprocessing.get_context("spawn").Pool() as pool:
            pairs = pool.map(_draw, jobs, chunksize=256)
    images = torch.from_numpy(np.stack([image for image, _ in pairs]))
    return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
        np.stack([classes for _, classes in pairs])
    )


def augment(images: Tensor, classes: Tensor, turn: bool) -> tuple[Tensor, Tensor]:
    """Rotate, mirror and swap the colour channels; no class changes."""
    turns, mirror = int(torch.randint(4, ())) * turn, bool(torch.randint(2, ()))
    images = images[:, torch.randperm(3)].rot90(turns, (2, 3))
    classes = classes.rot90(turns, (1, 2))
    return (images.flip(3), classes.flip(2)) if mirror else (images, classes)


def grey_areas(classes: Tensor, share: float) -> Tensor:
    """Choose pixels to grey out (B, H, W): a whole object, scattered patches, or none."""
    batch = len(classes)
    margin = int(torch.randint(1, 6, ()))
    present = classes.flatten(1).long()
    picked = present.gather(1, torch.multinomial((present > 0).float(), 1))  # one of the objects
    whole = (classes == picked[:, :, None]).float()
    for side in ((2 * margin + 1, 1), (1, 2 * margin + 1)):  # grow the object by the margin
        whole = functional.max_pool2d(whole, side, 1, (side[0] // 2, side[1] // 2))
    scattered = torch.rand(batch, SIZE // PATCH, SIZE // PATCH) < torch.rand(batch, 1, 1) * 0.8
    scattered = scattered.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    which = torch.rand(batch, 1, 1)
    return torch.where(which < share / 2, whole > 0, scattered & (which < share))


def class_areas(classes: Tensor) -> Tensor:
    """Count the visible pixels of each class, (B, C)."""
    index = classes.flatten(1).long() + torch.arange(len(classes))[:, None] * (len(CLASSES) + 1)
    counts = torch.bincount(index.flatten(), minlength=len(classes) * (len(CLASSES) + 1))
    return counts.view(len(classes), -1)[:, 1:].float()


def make_batch(
    images: Tensor, classes: Tensor, stage: Stage
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make pixels (B, 3, H, W) in -1..1, labels (B, C), weights (B, C), class maps (B, H, W).

    An object counts as present if at least half of it is visible, and as absent below a tenth.
    In between it has no weight in the loss.
    """
    images, classes = augment(images, classes, stage.turn)
    pixels = images.float() / 127.5 - 1
    before = class_areas(classes)
    if stage.hide:
        grey = grey_areas(classes, stage.hide)
        pixels = pixels.masked_fill(grey[:, None], 0.0)
        classes = classes.masked_fill(grey, 0)
    seen = class_areas(classes) / before.clamp(min=1)
    return pixels, (seen >= 0.5).float(), ((seen >= 0.5) | (seen <= 0.1)).float(), classes


def hint_loss(tokens: Tensor, head: nn.Linear, classes: Tensor) -> Tensor:
    """Compute the loss of classifying, by patch token, the object on a quarter of the patch."""
    areas = functional.one_hot(classes.long(), len(CLASSES) + 1)[..., 1:].permute(0, 3, 1, 2)
    covered = functional.avg_pool2d(areas.float(), PATCH).flatten(2).transpose(1, 2)
    logits = head(tokens[:, 1:]).float()
    return functional.binary_cross_entropy_with_logits(logits, (covered >= 0.25).float())


def indices(size: int, steps: int) -> Iterator[Tensor]:
    """Yield random batches of indices; every scene comes once before any is repeated."""
    order = torch.randperm(size)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(size)
        yield order[:BATCH]
        order = order[BATCH:]


def train_stage(
    model: ViTForImageClassification,
    hint_head: nn.Linear,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    stage: Stage,
    first_seed: int,
    half: bool,
) -> Iterator[dict[str, float]]:
    """Train one stage; yield a log entry every ``LOG_EVERY`` steps."""
    images, maps = draw_pool(stage, first_seed)
    losses, hints, hits = [], [], []
    for step, index in enumerate(indices(len(images), stage.steps), start=1):
        pixels, labels, weights, seen = make_batch(images[index], maps[index], stage)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tokens = model.vit(pixels).last_hidden_state
            logits = model.classifier(tokens[:, 0]).float()
            hint = hint_loss(tokens, hint_head, seen) if stage.hint else torch.zeros(())
        loss = functional.binary_cross_entropy_with_logits(logits, labels, weights)
        (loss + stage.hint * hint).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        hints.append(hint.item())
        hits.append((((logits > 0) == (labels > 0)) * weights).sum().item() / weights.sum().item())
        if step % LOG_EVERY == 0 or step == stage.steps:
            means = {"loss": losses, "hint": hints, "accuracy": hits}
            yield {"step": step, **{name: np.mean(part).item() for name, part in means.items()}}
            losses, hints, hits = [], [], []


def new_processor() -> ViTImageProcessorPil:
    """Build the image processor: pixel values from -1 to 1."""
    mean, size = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    return ViTImageProcessorPil(size=size, image_mean=mean, image_std=mean)


def save(model: ViTForImageClassification, folder: Path) -> None:
    """Save the files for ``from_pretrained``: weights, config and preprocessor file."""
    model.save_pretrained(folder)
    new_processor().save_pretrained(folder)


def main(
    output: Path,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    share: Annotated[float, typer.Option(help="Share of the scenes and steps, for a trial.")] = 1.0,
    half: Annotated[
        bool, typer.Option(help="Compute in bfloat16; a processor without it is faster in float32.")
    ] = True,
) -> None:
    """Train the model and save it, with its log, in OUTPUT."""
    started = time.monotonic()
    torch.manual_seed(seed)
    stages = [
        replace(
            stage,
            scenes=max(BATCH, int(stage.scenes * share)),
            steps=math.ceil(stage.steps * share),
        )
        for stage in STAGES
    ]
    model = new_model().train()
    hint_head = nn.Linear(model.config.hidden_size, len(CLASSES))
    parameters = [*model.parameters(), *hint_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    total = sum(stage.steps for stage in stages)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total, pct_start=0.03)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "training_log.jsonl").open("w") as log:
        for number, stage in enumerate(stages, start=1):
            # Seeds below a million are reserved for tests and measurements on new scenes.
            for entry in train_stage(
                model, hint_head, optimizer, schedule, stage, number * 1_000_000, half
            ):
                seconds = round(time.monotonic() - started)
                line = json.dumps({"stage": number, **entry, "seconds": seconds})
                log.write(line + "\n")
                log.flush()
                typer.echo(line)
            save(model, output)


if __name__ == "__main__":
    typer.run(main)
