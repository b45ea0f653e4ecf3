"""Load models, their image processors and configs."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, resolve_revision
from huggingface_hub.errors import RevisionResolutionError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from hf_gmar._core.attention import loading
from hf_gmar._core.threads import lock_models, undoing
from hf_gmar._utils.files import expanded, kind_of
from hf_gmar._utils.html import html_facts
from hf_gmar._utils.text import brief
from hf_gmar._utils.validation import shown
from hf_gmar.errors import HfGmarError, ModelLoadError, OptionError, shortened
from hf_gmar.models.adapters import adapter_config, adapter_weights, attach, classes_of
from hf_gmar.models.defaults import BUNDLED, bundled_folder
from hf_gmar.models.hub_errors import (
    CLASSIFIER,
    IMAGE_TEXT_MODEL,
    MODEL,
    PROCESSORS,
    VOCABULARIES,
    Source,
    check_complete,
    check_config,
    check_prompts,
    config_error,
    model_load_error,
    no_tokenizer,
    pickled_weights_error,
    processor_error,
    prompts_error,
    tokenizer_error,
    unused_weights,
)
from hf_gmar.models.input_size import Size, interpolation, parse_size, with_size
from hf_gmar.models.labels import config_of, labels_of
from hf_gmar.models.loaders import LOADERS, check_medium, loads_head, without_untrained_pooler
from hf_gmar.models.pixel_values import ImageLike, channels_of, pixel_values
from hf_gmar.models.size_limits import check_nesting, check_sizes, limited_sizes
from hf_gmar.models.wrappers import ZeroShotModel

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
"""Dtypes for a model's parameters; ``"auto"`` is the saved dtype."""


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A classifier with its image processor.

    Attributes:
        name: the user's name of the model.
        model: a model of Transformers, a zero-shot classifier, or a module around a model.
        processor: the model's image processor, on the Pillow backend.
        forward_kwargs: keywords for every call of the model.
    """

    name: str
    model: Any
    processor: BaseImageProcessor
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name the model, its class, and its dtype and device."""
        facts = self.facts()
        names = ("model class", "dtype and device")
        details = (brief(facts[name]) for name in names if facts[name])
        return f"LoadedModel({', '.join([repr(brief(self.name)), *details])})"

    def _repr_html_(self) -> str:
        """Show the facts of the model in a notebook."""
        return html_facts(self.facts(), "LoadedModel")

    def facts(self) -> dict[str, str]:
        """Return names and values: name, classes, number of parameters, dtype and so on."""
        weights = list(self.model.parameters())
        types = dict.fromkeys(
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}" for weight in weights
        )
        configured = any(hasattr(part, "config") for part in self.model.modules())
        classes = str(len(labels_of(self.config)) if configured else 0)
        if isinstance(self.model, PreTrainedModel) and type(self.model).__name__.endswith("Model"):
            classes = "none: no class head"
        return {
            "model": self.name,
            "model class": type(self.model).__name__,
            "classes": "not named" if classes == "0" else classes,
            "parameters": f"{sum(weight.numel() for weight in weights):,}",
            "dtype and device": "; ".join(types),
            "image processor": type(self.processor).__name__,
        }

    @property
    def config(self) -> PreTrainedConfig:
        """The model's outermost config, which names the classes."""
        return config_of(self.model)

    @property
    def channels(self) -> int:
        """The number of channels that the model takes."""
        return channels_of(self.model)

    def pixels(self, image: ImageLike) -> Tensor:
        """Return an image's pixel values (1, channels, height, width), ready for the model.

        Raises:
            InputError: the image or the processor does not fit the model's channels.
        """
        pixels = pixel_values(self.processor, image, self.channels)
        weights = [weight for weight in self.model.parameters() if weight.is_floating_point()]
        return pixels.to(weights[0].device, weights[0].dtype) if weights else pixels


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is the accelerator, or else the CPU.

    Raises:
        OptionError: there is no such device on this machine.
    """
    if name == "auto":
        # Without the check, a CUDA build returns CUDA even on a machine without a GPU.
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # fails for devices without data, such as meta
    # Builds without a backend raise AssertionError or NotImplementedError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shortened(str(error).splitlines()[0])
        raise OptionError(
            f"the device {name!r} can't be used here: {reason}; name another one, such as 'cpu', "
            "or 'auto'"
        ) from error
    return device


def _pick_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return name if name == "auto" else getattr(torch, name)


def load_model(  # noqa: PLR0913  # a keyword each
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
    processor: str | Path | None = None,
    size: Size | None = None,
    interpolate_pos_encoding: bool = False,
    head: bool | None = True,
) -> LoadedModel:
    """Load a classifier, or a backbone without a class head, and its image processor.

    By default, only safetensors weights are read, and no code from the Hub is run: neither code of
    the repository nor an attention kernel that its config names.

    Args:
        name: ``"bundled"``, a local folder, or a model on the Hub such as
            ``"google/vit-base-patch16-224"``. A PEFT adapter is loaded with its base model and its
            own class head.
        device: a torch device, or ``"auto"``.
        prompts: for CLIP, MetaCLIP 2 and SigLIP, the full text for each class, such as
            ``"a photo of a dog"``; they give a :class:`~hf_gmar.models.wrappers.ZeroShotModel`.
        revision: a branch, tag or commit of the model on the Hub.
        token: access token for private and gated models; ``None`` and ``True`` take the logged-in
            user's token, ``False`` sends no token.
        cache_dir: folder of downloads, instead of the cache of the Hub's client.
        dtype: one of ``DTYPES``, by name or as a torch dtype. The default widens weights saved in
            half precision, as explanations need precise gradients.
        attn_implementation: ``"sdpa"``, ``"eager"`` or another of Transformers' implementations;
            ``None`` is Transformers' choice, regardless of the model's config.
        trust_remote_code: run the repository's Python code, if it defines the model.
        use_safetensors: ``False`` allows ``pytorch_model.bin`` if there are no safetensors weights;
            only tensors and plain values are read from it.
        processor: a folder or a model on the Hub whose image processor is used, for a model that
            was saved without one; by default its own, else that of an adapter's base model.
        size: height and width that the processor gives, instead of its own: a number, a pair, or
            text such as ``"224x448"``.
        interpolate_pos_encoding: put this keyword into ``forward_kwargs``, with which the commands,
            ``evaluate`` and ``Explainer`` call the model.
        head: ``False`` loads the backbone alone, or the whole model of image and text without
            prompts, for questions without a class. ``None`` loads a class head if the checkpoint's
            config names one, and else the backbone.

    Raises:
        HubUnreachableError: the Hub does not answer and the model is not in the cache.
        ModelLoadError: the model does not exist, access is refused, it is no image classifier (with
            prompts: no image-text model), or its weights, image processor or tokenizer are missing
            or damaged.
        OptionError: an unknown or unusable device, dtype or attention implementation, an invalid
            token, a revision for a local folder, missing or superfluous prompts, or a prompt that
            is empty, too long or outside the vocabulary, or prompts without a head.
        UnsupportedModelError: prompts for a model in repository code that takes none.

    Example:
        >>> load_model("bundled").model.config.problem_type
        'multi_label_classification'
        >>> load_model("bundled", dtype="bfloat16", attn_implementation="eager").model.dtype
        torch.bfloat16
    """
    target_device = pick_device(device)
    if size is not None:
        parse_size(size)
    # Without a setting, the config would choose the attention: perhaps a kernel on the Hub, whose
    # code would be downloaded and run.
    attention = {**dict.fromkeys(loading("eager")), **loading(attn_implementation)}
    settings = {"dtype": _pick_dtype(dtype), **attention}
    kind = CLASSIFIER if prompts is None else IMAGE_TEXT_MODEL
    if prompts is not None and head is not True:
        raise OptionError("prompts are the classes of a model, and head=False loads it without any")
    source = _source(name, kind, revision, token, cache_dir, trust_remote_code)
    config = _read_config(source)
    if prompts is None and not loads_head(config, head):
        source = source.of_kind(MODEL)
    check_medium(source, config)
    check_prompts(source, config)
    weights = _Weights(source, settings, attn_implementation, use_safetensors)
    backbone = weights.load(config).eval()
    model = backbone if prompts is None else _with_prompts(source, backbone, prompts)
    own_processor = _load_processor(source, processor)
    return LoadedModel(
        source.name,
        model.to(target_device),
        own_processor if size is None else with_size(own_processor, size),
        interpolation(model, interpolate_pos_encoding),
    )


def load_config(
    name: str | Path = BUNDLED,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """Load only a model's config; from the Hub, only config.json is downloaded.

    Args:
        name: see :func:`load_model`, also for the other arguments.
        revision: a branch, tag or commit.
        token: access token for private and gated models.
        cache_dir: folder of downloads.
        trust_remote_code: run the repository's Python code, if it defines the config.

    Raises:
        HubUnreachableError: the Hub does not answer and the config is not in the cache.
        ModelLoadError: the model or its config does not exist, access is refused, or the installed
            Transformers does not know the model type.
        OptionError: an invalid token, or a revision for a local folder.

    Example:
        >>> load_config("bundled").architectures
        ['ViTForImageClassification']
    """
    return _read_config(_source(name, MODEL, revision, token, cache_dir, trust_remote_code))


def is_adapter(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> bool:
    """Return whether a folder or a model on the Hub is a PEFT adapter.

    Args:
        name: see :func:`load_model`, also for the other arguments.
        revision: a branch, tag or commit.
        token: access token for private and gated models.
        cache_dir: folder of downloads.

    Raises:
        HfGmarError: see :func:`load_config`.
    """
    return _source(name, MODEL, revision, token, cache_dir, False).base is not None


def _source(
    model: str | Path,
    kind: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    trusted: bool,
    adapters: frozenset[str] = frozenset(),
) -> Source:
    """Check a model's name, revision and token; ``adapters`` are those that have it as base."""
    name = str(model)
    if not name.strip():
        raise ModelLoadError(
            f"the name of the model is empty; name a folder, a model on the Hub, or {BUNDLED!r}"
        )
    folder = bundled_folder() if name == BUNDLED else expanded(name)
    is_local = kind_of(folder) == "folder"
    place = str(folder) if is_local else name
    looks_local = place.startswith((".", "/", "~", "\\")) or place.count("/") > 1
    if looks_local and not is_local:
        raise ModelLoadError(
            f"there is no model folder {place}; name a folder made by save_pretrained, a model on "
            f"the Hub as 'owner/name', or {BUNDLED!r}"
        )
    if revision is not None and is_local:
        raise OptionError(
            f"the revision {revision!r} is given, but {name!r} is a local folder, which has no "
            "revisions; leave it out, or name a model on the Hub"
        )
    # An error of the Hub's client would show the token, perhaps in a log.
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise OptionError(
            "the token is empty or has characters that no token has, such as a line break; "
            f"give one of {constants.ENDPOINT}/settings/tokens, or leave it out"
        )
    source = Source(name, place, kind, revision, token, cache_dir, trusted)
    return _with_base(_pinned(source), adapters)


def _pinned(source: Source) -> Source:
    """Resolve the revision to a commit once.

    Otherwise each file would query the Hub again and, if the Hub does not answer, wait for the
    client's timeout.
    """
    if source.is_local:
        return source
    try:
        return replace(source, commit=resolve_revision(source.place, **source.access))
    except RevisionResolutionError as error:
        raise config_error(source, error) from error
    except Exception:  # noqa: BLE001  # Transformers may know a way around it
        return source


# A model's files may be code and raise any Exception.
def _read_config(source: Source) -> PreTrainedConfig:
    place = source if source.base is None or source.has("config.json") else source.base
    try:
        values, _ = PreTrainedConfig.get_config_dict(place.place, **place.access)
        check_sizes(values, source.name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place.place, trust_remote_code=place.trusted, **place.access
        )
    except HfGmarError:
        raise
    except Exception as error:
        raise config_error(source, error) from error
    check_config(source, config)
    return config


def _with_base(source: Source, adapters: frozenset[str]) -> Source:
    """Add the base model of a PEFT adapter."""
    place = os.path.realpath(source.place) if source.is_local else source.place
    if place in adapters:
        raise ModelLoadError(
            f"{source.name!r} is an adapter that is its own base model; write the name or folder "
            "of the model that it was trained on into adapter_config.json, as "
            "base_model_name_or_path"
        )
    try:
        config = adapter_config(source)
    except HfGmarError:
        raise
    except Exception as error:
        raise config_error(source, error) from error
    if config is None:
        return source
    name, beside = str(config["base_model_name_or_path"]), Path(source.place)
    has_config = kind_of(Path(name) / "config.json") == "file"
    if not has_config and kind_of(beside / name) == "folder":
        name = str(beside / name)
    revision = None if kind_of(name) == "folder" else config.get("revision")
    try:
        base = _source(
            name, source.kind, revision, source.token, source.cache_dir, source.trusted,
            adapters | {place},
        )  # fmt: skip
    except HfGmarError as error:
        raise type(error)(
            f"{source.name!r} is an adapter, and its adapter_config.json names a base model that "
            f"can't be used: {error}"
        ) from error
    return replace(source, base=base)


@dataclass(frozen=True)
class _Weights:
    """The weights of a model, or of an adapter and its base model."""

    source: Source
    settings: dict[str, Any]
    attn_implementation: str | None
    use_safetensors: bool

    def load(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Load a model, with its adapter if there is one; check that no weights are missing."""
        source = self.source
        place = source.base or source
        model, missing, misfits, unused = self._of(place, config)
        if source.base is not None:
            with self._reworded(source):
                weights = adapter_weights(source, self.use_safetensors)
                if classes := classes_of(weights, model):
                    config.num_labels = classes
                    model, missing, misfits, unused = self._of(place, config)
                model, replaced = attach(source, model, weights)
            missing -= replaced
            misfits = {name: shapes for name, shapes in misfits.items() if name not in replaced}
        check_complete(source, config, missing, misfits)
        if unused:
            warnings.warn(unused_weights(place.name, unused), stacklevel=3)
        return model

    def _of(
        self, place: Source, config: PreTrainedConfig
    ) -> tuple[PreTrainedModel, set[str], dict[str, Any], list[str]]:
        """Load a model without adapter.

        Returns:
            The model, the names of missing weights, those of other shapes, and the names of weights
            that its layers have no place for.
        """
        loader: Any = LOADERS[place.kind]
        with self._reworded(place):
            if self.use_safetensors:
                _check_files(place, config)
            model, info = _load(
                place,
                loader.from_pretrained,
                config=config,
                use_safetensors=True if self.use_safetensors else None,
                weights_only=True,
                trust_remote_code=place.trusted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_complete says which ones
                **place.access,
                **self.settings,
            )
        missing = without_untrained_pooler(place.kind, model, set(info.get("missing_keys", ())))
        misfits = {name: shapes for name, *shapes in info.get("mismatched_keys", ())}
        unused = [name for name in info.get("unexpected_keys", ()) if _is_in_layer(model, name)]
        return model, missing, misfits, sorted(unused)

    @contextmanager
    def _reworded(self, source: Source) -> Iterator[None]:
        try:
            with _panics_as_errors():
                yield
        except HfGmarError:
            raise
        except Exception as error:
            raise model_load_error(
                source, error, self.attn_implementation, self.use_safetensors
            ) from error


def _is_in_layer(model: nn.Module, weight: str) -> bool:
    """Whether a weight is of a layer of the model, or of one more than its config asks for.

    Others are of parts that the model does without, such as a pooler, a mask token or a text model.
    """
    path, _, name = weight.rpartition(".")
    modules = dict(model.named_modules())
    if path in modules:
        return name in ("weight", "bias")
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return isinstance(modules[path], nn.ModuleList)


def _check_files(source: Source, config: PreTrainedConfig) -> None:
    """Check that Transformers will read safetensors alone, inside the model's folder.

    Otherwise an index of safetensors weights, or the config, could name pickled weights.

    Raises:
        ModelLoadError: other files are named.
    """
    names = [getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_NAME]
    if names == [SAFE_WEIGHTS_NAME] and _file(source, SAFE_WEIGHTS_NAME) is None:
        names = [SAFE_WEIGHTS_INDEX_NAME]
    if names[0].endswith(".index.json") and (index := _file(source, names[0])) is not None:
        names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    for name in dict.fromkeys(names):
        if not name.endswith((".safetensors", ".index.json")):
            raise pickled_weights_error(source, name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelLoadError(
                f"{source.name!r} names weights outside of its folder, {shown(name)}, which are "
                "not read; put them into the folder"
            )
        _file(source, name)  # a download can be interrupted here, and not in Transformers


def _file(source: Source, name: str) -> str | None:
    """Return the path of a file of the model, downloaded if need be; ``None`` if there is none."""
    file: str | None = cached_file(
        source.place,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        **source.access,
    )
    return file


def _load(place: Source, load: Callable[..., Any], **settings: Any) -> Any:
    """Load a model that is no larger than its files, and don't request a conversion of them.

    Transformers would send the model's name and the token to a service that opens a pull request
    with weights as safetensors, and load these weights.
    """
    switch = "DISABLE_SAFETENSORS_CONVERSION"
    before: list[str | None] = []
    folder = Path(_file(place, "config.json") or place.place).parent

    def restore() -> None:
        for value in before:
            os.environ.pop(switch, None)
            os.environ.update({} if value is None else {switch: value})

    with (
        lock_models([os.environ]),
        undoing(restore),
        limited_sizes(folder, "config.json", place.name),
    ):
        before.append(os.environ.get(switch))
        os.environ[switch] = "1"
        return load(place.place, **settings)


def _with_prompts(
    source: Source, backbone: PreTrainedModel, prompts: Sequence[str]
) -> ZeroShotModel:
    tokenizer = _load_tokenizer(source)
    try:
        with _panics_as_errors():
            return ZeroShotModel(backbone, tokenizer, prompts)
    except HfGmarError:
        raise
    except Exception as error:
        raise prompts_error(source, error) from error


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raise a RuntimeError for a panic of a library in Rust, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


def load_tokenizer(name: str | Path) -> Any:
    """Load the tokenizer of an image-text model, for a ``ZeroShotModel`` with other prompts.

    Args:
        name: see :func:`load_model`.

    Raises:
        ModelLoadError: there is no such model, or it has no tokenizer.
    """
    return _load_tokenizer(_source(name, IMAGE_TEXT_MODEL, None, None, None, False))


def _load_tokenizer(source: Source) -> Any:
    if source.base is not None and not source.has(*VOCABULARIES):
        source = source.base
    try:
        with _panics_as_errors():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source.place, trust_remote_code=source.trusted, **source.access
            )
    except Exception as error:
        raise tokenizer_error(source, error) from error
    # Without files, Transformers makes an empty tokenizer that reads every text as unknown.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise no_tokenizer(source)
    return tokenizer


def load_processor(name: str | Path) -> BaseImageProcessor:
    """Load the image processor of a local folder or of a model on the Hub.

    Raises:
        HubUnreachableError: the Hub does not answer and the processor is not in the cache.
        ModelLoadError: there is no processor, or access is refused.

    Example:
        >>> load_processor("bundled").size["height"]
        96
    """
    return _load_processor(_source(name, MODEL, None, None, None, False), None)


def _load_processor(source: Source, place: str | Path | None) -> BaseImageProcessor:
    if place is not None:
        name = str(place)
        source = _source(name, source.kind, None, source.token, source.cache_dir, source.trusted)
    elif source.base is not None and not source.has(*PROCESSORS):
        source = source.base
    try:
        # The Pillow backend gives the same pixels with and without torchvision.
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            source.place, backend="pil", trust_remote_code=source.trusted, **source.access
        )
        check_nesting(vars(processor), PROCESSORS[0], source.name)
    except HfGmarError:
        raise
    except Exception as error:
        raise processor_error(source, error) from error
    return processor
