"""How far two results may be apart: every tolerance that several tests share.

A limit is at least five times the largest error seen with ``ATEN_CPU_CAPABILITY`` unset, ``avx2``
and ``default``, with one and with two threads. What is claimed sharply is claimed in float64.
Equal to the last bit are only a copy, and the same computation done twice: the same code on the
same shapes. Another size of batch, another engine, a frozen weight may take another kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Limit(NamedTuple):
    """A tolerance for each precision, as a share of the largest value."""

    float32: float
    float64: float

    def of(self, dtype: torch.dtype) -> float:
        """The limit of a result of that precision."""
        return self.float64 if dtype == torch.float64 else self.float32


PARITY = Limit(2e-4, 1e-12)
"""The package beside the oracle, on tiny models."""

SAME = Limit(5e-5, 1e-12)
"""One result by two ways of the package."""

PATIENCE = 1800.0
"""Seconds after which a thread or a process counts as stuck: no machine is that slow."""
