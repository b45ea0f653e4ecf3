"""Tables and sentences on supported models and methods, from the registries."""

from __future__ import annotations

import shlex
from collections.abc import Collection
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
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_gmar._core.attention import loading
from hf_gmar._core.families import (
    CELL_FAMILIES,
    FAMILIES,
    NO_FEATURE_MAP,
    READOUTS,
    UNSUPPORTED,
    UNTESTED,
    ByModel,
    model_type,
    unlisted,
)
from hf_gmar._core.media import check_takes_images
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.patch_maps import in_input_order
from hf_gmar._core.token_layout import (
    TokenLayout,
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
        title = family.title
        if family.medium != "images":
            title += f": {family.medium}"
        engines = ", ".join(family.engines) or "methods without attention"
        for name, pooling in {**family.heads, **prompted}.items() or [(_OWN_HEAD, "")]:
            rows.append((title, name, tokens, _pooling(pooling), engines))
    return sorted(rows, key=lambda row: row[1] == _OWN_HEAD)


def _pooling(readout: str | ByModel) -> str:
    if isinstance(readout, ByModel):
        return readout.text
    return READOUTS[readout].text if readout else "given by readout="


CLASS_COLUMNS = (
    "model class",
    "attention methods",
    "AttnLRP, input x gradient, Shapley values",
    "Token Grad-CAM",
    "why not",
)


def classes() -> list[tuple[str, ...]]:
    """Return one row for each class of ``AutoModelForImageClassification``.

    Example:
        >>> [row[:4] for row in classes() if row[0] == "ViTForImageClassification"]
        [('ViTForImageClassification', 'yes', 'yes', 'yes')]
    """
    rows: list[tuple[str, ...]] = []
    for kind, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        for name in (names,) if isinstance(names, str) else names:
            family, reason = FAMILIES.get(kind), UNSUPPORTED.get(kind, "")
            if any(name in family.heads for family in FAMILIES.values()):
                facts = ("yes", "yes", "yes", family.note if family else "")
            elif kind in CELL_FAMILIES:
                cam = "no" if kind in NO_FEATURE_MAP else "yes"
                note = "; its head reads no position of the last feature map"
                facts = ("no", "yes", cam, reason + (note if cam == "no" else ""))
            else:
                facts = ("no", "no", "no", reason)
            rows.append((name, *facts))
    return rows


def class_counts() -> str:
    """Say how many classes of ``AutoModelForImageClassification`` each method explains."""
    rows = classes()
    counts = [sum(row[column] == "yes" for row in rows) for column in (1, 2, 3)]
    return (
        f"Of {len(rows)} classes of AutoModelForImageClassification, attention methods explain "
        f"{counts[0]}, AttnLRP, InputXGradient and ShapleyValues {counts[1]}, and TokenGradCAM "
        f"{counts[2]}."
    )


def notes() -> list[str]:
    """Return the notes of families, and the families of Transformers that no table has yet."""
    lines = [f"{family.title}: {family.note}." for family in FAMILIES.values() if family.note]
    if names := ", ".join(unlisted()):
        lines.append(
            f"This release of Transformers also has {names}, which hf_gmar doesn't know yet."
        )
    return lines


def refusals() -> list[tuple[str, str]]:
    """Return the model types that no method explains, grouped by reason."""
    rows = _by_reason(UNSUPPORTED.keys() - CELL_FAMILIES.keys())
    return [*rows, (", ".join(UNTESTED), "untested; each may work with register_layout")]


def cells() -> list[tuple[str, str]]:
    """Return the model types that are explained on cells of pixels, by what attention lacks."""
    return _by_reason(CELL_FAMILIES.keys())


def _by_reason(kinds: Collection[str]) -> list[tuple[str, str]]:
    reasons = {kind: UNSUPPORTED[kind] for kind in sorted(kinds)}
    return [
        (", ".join(kind for kind, why in reasons.items() if why == reason), reason)
        for reason in sorted(set(reasons.values()))
    ]


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
    architecture = next(iter(config.architectures or ()), _class_of_media(config))
    facts = {"class": architecture or "not named", "model type": model_type(config)}
    try:
        if model_type(config) not in FAMILIES:  # those in the table may take videos or sound
            check_takes_images(config)
        model = _without_weights(config, architecture, trusted)
        prompted = prompted_readout(model)
        adapter = ModelAdapter.of(nn.Sequential(model) if prompted else model, prompted)
        details = _facts(adapter)
    except Exception as error:  # noqa: BLE001  # a config and its code may raise any error
        return Description(facts, False, one_line(error))
    prompts = ' --prompts "a photo of a dog" "a photo of a cat"' if prompted else ""
    how = f"hf-gmar explain PHOTO --model {shlex.quote(name)}{prompts}"
    if adapter.medium != "images":
        method = "GMAR" if engines_of(adapter.vision_model) else "AttnLRP"
        how = f"In Python: hf_gmar.{method}(model).attribute(inputs), inputs of its processor"
    if (loaded_class := type(model).__name__) != architecture:
        facts["class"] += f", loaded as {loaded_class}"
    return Description({**facts, **details}, True, how)


def _class_of_media(config: PreTrainedConfig) -> str | None:
    """Return the classifier of a config of videos or sound that names no class."""
    family = FAMILIES.get(model_type(config))
    return None if family is None or family.medium == "images" else next(iter(family.heads))


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
    if adapter.has_cells:
        names = ", ".join(
            method.__name__ for _, method in METHODS.items() if not method.needs_tokens
        )
        return {
            "family": CELL_FAMILIES.get(model_type(vision_model), "hierarchical"),
            "map": "cells of pixels, as its tokens are no fixed grid of patches",
            "explained by": names,
            "not explained by": f"other methods: {UNSUPPORTED[model_type(vision_model)]}",
        }
    family, config = family_of(vision_model), vision_model.config
    readout = prompted_readout(adapter.backbone)
    if family and readout is None:
        readout = own_readout(family, adapter.backbone, vision_model)
    return {
        "family": family.title if family else "registered by you",
        **({"takes": adapter.medium} if adapter.medium != "images" else {}),
        "prefix tokens": (
            counted(prefix_tokens(family, vision_model))
            if family
            else str(adapter.tokens.num_prefix_tokens)
        ),
        "grid, at the config's size": _grid(adapter),
        "pooling": READOUTS[readout].text if readout else str(adapter.tokens.readout),
        "layers": str(adapter.layers),
        "heads": str(getattr(config, "num_attention_heads", "as in the timm model")),
        "explained by": ", ".join(engines_of(vision_model)) or "methods without attention",
        **({"note": family.note} if family and family.note else {}),
    }


def _grid(adapter: ModelAdapter) -> str:
    if adapter.medium != "images":
        return _media_grid(adapter.medium, adapter.tokens)
    height, width = adapter.tokens.patch_size or (0, 0)
    size = getattr(adapter.vision_model.config, "image_size", None)
    patches = f"patches of {height} x {width} pixels"
    if size is None:
        return f"{patches}, in whatever the image processor makes"
    pixels = (size, size) if isinstance(size, int) else tuple(size)
    rows, columns = pixels[0] // height, pixels[1] // width
    return f"{rows} x {columns} {patches}, in {pixels[0]} x {pixels[1]}"


def _media_grid(medium: str, layout: TokenLayout) -> str:
    patch = in_input_order(layout.patch_size or (), layout.axes)
    axes = "frames, height, width" if medium == "videos" else "time, mel bins"
    text = f"patches of {' x '.join(map(str, patch))} ({axes})"
    if layout.overlap:
        text += f", {' and '.join(str(stride) for _, stride in layout.overlap)} apart"
    return text
