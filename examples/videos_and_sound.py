"""Do maps of videos and of sound find the event that decides the class?

    python examples/videos_and_sound.py OUTPUT_FOLDER

Draw clips and spectrograms whose decisive event is known, train a small VideoMAE and a small Audio
Spectrogram Transformer on them from scratch, and explain new ones. A clip shows a ring all the time
and, in three to five of its frames, another shape, which is the class. A spectrogram has a burst of
noise and one event, whose kind is the class. Both lie at random places. One more class is nothing
but the ring or the burst: a model without it may have a class that it says when it sees nothing,
and that class needs no event.

Print the share of each method's positive relevance on the patches that the event touches, and on
those of the ring or of the burst, beside the share of these patches in all. Intervals: 95 %,
bootstrap over clips. The folder gets the table, and a clip and a spectrogram under their maps by
AttnLRP, as pictures and as numbers: the first ones whose event shares no patch with the ring or
burst. This takes two minutes of one processor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

from hf_gmar import GMAR, AttnLRP, InputXGradient, LeGrad, RandomAttribution
from hf_gmar.visualization import film_strip, save_figure, spectrogram_figure

SHAPES = ("nothing", "disc", "stripes", "cross", "triangle")
SOUNDS = ("nothing", "rising chirp", "falling chirp", "two tones", "clicks")
FRAMES, SIDE, PATCH, TUBELET = 8, 48, 8, 2
TIME, MELS, STRIDE = 64, 32, 6
METHODS = (GMAR, LeGrad, AttnLRP, InputXGradient, RandomAttribution)
BATCH, RATE = 32, 1e-3
VIDEO_STEPS, SOUND_STEPS = 500, 200
SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "initializer_range": 0.1,  # with 0.02, positions would outweigh what is seen for long
}

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """A clip or a spectrogram, and where things are in it.

    Attributes:
        values: the model's input.
        without: the same without the event.
        label: the class of the event; 0 without any.
        event: the positions of the event, (frames, height, width) or (time, mels).
        other: those of what is no class.
    """

    values: Array
    without: Array
    label: int
    event: Mask
    other: Mask


Draw = Callable[[np.random.Generator], Sample]


def inside(shape: str, x: Array, y: Array) -> Mask:
    """Return which points lie inside a shape of radius 1 at (0, 0)."""
    away, near = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    if shape == "triangle":
        return (y < 0.75) & (y > 2 * abs(x) - 1)
    return {
        "nothing": np.zeros_like(x, dtype=bool),
        "disc": np.hypot(x, y) < 0.95,
        "stripes": (away < 1) & (y * 2.5 % 1 < 0.5),
        "cross": (near < 0.3) & (away < 1),
        "ring": (np.hypot(x, y) < 1) & (np.hypot(x, y) > 0.55),
    }[shape]


def draw_clip(rng: np.random.Generator) -> Sample:
    """Draw a clip, (frames, 3, height, width) from -1 to 1."""
    squares = rng.uniform(-0.8, -0.2, (3, 8, 8)).repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)
    values = np.stack([squares] * FRAMES)
    label, length = int(rng.integers(len(SHAPES))), int(rng.integers(3, 6))
    start = int(rng.integers(FRAMES - length + 1))
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = []
    for shape, first, last in (("ring", 0, FRAMES), (SHAPES[label], start, start + length)):
        without = values.copy()  # at last, with the ring alone
        mask = np.zeros((FRAMES, SIDE, SIDE), dtype=bool)
        radius = rng.uniform(7, 9)
        ends = rng.uniform(radius, SIDE - radius, (2, 2))
        colour = rng.uniform(0.4, 1, (3, 1))
        for frame in range(first, last):
            down, across = ends[0] + (ends[1] - ends[0]) * frame / (2 * FRAMES)
            mask[frame] = inside(shape, (x - across) / radius, (y - down) / radius)
            values[frame][:, mask[frame]] = colour
        masks.append(mask)
    ring, event = masks
    both = values.astype(np.float32), without.astype(np.float32)
    return Sample(*both, label, event, ring & ~event)


def draw_spectrogram(rng: np.random.Generator) -> Sample:
    """Draw a spectrogram, (time, mels), about -1 to 2."""
    values = rng.normal(0, 0.3, (TIME, MELS))
    label, span, width = int(rng.integers(len(SOUNDS))), 16, 12
    time, mel = np.mgrid[:TIME, :MELS]
    start, low = rng.integers(TIME - span), rng.integers(MELS - width)
    since, above = time - start, mel - low
    here = (since >= 0) & (since < span) & (above >= 0) & (above < width)
    lines = {
        "nothing": np.zeros_like(here),
        "rising chirp": abs(above - since * width / span) < 1.2,
        "falling chirp": abs(width - above - since * width / span) < 1.2,
        "two tones": (abs(above - 2) < 1) | (abs(above - width + 3) < 1),
        "clicks": since % 4 == 0,
    }
    event = here & lines[SOUNDS[label]]
    late, high = rng.integers(TIME - span), rng.integers(MELS - width)
    other = (time >= late) & (time < late + span) & (mel >= high) & (mel < high + width)
    values[other] += rng.normal(0, 1, other.sum())
    without = values.copy()
    values[event] += rng.uniform(1.5, 2)
    both = values.astype(np.float32), without.astype(np.float32)
    return Sample(*both, label, event, other & ~event)


def video_model() -> VideoMAEForVideoClassification:
    """Build a VideoMAE with random weights."""
    config = VideoMAEConfig(
        image_size=SIDE, patch_size=PATCH, num_frames=FRAMES, tubelet_size=TUBELET,
        id2label=dict(enumerate(SHAPES)), **SMALL,
    )  # fmt: skip
    return VideoMAEForVideoClassification(config)


def sound_model() -> ASTForAudioClassification:
    """Build an Audio Spectrogram Transformer with random weights."""
    config = ASTConfig(
        max_length=TIME, num_mel_bins=MELS, patch_size=PATCH, time_stride=STRIDE,
        frequency_stride=STRIDE, id2label=dict(enumerate(SOUNDS)), **SMALL,
    )  # fmt: skip
    return ASTForAudioClassification(config)


def draw_events(draw: Draw, rng: np.random.Generator, count: int) -> list[Sample]:
    """Draw samples that have an event."""
    drawn = (draw(rng) for _ in itertools.count())
    return list(itertools.islice((sample for sample in drawn if sample.label), count))


def train(model: Any, draw: Draw, steps: int, seed: int) -> None:
    """Train on new samples in each step."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        values, labels = batch([draw(rng) for _ in range(BATCH)])
        functional.cross_entropy(model(values).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def batch(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Return inputs and classes of some samples."""
    values = torch.from_numpy(np.stack([sample.values for sample in samples]))
    return values, torch.tensor([sample.label for sample in samples])


def touched(masks: list[Mask]) -> Tensor:
    """Return which patches hold at least one position of each mask, in the shape of the maps."""
    values = torch.from_numpy(np.stack(masks)).float()[:, None]
    if values.ndim == 5:
        return functional.max_pool3d(values, (TUBELET, PATCH, PATCH))[:, 0]
    return functional.max_pool2d(values, PATCH, STRIDE)[:, 0]


def share_on(maps: Tensor, where: Tensor) -> Array:
    """Return the share of each map's positive relevance on some patches, (samples,)."""
    positive = maps.clamp(min=0).flatten(1)
    return ((positive * where.flatten(1)).sum(1) / positive.sum(1)).numpy()


def with_interval(shares: Array, draws: int = 2000) -> str:
    """Write the mean and its 95 % bootstrap interval."""
    picked = np.random.default_rng(0).integers(len(shares), size=(draws, len(shares)))
    low, high = np.quantile(shares[picked].mean(axis=1), [0.025, 0.975])
    return f"{shares.mean():.1%} ({low:.1%} to {high:.1%})"


def measure(name: str, model: Any, samples: list[Sample]) -> list[str]:
    """Return a row for relevance that is spread evenly, and one for each method."""
    values, labels = batch(samples)
    event = touched([sample.event for sample in samples])
    other = touched([sample.other for sample in samples]) * (1 - event)
    maps = {"spread evenly": torch.ones_like(event)}
    for method in METHODS:
        maps[method.title] = method(model).attribute_patches(values, target=labels)
    shares = {
        title: [with_interval(share_on(values, where)) for where in (event, other)]
        for title, values in maps.items()
    }
    return [f"| {name} | {title} | {' | '.join(cells)} |" for title, cells in shares.items()]


def found(model: Any, samples: list[Sample]) -> str:
    """Say how often the model finds the class, and "nothing" once the event is left out."""
    values, labels = batch(samples)
    without = torch.from_numpy(np.stack([sample.without for sample in samples]))
    with torch.no_grad():
        right = (model(values).logits.argmax(1) == labels).float().mean()
        nothing = (model(without).logits.argmax(1) == 0).float().mean()
    return f"{right:.0%} of {len(samples)} events, and nothing in {nothing:.0%} without the event"


def pictured(video: Any, clip: Sample, sound: Any, spectrogram: Sample) -> dict[str, Any]:
    """Explain a clip and a spectrogram by AttnLRP; return the arrays of both pictures."""
    values, labels = batch([clip])
    frames = (clip.values.transpose(0, 2, 3, 1) + 1) * 127.5
    stored: dict[str, Any] = {
        "frames": frames.clip(0, 255).astype(np.uint8),
        "maps": AttnLRP(video).attribute_patches(values, target=labels)[0].numpy(),
        "clip": title(video, values, clip),
    }
    values, labels = batch([spectrogram])
    stored["spectrogram"] = spectrogram.values
    stored["relevance"] = AttnLRP(sound).attribute(values, target=labels)[0].numpy()
    stored["sound"] = title(sound, values, spectrogram)
    return stored


def first_apart(samples: list[Sample]) -> Sample:
    """Return the first sample whose event shares no patch with the ring or burst."""
    alone = (
        sample
        for sample in samples
        if not (touched([sample.event]) * touched([sample.other])).any()
    )
    return next(alone, samples[0])


def clip_picture(stored: Mapping[str, Any]) -> Image.Image:
    """Draw the clip under its maps."""
    return film_strip(stored["frames"], torch.from_numpy(stored["maps"]), str(stored["clip"]))


def sound_figure(stored: Mapping[str, Any]) -> Figure:
    """Draw the spectrogram under its map."""
    relevance = torch.from_numpy(stored["relevance"])
    return spectrogram_figure(stored["spectrogram"], relevance, str(stored["sound"]))


def title(model: Any, values: Tensor, sample: Sample) -> str:
    """Name the class with its probability."""
    with torch.no_grad():
        probability = model(values).logits.softmax(1)[0, sample.label]
    return f"{model.config.id2label[sample.label]}  {probability:.2f}"


def main(
    output: Annotated[Path, typer.Argument(help="Folder of the pictures.")],
    share: Annotated[float, typer.Option(help="Share of the steps, for a trial.")] = 1.0,
    samples: Annotated[int, typer.Option(min=2, help="New samples of each kind.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the samples.")] = 0,
) -> None:
    """Train both models, print the table, and write the pictures."""
    torch.manual_seed(seed)
    video, sound = video_model(), sound_model()
    train(video, draw_clip, max(1, round(VIDEO_STEPS * share)), seed)
    train(sound, draw_spectrogram, max(1, round(SOUND_STEPS * share)), seed)
    rng = np.random.default_rng([seed, 1])
    clips = draw_events(draw_clip, rng, samples)
    spectrograms = draw_events(draw_spectrogram, rng, samples)
    table = [
        "| model | method | relevance on the event | on the ring or burst |",
        "|---|---|---|---|",
        *measure("VideoMAE", video, clips),
        *measure("AST", sound, spectrograms),
        "",
        f"VideoMAE finds {found(video, clips)}. AST finds {found(sound, spectrograms)}.",
    ]
    typer.echo("\n".join(table))
    output.mkdir(parents=True, exist_ok=True)
    (output / "videos_and_sound.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    stored = pictured(video, first_apart(clips), sound, first_apart(spectrograms))
    np.savez_compressed(output / "videos_and_sound.npz", **stored)
    clip_picture(stored).save(output / "film_strip.png")
    save_figure(sound_figure(stored), output / "spectrogram.png")


if __name__ == "__main__":
    typer.run(main)
