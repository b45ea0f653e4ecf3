"""The tables of families as users see them, and what a config says about a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BeitConfig,
    BertConfig,
    CLIPConfig,
    CLIPVisionConfig,
    Data2VecVisionConfig,
    DinatConfig,
    DINOv3ViTConfig,
    MetaClip2Config,
    PreTrainedConfig,
    SiglipConfig,
    SwinConfig,
    Tipsv2Config,
    ViTConfig,
    YolosConfig,
)
from transformers.utils.import_utils import is_natten_available, is_timm_available

from benchmarks.tables import TABLES
from hf_gmar._core.families import FAMILIES, UNSUPPORTED, UNTESTED, ZERO_SHOT_CLASSES
from hf_gmar.cli import catalogue
from hf_gmar.cli.catalogue import (
    COLUMNS,
    cells,
    class_counts,
    classes,
    describe,
    families,
    notes,
    refusals,
)
from hf_gmar.methods import METHODS
from hf_gmar.metrics import METRICS
from hf_gmar.models import load_config
from tests.support import folders


def test_each_class_has_one_row() -> None:
    heads = {name for family in FAMILIES.values() for name in family.heads}
    prompts = {f"{name}, by prompts" for name in ZERO_SHOT_CLASSES}
    rows = [row for row in families() if not row[1].startswith("its backbone")]
    assert sorted(row[1] for row in rows) == sorted(heads | prompts)


def test_families_without_a_head_come_last() -> None:
    headless = [one.title for one in FAMILIES.values() if not one.heads and not one.prompts]
    assert headless
    assert [row[0] for row in families()[-len(headless) :]] == headless
    assert not any(row[1].startswith("its backbone") for row in families()[: -len(headless)])


def test_rows_say_what_the_tables_say() -> None:
    rows = {row[1]: row for row in families()}
    assert {len(row) for row in rows.values()} == {len(COLUMNS)}
    assert rows["DeiTForImageClassificationWithTeacher"] == (
        "DeiT", "DeiTForImageClassificationWithTeacher", "CLS, distillation",
        "half CLS, half distillation token", "streaming, dense",
    )  # fmt: skip
    assert rows["SiglipModel, by prompts"][2:4] == ("none", "attention of the pooling head")
    assert rows["BeitForImageClassification"][3].startswith("mean of the patches, or CLS")
    assert rows["Dinov2WithRegistersForImageClassification"][2] == "CLS, registers"
    assert rows["TimmWrapperForImageClassification"][4] == "streaming"


def test_each_refusal_is_there_once_with_its_reason() -> None:
    rows = [*cells(), *refusals()]
    found = {kind: why for kinds, why in rows for kind in kinds.split(", ")}
    assert len(found) == sum(kinds.count(",") + 1 for kinds, _ in rows)
    assert {kind: found[kind] for kind in UNSUPPORTED} == UNSUPPORTED
    assert set(found) - set(UNSUPPORTED) == set(UNTESTED)


def test_each_class_of_the_library_is_there_once_with_what_explains_it() -> None:
    rows = {row[0]: row[1:] for row in classes()}
    assert len(rows) == len(classes())
    assert rows["ViTForImageClassification"] == ("yes", "yes", "yes", "")
    assert rows["SwinForImageClassification"] == ("no", "yes", "yes", UNSUPPORTED["swin"])
    assert rows["PvtForImageClassification"][:3] == ("no", "yes", "no")
    assert rows["ImageGPTForImageClassification"] == ("no", "no", "no", UNSUPPORTED["imagegpt"])
    assert all(row[3] for row in rows.values() if "no" in row)
    yes = sum(row[1] == "yes" for row in rows.values())
    assert f"InputXGradient and ShapleyValues {yes}, and" in class_counts()


def test_a_hierarchical_model_is_described() -> None:
    found = described(SwinConfig(), "SwinForImageClassification")
    assert found.explained
    assert found.facts["family"] == "Swin"
    assert found.facts["explained by"].split(", ") == [
        "TokenGradCAM", "InputXGradient", "AttnLRP", "ShapleyValues", "RandomAttribution",
    ]  # fmt: skip
    assert UNSUPPORTED["swin"] in found.facts["not explained by"]


def test_tables_are_markdown() -> None:
    lines = TABLES["families"]().splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert len(lines) == 2 + len(families())
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


def test_notes_are_sentences() -> None:
    assert any(note.startswith("Data2VecVision: ") and note.endswith(".") for note in notes())


def described(config: PreTrainedConfig, name: str | None, **how: Any) -> catalogue.Description:
    """As for a config that was saved by a model of the class of that name."""
    config.architectures = None if name is None else [name]
    return describe(config, "some/model", **how)


EXPLAINED: dict[str, tuple[PreTrainedConfig, str | None, dict[str, str]]] = {
    "vit": (
        ViTConfig(image_size=96, patch_size=12, num_attention_heads=6, num_hidden_layers=5),
        "ViTForImageClassification",
        {
            "class": "ViTForImageClassification",
            "model type": "vit",
            "family": "ViT",
            "prefix tokens": "CLS",
            "grid, at the config's size": "8 x 8 patches of 12 x 12 pixels, in 96 x 96",
            "pooling": "CLS",
            "layers": "5",
            "heads": "6",
            "explained by": "streaming, dense",
        },
    ),
    "beit, mean": (
        BeitConfig(use_mean_pooling=True),
        "BeitForImageClassification",
        {"pooling": "mean of the patches"},
    ),
    "beit, cls": (
        BeitConfig(use_mean_pooling=False),
        "BeitForImageClassification",
        {"pooling": "CLS"},
    ),
    "clip": (
        CLIPConfig(vision_config={"num_hidden_layers": 3}),
        "CLIPForImageClassification",
        {"class": "CLIPForImageClassification", "pooling": "mean of the patches",
         "layers": "3"},
    ),
    "with a note": (
        Data2VecVisionConfig(),
        "Data2VecVisionForImageClassification",
        {"note": FAMILIES["data2vec-vision"].note},
    ),
    "no class": (ViTConfig(), None, {"class": "not named, loaded as ViTForImageClassification"}),
    "unknown class": (
        ViTConfig(),
        "OwnViT",
        {"class": "OwnViT, loaded as ViTForImageClassification"},
    ),
    # Names in Transformers, but no models.
    "a function": (
        ViTConfig(), "pipeline", {"class": "pipeline, loaded as ViTForImageClassification"},
    ),
    "a config": (ViTConfig(), "ViTConfig", {"layers": "12"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_can_be_explained(name: str) -> None:
    config, class_name, wanted = EXPLAINED[name]
    found = described(config, class_name)
    assert found.explained, found.how
    assert {key: found.facts[key] for key in wanted} == wanted
    assert found.how == "hf-gmar explain PHOTO --model some/model"


@pytest.mark.parametrize(
    ("config", "reads"),
    [
        (CLIPConfig(), "CLS"),
        (MetaClip2Config(), "CLS"),
        (SiglipConfig(), "attention of the pooling head"),
    ],
)
def test_what_needs_prompts(config: PreTrainedConfig, reads: str) -> None:
    name = type(config).__name__.replace("Config", "Model")
    found = described(config, name)
    assert found.explained
    assert (found.facts["class"], found.facts["pooling"]) == (name, reads)
    command, prompts = found.how.split(" --prompts ")
    assert command == "hf-gmar explain PHOTO --model some/model"
    assert len(shlex.split(prompts)) == 2


NOT_EXPLAINED: dict[str, tuple[PreTrainedConfig, str | None, str]] = {
    "refused": (YolosConfig(), "YolosForObjectDetection", UNSUPPORTED["yolos"]),
    "not proven": (Tipsv2Config(), "Tipsv2Model", "has not been proven on Tipsv2Model"),
    "headless": (DINOv3ViTConfig(), "DINOv3ViTModel", "with a head of your own"),
    "a body": (ViTConfig(), "ViTModel", "ViTForImageClassification"),
    "a tower": (CLIPVisionConfig(), "CLIPVisionModel", "CLIPForImageClassification"),
    "text": (BertConfig(), "BertForMaskedLM", "explains images, and BertForMaskedLM takes text"),
    "text, no class": (BertConfig(), None, "explains images, and BertModel takes text (input_ids)"),
    "a config that can't be": (
        ViTConfig(hidden_act="zorro"), "ViTForImageClassification", "KeyError: 'zorro'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_EXPLAINED)
def test_what_can_not_be_explained(name: str) -> None:
    config, class_name, words = NOT_EXPLAINED[name]
    found = described(config, class_name)
    assert not found.explained
    assert found.facts == {"class": class_name or "not named", "model type": config.model_type}
    assert words in found.how
    assert "\n" not in found.how


def test_a_library_that_is_not_there() -> None:
    if is_natten_available():
        pytest.skip("NATTEN is installed")
    found = described(DinatConfig(), "DinatForImageClassification")
    assert not found.explained
    assert "natten library but it was not found" in found.how


def test_timm_that_is_not_there(tmp_path: Path) -> None:
    if is_timm_available():
        pytest.skip("timm is installed: tests/contract/test_timm.py")
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}'
    )
    with pytest.raises(ValueError, match="timm library but it was not found"):
        load_config(tmp_path)


def test_nothing_is_computed_and_nothing_changed() -> None:
    """No weights are made, whatever the size, and the config stays as it is."""
    config = ViTConfig(hidden_size=65536, intermediate_size=262144, num_attention_heads=64)
    config.architectures = ["ViTForImageClassification"]
    before = config.to_dict()
    state = torch.random.get_rng_state()
    assert describe(config, "huge").explained
    assert config.to_dict() == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_name_with_spaces_is_quoted() -> None:
    config = ViTConfig(architectures=["ViTForImageClassification"])
    found = describe(config, "./my model; rm")
    assert shlex.split(found.how)[-1] == "./my model; rm"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(tmp_path: Path, key: str) -> None:
    """Without the package for them, Transformers would complain."""
    for folder in (folders.copy(tmp_path / "vit"), folders.of_two(tmp_path / "clip")):
        folders.edit(folder / "config.json", **{key: "owner/kernel"})
        assert describe(load_config(folder), str(folder)).explained


def test_code_of_a_repository_is_run_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A model with code of its own on top of a config of Transformers."""
    folder, trace = folders.copy(tmp_path / "model"), tmp_path / "ran"
    folders.own_model(folder, trace)
    auto_map = {"AutoModelForImageClassification": "modeling_own.OwnViT"}
    folders.edit(folder / "config.json", model_type="vit", auto_map=auto_map)
    plain = describe(load_config(folder), str(folder))
    assert plain.facts["class"] == "OwnViT, loaded as ViTForImageClassification"
    assert not trace.exists()
    own = describe(load_config(folder), str(folder), trusted=True)
    assert trace.exists()
    assert own.facts["class"] == "OwnViT"
    # As it is loaded: the code goes before a class of Transformers that the config names.
    folders.edit(folder / "config.json", architectures=["ViTForImageClassification"])
    own = describe(load_config(folder), str(folder), trusted=True)
    assert own.facts["class"] == "ViTForImageClassification, loaded as OwnViT"


@pytest.mark.parametrize("trusted", [False, True])
def test_code_for_something_else_is_passed_by(trusted: bool) -> None:
    config: Any = CLIPConfig()
    config.auto_map = {"AutoModel": "modeling_own.OwnCLIP"}
    assert described(config, "CLIPModel", trusted=trusted).facts["class"] == "CLIPModel"
    config.auto_map["AutoModelForImageClassification"] = "modeling_own.OwnHead"
    assert described(config, "CLIPModel").facts["class"] == "CLIPModel"


def test_code_of_a_repository_that_describes_itself(tmp_path: Path) -> None:
    folder = folders.own_model(folders.copy(tmp_path / "model"), tmp_path / "ran")
    config = load_config(folder, trust_remote_code=True)
    assert "trust_remote_code=True" in describe(config, str(folder)).how
    assert "OwnViT (model_type 'own')" in describe(config, str(folder), trusted=True).how


def test_a_family_that_a_release_brings_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = notes()
    monkeypatch.setattr(catalogue, "unlisted", lambda: ["new (NewHead)", "old (OldHead)"])
    *others, note = notes()
    assert others == before
    assert "also has new (NewHead), old (OldHead), which hf_gmar doesn't know" in note


def test_no_fact_is_in_a_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python without docstrings makes the same tables."""
    names = ("methods", "metrics", "metric_limits")
    tables = [TABLES[name]() for name in names]
    for registry in (METHODS, METRICS):
        for name in registry:
            for cls in registry[name].__mro__[:-1]:  # the last is object
                if cls.__module__.startswith("hf_gmar"):
                    monkeypatch.setattr(cls, "__doc__", None)
    assert [TABLES[name]() for name in names] == tables
