"""The model and the image that are taken where none is named."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT_MODEL = "google/vit-base-patch16-224"
"""What the command line takes from the Hub when no model is named."""

BUNDLED = "bundled"
"""The name of the model that comes with the package."""


def bundled_folder() -> Path:
    """The folder of the bundled model."""
    return Path(str(files("hf_gmar") / "assets" / "model"))


def sample_image() -> Path:
    """The bundled sample: a synthetic scene with several objects."""
    return Path(str(files("hf_gmar") / "assets" / "scene.png"))
