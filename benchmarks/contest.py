"""Who is compared on what: cases, models with random weights, and the calls that are measured."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

# Captum's methods get several images at a time while their tokens stay below this number.
_TOKENS_AT_ONCE = {"cpu": 2_000, "cuda": 16_000}


@dataclass(frozen=True)
class Size:
    """How large a Vision Transformer is."""

    hidden: int
    layers: int
    heads: int
    mlp: int


SIZES = {"S": Size(384, 12, 6, 1536), "B": Size(768, 12, 12, 3072), "T": Size(32, 2, 2, 64)}


@dataclass(frozen=True)
class Case:
    """A model on images of one size.

    Example:
        >>> Case.parse("B224x8")
        Case(model='B', pixels=224, batch=8)
        >>> Case("S", 512).name, Case("S", 512).tokens
        ('S512', 1025)
    """

    model: str
    pixels: int
    batch: int = 1

    @classmethod
    def parse(cls, name: str) -> Case:
        """The case of that name: model, pixels, and the batch where it is not one image."""
        found = re.fullmatch(rf"([{''.join(SIZES)}])([1-9]\d*)(?:x([1-9]\d*))?", name)
        if found is None or int(found[2]) % PATCH:
            raise ValueError(
                f"a case is one of {', '.join(SIZES)}, pixels that {PATCH} divides, and maybe x "
                f"with a batch, such as S224x8; got {name!r}"
            )
        return cls(found[1], int(found[2]), int(found[3] or 1))

    @property
    def name(self) -> str:
        """Its short name."""
        return f"{self.model}{self.pixels}" + (f"x{self.batch}" if self.batch > 1 else "")

    @property
    def side(self) -> int:
        """Patches along each side."""
        return self.pixels // PATCH

    @property
    def tokens(self) -> int:
        """Tokens of each image, CLS among them."""
        return self.side**2 + 1

    @property
    def dense_bytes(self) -> float:
        """About what the dense engine needs: all maps and their gradients, and half as much."""
        size = SIZES[self.model]
        return 1.5 * 2 * size.layers * size.heads * self.tokens**2 * 4 * self.batch

    def at_once(self, device: torch.device) -> int:
        """Copies of the images that Captum's methods get in one pass."""
        tokens = _TOKENS_AT_ONCE.get(device.type, _TOKENS_AT_ONCE["cpu"])
        return min(STEPS, max(1, tokens // (self.tokens * self.batch)))


@dataclass(frozen=True)
class Bench:
    """A case, ready to run."""

    case: Case
    device: torch.device
    model: ViTForImageClassification
    pixels: Tensor

    @classmethod
    def build(cls, case: Case, device: torch.device) -> Bench:
        """The model with random weights, made for images of this size, and random images."""
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
        model = ViTForImageClassification(config).eval().to(device)
        pixels = torch.randn(case.batch, 3, case.pixels, case.pixels).to(device)
        return cls(case, device, model, pixels)

    def runs(self) -> dict[str, Run]:
        """What is repeated."""
        return {
            FORWARD: functools.partial(_forward, self),
            BACKWARD: functools.partial(_backward, self),
            STREAMING: self._gmar(GMAR(self.model)),
            CHECKPOINT: self._gmar(GMAR(self.model, checkpoint=True)),
            DENSE: self._gmar(GMAR(self.model, engine="dense")),
        }

    def target_runs(self) -> dict[str, Run]:
        """Ways to explain several targets of one image; none where the case has no such row."""
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
        """What takes many passes and is timed once."""
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
    """A method that is many passes of equal cost, so that a part of it tells the whole.

    Attributes:
        run: runs it in a given amount.
        passes: how many passes of each image an amount is.
        whole: the amount that makes an explanation.
        few: an amount that tells the whole.
        backward: whether each pass has a backward.
    """

    run: Callable[[int], object]
    passes: Callable[[int], int]
    whole: int
    few: int
    backward: bool


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no weight takes a gradient, so that none is kept room for."""
    free = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in free:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in free:
            weight.requires_grad_(True)


@torch.no_grad()
def _forward(bench: Bench) -> None:
    bench.model(bench.pixels)


def _backward(bench: Bench) -> None:
    """What a gradient by the pixels costs at least: no weight takes part in it."""
    with frozen(bench.model):
        pixels = bench.pixels.clone().requires_grad_()
        logits = bench.model(pixels).logits
        torch.autograd.grad(logits[:, TARGET].sum(), pixels)


def _integrated_gradients(bench: Bench, steps: int) -> None:
    images = bench.case.batch * bench.case.at_once(bench.device)
    with frozen(bench.model):  # to its advantage
        IntegratedGradients(LogitsModel(bench.model)).attribute(
            bench.pixels, target=TARGET, n_steps=steps, internal_batch_size=images
        )


def _window(case: Case, windows: int) -> tuple[int, int]:
    """Pixels of each side of a window, if there are about so many along each side; and how many."""
    patches = math.ceil(case.side / windows)
    return PATCH * patches, math.ceil(case.side / patches)


def _occlusion(bench: Bench, windows: int) -> None:
    """With fewer and larger windows each pass costs the same."""
    pixels, count = _window(bench.case, windows)
    Occlusion(LogitsModel(bench.model)).attribute(
        bench.pixels,
        sliding_window_shapes=(3, pixels, pixels),
        strides=(3, pixels, pixels),
        target=TARGET,
        perturbations_per_eval=min(bench.case.at_once(bench.device), count**2),
    )


def no_room(case: Case, device: torch.device, limit_gb: float) -> str:
    """Why the dense engine is not tried, or nothing."""
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
    found = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text() if memory.exists() else "")
    return int(found[1]) * 1024 / 1e9 if found else None
