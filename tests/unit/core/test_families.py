"""The tables of families against the installed Transformers, and who is refused with what words."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    IJepaConfig,
    IJepaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_gmar import GMAR, TokenLayout, register_layout
from hf_gmar._core import families
from hf_gmar._core.families import (
    CELL_FAMILIES,
    FAMILIES,
    READOUTS,
    UNSUPPORTED,
    UNTESTED,
    ZERO_SHOT_CLASSES,
    unlisted,
)
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import layers_of
from hf_gmar.cli.catalogue import describe
from hf_gmar.errors import InputError, ModelOutputError, OptionError, UnsupportedModelError
from hf_gmar.models import load_config
from hf_gmar.models.hub_errors import takes_prompts
from tests.reference import oracles
from tests.reference.cases import (
    LABELS,
    MODELS,
    MORE_MODELS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
    build,
)
from tests.reference.media_models import MEDIA
from tests.reference.models import SIZES
from tests.reference.parity import near, relative_error, same
from tests.reference.tolerances import PARITY

IN_THE_LIBRARY = [
    (kind, name)
    for table in (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    for kind, names in table.items()
    for name in ((names,) if isinstance(names, str) else names)
]
# Default configs that the classes themselves refuse, or that need a library of their own.
NOT_BUILT = {
    "DinatForImageClassification",
    "PerceiverForImageClassificationFourier",
    "PerceiverForImageClassificationConvProcessing",
    "TimmWrapperForImageClassification",
}


def test_every_family_of_the_library_is_listed() -> None:
    assert unlisted() == []


def test_a_family_that_a_release_brings_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = {**MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "new": ("NewHead", "OtherHead")}
    monkeypatch.setattr(families, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", brought)
    assert unlisted() == ["new (NewHead)", "new (OtherHead)"]


@pytest.mark.filterwarnings("ignore")  # of default configs, which are not ours
@pytest.mark.parametrize(("kind", "name"), IN_THE_LIBRARY, ids=lambda value: value)
def test_each_is_supported_or_refused_with_a_reason(kind: str, name: str) -> None:
    if name in NOT_BUILT:
        assert kind in UNSUPPORTED or kind == "timm_wrapper"
        return
    with torch.device("meta"):
        model = getattr(transformers, name)(CONFIG_MAPPING[kind]())
    if any(name in family.heads for family in FAMILIES.values()):
        adapter = ModelAdapter.of(model)
        assert adapter.tokens.patch_size is not None
        assert adapter.layers >= 1
        return
    if kind in CELL_FAMILIES:
        assert ModelAdapter.of(model).has_cells
    with pytest.raises(UnsupportedModelError) as refused:
        GMAR(model)
    words = str(refused.value)
    assert name in words
    if name in ZERO_SHOT_CLASSES:
        assert "ZeroShotModel" in words
    else:
        assert "hf-gmar models" in words
        assert UNSUPPORTED[kind] in words if kind in UNSUPPORTED else kind in UNTESTED


def test_the_tests_have_every_head_of_the_tables() -> None:
    """Each class and each readout of it goes through the tests of parity."""
    models = [*map(_built, (*MODELS, *MORE_MODELS)), *(case.make("eager") for case in MEDIA)]
    classes = {type(getattr(model, "model", model)).__name__ for model in models}
    heads = {name for family in FAMILIES.values() for name in (*family.heads, *family.prompts)}
    assert heads - classes == {"TimmWrapperForImageClassification"}  # tests/contract/test_timm.py
    towers = {oracles.vision_part(model).config.model_type for model in models}
    assert set(FAMILIES) - towers == {"timm_wrapper"}


def _built(case: ModelCase) -> Any:
    return case.build()


def test_an_engine_that_a_family_can_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with timm's models, which give no attention maps."""
    monkeypatch.setitem(FAMILIES, "vit", replace(FAMILIES["vit"], engines=("streaming",)))
    with pytest.raises(UnsupportedModelError, match=r"no attention maps.*use engine='streaming'"):
        GMAR(VIT.build(), engine="dense")
    assert GMAR(VIT.build()).attribute(VIT.images(), 3).any()


@pytest.mark.parametrize("name", ["vit-msn", "clip", "siglip", "siglip-prompts"])
def test_another_size_needs_a_word(name: str) -> None:
    """Families refuse it in words of their own, and SigLIP only by a sum that fails."""
    case = next(case for case in MODELS if case.name == name)
    with pytest.raises(InputError, match=r"40 x 16 pixels.*interpolate_pos_encoding=True"):
        GMAR(case.build()).attribute(torch.randn(1, 3, 40, 16), 3)


def test_a_head_of_ones_own_needs_a_word() -> None:
    headless = next(case for case in MORE_MODELS if case.name == "dinov3-cls").build()
    with pytest.raises(UnsupportedModelError, match=r"DINOv3ViTModel.*GMAR\(model, readout=") as no:
        GMAR(headless)
    assert all(name in str(no.value) for name in READOUTS)


@pytest.mark.parametrize("said", [(0.5,), (0.5, 0.25, 0.0)], ids=str)
def test_shares_can_be_said_too(said: tuple[float, ...]) -> None:
    case = next(case for case in MORE_MODELS if case.name == "dinov3-cls")
    if len(said) != case.prefix:
        with pytest.raises(OptionError, match="each of 3 prefix tokens"):
            GMAR(case.build(), readout=said)
        return
    layout = GMAR(case.build(), readout=said).adapter.tokens
    assert (layout.readout, layout.rest) == (said, "patches")


@pytest.mark.parametrize(
    ("model", "said", "words"),
    [
        (VIT.build(), "middle", "'cls', .*'pooling'.*got 'middle'"),
        (VIT.build(), "cls+distillation", "reads distillation, but .* are CLS$"),
        (VIT.build(), 3, "share for each of 1 prefix tokens, got 3"),
    ],
)
def test_a_readout_that_does_not_fit(model: Any, said: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        GMAR(model, readout=said)


def test_a_users_word_goes_before_the_class_head() -> None:
    """A module around a class model with a head of its own on the hidden states."""

    def how(vit: Any, pixels: Tensor) -> Any:
        tokens = vit(pixels, output_hidden_states=True).hidden_states[-1]
        return vit.classifier(tokens[:, 1:].mean(1))

    model, images = Around(VIT.build(), how), VIT.images()
    got = GMAR(model, readout="patches").attribute_patches(images, TARGETS)
    wanted = oracles.gmar(oracles.trace(model, images, TARGETS, reads="patches"))
    assert near(got, wanted.patches, PARITY)
    with pytest.raises(ModelOutputError, match=r"class head of ViTForImage.*readout="):
        GMAR(model).attribute_patches(images, TARGETS)


@pytest.mark.parametrize("engine", ["streaming", "dense"])
def test_a_siglip_tower_with_a_head_on_its_pooling(engine: str) -> None:
    """The pooling head's attention is the readout, wherever the tower is."""
    model = build(SiglipVisionModel, SiglipVisionConfig, sharper=3)
    head = nn.Linear(32, 7)
    wrapped = Around(model, lambda vision_model, pixels: head(vision_model(pixels).pooler_output))
    got = GMAR(wrapped, readout="pooling", engine=engine).attribute_patches(VIT.images(), TARGETS)
    found = oracles.trace(wrapped, VIT.images(), TARGETS, reads="patches")
    vision_model = oracles.vision_part(wrapped)
    tokens = vision_model(VIT.images()).last_hidden_state
    pooled = np.stack([oracles.pooling_attention(vision_model.head, one) for one in tokens])
    wanted = oracles.gmar(found._replace(readout=pooled, prefix=0))
    assert near(got, wanted.patches, PARITY)
    even = oracles.gmar(found._replace(readout=np.full_like(pooled, 1 / 16), prefix=0))
    assert relative_error(got, even.patches) > 1e-3


@pytest.mark.parametrize("engine", ["streaming", "dense"])
def test_pooling_of_another_thread_is_not_ours(engine: str) -> None:
    vision_model = build(SiglipVisionModel, SiglipVisionConfig, sharper=3)

    def how(vision_model: Any, pixels: Tensor) -> Any:
        return vision_model(pixels).pooler_output

    def disturbed(vision_model: Any, pixels: Tensor) -> Any:
        other = threading.Thread(target=vision_model, args=(pixels.detach().flip(0) * 2,))
        other.start()
        other.join()
        return how(vision_model, pixels)

    wanted, got = (
        GMAR(Around(vision_model, each), readout="pooling", engine=engine).attribute(
            VIT.images(), TARGETS
        )
        for each in (how, disturbed)
    )
    assert same(got, wanted)


@pytest.mark.parametrize("engine", ["streaming", "dense"])
def test_pooling_that_the_scores_do_not_come_from(engine: str) -> None:
    """The pooling head ran, but the scores are made of something else."""
    vision_model = build(SiglipVisionModel, SiglipVisionConfig, sharper=3)
    mean = Around(
        vision_model, lambda vision_model, pixels: vision_model(pixels).last_hidden_state.mean(1)
    )
    with pytest.raises(ModelOutputError, match="do not come from that head"):
        GMAR(mean, readout="pooling", engine=engine).attribute(VIT.images(), 3)


@pytest.mark.parametrize("times", [0, 2])
def test_pooling_that_does_not_run_once(times: int) -> None:
    vision_model = build(SiglipVisionModel, SiglipVisionConfig, sharper=3)
    head = vision_model.head.forward
    made: list[Tensor] = []

    def pooled(hidden: Tensor) -> Tensor:
        made.extend(head(hidden) for _ in range(times))
        return hidden.mean(1)

    vision_model.head.forward = pooled
    model = Around(vision_model, lambda vision_model, pixels: vision_model(pixels).pooler_output)
    with pytest.raises(ModelOutputError, match=f"must run once .* ran {times} times"):
        GMAR(model, readout="pooling").attribute(VIT.images(), 3)


def test_a_class_of_a_known_name_in_other_code() -> None:
    class ViTForImageClassification(transformers.ViTForImageClassification):
        def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
            tokens = self.vit(pixel_values, **kwargs).last_hidden_state
            return self.classifier(tokens[:, 1:].mean(1))

    with pytest.raises(UnsupportedModelError, match="not known which tokens"):
        GMAR(build(ViTForImageClassification, transformers.ViTConfig))


def test_a_module_may_say_its_readout_itself() -> None:
    case = next(case for case in MORE_MODELS if case.name == "dinov3-cls+patches")
    model = case.build()
    model.readout = "cls+patches"
    got = GMAR(model).attribute_patches(VIT.images(), TARGETS)
    wanted = GMAR(case.build(), readout="cls+patches").attribute_patches(VIT.images(), TARGETS)
    assert same(got, wanted)
    assert GMAR(model, readout="cls").adapter.tokens.readout == (1.0, 0.0, 0.0)


def test_a_size_that_no_keyword_helps() -> None:
    plain = Around(VIT.build(), lambda vit, pixels: vit(pixels))
    with pytest.raises(InputError, match=r"\(32\*32\); resize the images to the model's own size"):
        GMAR(plain).attribute(torch.randn(1, 3, 40, 16), 3)


def test_an_error_of_the_users_own_stays() -> None:
    def how(*_: object) -> Any:
        raise ValueError("labels are needed")

    with pytest.raises(ValueError, match=r"^labels are needed$"):
        GMAR(Around(VIT.build(), how)).attribute(torch.randn(1, 3, 40, 16), 3)


def _sizes(**more: Any) -> dict[str, Any]:
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    return {**sizes, **more}


LOADED_INTO: dict[str, tuple[Callable[[], Any], type[Any]]] = {
    "vit-mae": (
        lambda: ViTMAEForPreTraining(
            ViTMAEConfig(
                **_sizes(
                    decoder_hidden_size=16,
                    decoder_num_hidden_layers=1,
                    decoder_num_attention_heads=2,
                    decoder_intermediate_size=16,
                )
            )
        ),
        ViTForImageClassification,
    ),
    "deit": (lambda: DeiTModel(DeiTConfig(**_sizes())), ViTForImageClassification),
    "vit-msn": (lambda: ViTMSNModel(ViTMSNConfig(**_sizes())), ViTForImageClassification),
    "ijepa": (lambda: IJepaModel(IJepaConfig(**_sizes())), ViTForImageClassification),
    "vit": (lambda: ViTModel(ViTConfig(**_sizes())), DeiTForImageClassification),
    "vit-teacher": (
        lambda: ViTModel(ViTConfig(**_sizes())),
        DeiTForImageClassificationWithTeacher,
    ),
    "dinov2": (
        lambda: Dinov2Model(Dinov2Config(**_sizes())),
        Dinov2WithRegistersForImageClassification,
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LOADED_INTO)
def test_the_class_is_the_family_whatever_the_checkpoint(name: str, tmp_path: Path) -> None:
    """Weights of one class in another: the config keeps the name of the checkpoint."""
    make, head = LOADED_INTO[name]
    make().save_pretrained(tmp_path / "body")
    loaded = head.from_pretrained(
        tmp_path / "body", num_labels=LABELS, ignore_mismatched_sizes=True
    ).eval()
    assert loaded.config.model_type != head.config_class.model_type
    plain = head(head.config_class(**SIZES)).eval()
    plain.load_state_dict(loaded.state_dict())
    images = VIT.images()
    wanted = GMAR(plain).attribute_patches(images, 1)
    assert same(GMAR(loaded).attribute_patches(images, 1), wanted)
    assert GMAR(loaded).adapter.layout == GMAR(plain).adapter.layout
    described = describe(loaded.config, "name")
    assert described.explained, described.how
    assert described.facts["model type"] == head.config_class.model_type
    loaded.save_pretrained(tmp_path / "again")
    again = head.from_pretrained(tmp_path / "again").eval()
    assert same(GMAR(again).attribute_patches(images, 1), wanted)
    assert describe(load_config(tmp_path / "again"), "name").explained


def test_a_config_is_what_its_class_is() -> None:
    """Its own name is that of the checkpoint, from which weights may have come."""
    config: Any = ViTConfig()
    config.model_type = "clip"
    assert families.model_type(config) == "vit"
    assert not takes_prompts(config)
    other = SimpleNamespace(model_type="of no class")
    assert families.model_type(SimpleNamespace(config=other)) == "of no class"


def test_a_config_of_another_class_than_the_model() -> None:
    sizes: dict[str, Any] = SIZES
    model = ViTForImageClassification(ViTMAEConfig(**sizes)).eval()  # type: ignore[arg-type]
    assert families.model_type(model) == "vit"
    assert GMAR(model).attribute(VIT.images(), 1).any()


class UnheardConfig(ViTConfig):
    """Of a family that the tables do not have."""

    model_type = "unheard"


@pytest.mark.usefixtures("layouts")
def test_a_registered_family_with_a_readout_that_is_said() -> None:
    register_layout("vit", TokenLayout(readout=(0.0,), patch_size=(8, 8)))
    assert GMAR(VIT.build()).adapter.tokens.readout == (0.0,)
    assert GMAR(VIT.build(), readout="cls").adapter.tokens.readout == (1.0,)
    register_layout("unheard", TokenLayout(readout=(0.0, 0.0), rest="attention"))
    model = build(ViTModel, UnheardConfig)
    said = GMAR(model, readout=(0.5, 0.0)).adapter.tokens
    assert (said.readout, said.rest, said.patch_size) == ((0.5, 0.0), "patches", (8, 8))
    with pytest.raises(OptionError, match="share for each of 2 prefix tokens, got 'cls'"):
        GMAR(model, readout="cls")


@pytest.mark.usefixtures("layouts")
def test_a_config_that_does_not_say_its_layers() -> None:
    register_layout("unheard", TokenLayout(readout=(1.0,)))
    model = VIT.build()
    config = SimpleNamespace(model_type="unheard", patch_size=8)
    with pytest.raises(UnsupportedModelError, match="no num_hidden_layers"):
        layers_of(SimpleNamespace(config=config))
    assert layers_of(model) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": ("a",)},
        {"readout": (None,)},
        {"readout": 1.0},
        {"readout": (1.0,), "patch_size": (16,)},
        {"readout": (1.0,), "patch_size": (8, 8, 8)},
        {"readout": (1.0,), "patch_size": ()},
        {"readout": (1.0,), "patch_size": ("a", 1)},
        {"readout": (1.0,), "patch_size": (16.5, 16)},
        {"readout": (1.0,), "patch_size": (0, 16)},
        {"readout": (1.0,), "rest": "others"},
    ],
    ids=str,
)
def test_a_layout_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        OptionError, match=r"readout must be|patch_size and stride must be|rest must be"
    ):
        TokenLayout(**wrong)


def test_a_name_that_is_no_text() -> None:
    name: Any = ViTModel
    with pytest.raises(OptionError, match="name of a class"):
        register_layout(name, TokenLayout(readout=(1.0,)))


def test_pooling_without_a_pooling_head() -> None:
    with pytest.raises(UnsupportedModelError, match=r"an nn.MultiheadAttention .* 0 are there"):
        GMAR(VIT.build(), readout="pooling").attribute(VIT.images(), 3)


def test_pooling_that_is_not_for_one_query() -> None:
    model = build(SiglipVisionModel, SiglipVisionConfig)
    model.head.probe.data = model.head.probe.data.repeat(1, 2, 1)
    wrapped = Around(model, lambda vision_model, pixels: vision_model(pixels).pooler_output)
    with pytest.raises(ModelOutputError, match=r"one query.*got \(3, 2, 16\)"):
        GMAR(wrapped, readout="pooling").attribute(VIT.images(), 3)


def test_two_towers() -> None:
    case = next(case for case in MODELS if case.name == "siglip-prompts")
    both = case.build().model
    both.text_model = case.build().model.vision_model
    with pytest.raises(UnsupportedModelError, match="SiglipModel has 2 parts that take pixels"):
        ModelAdapter.of(Around(both, lambda model, pixels: model(pixels)))


of_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LORA: dict[str, Callable[[], Any]] = {
    "vit": VIT.build,
    "clip": next(case for case in MODELS if case.name == "clip").build,
    "dinov2": next(case for case in MODELS if case.name == "dinov2").build,
}


@of_peft
@pytest.mark.parametrize("engine", ["streaming", "dense"])
@pytest.mark.parametrize("name", LORA)
def test_adapters(name: str, engine: str) -> None:
    """PEFT calls the model's bare forward; its weights are part of what is explained."""
    adapted = get_peft_model(
        LORA[name](),
        LoraConfig(target_modules=r".*vision.*(q_proj|v_proj)|.*vit.*_proj|.*query|.*dinov2.*_proj",
                   modules_to_save=["classifier"], init_lora_weights=False),
    ).eval()  # fmt: skip
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    got = GMAR(adapted, engine=engine).attribute_patches(VIT.images(), TARGETS)
    assert any("lora" in key for key in before)
    assert all(torch.equal(value, before[key]) for key, value in adapted.state_dict().items())
    merged = adapted.merge_and_unload()
    wanted = oracles.gmar(oracles.trace(merged, VIT.images(), TARGETS)).patches
    assert near(got, wanted, PARITY)
    plain = GMAR(LORA[name](), engine=engine).attribute_patches(VIT.images(), TARGETS)
    assert not same(got, plain)


@of_peft
@pytest.mark.parametrize("engine", ["streaming", "dense"])
def test_an_adapted_body_with_a_head_of_ones_own(engine: str) -> None:
    case = next(case for case in MORE_MODELS if case.name == "vit-tokens")
    model = case.build()
    model.model = get_peft_model(
        model.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    got = GMAR(model, readout="tokens", engine=engine).attribute_patches(VIT.images(), TARGETS)
    model.model = model.model.merge_and_unload()
    wanted = oracles.gmar(oracles.trace(model, VIT.images(), TARGETS, reads="tokens"))
    assert near(got, wanted.patches, PARITY)
