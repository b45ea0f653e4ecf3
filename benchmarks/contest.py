"""The cases, models with random weights, and contestants of the engine benchmark."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from captum.attr import IntegratedGradients, Occlusion
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from hf_gmar import GMAR, LogitsModel

Run: TypeAlias = Callable[[], object]

PATCH = 16
LABELS = 1000
TARGET = 3
TARGETS = (3, 4, 5, 6, 7)
STEPS = 50

FORWARD = "plain forward"
BACKWARD = "forward + backward"
STREAMING = "GMAR streaming"
CHECKPOINT = "GMAR streaming, checkpoint"
DENSE = "GMAR dense"
GRADIENTS = f"Captum IntegratedGradients, {STEPS} steps"
OCCLUSION = "Captum Occlusion, window = patch"
CONTESTANTS = (FORWARD, BACKWARD, STREAMING, CHECKPOINT, DENSE, GRADIENTS, OCCLUSION)

ONE_BATCH = f"one call, the image {len(TARGETS)} times in the batch"
ONE_CALL = f"attribute_targets, {len(TARGETS)} targets"
SEVERAL_CALLS = f"attribute_patches, {len(TARGETS)} calls"
TARGET_CONTESTANTS = (ONE_CALL, SEVERAL_CALLS, ONE_BATCH)
_TARGETS_UP_TO = 512  # pixels

# The largest number of tokens in a batch of Captum's methods.
_TOKENS_AT_ONCE = {"cpu": 2_000, "cuda": 16_000}


@dataclass(frozen=True)
class Size:
    """The size of a Vision Transformer."""

    hidden: int
    layers: int
    heads: int
    mlp: int


SIZES = {
    "S": Size(384, 12, 6, 1536),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
    "T": Size(32, 2, 2, 64),
}


@dataclass(frozen=True)
class Case:
    """A model on images of one size; its weights and images have the given precision.

    Example:
        >>> Case.parse("B224x8")
        Case(model='B', pixels=224, batch=8)
        >>> Case("S", 512).name, Case("S", 512).tokens
        ('S512', 1025)
    """

    model: str
    pixels: int
    batch: int = 1
    dtype: str = field(default="float32", repr=False)

    @classmethod
    def parse(cls, name: str, dtype: str = "float32") -> Case:
        """Parse a name: model, pixels, and the batch size unless it is 1."""
        match = re.fullmatch(rf"([{''.join(SIZES)}])([1-9]\d*)(?:x([1-9]\d*))?", name)
        if match is None or int(match[2]) % PATCH:
            raise ValueError(
                f"a case is one of {', '.join(SIZES)}, pixels that {PATCH} divides, and maybe x "
                f"with a batch, such as S224x8; got {name!r}"
            )
        return cls(match[1], int(match[2]), int(match[3] or 1), dtype)

    @property
    def name(self) -> str:
        """The short name of the case."""
        return f"{self.model}{self.pixels}" + (f"x{self.batch}" if self.batch > 1 else "")

    @property
    def side(self) -> int:
        """Number of patches along each side."""
        return self.pixels // PATCH

    @property
    def tokens(self) -> int:
        """Number of tokens of each image, including CLS."""
        return self.side**2 + 1

    @property
    def dense_bytes(self) -> float:
        """Estimated memory of the dense engine: all attention maps and gradients, plus half."""
        size = SIZES[self.model]
        return 1.5 * 2 * size.layers * size.heads * self.tokens**2 * 4 * self.batch

    def at_once(self, device: torch.device) -> int:
        """Return the number of copies of the images in one pass of Captum's methods."""
        tokens = _TOKENS_AT_ONCE.get(device.type, _TOKENS_AT_ONCE["cpu"])
        return min(STEPS, max(1, tokens // (self.tokens * self.batch)))


@dataclass(frozen=True)
class Bench:
    """A case with its model and images."""

    case: Case
    device: torch.device
    model: ViTForImageClassification
    pixels: Tensor

    @classmethod
    def build(cls, case: Case, device: torch.device) -> Bench:
        """Make a model with random weights for images of this size, and random images."""
        torch.manual_seed(0)
        size = SIZES[case.model]
        config = ViTConfig(
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.mlp,
            image_size=case.pixels,
            patch_size=PATCH,
        )
        config.num_labels = LABELS
        dtype = getattr(torch, case.dtype)
        with device:  # a GPU draws the weights of a large model faster
            model = ViTForImageClassification(config).eval().to(dtype)
            pixels = torch.randn(case.batch, 3, case.pixels, case.pixels).to(dtype)
        return cls(case, device, model, pixels)

    def runs(self) -> dict[str, Run]:
        """Return the contestants that are timed in each round."""
        return {
            FORWARD: functools.partial(_forward, self),
            BACKWARD: functools.partial(_backward, self),
            STREAMING: self._gmar(GMAR(self.model)),
            CHECKPOINT: self._gmar(GMAR(self.model, checkpoint=True)),
            DENSE: self._gmar(GMAR(self.model, engine="dense")),
        }

    def target_runs(self) -> dict[str, Run]:
        """Return the ways to explain several targets of one image, if the case has such rows."""
        if self.case.batch > 1 or self.case.pixels > _TARGETS_UP_TO:
            return {}
        gmar, pixels = GMAR(self.model), self.pixels
        repeated = pixels.repeat(len(TARGETS), 1, 1, 1)
        return {
            ONE_CALL: lambda: gmar.attribute_targets(pixels, TARGETS),
            SEVERAL_CALLS: lambda: [gmar.attribute_patches(pixels, target) for target in TARGETS],
            ONE_BATCH: lambda: gmar.attribute_patches(repeated, list(TARGETS)),
        }

    def long_runs(self) -> dict[str, LongRun]:
        """Return the contestants with many passes, which are timed once."""
        case, at_once = self.case, self.case.at_once(self.device)
        few = math.ceil(math.sqrt(max(16, at_once)))
        return {
            GRADIENTS: LongRun(
                functools.partial(_integrated_gradients, self),
                passes=int,
                whole=STEPS,
                few=max(5, at_once),
                backward=True,
            ),
            OCCLUSION: LongRun(
                functools.partial(_occlusion, self),
                passes=lambda windows: _window(case, windows)[1] ** 2 + 1,
                whole=case.side,
                few=min(case.side, few),
                backward=False,
            ),
        }

    def _gmar(self, gmar: GMAR) -> Run:
        return lambda: gmar.attribute_patches(self.pixels, TARGET)


@dataclass(frozen=True)
class LongRun:
    """A method of many passes with equal cost, whose total time can be scaled from a part.

    Attributes:
        run: runs an amount of the method: its steps, or its windows along each side.
        passes: converts an amount to the number of passes of each image.
        whole: the amount of a full explanation.
        few: a smaller amount that is enough to measure.
        backward: whether each pass includes a backward.
    """

    run: Callable[[int], object]
    passes: Callable[[int], int]
    whole: int
    few: int
    backward: bool


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all weights inside the context, so that no gradients of weights are computed."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


@torch.no_grad()
def _forward(bench: Bench) -> None:
    bench.model(bench.pixels)


def _backward(bench: Bench) -> None:
    """Compute a gradient with respect to the pixels at the least cost, with frozen weights."""
    with frozen(bench.model):
        pixels = bench.pixels.clone().requires_grad_()
        logits = bench.model(pixels).logits
        torch.autograd.grad(logits[:, TARGET].sum(), pixels)


def _integrated_gradients(bench: Bench, steps: int) -> None:
    images = bench.case.batch * bench.case.at_once(bench.device)
    with frozen(bench.model):  # an advantage for Integrated Gradients
        IntegratedGradients(LogitsModel(bench.model)).attribute(
            bench.pixels, target=TARGET, n_steps=steps, internal_batch_size=images
        )


def _window(case: Case, windows: int) -> tuple[int, int]:
    """Return the side of a window in pixels, and the exact number of windows along each side."""
    patches = math.ceil(case.side / windows)
    return PATCH * patches, math.ceil(case.side / patches)


def _occlusion(bench: Bench, windows: int) -> None:
    """Run Occlusion; a pass costs the same with fewer and larger windows."""
    pixels, count = _window(bench.case, windows)
    Occlusion(LogitsModel(bench.model)).attribute(
        bench.pixels,
        sliding_window_shapes=(3, pixels, pixels),
        strides=(3, pixels, pixels),
        target=TARGET,
        perturbations_per_eval=min(bench.case.at_once(bench.device), count**2),
    )


def no_room(case: Case, device: torch.device, limit_gb: float) -> str:
    """Return why the dense engine is not run, or an empty string."""
    need, free = case.dense_bytes / 1e9, _available_gb(device)
    if need > limit_gb:
        return f"not run: needs about {need:.0f} GB, the limit is {limit_gb:g} GB"
    if free is not None and need > free:
        return f"not run: needs about {need:.0f} GB, {free:.0f} GB are free"
    return ""


def _available_gb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    memory = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text() if memory.exists() else "")
    return int(match[1]) * 1024 / 1e9 if match else None
