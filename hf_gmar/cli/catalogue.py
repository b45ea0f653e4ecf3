"""Tables and sentences on supported models and methods, from the registries."""

from __future__ import annotations

import shlex
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
from hf_gmar._core.families import (
    FAMILIES,
    READOUTS,
    UNSUPPORTED,
    UNTESTED,
    ByModel,
    model_type,
    unlisted,
)
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import (
    counted,
    engines_of,
    family_of,
    own_readout,
    prefix_tokens,
    prompted_readout,
)
from hf_gmar.errors import UnsupportedModelError, one_line
from hf_gmar.methods.registry import METHODS

METHOD_COLUMNS = ("method", "name", "Python class", "cost", "class-specific", "values", "source")

COLUMNS = ("family", "model class", "prefix tokens", "pooling", "explained by")

_OWN_HEAD = "its backbone, with a head of your own"


def methods_of_registry() -> list[tuple[str, ...]]:
    """Return one row for each method, with the columns of ``METHOD_COLUMNS``.

    Example:
        >>> methods_of_registry()[0][:4]
        ('GMAR', 'gmar', 'GMAR', 'forward + backward')
    """
    return [
        (
            method.title,
            name,
            method.__name__,
            method.cost,
            "yes" if method.class_specific else "no",
            "signed" if method.signed else ">= 0",
            method.source,
        )
        for name, method in METHODS.items()
    ]


def families() -> list[tuple[str, ...]]:
    """Return one row for each model class, with the columns of ``COLUMNS``; backbones come last.

    Example:
        >>> families()[0]
        ('ViT', 'ViTForImageClassification', 'CLS', 'CLS', 'streaming, dense')
    """
    rows = []
    for family in FAMILIES.values():
        prefix = family.prefix
        tokens = prefix.text if isinstance(prefix, ByModel) else counted(prefix)
        prompted = {f"{name}, by prompts": pooling for name, pooling in family.prompts.items()}
        for name, pooling in {**family.heads, **prompted}.items() or [(_OWN_HEAD, "")]:
            rows.append((family.title, name, tokens, _pooling(pooling), ", ".join(family.engines)))
    return sorted(rows, key=lambda row: row[1] == _OWN_HEAD)


def _pooling(readout: str | ByModel) -> str:
    if isinstance(readout, ByModel):
        return readout.text
    return READOUTS[readout].text if readout else "given by readout="


def notes() -> list[str]:
    """Return the notes of families, and the families of Transformers that no table has yet."""
    lines = [f"{family.title}: {family.note}." for family in FAMILIES.values() if family.note]
    if names := ", ".join(unlisted()):
        lines.append(
            f"This release of Transformers also has {names}, which hf_gmar doesn't know yet."
        )
    return lines


def refusals() -> list[tuple[str, str]]:
    """Return the unsupported model types, grouped by reason."""
    rows = [
        (", ".join(kind for kind, text in UNSUPPORTED.items() if text == reason), reason)
        for reason in sorted(set(UNSUPPORTED.values()))
    ]
    return [*rows, (", ".join(UNTESTED), "untested; each may work with register_layout")]


@dataclass(frozen=True)
class Description:
    """The facts about one model, and how to explain it.

    Attributes:
        facts: names and values: class, family, tokens, grid, pooling, layers, heads.
        explained: whether the model can be explained.
        how: the command that explains it, or the reason why it can't be.
    """

    facts: dict[str, str]
    explained: bool
    how: str


def describe(config: PreTrainedConfig, name: str, trusted: bool = False) -> Description:
    """Describe a model from its config alone; no weights are read.

    Args:
        config: the model's config.
        name: the name that the user gave, for the command that is shown.
        trusted: whether Python code in the model's repository may be run.

    Example:
        >>> from transformers import ViTConfig
        >>> vit = describe(ViTConfig(architectures=["ViTForImageClassification"]), "my-vit")
        >>> vit.explained, vit.facts["grid, at the config's size"]
        (True, '14 x 14 patches of 16 x 16 pixels, in 224 x 224')
    """
    architecture = next(iter(config.architectures or ()), None)
    facts = {"class": architecture or "not named", "model type": model_type(config)}
    try:
        model = _without_weights(config, architecture, trusted)
        prompted = prompted_readout(model)
        adapter = ModelAdapter.of(nn.Sequential(model) if prompted else model, prompted)
        details = _facts(adapter)
    except Exception as error:  # noqa: BLE001  # a config and its code may raise any error
        return Description(facts, False, one_line(error))
    prompts = ' --prompts "a photo of a dog" "a photo of a cat"' if prompted else ""
    how = f"hf-gmar explain PHOTO --model {shlex.quote(name)}{prompts}"
    if (loaded_class := type(model).__name__) != architecture:
        facts["class"] += f", loaded as {loaded_class}"
    return Description({**facts, **details}, True, how)


def _without_weights(config: PreTrainedConfig, named: str | None, trusted: bool) -> PreTrainedModel:
    """Build the class that the config names, else an image classifier, on the meta device."""
    kind: Any = getattr(transformers, named or "", None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    # Weights of another class may have been loaded into this config's class since.
    known = known and isinstance(config, kind.config_class or PreTrainedConfig)
    own_code = "AutoModelForImageClassification" in (getattr(config, "auto_map", None) or {})
    # Overrides the config, which may name a kernel on the Hub, whose code would be fetched and run.
    attention = loading("eager")
    with torch.device("meta"):
        if known and not (trusted and own_code):
            return cast("PreTrainedModel", kind._from_config(config, **attention))
        if not own_code and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise UnsupportedModelError(
                f"Transformers has no image classifier for its {type(config).__name__}; 'hf-gmar "
                "models' lists what can be explained"
            )
        model: PreTrainedModel = AutoModelForImageClassification.from_config(
            config, trust_remote_code=trusted, **attention
        )
        return model


def _facts(adapter: ModelAdapter) -> dict[str, str]:
    vision_model: Any = adapter.vision_model
    family, config = family_of(vision_model), vision_model.config
    readout = prompted_readout(adapter.backbone)
    if family and readout is None:
        readout = own_readout(family, adapter.backbone, vision_model)
    return {
        "family": family.title if family else "registered by you",
        "prefix tokens": (
            counted(prefix_tokens(family, vision_model))
            if family
            else str(adapter.layout.num_prefix_tokens)
        ),
        "grid, at the config's size": _grid(adapter),
        "pooling": READOUTS[readout].text if readout else str(adapter.layout.readout),
        "layers": str(adapter.layers),
        "heads": str(getattr(config, "num_attention_heads", "as in the timm model")),
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
