from .hub import LoadedModel, bundled_folder, load_config, load_model, sample_image
from .image_view import View, seen_part, view_of
from .labels import find_class, label_of, probabilities
from .wrappers import LogitsModel, ZeroShotModel

__all__ = [
    "LoadedModel",
    "LogitsModel",
    "View",
    "ZeroShotModel",
    "bundled_folder",
    "find_class",
    "label_of",
    "load_config",
    "load_model",
    "probabilities",
    "sample_image",
    "seen_part",
    "view_of",
]
