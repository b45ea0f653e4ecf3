"""Which models can be explained and how, as tables and sentences made from the registries."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_gmar._core.attention import loading
from hf_gmar._core.families import FAMILIES, READOUTS, UNSUPPORTED, UNTESTED, Family, unlisted
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import (
    counted,
    engines_of,
    family_of,
    own_readout,
    prefix_tokens,
    prompted_readout,
)
from hf_gmar.errors import HfGmarError, UnsupportedModelError
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS

METHOD_COLUMNS = ("method", "class", "cost", "of one class", "values", "source")

COLUMNS = ("family", "model class", "tokens before the patches", "the head reads", "explained by")


def methods_of_registry() -> list[tuple[str, ...]]:
    """One row for each method, with the columns of ``METHOD_COLUMNS``.

    Example:
        >>> methods_of_registry()[0][:4]
        ('gmar', 'GMAR', 'forward + backward', 'yes')
    """
    return [
        (
            name,
            method.__name__,
            method.cost,
            "yes" if method.class_specific else "no",
            _values(method),
            method.source,
        )
        for name, method in METHODS.items()
    ]


def _values(method: type[AttributionMethod]) -> str:
    return "of both signs" if method.signed else ">= 0"


def markdown_methods() -> str:
    """The methods as a Markdown table, for README and docs."""
    return _table(METHOD_COLUMNS, methods_of_registry())


def families() -> list[tuple[str, ...]]:
    """One row for each model class, with the columns of ``COLUMNS``; headless ones at the end.

    Example:
        >>> families()[0]
        ('ViT', 'ViTForImageClassification', 'CLS', 'CLS', 'streaming, dense')
    """
    found = [row for family in FAMILIES.values() for row in _rows(family)]
    return sorted(found, key=lambda row: row[1] == _OWN_HEAD)


_OWN_HEAD = "its body, with a head of your own"


def _rows(family: Family) -> Iterator[tuple[str, ...]]:
    tokens, engines = _tokens(family), ", ".join(family.engines)
    for name, reads in family.heads.items():
        yield family.title, name, tokens, _reads(reads), engines
    for name, reads in family.prompts.items():
        yield family.title, f"{name}, by prompts", tokens, _reads(reads), engines
    if not family.heads and not family.prompts:
        yield family.title, _OWN_HEAD, tokens, "what readout= says", engines


def _tokens(family: Family) -> str:
    if callable(family.prefix):
        return _doc(family.prefix)
    return counted(family.prefix)


def _reads(reads: Any) -> str:
    return _doc(reads) if callable(reads) else READOUTS[reads].text


def _doc(function: Any) -> str:
    """What depends on the model says in the first line of its docstring what it may be."""
    text = str(function.__doc__).splitlines()[0].rstrip(".")
    return text if text[:2].isupper() else text[0].lower() + text[1:]


def notes() -> list[str]:
    """What else a user should know of some families."""
    return [f"{family.title}: {family.note}." for family in FAMILIES.values() if family.note]


def unheard_of() -> list[str]:
    """A sentence if the installed Transformers has families that no table knows; else nothing."""
    names = ", ".join(unlisted())
    said = f"This release of Transformers also has {names}, which hf_gmar doesn't know yet."
    return [said] if names else []


def refusals() -> list[tuple[str, str]]:
    """Reasons, each with the model types that rollout does not apply to for it."""
    reasons = sorted(set(UNSUPPORTED.values()))
    found = [
        (", ".join(kind for kind, why in UNSUPPORTED.items() if why == reason), reason)
        for reason in reasons
    ]
    return [*found, (", ".join(UNTESTED), "not proven yet; each may work with register_layout")]


def markdown() -> str:
    """The table of families, as README and docs show it."""
    return _table(COLUMNS, families())


def markdown_refusals() -> str:
    """The table of refusals."""
    return _table(("model type", "why not"), refusals())


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@dataclass(frozen=True)
class Description:
    """What hf_gmar can do with one model.

    Attributes:
        facts: names and values: class, family, tokens, grid, readout, layers, heads.
        explained: whether it can be explained.
        how: what to type, or why not.
    """

    facts: dict[str, str]
    explained: bool
    how: str


def describe(config: PreTrainedConfig, name: str, trusted: bool = False) -> Description:
    """What can be done with a model, from its config alone; no weights are read.

    Args:
        config: the model's config.
        name: as the user gave it, for the command that is shown.
        trusted: whether Python code in the model's repository may be run.

    Example:
        >>> from transformers import ViTConfig
        >>> found = describe(ViTConfig(architectures=["ViTForImageClassification"]), "my-vit")
        >>> found.explained, found.facts["grid, at the config's size"]
        (True, '14 x 14 patches of 16 x 16 pixels, in 224 x 224')
    """
    named = next(iter(config.architectures or ()), None)
    facts = {"class": named or "not named", "model type": str(config.model_type)}
    try:
        model = _without_weights(config, named, trusted)
        prompted = prompted_readout(model)
        adapter = ModelAdapter.of(nn.Sequential(model) if prompted else model, prompted)
        found = {**facts, "class": _class_name(model, named), **_facts(adapter)}
    except Exception as error:  # noqa: BLE001  # a config may say anything, and its code do anything
        return Description(facts, False, _reason(error))
    prompts = ' --prompts "a photo of a dog" "a photo of a cat"' if prompted else ""
    how = f"hf-gmar explain PHOTO --model {shlex.quote(name)}{prompts}"
    return Description(found, True, how)


def _without_weights(config: PreTrainedConfig, named: str | None, trusted: bool) -> PreTrainedModel:
    """The model that the config was saved with, or else an image classifier, on no device."""
    kind: Any = getattr(transformers, named or "", None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    own_code = "AutoModelForImageClassification" in (getattr(config, "auto_map", None) or {})
    # Said, as the config may name a kernel on the Hub, whose code would be fetched and run.
    attention = loading("eager")
    with torch.device("meta"):
        if known and not (trusted and own_code):
            return cast("PreTrainedModel", kind._from_config(config, **attention))
        if not own_code and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise UnsupportedModelError(
                f"Transformers has no image classifier for its {type(config).__name__}; 'hf-gmar "
                "models' lists what can be explained"
            )
        found: PreTrainedModel = AutoModelForImageClassification.from_config(
            config, trust_remote_code=trusted, **attention
        )
        return found


def _class_name(model: PreTrainedModel, named: str | None) -> str:
    name = type(model).__name__
    return name if named == name else f"{named or 'not named'}, loaded as {name}"


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def _facts(adapter: ModelAdapter) -> dict[str, str]:
    vision_model: Any = adapter.vision_model
    family, config = family_of(vision_model), vision_model.config
    reads = prompted_readout(adapter.backbone)
    if family and reads is None:
        reads = own_readout(family, adapter.backbone, vision_model)
    return {
        "family": family.title if family else "registered by you",
        "tokens before the patches": (
            counted(prefix_tokens(family, vision_model))
            if family
            else str(adapter.layout.num_prefix_tokens)
        ),
        "grid, at the config's size": _grid(adapter),
        "the head reads": READOUTS[reads].text if reads else str(adapter.layout.readout),
        "layers": str(adapter.layers),
        "heads": str(getattr(config, "num_attention_heads", "as the timm model has")),
        "explained by": ", ".join(engines_of(vision_model)),
        **({"note": family.note} if family and family.note else {}),
    }


def _grid(adapter: ModelAdapter) -> str:
    height, width = adapter.layout.patch_size or (0, 0)
    size = getattr(adapter.vision_model.config, "image_size", None)
    patches = f"patches of {height} x {width} pixels"
    if size is None:
        return f"{patches}, in whatever the image processor makes"
    pixels = (size, size) if isinstance(size, int) else tuple(size)
    rows, columns = pixels[0] // height, pixels[1] // width
    return f"{rows} x {columns} {patches}, in {pixels[0]} x {pixels[1]}"
