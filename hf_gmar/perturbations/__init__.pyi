from .base import BoundPerturbation, CopyPlan, Perturbation, PerturbationInput
from .memory import max_batch_size
from .pixels import Blur, DatasetMean, MeanColour, Noise, dataset_mean
from .registry import PERTURBATIONS, register_perturbation
from .tokens import AttentionMasking, TokenDropping

__all__ = [
    "PERTURBATIONS",
    "AttentionMasking",
    "Blur",
    "BoundPerturbation",
    "CopyPlan",
    "DatasetMean",
    "MeanColour",
    "Noise",
    "Perturbation",
    "PerturbationInput",
    "TokenDropping",
    "dataset_mean",
    "max_batch_size",
    "register_perturbation",
]
