"""Interrupts explanations at random instants, and looks for what they leave behind.

python -m benchmarks.interrupts --tries 10000

Half of the interrupts come after a random time, as Ctrl-C does. The other half come at a random
call or return of a function, where most context managers are entered and left. After each
interrupt, while its traceback is still alive, the whole state is compared with the state before.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from captum.attr import Saliency
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    LeGrad,
    LogitsModel,
    ShapleyValues,
    TokenGradCAM,
    attribute_jointly,
    compare,
)
from hf_gmar._core import attention, threads
from hf_gmar.heads import scores_with_masked_heads
from hf_gmar.perturbations import TokenDropping

Explain = Callable[[Any, Tensor], Any]

WAYS: dict[str, Explain] = {
    "GMAR, streaming": lambda model, images: GMAR(model).attribute_patches(images, 1),
    "GMAR, checkpoint": lambda model, images: GMAR(model, checkpoint=True).attribute_patches(
        images, 1
    ),
    "GMAR, dense": lambda model, images: GMAR(model, engine="dense").attribute_patches(images, 1),
    "LeGrad": lambda model, images: LeGrad(model).attribute_patches(images, 1),
    "AttnLRP": lambda model, images: AttnLRP(model).attribute_patches(images, 1),
    "ShapleyValues": lambda model, images: ShapleyValues(model, samples=2).attribute_patches(
        images, 1
    ),
    "TokenGradCAM": lambda model, images: TokenGradCAM(model).attribute_patches(images, 1),
    "jointly": lambda model, images: attribute_jointly(
        [GMAR(model), AttentionRollout(model), TokenGradCAM(model)], images, 1
    ),
    "masked heads": lambda model, images: scores_with_masked_heads(
        model, images, torch.eye(2, dtype=torch.bool)
    ),
    "token dropping": lambda model, images: (
        TokenDropping().bind(model, images).scores(torch.eye(4).bool().reshape(4, 2, 2))
    ),
    "compare": lambda model, images: [
        *compare(
            model, images, ["gmar", Saliency(LogitsModel(model))], target=1, measure=False
        ).maps.values()
    ],
}
"""The explanations that are interrupted."""


@dataclass
class Outcome:
    """What the interrupts of one kind of explanation left behind.

    Attributes:
        tries: number of explanations.
        interrupted: number of explanations that ended with the interrupt.
        damaged: number of explanations that left something behind.
        damage: number of explanations that left each kind of thing behind.
        delays: seconds from each interrupt to its exception.
    """

    tries: int = 0
    interrupted: int = 0
    damaged: int = 0
    damage: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)


class _Wrapped(nn.Module):
    """A module around the model, which needs more hooks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.inner(pixels).logits
        return scores


def build_model(*, wrapped: bool) -> Any:
    """Build a model of two layers that trains, with some frozen weights, a gradient and a hook."""
    more: dict[str, Any] = {"num_labels": 3, "attn_implementation": "sdpa"}
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        **more,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config).train()
    model.vit.layers[0].eval()
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(number % 2 == 0)
    model.classifier.bias.grad = torch.ones(3)
    model.classifier.register_forward_hook(lambda *_: None)
    return _Wrapped(model) if wrapped else model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that an interrupted explanation could leave changed, by kind."""
    modules = list(model.modules())
    return {
        "evaluation mode": [module.training for module in modules],
        "hooks": [
            [list(value.items()) for name, value in vars(module).items() if name.endswith("_hooks")]
            for module in modules
        ],
        "attention implementation": [
            module.config._attn_implementation
            for module in modules
            if isinstance(module, PreTrainedModel)
        ],
        "attributes": [sorted(vars(module)) for module in modules],
        "weights": [(id(w), w._version, w.requires_grad, id(w.grad)) for w in model.parameters()],
        "mode stacks": [
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        ],
        "thread": [
            threads.explanation_depth(),
            threads.current_thread_id() == threading.get_ident(),
            *(vars(attention._HERE).get(name) or None for name in ("active", "change")),
        ],
        "locks": [lock for lock in list(threads._LOCKS.values()) if lock._is_owned()],
        "random state": [
            torch.get_rng_state().tolist(),
            random.getstate(),
            repr(np.random.get_state()),  # noqa: NPY002
        ],
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "profiler": [sys.getprofile(), sys.gettrace()],
    }


class _Strike:
    """Sends SIGINT once, after some time or at some call or return of a function."""

    def __init__(self) -> None:
        self.sent: float | None = None
        self.events = 0

    def _send(self, *_: Any) -> None:
        self.sent = time.perf_counter()
        signal.raise_signal(signal.SIGINT)

    def after(self, seconds: float) -> None:
        """Arm a timer."""
        signal.signal(signal.SIGALRM, self._send)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def at_event(self, number: int) -> None:
        """Count calls and returns, and send at one of them."""
        left = number

        def count(*_: Any) -> None:
            nonlocal left
            self.events += 1
            left -= 1
            if left == 0:
                sys.setprofile(None)
                self._send()

        sys.setprofile(count)

    @staticmethod
    def disarm() -> None:
        """Stop the timer and the count."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.setprofile(None)


def interrupt(explain: Explain, tries: int, rng: random.Random) -> Outcome:
    """Interrupt an explanation many times; a damaged model is replaced by a new one.

    Each interrupt strikes while the explanation runs: a try in which it came too late is repeated.
    """
    outcome = Outcome()
    images = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    models = [build_model(wrapped=wrapped) for wrapped in (False, True)]
    expected = [_numbers(explain(model, images)) for model in models]
    seconds, events = _length(explain, models[1], images)
    while outcome.tries < tries:
        which = outcome.tries // 2 % 2
        model, strike = models[which], _Strike()
        before = snapshot(model)
        wrong = None
        try:
            try:
                if outcome.tries % 2:
                    strike.at_event(rng.randrange(1, events))
                else:
                    strike.after(rng.uniform(0, seconds))
                explain(model, images)
            finally:
                strike.disarm()
        except KeyboardInterrupt:
            ended = time.perf_counter()
            after = snapshot(model)
        except BaseException as error:  # noqa: BLE001  # what replaces the interrupt is counted
            ended, wrong = time.perf_counter(), f"another exception: {type(error).__name__}"
            after = snapshot(model)
        else:
            continue
        outcome.tries += 1
        outcome.interrupted += wrong is None
        outcome.delays.append(ended - (strike.sent or ended))
        damage = {kind for kind, value in before.items() if after[kind] != value}
        damage |= {wrong} if wrong else set()
        if not damage:
            damage |= _next_explanation(explain, model, images, expected[which])
        outcome.damage.update(damage)
        outcome.damaged += bool(damage)
        if damage:
            models[which] = build_model(wrapped=bool(which))
            _recover(before)
    return outcome


def _next_explanation(explain: Explain, model: Any, images: Tensor, expected: Tensor) -> set[str]:
    try:
        same = torch.equal(_numbers(explain(model, images)), expected)
    except Exception as error:  # noqa: BLE001  # counted
        return {f"next explanation: {type(error).__name__}"}
    return set() if same else {"next explanation: other numbers"}


def _numbers(result: Any) -> Tensor:
    return torch.stack(result) if isinstance(result, list) else result


def _length(explain: Explain, model: Any, images: Tensor) -> tuple[float, int]:
    """Return the seconds of an explanation, and its number of calls and returns."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        explain(model, images)
        times.append(time.perf_counter() - start)
    strike = _Strike()
    strike.at_event(sys.maxsize)
    explain(model, images)
    strike.disarm()
    return median(times), strike.events


def _recover(before: dict[str, Any]) -> None:
    """Bring this thread back after damage."""
    gc.collect()  # what an abandoned generator undoes
    sys.setprofile(None)
    for number, handler in zip(
        (signal.SIGINT, signal.SIGTERM), before["signal handlers"], strict=True
    ):
        signal.signal(number, handler)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    torch.set_grad_enabled(True)
    vars(threads._STATE).clear()
    vars(attention._HERE).clear()


def main(
    tries: Annotated[int, typer.Option(min=1, help="How many interrupts in all.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the instants.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="One of the explanations.")] = None,
) -> None:
    """Print how many interrupts left something behind, and what."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    print("| explanation | interrupts | damaged | what was left | median delay | longest delay |")
    print("|---|---|---|---|---|---|")
    total = Outcome()
    names = list(only or WAYS)
    for place, name in enumerate(names):
        share = tries * (place + 1) // len(names) - tries * place // len(names)
        if not share:
            continue
        outcome = interrupt(WAYS[name], share, rng)
        print(_row(name, outcome), flush=True)
        total.tries += outcome.tries
        total.damaged += outcome.damaged
        total.damage.update(outcome.damage)
        total.delays += outcome.delays
    print(_row("all", total))
    raise typer.Exit(1 if total.damaged else 0)


def _row(name: str, outcome: Outcome) -> str:
    damage = ", ".join(f"{kind} ({count})" for kind, count in outcome.damage.most_common())
    delays = sorted(outcome.delays)
    return (
        f"| {name} | {outcome.tries} | {outcome.damaged} | {damage or 'nothing'} | "
        f"{1e3 * median(delays):.1f} ms | {1e3 * delays[-1]:.1f} ms |"
    )


if __name__ == "__main__":
    typer.run(main)
