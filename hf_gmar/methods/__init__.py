"""The methods, one file each. A new one is a file here and a line in ``METHODS``."""

from __future__ import annotations

from hf_gmar.methods.base import AttentionMethod
from hf_gmar.methods.gmar import GMAR

METHODS: dict[str, type[AttentionMethod]] = {
    "gmar": GMAR,
}
"""Methods by the name that the command line takes."""

__all__ = ["GMAR", "METHODS", "AttentionMethod"]
