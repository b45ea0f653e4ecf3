"""PEFT adapters: their base model, their weights, and the class head that they bring along."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from hf_gmar.errors import ModelLoadError
from hf_gmar.models.hub_errors import Source, pickled_weights_error
from hf_gmar.models.size_limits import check_nesting, limited_sizes

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."  # of the names in an adapter's file


def adapter_config(source: Source) -> dict[str, Any] | None:
    """Return the config of an adapter; ``None`` for a model that is no adapter.

    Raises:
        ModelLoadError: PEFT is not installed, or the config does not name the base model.
    """
    if not is_peft_available() and not (Path(source.place) / CONFIG).is_file():
        return None  # no request to the Hub for what could not be loaded
    file = find_adapter_config_file(source.place, **source.access)
    if file is None:
        return None
    if not is_peft_available():
        raise ModelLoadError(
            f"{source.name!r} is a PEFT adapter, and PEFT is not installed: pip install peft"
        )
    try:
        config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"the {CONFIG} of {source.name!r} is no JSON ({error}); save the adapter with "
            "save_pretrained"
        ) from error
    check_nesting(config, CONFIG, source.name)
    if not config.get("base_model_name_or_path"):
        raise ModelLoadError(
            f"{source.name!r} is an adapter whose {CONFIG} names no base model; write its name or "
            "folder there, as base_model_name_or_path"
        )
    return config


def adapter_weights(source: Source, use_safetensors: bool) -> dict[str, Tensor]:
    """Read the weights of an adapter, by the names that the file gives them.

    Raises:
        ModelLoadError: there are none, or they are pickled and ``use_safetensors`` is set.
    """
    from peft.utils.save_and_load import load_peft_weights

    safe, pickled = (source.has(name) for name in _WEIGHTS)
    if pickled and not safe and use_safetensors:
        raise pickled_weights_error(source, _WEIGHTS[1])
    if not safe and not pickled:
        raise ModelLoadError(
            f"the adapter {source.name!r} has no weights ({_WEIGHTS[0]}); save it with "
            "save_pretrained"
        )
    weights: dict[str, Tensor] = load_peft_weights(source.place, device="cpu", **source.access)
    return weights


def classes_of(weights: dict[str, Tensor], model: PreTrainedModel) -> int | None:
    """Return the number of classes of the adapter's own head, if the model has another number."""
    shapes = {name: value.shape for name, value in model.named_parameters()}
    own = {name.removeprefix(_PREFIX): value.shape for name, value in weights.items()}
    counts = {
        shape[0]
        for name, shape in own.items()
        if name in shapes and shape[1:] == shapes[name][1:] and shape[0] != shapes[name][0]
    }
    return counts.pop() if len(counts) == 1 else None


def attach(
    source: Source, model: PreTrainedModel, weights: dict[str, Tensor]
) -> tuple[PreTrainedModel, set[str]]:
    """Put an adapter into its base model; return it, and the weights that the adapter replaces.

    Raises:
        ModelLoadError: the adapter belongs to another model.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.other import ModulesToSaveWrapper

    config = PeftConfig.from_pretrained(source.place, **source.access)
    weights = _renamed(weights, model, config)
    folder = Path(find_adapter_config_file(source.place, **source.access) or source.place).parent
    with limited_sizes(folder, CONFIG, source.name), warnings.catch_warnings():
        # PEFT asks Transformers for a property that has a new name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        wrapped = PeftModel(model, config, autocast_adapter_dtype=False)
    # With embeddings, PEFT would ask the Hub for the base model's config.
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    needed = {name: value.shape for name, value in state.items()}
    strange = {
        name for name in needed if name not in weights or weights[name].shape != needed[name]
    }
    strange |= weights.keys() - needed.keys()
    if strange:
        raise ModelLoadError(
            f"the adapter {source.name!r} does not fit its base model "
            f"{config.base_model_name_or_path!r}, for example in "
            f"{min(strange).removeprefix(_PREFIX)}; it was trained on another one: name that in "
            f"its {CONFIG}"
        )
    set_peft_model_state_dict(wrapped, weights)
    base: Any = wrapped.get_base_model()
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # beside it lies the head that it replaces
            base.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return base, {name.removeprefix(_PREFIX) for name in weights}


def _renamed(weights: dict[str, Tensor], model: PreTrainedModel, config: Any) -> dict[str, Tensor]:
    """Rename modules as Transformers has renamed them since the adapter was trained."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings
    except ImportError:  # Transformers before 5.21, where attach() refuses what has other names
        return weights
    rules = [rule for rule in get_model_conversion_mapping(model) if type(rule) is WeightRenaming]
    names = {name: apply_renamings(name, rules) for name in weights}
    if any(old != new for old, new in names.items()):
        part = f".{PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]}"
        config.target_modules = {
            name.removeprefix(_PREFIX).partition(part)[0] for name in names.values() if part in name
        }
    return {names[name]: value for name, value in weights.items()}
