"""Loading models, and handing their logits to Captum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from hf_gmar.errors import HubUnreachableError, ModelLoadError, OptionError
from hf_gmar.subject import scores_of

DEFAULT_MODEL = "google/vit-base-patch16-224"
"""What the command line takes from the Hub when no model is named."""

BUNDLED = "bundled"
"""The name of the model that comes with the package."""


class LogitsModel(nn.Module):
    """A model whose output is the logits alone, as a tensor: what Captum's methods need.

    Args:
        model: a model whose output has ``logits``, or any callable that returns scores.
        **forward_kwargs: keyword arguments for every call, such as
            ``interpolate_pos_encoding=True``.

    Example:
        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> method = IntegratedGradients(LogitsModel(load_model("bundled").model))
        >>> method.attribute(torch.rand(1, 3, 96, 96), target=0, n_steps=2).shape
        torch.Size([1, 3, 96, 96])
    """

    def __init__(self, model: Callable[..., Any], **forward_kwargs: Any) -> None:
        """Wrap the model; it is shared, not copied, and its mode stays as it is."""
        super().__init__()
        self.model = model
        self.forward_kwargs = forward_kwargs
        self.training = bool(getattr(model, "training", False))

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, C) of pixel values (B, channels, height, width).

        Raises:
            ModelOutputError: the model returns no scores.
        """
        return scores_of(self.model(pixel_values, *args, **{**self.forward_kwargs, **kwargs}))


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its image processor.

    Attributes:
        name: as it was asked for.
        model: the model, in evaluation mode.
        processor: its image processor, on the Pillow backend.
    """

    name: str
    model: PreTrainedModel
    processor: BaseImageProcessor


def bundled_folder() -> Path:
    """The folder of the bundled model."""
    return Path(str(files("hf_gmar") / "assets" / "model"))


def sample_image() -> Path:
    """The bundled sample: a drawn scene with several objects."""
    return Path(str(files("hf_gmar") / "assets" / "scene.png"))


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is the accelerator, or the CPU if there is none.

    Raises:
        OptionError: no such device on this machine.
    """
    if name == "auto":
        # Unchecked, a build for CUDA names CUDA even on a machine without a GPU.
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # a device without values, such as meta, fails here
    # Builds without a backend answer with an AssertionError or NotImplementedError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"the device {name!r} can't be used here: {reason}") from error
    return device


def load_model(name: str | Path = BUNDLED, device: str = "cpu") -> LoadedModel:
    """Load a classifier and its image processor.

    Only safetensors weights are read and no code from a repository is run.

    Args:
        name: ``"bundled"``, a local folder, or a model on the Hub such as
            ``"google/vit-base-patch16-224"``.
        device: a torch device, or ``"auto"``.

    Raises:
        HubUnreachableError: the Hub does not answer and the model is not in the cache.
        ModelLoadError: there is no such model, or it is no complete image classifier.
        OptionError: there is no such device.

    Example:
        >>> load_model("bundled").model.config.problem_type
        'multi_label_classification'
    """
    where = pick_device(device)
    name = str(name)
    local = Path(name).expanduser()
    source = str(bundled_folder() if name == BUNDLED else local if local.is_dir() else name)
    _refuse_missing_folder(source)
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        # The same pixels, whether torchvision is installed or not.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _load_error(name, error) from error
    _refuse_incomplete(name, info)
    return LoadedModel(name, model.eval().to(where), processor)


def _refuse_missing_folder(source: str) -> None:
    looks_local = source.startswith((".", "/", "~", "\\")) or source.count("/") > 1
    if looks_local and not Path(source).is_dir():
        raise ModelLoadError(
            f"there is no model folder {source}; name a folder made by save_pretrained, a model on "
            f"the Hub as 'owner/name', or {BUNDLED!r}"
        )


def _refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    # Transformers fills what is missing with random numbers and only warns.
    absent = sorted(info.get("missing_keys", ()))
    if absent:
        raise ModelLoadError(
            f"the weights of {name} lack {', '.join(absent[:3])}{' ...' if absent[3:] else ''}; it "
            "is no trained image classifier, so there is nothing to explain"
        )


def _load_error(name: str, error: Exception) -> ModelLoadError:
    causes = list(_causes(error))
    if any(isinstance(cause, RepositoryNotFoundError | HFValidationError) for cause in causes):
        return ModelLoadError(
            f"there is no model {name!r}, neither as a local folder nor on the Hub (or it is "
            "private or gated: log in with 'hf auth login'); check the name, or use --model bundled"
        )
    if any(isinstance(cause, _UNREACHABLE) for cause in causes):
        return HubUnreachableError(
            f"the Hub can't be reached, and {name!r} is not in the local cache; connect and try "
            "again, or use --model bundled, or --model FOLDER with a local model"
        )
    reason = " ".join(str(error).split())
    return ModelLoadError(f"{name!r} could not be loaded as an image classifier: {reason[:300]}")


_UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
