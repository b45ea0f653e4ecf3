"""Loading models, their image processors and configs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, resolve_revision
from huggingface_hub.errors import RevisionResolutionError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from hf_gmar._core.attention import loading
from hf_gmar._core.threads import lock_models
from hf_gmar.errors import HfGmarError, ModelLoadError, OptionError
from hf_gmar.models.defaults import BUNDLED, bundled_folder
from hf_gmar.models.hub_errors import (
    CLASSIFIER,
    IMAGE_TEXT_MODEL,
    MODEL,
    Source,
    check_complete,
    check_prompts,
    config_error,
    network_error,
    no_tokenizer,
    processor_error,
    prompts_error,
    tokenizer_error,
)
from hf_gmar.models.wrappers import ZeroShotModel

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
"""What the parameters of a model can be loaded as; ``"auto"`` is as they were saved."""


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its image processor.

    Attributes:
        name: as the user gave it.
        model: the model in evaluation mode; with prompts, the classifier that is made of both.
        processor: its image processor, on the Pillow backend.
    """

    name: str
    model: PreTrainedModel | ZeroShotModel
    processor: BaseImageProcessor

    def pixels(self, image: Image.Image) -> Tensor:
        """Pixel values (1, channels, height, width) of an image, as the model takes them."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt").pixel_values
        return pixels.to(self.model.device, self.model.dtype)


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


def _pick_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return name if name == "auto" else getattr(torch, name)


def load_model(
    name: str | Path = BUNDLED,
    device: str = "cpu",
    *,
    prompts: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
) -> LoadedModel:
    """Load a classifier and its image processor.

    Unless asked for, only safetensors weights are read, and no code from the Hub is run: neither a
    repository's own nor an attention kernel that its config names.

    Args:
        name: ``"bundled"``, a local folder, or a model on the Hub such as
            ``"google/vit-base-patch16-224"``.
        device: a torch device, or ``"auto"``.
        prompts: for CLIP, MetaCLIP 2 and SigLIP, one text for each class as the model reads it,
            such as ``"a photo of a dog"``; the model is a
            :class:`~hf_gmar.models.wrappers.ZeroShotModel` then.
        revision: a branch, tag or commit of the model on the Hub.
        token: for private and gated models; ``None`` and ``True`` take that of the logged-in user,
            ``False`` sends none.
        cache_dir: where downloads are kept, instead of in the cache of the Hub's client.
        dtype: one of ``DTYPES``, by name or as a torch dtype. Weights saved in half precision are
            widened unless you name another dtype: the explanation rests on gradients.
        attn_implementation: ``"sdpa"``, ``"eager"`` or another of Transformers; ``None`` leaves the
            choice to Transformers, whatever the model's config says.
        trust_remote_code: run the Python code in the repository, where it has a model of its own.
        use_safetensors: ``False`` reads ``pytorch_model.bin`` where there are no safetensors
            weights, and of it only tensors and plain values.

    Raises:
        HubUnreachableError: the Hub does not answer and the model is not in the cache.
        ModelLoadError: there is no such model, it may not be read, it is no image classifier (with
            prompts: no model of image and text), or its weights, image processor or tokenizer are
            missing or damaged.
        OptionError: there is no such device, dtype or attention, the attention can't be used here,
            the token can't be one, a revision is given for a local folder, prompts are given for a
            model that takes none or not given for one that needs them, or a prompt is empty, too
            long or of words that the model does not have.
        UnsupportedModelError: prompts are given for code of a repository that takes none.

    Example:
        >>> load_model("bundled").model.config.problem_type
        'multi_label_classification'
        >>> load_model("bundled", dtype="bfloat16", attn_implementation="eager").model.dtype
        torch.bfloat16
    """
    target_device = pick_device(device)
    # Left unsaid, the config would choose the attention: perhaps a kernel on the Hub, whose code
    # would be fetched and run.
    attention = {**dict.fromkeys(loading("eager")), **loading(attn_implementation)}
    settings = {"dtype": _pick_dtype(dtype), **attention}
    kind = CLASSIFIER if prompts is None else IMAGE_TEXT_MODEL
    source = _source(name, kind, revision, token, cache_dir, trust_remote_code)
    config = _read_config(source)
    check_prompts(source, config)
    network = _load_network(source, config, settings, attn_implementation, use_safetensors).eval()
    model = network if prompts is None else _with_prompts(source, network, prompts)
    return LoadedModel(source.name, model.to(target_device), _load_processor(source))


def load_config(
    name: str | Path = BUNDLED,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """Load a model's config alone: of a model on the Hub, nothing but its config.json.

    Args:
        name: see :func:`load_model`, as for all others.
        revision: a branch, tag or commit.
        token: for private and gated models.
        cache_dir: where downloads are kept.
        trust_remote_code: run the Python code in the repository, where it has a config of its own.

    Raises:
        HubUnreachableError: the Hub does not answer and the config is not in the cache.
        ModelLoadError: there is no such model or config, it may not be read, or its model type is
            not known to the installed Transformers.
        OptionError: the token can't be one, or a revision is given for a local folder.

    Example:
        >>> load_config("bundled").architectures
        ['ViTForImageClassification']
    """
    return _read_config(_source(name, MODEL, revision, token, cache_dir, trust_remote_code))


def _source(
    model: str | Path,
    kind: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    trusted: bool,
) -> Source:
    """Check where a model is to come from."""
    name = str(model)
    folder = bundled_folder() if name == BUNDLED else Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    looks_local = place.startswith((".", "/", "~", "\\")) or place.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ModelLoadError(
            f"there is no model folder {place}; name a folder made by save_pretrained, a model on "
            f"the Hub as 'owner/name', or {BUNDLED!r}"
        )
    if revision is not None and folder.is_dir():
        raise OptionError(
            f"the revision {revision!r} is given, but {name!r} is a local folder, which has no "
            "revisions; leave it out, or name a model on the Hub"
        )
    # An error of the Hub's client would show the token, and so may end up in a log.
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise OptionError(
            "the token is empty or has characters that no token has, such as a line break; "
            f"give one of {constants.ENDPOINT}/settings/tokens, or leave it out"
        )
    return _pinned(Source(name, place, kind, revision, token, cache_dir, trusted))


def _pinned(source: Source) -> Source:
    """Look the commit of the revision up once.

    Else each file would ask the Hub anew and, if the Hub does not answer, wait until the client
    gives up.
    """
    if source.is_local:
        return source
    try:
        return replace(source, commit=resolve_revision(source.place, **source.access))
    except RevisionResolutionError as error:
        raise config_error(source, error) from error
    except Exception:  # noqa: BLE001  # Transformers may know a way around it
        return source


# What is raised depends on what is in a model's files, which may be code: any Exception is theirs.
def _read_config(source: Source) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            _config_place(source), trust_remote_code=source.trusted, **source.access
        )
    except Exception as error:
        raise config_error(source, error) from error
    return config


def _config_place(source: Source) -> str:
    """Where the config is: an adapter (PEFT) has that of its base model."""
    if not is_peft_available() or (Path(source.place) / "config.json").is_file():
        return source.place
    file = find_adapter_config_file(source.place, **source.access)
    if file is None:
        return source.place
    return str(json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"])


def _load_network(
    source: Source,
    config: PreTrainedConfig,
    settings: dict[str, Any],
    attn_implementation: str | None,
    use_safetensors: bool,
) -> PreTrainedModel:
    classifier = source.kind == CLASSIFIER
    loader: Any = (
        AutoModelForImageClassification if classifier else AutoModelForZeroShotImageClassification
    )
    try:
        with _no_conversion():
            model: PreTrainedModel
            model, info = loader.from_pretrained(
                source.place,
                config=config,
                use_safetensors=True if use_safetensors else None,
                weights_only=True,
                trust_remote_code=source.trusted,
                output_loading_info=True,
                **source.access,
                **settings,
            )
    except Exception as error:
        raise network_error(source, error, attn_implementation, use_safetensors) from error
    check_complete(source, config, info.get("missing_keys", ()))
    return model


@contextmanager
def _no_conversion() -> Iterator[None]:
    """Keep Transformers from having weights converted to safetensors.

    It would send the model's name and the token to a service, which opens a pull request with
    converted weights, and load those.
    """
    switch = "DISABLE_SAFETENSORS_CONVERSION"
    with lock_models([os.environ]):
        before = os.environ.get(switch)
        os.environ[switch] = "1"
        try:
            yield
        finally:
            del os.environ[switch]
            os.environ.update({} if before is None else {switch: before})


def _with_prompts(
    source: Source, network: PreTrainedModel, prompts: Sequence[str]
) -> ZeroShotModel:
    tokenizer = _load_tokenizer(source)
    try:
        return ZeroShotModel(network, tokenizer, prompts)
    except HfGmarError:
        raise
    except Exception as error:
        raise prompts_error(source, error) from error


def _load_tokenizer(source: Source) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source.place, trust_remote_code=source.trusted, **source.access
        )
    except Exception as error:
        raise tokenizer_error(source, error) from error
    # Without any files some are made all the same, and read every text as unknown.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise no_tokenizer(source)
    return tokenizer


def _load_processor(source: Source) -> BaseImageProcessor:
    try:
        # The same pixels, whether torchvision is installed or not.
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            source.place, backend="pil", trust_remote_code=source.trusted, **source.access
        )
    except Exception as error:
        raise processor_error(source, error) from error
    return processor
