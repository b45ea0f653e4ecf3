from .defaults import bundled_folder, sample_image
from .hub import LoadedModel, load_config, load_model
from .image_view import ImageView, measure_view, seen_part
from .labels import find_class, label_of, probabilities
from .wrappers import LogitsModel, ZeroShotModel

__all__ = [
    "ImageView",
    "LoadedModel",
    "LogitsModel",
    "ZeroShotModel",
    "bundled_folder",
    "find_class",
    "label_of",
    "load_config",
    "load_model",
    "measure_view",
    "probabilities",
    "sample_image",
    "seen_part",
]
