from .base import CopyPlan, Perturbation, PerturbationInput, Perturbed
from .memory import max_batch_size
from .pixels import Blur, DatasetMean, MeanColour, Noise, dataset_mean
from .registry import PERTURBATIONS, register_perturbation
from .tokens import AttentionMasking, TokenDropping

__all__ = [
    "AttentionMasking",
    "Blur",
    "CopyPlan",
    "DatasetMean",
    "MeanColour",
    "Noise",
    "PERTURBATIONS",
    "Perturbation",
    "PerturbationInput",
    "Perturbed",
    "TokenDropping",
    "dataset_mean",
    "max_batch_size",
    "register_perturbation",
]
