"""Errors of the Hub and of Transformers, reworded: the model, the cause and a remedy."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own client
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.hub import has_file

from hf_gmar._core.families import ZERO_SHOT_CLASSES, model_type
from hf_gmar._utils.files import expanded, kind_of
from hf_gmar._utils.validation import shown
from hf_gmar.errors import HfGmarError, HubUnreachableError, ModelLoadError, OptionError

# Kinds of models that can be loaded.
CLASSIFIER = "an image classifier"
IMAGE_TEXT_MODEL = "a model of image and text"
MODEL = "a model of Transformers"


@dataclass(frozen=True)
class Source:
    """A model's name, access to its files, and its expected kind.

    Attributes:
        name: the user's name of the model.
        place: a folder, or a name on the Hub.
        kind: the kind of model to load.
        revision: a branch, tag or commit.
        token: access token of the Hub.
        cache_dir: folder of downloads.
        trusted: whether Python code in the repository may run.
        commit: the commit of the revision, if known.
        base: the base model of a PEFT adapter.
    """

    name: str
    place: str
    kind: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    trusted: bool = False
    commit: str | None = None
    base: Source | None = None

    @property
    def is_local(self) -> bool:
        """Whether the place is a folder."""
        return kind_of(self.place) == "folder"

    @property
    def access(self) -> dict[str, Any]:
        """Keywords for every download."""
        cache = None if self.cache_dir is None else str(expanded(self.cache_dir))
        return {"revision": self.commit or self.revision, "token": self.token, "cache_dir": cache}

    def of_kind(self, kind: str) -> Source:
        """Return the source, and that of its base model, with another kind of model to load."""
        base = None if self.base is None else self.base.of_kind(kind)
        return replace(self, kind=kind, base=base)

    def has(self, *names: str) -> bool:
        """Whether one of these files exists."""
        try:
            return any(has_file(self.place, name, **self.access) for name in names)
        except (OSError, httpx.HTTPError):
            return False


def config_error(source: Source, error: Exception) -> HfGmarError:
    """Explain why the config could not be read."""
    if known := _known_error(source, error):
        return known
    if not source.has("config.json"):
        inner = _models_inside(source)
        way = (
            f"it holds {', '.join(inner[-3:])}: name one, such as {source.name.rstrip('/')}/"
            f"{inner[-1]}"
            if inner
            else "name a folder made by save_pretrained, or another model on the Hub"
        )
        return ModelLoadError(
            f"{source.name!r} has no config.json, so it is no model of Transformers; {way}"
            f"{_or_retry(source)}"
        )
    if "Should have a `model_type` key" in str(error):
        return ModelLoadError(
            f"the config.json of {source.name!r} has no model_type, so it is not known what kind "
            "of model it is; save the model with save_pretrained"
        )
    return _other_error(source, error)


def _models_inside(source: Source) -> list[str]:
    """Return the subfolders of a folder that hold models, checkpoints in the order of training."""
    if not source.is_local:
        return []
    configs = ("config.json", "adapter_config.json")
    folders = {
        file.parent.name for name in configs for file in Path(source.place).glob(f"*/{name}")
    }
    return sorted(folders, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [0])


def model_load_error(
    source: Source, error: Exception, attn_implementation: str | None, use_safetensors: bool
) -> HfGmarError:
    """Explain why the model could not be loaded with these options."""
    if known := _known_error(source, error):
        return known
    pattern = "attn_implementation|attention implementation|flash ?attention"
    if attn_implementation is not None and re.search(pattern, str(error), re.IGNORECASE):
        return OptionError(
            f"attn_implementation={attn_implementation!r} can't be used here: {_reason(error)}"
        )
    return _weights_error(source, error, use_safetensors) or _other_error(source, error)


def processor_error(source: Source, error: Exception) -> HfGmarError:
    """Explain why the image processor could not be loaded."""
    if known := _known_error(source, error):
        return known
    if source.has(*PROCESSORS):
        return _other_error(source, error)
    return ModelLoadError(
        f"{source.name!r} has no image processor (preprocessor_config.json), which makes pixel "
        "values of an image; name a folder or a model on the Hub with the one that it was trained "
        f"with: processor=..., on the command line --processor {_processor_near(source)}"
        f"{_or_retry(source)}"
    )


def _processor_near(source: Source) -> str:
    """Return the folder of the run that a checkpoint belongs to, if it has a processor."""
    parent = Path(source.place).resolve().parent
    has_one = source.is_local and any((parent / name).is_file() for name in PROCESSORS)
    return f"{parent}" if has_one else "ID_OR_FOLDER"


def tokenizer_error(source: Source, error: Exception) -> HfGmarError:
    """Explain why the tokenizer could not be loaded."""
    if known := _known_error(source, error):
        return known
    if not source.has(*VOCABULARIES):
        return no_tokenizer(source)
    return ModelLoadError(f"the tokenizer of {source.name!r} can't be loaded: {_reason(error)}")


def prompts_error(source: Source, error: Exception) -> HfGmarError:
    """Explain why the loaded tokenizer and model can't encode the prompts."""
    return ModelLoadError(
        f"the prompts can't be read with the tokenizer and the model of {source.name!r}: "
        f"{_reason(error)}"
    )


def no_tokenizer(source: Source) -> HfGmarError:
    """Report a missing or empty tokenizer."""
    return ModelLoadError(
        f"{source.name!r} has no tokenizer (such as tokenizer.json), which prompts are read with; "
        "save the one that it was trained with beside it, with save_pretrained"
        f"{_or_retry(source)}"
    )


def check_config(source: Source, config: PreTrainedConfig) -> None:
    """Raise a ModelLoadError if a config names the model's class in another form."""
    names = config.architectures
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ModelLoadError(
            f"the config.json of {source.name!r} has the architectures {shown(names)}; needed is a "
            "list with the name of the model's class: correct it, or get the file anew"
        )


def check_prompts(source: Source, config: PreTrainedConfig) -> None:
    """Check before loading weights that image-text models, and only they, have prompts.

    Raises:
        OptionError: superfluous or missing prompts. If the config names no class, or a class in
            repository code, the error comes when the weights are loaded.
    """
    name = next(iter(config.architectures or ()), None)
    has_code = source.trusted and bool(getattr(config, "auto_map", None))
    if source.kind == IMAGE_TEXT_MODEL and name not in (None, *ZERO_SHOT_CLASSES) and not has_code:
        raise OptionError(
            f"prompts need a model of image and text, one of {', '.join(ZERO_SHOT_CLASSES)}; "
            f"{source.name!r} is of the class {name}: name another model, or leave the prompts out "
            "(prompts=, on the command line --prompts)"
        )
    if source.kind == CLASSIFIER and name in ZERO_SHOT_CLASSES:
        raise _no_prompts(source)


def check_complete(
    source: Source,
    config: PreTrainedConfig,
    missing: Iterable[str],
    misfits: Mapping[str, Sequence[Sequence[int]]],
) -> None:
    """Check that all weights are there: Transformers would initialise others randomly.

    Raises:
        ModelLoadError: weights are missing, or have other shapes than the config says; or a
            classifier has no classes, and its scores would be features.
        OptionError: weights are missing because the model needs prompts.
    """
    if source.kind == CLASSIFIER and (config.num_labels or 0) < 1:
        raise ModelLoadError(
            f"the config.json of {source.name!r} has no classes (id2label, num_labels), so the "
            "model has no class head; give it the config.json that it was trained with"
        )
    if misfits:
        raise misfit_error(source.name, misfits)
    if names := sorted(missing):
        if source.kind == CLASSIFIER and takes_prompts(config):
            raise _no_prompts(source)
        raise incomplete_error(source.name, names, source.kind)


def misfit_error(name: str, misfits: Mapping[str, Sequence[Sequence[int]]]) -> ModelLoadError:
    """Name the first weight whose shape, saved and needed, is another one."""
    weight, (saved, needed) = min(misfits.items())
    return ModelLoadError(
        f"the weights of {name!r} do not fit its config: {weight} has the shape {tuple(saved)}, "
        f"and the config makes it {tuple(needed)}; give the folder the config.json that the model "
        "was trained with (number of classes, sizes)"
    )


def unused_weights(name: str, weights: Sequence[str]) -> str:
    """Say that a model is another one than its weights were trained as."""
    return (
        f"the weights of {name!r} hold {', '.join(weights[:3])}{' ...' if weights[3:] else ''} "
        f"({len(weights)} in all), for which its config has no place: they are left out, and the "
        "model gives other scores than the trained one; give the folder the config.json that it "
        "was trained with (number of layers, biases)"
    )


def takes_prompts(config: PreTrainedConfig) -> bool:
    """Whether models of this type score images by text prompts."""
    names = MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return names.get(model_type(config)) in ZERO_SHOT_CLASSES


def incomplete_error(name: str, missing: Sequence[str], kind: str = CLASSIFIER) -> ModelLoadError:
    """List the missing weights in an error."""
    advice = (
        ". Questions without a class need no head: load_model(..., head=False) for SimilarTo "
        "or a method without gradients, on the command line --similar-to and --from-patch"
    )
    return ModelLoadError(
        f"the weights of {name!r} lack {', '.join(missing[:3])}{' ...' if missing[3:] else ''}; it "
        f"is no trained {kind.split(maxsplit=1)[1]}, so there is nothing to explain"
        f"{advice if kind == CLASSIFIER else ''}"
    )


def _no_prompts(source: Source) -> OptionError:
    return OptionError(
        f"{source.name!r} is a model of image and text, which scores images by text prompts; give "
        'some: prompts=["a photo of a dog", "a photo of a cat"], on the command line --prompts "a '
        'photo of a dog" "a photo of a cat"'
    )


_LOG_IN = "log in with 'hf auth login' or give a token (token=, on the command line --token)"
_ABSENT = (
    "there is no model {name!r}, neither as a local folder nor on the Hub, or it is private; check "
    f"the name, or {_LOG_IN} that may read it, or use --model bundled"
)
_REFUSED = (
    "the Hub refuses access to {name!r} ({reason}); check that the token is valid and may read it: "
    f"{_LOG_IN}"
)
_UNREACHED = (
    "the Hub can't be reached {how}, and {name!r}{at} is not in {cache}; connect and try again, or "
    "use --model bundled, or --model FOLDER with a local model"
)

# Messages by error class, HTTP status or words in the error; the first match of any cause is used.
_KNOWN: dict[type[BaseException] | int | str, str] = {
    GatedRepoError: "{name!r} is gated: its owner decides who may read it; ask for access on "
    f"{{endpoint}}/{{name}}, then {_LOG_IN}",
    RevisionNotFoundError: "{name!r} has no revision {revision!r}; give a branch, a tag or a "
    "commit that is listed on {endpoint}/{name}/tree/main",
    RepositoryNotFoundError: _ABSENT,
    HFValidationError: _ABSENT,
    LocalTokenNotFoundError: "token=True takes the token of the logged-in user, and no one is "
    "logged in; log in with 'hf auth login', or give the token itself",
    401: _REFUSED,
    403: _REFUSED,
    RevisionResolutionError: _UNREACHED,
    LocalEntryNotFoundError: _UNREACHED,
    httpx.HTTPError: _UNREACHED,
    ConnectionError: _UNREACHED,
    RecursionError: "a JSON file of {name!r} is nested too deeply to be read; get it anew from "
    "where the model comes from",
    "trust_remote_code=True": "{name!r} is a model with Python code of its own, which would be run "
    "here; read the code, and if you trust it, allow it with trust_remote_code=True (on the "
    "command line --trust-remote-code)",
    "does not recognize this architecture": "{name!r} is of the model type {model_type!r}, which "
    "Transformers {version} does not know; check its config.json, or update Transformers with 'pip "
    "install --upgrade transformers'",
    "automatic conversion of the weights": "the weights of {name!r} can't be converted to the "
    "names and shapes of Transformers {version}; they are damaged or of another model: save or "
    "download the model again",
    "Unrecognized configuration class": "{name!r} could not be loaded as {kind}: Transformers has "
    "none for its {config}; 'hf-gmar models' lists what can be explained",
}


def _known_error(source: Source, error: Exception) -> HfGmarError | None:
    causes = list(_causes(error))
    for pattern, text in _KNOWN.items():
        cause = next((cause for cause in causes if _matches(cause, pattern)), None)
        if cause is not None:
            kind = HubUnreachableError if text is _UNREACHED else ModelLoadError
            return kind(text.format(**_fields(source, cause)))
    return None


def _matches(cause: BaseException, pattern: type[BaseException] | int | str) -> bool:
    if isinstance(pattern, str):
        return pattern in str(cause)
    if isinstance(pattern, int):
        return isinstance(cause, HfHubHTTPError) and cause.response.status_code == pattern
    return isinstance(cause, pattern)


def _fields(source: Source, cause: BaseException) -> dict[str, str]:
    return {
        "name": source.name,
        "kind": source.kind,
        "at": "" if source.revision is None else f" at revision {source.revision!r}",
        "revision": source.revision or constants.DEFAULT_REVISION,
        "cache": f"the cache {source.cache_dir}" if source.cache_dir else "the local cache",
        "endpoint": constants.ENDPOINT,
        "how": "as HF_HUB_OFFLINE is set" if is_offline_mode() else f"at {constants.ENDPOINT}",
        "reason": _reason(cause),
        "model_type": _quoted(r"model type `(.*?)`", cause),
        "config": _quoted(r"class '[\w.]*?(\w+)'", cause),
        "version": transformers.__version__,
    }


def _quoted(pattern: str, cause: BaseException) -> str:
    """Return the name in Transformers' message."""
    match = re.search(pattern, str(cause))
    return match[1][:100] if match else "config"


def _weights_error(
    source: Source, error: Exception, use_safetensors: bool
) -> ModelLoadError | None:
    if type(error).__name__ == "SafetensorError":
        return ModelLoadError(
            f"the safetensors weights of {source.name!r} can't be read: {_reason(error)}; the file "
            "is damaged, incomplete, or a pointer of Git LFS (then run 'git lfs pull'): get it "
            "anew from where the model comes from"
        )
    is_unreadable = isinstance(error, OSError | EOFError | pickle.UnpicklingError)
    if not is_unreadable or source.has("model.safetensors", "model.safetensors.index.json"):
        return None
    if not source.has("pytorch_model.bin", "pytorch_model.bin.index.json"):
        return ModelLoadError(
            f"no weights of {source.name!r} are found, neither model.safetensors nor "
            f"pytorch_model.bin; save them with save_pretrained{_or_retry(source)}"
        )
    if not use_safetensors:
        return ModelLoadError(
            f"the pickled weights of {source.name!r} can't be read: damaged, or more than tensors "
            "and plain values, which could be code; have the model saved anew with save_pretrained"
        )
    return pickled_weights_error(source, "pytorch_model.bin")


def pickled_weights_error(source: Source, file: str) -> ModelLoadError:
    """Say how weights that are not safetensors can be read."""
    return ModelLoadError(
        f"{source.name!r} has only pickled weights ({file[:100]}), no safetensors; to read "
        "them all the same, without running code in them, give use_safetensors=False (on the "
        "command line --no-use-safetensors)"
    )


PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of image processors."""

# Vocabulary files of the tokenizers of image-text models.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
)


def _or_retry(source: Source) -> str:
    # Offline, Transformers does not tell absent files from files that are not in the cache.
    return "" if source.is_local else ", or, if a download was cut off, connect and try again"


def _other_error(source: Source, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"{source.name!r} could not be loaded as {source.kind}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, HfHubHTTPError):
        text = f"{error.response.status_code} {error.server_message or ''}"
    elif not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__}: {error}"  # the text may be a bare key
    return " ".join(text.split())[:300]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
