from .base import Perturbation, Perturbed
from .memory import copies_at_once
from .pixels import Blur, DatasetMean, MeanColour, Noise, dataset_mean
from .registry import PERTURBATIONS, build_perturbation
from .tokens import AttentionMasking, TokenDropping

__all__ = [
    "AttentionMasking",
    "Blur",
    "DatasetMean",
    "MeanColour",
    "Noise",
    "PERTURBATIONS",
    "Perturbation",
    "Perturbed",
    "TokenDropping",
    "build_perturbation",
    "copies_at_once",
    "dataset_mean",
]
