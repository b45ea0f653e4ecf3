"""The default model and image."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT_MODEL = "google/vit-base-patch16-224"
"""The default model of the command line, from the Hub."""

BUNDLED = "bundled"
"""The name of the model in the package."""


def bundled_folder() -> Path:
    """Return the folder of the bundled model."""
    return Path(str(files("hf_gmar") / "assets" / "model"))


def sample_image() -> Path:
    """Return the bundled sample image: a synthetic scene with several objects."""
    return Path(str(files("hf_gmar") / "assets" / "scene.png"))
