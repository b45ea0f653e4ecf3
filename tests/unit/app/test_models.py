"""The models of a page: those on the list, with the prompts of each visitor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_gmar import load_model
from hf_gmar.app.limits import Limits
from hf_gmar.app.models import ModelSet
from hf_gmar.errors import ModelLoadError, OptionError
from tests.support import folders

LIMITS = Limits()
PROMPTS = ["a photo of a dog", "a photo of a cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folders.of_two(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def models(clip: str) -> ModelSet:
    return ModelSet(["bundled", clip, "bundled"], "cpu", PROMPTS)


@pytest.fixture
def name(clip: str) -> str:
    """The name by which visitors know the folder."""
    return Path(clip).name


def test_each_model_is_there_once(models: ModelSet, name: str) -> None:
    assert models.names == ["bundled", name]
    assert models.get("bundled", [], LIMITS) is models.get("bundled", ["ignored"], LIMITS)
    assert (models.takes_prompts("bundled"), models.takes_prompts(name)) == (False, True)


@pytest.mark.parametrize("other", ["", "google/vit-base-patch16-224", "../model", "bundled "])
def test_no_other_model_is_reached(models: ModelSet, other: str) -> None:
    with pytest.raises(OptionError, match="is not offered here; there are bundled, "):
        models.get(other, [], LIMITS)


def test_a_model_that_exists_on_the_server_is_not_reached(models: ModelSet, tmp_path: Path) -> None:
    folder = folders.copy(tmp_path / "model")
    with pytest.raises(OptionError, match="is not offered here"):
        models.get(str(folder), [], LIMITS)


def test_prompts_of_a_visitor_share_the_weights(models: ModelSet, clip: str, name: str) -> None:
    own = ["a photo of a cat", "a photo of a dog", "a dog"]
    mine, first = models.get(name, own, LIMITS), models.get(name, [], LIMITS)
    assert mine.model.model is first.model.model
    assert first.model.prompts == PROMPTS
    assert torch.equal(mine.model.text, load_model(clip, prompts=own).model.text)


@pytest.mark.parametrize("prompts", [["a"] * 21, ["a" * 301]])
def test_prompts_have_limits(models: ModelSet, name: str, prompts: list[str]) -> None:
    with pytest.raises(OptionError, match="at most 20 prompts of 300 letters"):
        models.get(name, prompts, LIMITS)


def test_folders_of_one_name_have_names_without_paths(tmp_path: Path) -> None:
    places = [folders.copy(tmp_path / parent / "vit") for parent in ("a", "b")]
    found = ModelSet(map(str, places), "cpu")
    assert found.names == ["vit", "vit-2"]
    assert str(tmp_path) not in repr([found.get(name, [], LIMITS) for name in found.names])


def test_the_owner_hears_of_a_wrong_name() -> None:
    with pytest.raises(ModelLoadError):
        ModelSet(["./no-such-folder"])
    with pytest.raises(OptionError, match="at least one model"):
        ModelSet([])
