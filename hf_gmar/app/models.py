"""The models of a page: those that the server's owner lists, each once in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_gmar._core.families import ZERO_SHOT_CLASSES
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._utils.files import kind_of
from hf_gmar._utils.names import make_unique
from hf_gmar.app.limits import Limits
from hf_gmar.app.work import stop_if_told
from hf_gmar.errors import OptionError
from hf_gmar.models.hub import LoadedModel, load_config, load_model, load_tokenizer
from hf_gmar.models.wrappers import ZeroShotModel

PROMPTS = ("a photo of a dog", "a photo of a cat")
"""The classes of a model of image and text, until a visitor gives others."""


@dataclass(frozen=True)
class _Entry:
    """A model in memory; one of image and text has its tokenizer."""

    loaded: LoadedModel
    tokenizer: Any = None


class ModelSet:
    """The models that a page offers, by the owner's names; of a folder, visitors see no path.

    Args:
        names: names for :func:`~hf_gmar.load_model`; all are loaded at once.
        device: where they are loaded.
        prompts: the first classes of models of image and text.

    Raises:
        HfGmarError: a model can't be loaded or explained.
    """

    def __init__(
        self, names: Iterable[str], device: str = "auto", prompts: Sequence[str] = PROMPTS
    ) -> None:
        self.prompts = tuple(prompts)
        places = list(dict.fromkeys(str(name) for name in names))
        shown = make_unique(map(_without_path, places), "{}-{}")
        self._entries = {
            name: self._load(place, name, device) for name, place in zip(shown, places, strict=True)
        }
        if not self._entries:
            raise OptionError("name at least one model")

    @property
    def names(self) -> list[str]:
        """The names, in the owner's order."""
        return list(self._entries)

    def takes_prompts(self, name: str) -> bool:
        """Whether the classes of a model are texts of the visitor."""
        return self._entry(name).tokenizer is not None

    def get(self, name: str, prompts: Sequence[str], limits: Limits) -> LoadedModel:
        """Return a model, with a visitor's prompts if it takes any; the weights are shared.

        Raises:
            OptionError: the model is not on the list, or the prompts are too many or too long.
        """
        entry = self._entry(name)
        if entry.tokenizer is None:
            return entry.loaded
        if len(prompts) > limits.prompts or any(len(text) > limits.letters for text in prompts):
            raise OptionError(
                f"give at most {limits.prompts} prompts of {limits.letters} letters each"
            )
        if not prompts or list(prompts) == entry.loaded.model.prompts:
            return entry.loaded
        model = ZeroShotModel(entry.loaded.model.model, entry.tokenizer, prompts)
        return replace(entry.loaded, model=model)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise OptionError(
                f"the model {name[:80]!r} is not offered here; there are {', '.join(self.names)}"
            ) from None

    def _load(self, place: str, name: str, device: str) -> _Entry:
        kinds = load_config(place).architectures or ()
        has_text = any(kind in ZERO_SHOT_CLASSES for kind in kinds)
        loaded = load_model(place, device=device, prompts=self.prompts if has_text else None)
        adapter = ModelAdapter.of(loaded.model)
        adapter.vision_model.register_forward_pre_hook(stop_if_told)
        tokenizer = load_tokenizer(place) if has_text else None
        return _Entry(replace(loaded, name=name), tokenizer)


def _without_path(name: str) -> str:
    """Return the name of a folder, and another name as it is."""
    return Path(name).resolve().name if kind_of(name) == "folder" else name
