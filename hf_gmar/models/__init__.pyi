from .defaults import bundled_folder, sample_image
from .hub import LoadedModel, load_config, load_model
from .image_view import ImageView, measure_view, seen_part
from .labels import find_class, label_of
from .score_kind import ScoreKind
from .wrappers import LogitsModel, SimilarityModel, ZeroShotModel

__all__ = [
    "ImageView",
    "LoadedModel",
    "LogitsModel",
    "ScoreKind",
    "SimilarityModel",
    "ZeroShotModel",
    "bundled_folder",
    "find_class",
    "label_of",
    "load_config",
    "load_model",
    "measure_view",
    "sample_image",
    "seen_part",
]
