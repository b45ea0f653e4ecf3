"""The methods as explanation functions of Quantus, the library of metrics for explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar.methods.registry import METHODS


def quantus_explain(
    model: ModelLike,
    inputs: Any,
    targets: Any = None,
    *,
    method: str = "gmar",
    device: Any = None,  # noqa: ARG001  # Quantus passes its own; the model's is taken
    **options: Any,
) -> NDArray[np.float32]:
    """Explain a batch in the form of Quantus' ``explain_func``.

    Quantus needs a model that returns a tensor: ``LogitsModel(model)``. It calls this function for
    changed inputs and for copies of the model with randomized weights, too.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: pixel values (B, channels, height, width).
        targets: the class of each image; ``None`` is the top class.
        method: a name in ``hf_gmar.methods.METHODS``.
        device: not used.
        **options: options of the method, in Quantus' ``explain_func_kwargs``.

    Returns:
        The relevance of each pixel, (B, 1, height, width): the value of its patch, of its cell, or
        its own, summed over the channels.

    Raises:
        OptionError: the method or an option does not exist.
        InputError, TargetError, UnsupportedModelError, ModelOutputError: as in ``attribute``.

    Example:
        >>> from hf_gmar import LogitsModel, load_model
        >>> model = LogitsModel(load_model("bundled").model)
        >>> images = np.zeros((2, 3, 96, 96), np.float32)
        >>> quantus_explain(model, images, np.array([6, 4]), method="attn-lrp").shape
        (2, 1, 96, 96)
    """
    explainer = METHODS.build(method, model, **options)
    vision_model = explainer.adapter.vision_model
    pixels = torch.as_tensor(inputs).to(vision_model.device, vision_model.dtype)
    classes = None if targets is None else torch.as_tensor(targets)
    attribution = explainer.attribute(pixels, classes)
    of_pixels = explainer.resolution == "pixel"
    attribution = attribution.sum(1, keepdim=True) if of_pixels else attribution[:, :1]
    result: NDArray[np.float32] = attribution.float().cpu().numpy()
    return result
