"""A model with its Transformers model, vision tower and token layout."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from hf_gmar._core.cell_layout import CellLayout
from hf_gmar._core.families import Medium, has_cells
from hf_gmar._core.media import INPUT_SHAPES, InputShape, check_takes_images, takes_pixels
from hf_gmar._core.places import Place, place_of
from hf_gmar._core.token_layout import (
    ReadoutSpec,
    TokenLayout,
    embedding_readout,
    family_of,
    gives_scores,
    layers_of,
    layout_for,
    prompted_readout,
    refusal,
    registered_layout,
)
from hf_gmar.errors import ModelOutputError, OptionError, UnsupportedModelError


class ModelHolder(Protocol):
    """What holds a model: the result of ``load_model``, a pipeline of Transformers, a Trainer."""

    @property
    def model(self) -> Any:
        """The model."""


ModelLike: TypeAlias = Callable[..., Any] | ModelHolder
"""A model, a callable that returns class scores, or what holds a model."""

_PARALLEL = (DataParallel, DistributedDataParallel)


@dataclass(frozen=True)
class ModelAdapter:
    """A model that returns class scores, and the one Transformers model in it.

    Attributes:
        model: a callable from inputs to scores.
        backbone: the Transformers model in ``model`` (often the same object).
        vision_model: the vision tower in ``backbone`` (often the same object).
        layout: tokens of the vision tower, and the readout; or the cells of a map, for a model
            whose tokens are no fixed grid of patches.
        own_readout: whether the readout is for the backbone's own class head, not one that the user
            gave for another head.
        place: row and column of the patch at which maps start, instead of a readout.
        needs_scores: whether the model must return scores.
    """

    model: Callable[..., Any]
    backbone: PreTrainedModel
    vision_model: PreTrainedModel
    layout: TokenLayout | CellLayout
    own_readout: bool = True
    place: Place | None = None
    needs_scores: bool = field(default=True, compare=False)

    @classmethod
    def of(
        cls,
        model: ModelLike,
        readout: ReadoutSpec = None,
        *,
        needs_scores: bool = True,
        grid: Sequence[int] | None = None,
    ) -> ModelAdapter:
        """Find backbone, vision model and layout; an adapter is returned unchanged.

        A model whose tokens are no fixed grid of patches has a map of ``grid`` cells.
        Without ``needs_scores``, a Transformers model without a class head will do: its vision
        tower runs alone, and the readout is that of the tower's own embedding.

        Raises:
            UnsupportedModelError: no Transformers model, several of them, or an unknown family.
            OptionError: a readout or a grid that does not fit.
        """
        if isinstance(model, ModelAdapter) and readout is None and grid is None:
            return model
        module: Any = unwrapped(model)
        backbone = find_backbone(module)
        vision_model = _tower(backbone)
        registered = registered_layout(backbone, vision_model)
        is_image_model = registered is None or registered.is_of_images
        if family_of(backbone) is None and is_image_model:  # others may take videos or sound
            check_takes_images(backbone)
        if needs_scores:
            _check_has_prompts(module, backbone)
        _check_weights(backbone)
        if has_cells(backbone, vision_model):
            _check_no_readout(readout, vision_model)
            cells = CellLayout(grid)
            return cls(
                _with_hooks(module), backbone, vision_model, cells, needs_scores=needs_scores
            )
        if grid is not None:
            raise OptionError(
                f"the map of {type(backbone).__name__} has its own grid, one value for each patch; "
                "leave grid out"
            )
        readout = _declared_readout(module) if readout is None else readout
        place = place_of(readout)
        if place is not None:
            _check_no_scores(place, needs_scores)
            readout = "place"
        reads_scores = needs_scores or (readout == "place" and place is None)
        if not reads_scores and module is backbone and not gives_scores(backbone, vision_model):
            module = backbone = vision_model
            readout = embedding_readout(vision_model) if readout is None else readout
        layout = layout_for(backbone, vision_model, readout)
        given = readout is not None and module is not backbone
        own = not given and registered is None
        module = _with_hooks(module)
        return cls(module, backbone, vision_model, layout, own, place, needs_scores)

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute class scores (B, C); (B, 0) if they are not needed and the model has none."""
        output = self.model(inputs, *args, **kwargs)
        return scores_of(output) if self.needs_scores else scores_if_any(output)

    def modules(self) -> list[nn.Module]:
        """List all submodules of the model, itself included."""
        return list(self._module.modules())

    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """List all submodules of the model with their names, itself included."""
        return list(self._module.named_modules())

    @property
    def _module(self) -> nn.Module:
        module = _module_of(self.model)
        return self.backbone if module is None else module

    @property
    def medium(self) -> Medium:
        """What the model takes: images, videos or sound."""
        if not isinstance(self.layout, TokenLayout) or self.layout.is_of_images:
            return "images"
        return "videos" if len(self.layout.axes) == 3 else "sound"

    @property
    def input_shape(self) -> InputShape:
        """The dimensions of a batch of inputs."""
        return INPUT_SHAPES[self.medium]

    def check_images(self, what: str) -> None:
        """Raise an UnsupportedModelError unless the model takes images; ``what`` needs them."""
        if self.medium != "images":
            raise UnsupportedModelError(
                f"{what} is for images, and {type(self.backbone).__name__} takes {self.medium}; "
                "methods such as AttnLRP and TokenGradCAM explain it"
            )

    def grid(self, inputs: Tensor) -> tuple[int, ...]:
        """Return the shape of the map of one of these inputs: rows and columns for images.

        Videos have frames, rows and columns; spectrograms have time and frequency.

        Raises:
            InputError: the input is not a whole number of patches or cells.
        """
        if isinstance(self.layout, TokenLayout):
            return self.layout.map_shape(inputs.shape)
        return self.layout.grid(*inputs.shape[-2:])

    @property
    def has_cells(self) -> bool:
        """Whether the map is one of cells of pixels, as there is no fixed grid of patches."""
        return isinstance(self.layout, CellLayout)

    @property
    def tokens(self) -> TokenLayout:
        """The token layout; an UnsupportedModelError of a model that has none."""
        if isinstance(self.layout, TokenLayout):
            return self.layout
        raise UnsupportedModelError(refusal(self.backbone, self.vision_model))

    def described_layout(self) -> list[Any]:
        """Describe what a map is read from, as plain data."""
        if isinstance(self.layout, TokenLayout):
            return [list(self.layout.readout), self.layout.rest]
        return ["cells", self.layout.cells and list(self.layout.cells)]

    @property
    def layers(self) -> int:
        """Number of attention layers; an UnsupportedModelError without a token layout."""
        if self.has_cells:
            raise UnsupportedModelError(refusal(self.backbone, self.vision_model))
        return layers_of(self.vision_model)

    @property
    def pooling(self) -> nn.MultiheadAttention | None:
        """The attention of the pooling head, if the readout is its attention."""
        if self.tokens.rest != "attention":
            return None
        parts = self.vision_model.modules()
        heads = [part for part in parts if isinstance(part, nn.MultiheadAttention)]
        if len(heads) != 1:
            raise UnsupportedModelError(
                "the readout is the attention of a pooling head, an nn.MultiheadAttention in "
                f"{type(self.vision_model).__name__}, but {len(heads)} are there; say another "
                "readout"
            )
        return heads[0]


def _tower(backbone: PreTrainedModel) -> PreTrainedModel:
    """Return the innermost model that takes pixels, or else the backbone."""
    candidates = [part for part in backbone.modules() if takes_pixels(part)]
    inner = [part for part in candidates if not any(map(takes_pixels, list(part.modules())[1:]))]
    if len(inner) > 1:
        raise UnsupportedModelError(
            f"{type(backbone).__name__} has {len(inner)} parts that take pixels, and one vision "
            "tower is needed; pass a model around one of them"
        )
    return cast("PreTrainedModel", inner[0]) if inner else backbone


def _declared_readout(model: Any) -> ReadoutSpec:
    """Return the ``readout`` of a module around the Transformers model, as in ``ZeroShotModel``."""
    module = _module_of(model)
    parts = module.modules() if module is not None else ()
    readouts = (getattr(part, "readout", None) for part in parts)
    return next((spec for spec in readouts if isinstance(spec, str | tuple)), None)


def _check_has_prompts(model: Any, backbone: PreTrainedModel) -> None:
    if _module_of(model) is backbone and prompted_readout(backbone):
        raise UnsupportedModelError(
            f"{type(backbone).__name__} scores images by text prompts: give them with "
            "ZeroShotModel(model, processor, prompts), on the command line with --prompts"
        )


def _check_no_readout(readout: ReadoutSpec, vision_model: Any) -> None:
    if readout is not None:
        raise OptionError(
            f"readout is for models whose tokens are a fixed grid of patches, and the map of "
            f"{type(vision_model).__name__} is one of pixels; leave it out"
        )


def _check_no_scores(place: Place, needs_scores: bool) -> None:
    if needs_scores:
        raise OptionError(
            f"readout={place} starts a map at one patch, which is for methods without gradients: "
            "RawAttention, AttentionRollout and head_maps. Shares of prefix tokens are floats such "
            "as (1.0, 0.0); the score of one place of a dense head has target=(class, row, column)"
        )


def _check_weights(backbone: PreTrainedModel) -> None:
    if any(weight.is_inference() for weight in backbone.parameters()):
        raise UnsupportedModelError(
            f"the weights of {type(backbone).__name__} were made inside torch.inference_mode(), "
            "and PyTorch takes no gradients through them; load the model outside of it"
        )


def unwrapped(model: Any) -> Any:
    """Return the module inside torch.compile, DataParallel or DistributedDataParallel.

    Compiled code bypasses the hooks that record attention. An explanation has no weight gradients
    to share between processes.
    """
    while True:
        model = model_in(model)
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def model_in(holder: Any) -> Any:
    """Return the model in a LoadedModel, Trainer or pipeline; or else the object itself."""
    inner = getattr(holder, "model", None)
    is_holder = not callable(holder) or hasattr(holder, "postprocess")  # a pipeline is callable
    return inner if isinstance(inner, nn.Module) and is_holder else holder


def find_backbone(model: ModelLike) -> PreTrainedModel:
    """Find the one Transformers model in a module, bound method or partial."""
    module = _module_of(model)
    parts = module.modules() if module is not None else ()
    parallel = next((part for part in parts if isinstance(part, _PARALLEL)), None)
    if parallel is not None:
        raise UnsupportedModelError(
            f"a {type(parallel).__name__} inside the model spreads its work where attention "
            "can't be seen; pass a model that holds the module inside it (its .module)"
        )
    models = _outermost(module) if module is not None else []
    if len(models) == 1:
        return models[0]
    count = f"{len(models)} of them" if models else "none"
    raise UnsupportedModelError(
        f"exactly one Transformers model is needed, but {type(model).__name__} holds {count}; "
        f"{_what_to_pass(model)}"
    )


def _what_to_pass(model: Any) -> str:
    """Say what to pass instead of a model without, or with several, Transformers models."""
    module = _module_of(model)
    for part in module.modules() if module is not None else ():
        if type(part).__module__.startswith("timm."):
            name = (getattr(part, "pretrained_cfg", None) or {}).get("architecture", "NAME")
            return (
                f"{type(part).__name__} is a model of timm, which is explained in Transformers' "
                f"wrapper: TimmWrapperForImageClassification(TimmWrapperConfig(architecture="
                f"{name!r}, num_labels=...)), whose timm_model takes your weights by "
                "load_state_dict, or TimmWrapperForImageClassification.from_pretrained('timm/...')"
            )
    if isinstance(model, str | os.PathLike):
        return f"load it first: hf_gmar.load_model({str(model)!r})"
    if isinstance(getattr(model, "model", None), nn.Module) and module is None:
        return "pass its model, .model"
    return "pass a model of Transformers, or an nn.Module that has it as a submodule"


def _module_of(model: Any) -> nn.Module | None:
    while isinstance(model, functools.partial):
        model = model.func
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _with_hooks(model: Any) -> Any:
    # A bare ``forward`` skips the hooks that record attention: call the module instead.
    if isinstance(model, functools.partial):
        return functools.partial(_with_hooks(model.func), *model.args, **model.keywords)
    owner = getattr(model, "__self__", None)
    is_forward = isinstance(owner, nn.Module) and model == owner.forward
    return owner if is_forward else model


def _outermost(module: nn.Module) -> list[PreTrainedModel]:
    """List the Transformers models in a module that are in no other Transformers model."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    inner = {id(part) for model in models for part in model.modules() if part is not model}
    return [model for model in models if id(model) not in inner]


def scores_of(output: Any) -> Tensor:
    """Return the class scores (B, C) of an output: a tensor, ``.logits``, or a tuple's first item.

    Shape (B,) becomes (B, 1). An output without scores raises a ModelOutputError.
    """
    scores = output
    if isinstance(output, dict):  # the outputs of Transformers are dicts as well
        scores = output.get("logits")
    elif isinstance(output, (tuple, list)) and output:
        scores = output[0]
    if not isinstance(scores, Tensor) or not scores.dim():
        raise ModelOutputError(
            f"class scores of shape (images, classes) are needed, but the model returned "
            f"{type(output).__name__}{_keys(output)}; load it with a classification head, or wrap "
            "it in an nn.Module that returns the scores"
        )
    return scores.unsqueeze(1) if scores.dim() == 1 else scores


def scores_if_any(output: Any) -> Tensor:
    """Return the scores of an output, or an empty tensor (B, 0) of a model without a class head."""
    has_scores = isinstance(output, Tensor)
    if isinstance(output, dict):
        has_scores = isinstance(output.get("logits"), Tensor)
    elif isinstance(output, (tuple, list)) and output:  # it starts with scores or hidden states
        has_scores = isinstance(output[0], Tensor) and output[0].dim() <= 2
    first = None if has_scores else _first_tensor(output)
    return scores_of(output) if first is None else first.new_zeros(len(first), 0)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.dim() else None
    values = output.values() if isinstance(output, dict) else output
    parts = map(_first_tensor, values) if isinstance(output, (dict, tuple, list)) else ()
    return next((part for part in parts if part is not None), None)


def _keys(output: Any) -> str:
    return f" with {', '.join(output)}" if isinstance(output, dict) else ""
