"""Text prompts as classes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

from hf_gmar import GMAR, ZeroShotModel
from hf_gmar.errors import OptionError, UnsupportedModelError
from hf_gmar.models import ScoreKind, find_class, label_of
from tests.reference.cases import ENGINE_NAMES, ENGINE_OPTIONS, TARGETS, VIT
from tests.reference.models import LABELS, PROMPTS, prompted, tokenizer
from tests.reference.parity import same
from tests.reference.report_parity import prompt_correlation
from tests.reference.tolerances import PATIENCE

TWO_TOWERS: list[tuple[type[PreTrainedModel], Any]] = [
    (CLIPModel, CLIPConfig),
    (MetaClip2Model, MetaClip2Config),
    (SiglipModel, SiglipConfig),
    (AltCLIPModel, AltCLIPConfig),
    (ChineseCLIPModel, ChineseCLIPConfig),
    (CLIPSegModel, CLIPSegConfig),
]
every_pair = pytest.mark.parametrize(
    ("model_class", "config_class"), TWO_TOWERS, ids=lambda value: value.__name__
)


def texts(model: Any) -> Any:
    """The prompts as the model's own documentation tokenises them."""
    longest = model.config.text_config.max_position_embeddings
    siglip = {"padding": "max_length", "max_length": longest}
    how: dict[str, Any] = siglip if isinstance(model, SiglipModel) else {"padding": True}
    return tokenizer()(PROMPTS, return_tensors="pt", **how)


@every_pair
@pytest.mark.parametrize("training", [False, True])
def test_scores_are_those_of_the_whole_model(
    model_class: Any, config_class: Any, training: bool
) -> None:
    zero_shot, images = prompted(model_class, config_class), VIT.images()
    whole = zero_shot.model(**texts(zero_shot.model), pixel_values=images).logits_per_image
    again = ZeroShotModel(zero_shot.model.train(training), tokenizer(), PROMPTS)
    assert again.training is training
    assert zero_shot.model.text_model.training is training  # as it was
    scores = again.eval()(images)
    assert scores.shape == (3, LABELS)
    assert torch.allclose(scores, whole, atol=1e-5)


@every_pair
def test_the_gradient_reaches_the_image_tower_alone(model_class: Any, config_class: Any) -> None:
    zero_shot = prompted(model_class, config_class)
    zero_shot(VIT.images())[:, 2].sum().backward()
    with_gradient = {
        name for name, weight in zero_shot.named_parameters() if weight.grad is not None
    }
    assert any("vision_model" in name for name in with_gradient)
    assert not any("text" in name for name in with_gradient)


@every_pair
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_explanation_does_not_read_the_text_again(
    model_class: Any, config_class: Any, engine: str
) -> None:
    zero_shot = prompted(model_class, config_class)
    wanted = GMAR(zero_shot, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), TARGETS)

    def refuse(*_: object) -> None:
        pytest.fail("the text tower ran")

    zero_shot.model.text_model.register_forward_pre_hook(refuse)
    got = GMAR(zero_shot, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), TARGETS)
    assert same(got, wanted)


@every_pair
def test_the_map_changes_with_the_prompt(model_class: Any, config_class: Any) -> None:
    correlation = prompt_correlation(model_class, config_class)
    assert 0 < correlation < 0.9999


def test_captums_methods_take_it_as_it_is() -> None:
    zero_shot, images = prompted(SiglipModel, SiglipConfig), VIT.images()
    found = IntegratedGradients(zero_shot).attribute(images, target=2, n_steps=20)
    change = zero_shot(images)[:, 2] - zero_shot(torch.zeros_like(images))[:, 2]
    assert torch.allclose(found.sum(dim=(1, 2, 3)), change, rtol=0.1, atol=0.05)


def test_a_prompt_is_a_class() -> None:
    zero_shot = prompted(CLIPModel, CLIPConfig)
    target = find_class(zero_shot.config, "a photo of a heart")
    assert target == PROMPTS.index("a photo of a heart")
    assert label_of(zero_shot.config, target) == "a photo of a heart"


def test_probabilities_are_shares_for_clip_and_each_its_own_for_siglip() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.0]])
    clip, siglip = prompted(CLIPModel, CLIPConfig), prompted(SiglipModel, SiglipConfig)
    assert torch.equal(ScoreKind.of(clip.config, scores).convert(scores), scores.softmax(1))
    assert torch.equal(ScoreKind.of(siglip.config, scores).convert(scores), scores.sigmoid())


def test_a_single_prompt_needs_no_list() -> None:
    model = prompted(SiglipModel, SiglipConfig).model
    one = ZeroShotModel(model, tokenizer(), "a photo of a cat")
    assert one.prompts == ["a photo of a cat"]
    several = ZeroShotModel(model, tokenizer(), PROMPTS)(VIT.images())
    assert torch.allclose(one(VIT.images())[:, 0], several[:, PROMPTS.index(one.prompts[0])])


def test_the_model_moves_with_its_text() -> None:
    zero_shot = prompted(CLIPModel, CLIPConfig).double()
    assert zero_shot.text.dtype == zero_shot.dtype == torch.float64
    assert zero_shot.device.type == "cpu"
    assert zero_shot(VIT.images(torch.float64)).dtype == torch.float64
    assert "text" not in zero_shot.state_dict()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapted_model() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    lora = LoraConfig(target_modules=r".*vision.*q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, lora).eval()
    got = GMAR(ZeroShotModel(adapted, tokenizer(), PROMPTS)).attribute(VIT.images(), TARGETS)
    merged = adapted.merge_and_unload()
    wanted = GMAR(ZeroShotModel(merged, tokenizer(), PROMPTS)).attribute(VIT.images(), TARGETS)
    assert same(got, wanted)


def test_a_single_prompt_of_clip() -> None:
    one = ZeroShotModel(prompted(CLIPModel, CLIPConfig).model, tokenizer(), ["a dog"])
    assert one(VIT.images()).shape == (3, 1)
    assert GMAR(one).attribute(VIT.images()).any()


def test_several_prompts_from_a_generator() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    assert ZeroShotModel(model, tokenizer(), (word for word in ("dog", "cat"))).prompts == [
        "dog",
        "cat",
    ]


def test_a_subclass_of_a_known_model() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    wanted = GMAR(ZeroShotModel(model, tokenizer(), PROMPTS)).attribute(VIT.images(), TARGETS)
    model.__class__ = type("Mine", (CLIPModel,), {})
    with pytest.raises(UnsupportedModelError, match="Mine scores images by text prompts"):
        GMAR(model)
    got = GMAR(ZeroShotModel(model, tokenizer(), PROMPTS)).attribute(VIT.images(), TARGETS)
    assert same(got, wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_model() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    wanted = ZeroShotModel(model, tokenizer(), PROMPTS)(VIT.images())
    compiled: Any = torch.compile(model)
    assert same(ZeroShotModel(compiled, tokenizer(), PROMPTS)(VIT.images()), wanted)


def test_made_in_inference_mode() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    with torch.inference_mode():
        made = ZeroShotModel(model, tokenizer(), PROMPTS)
    assert GMAR(made).attribute(VIT.images(), TARGETS).any()


def test_the_model_may_be_moved_alone() -> None:
    zero_shot = prompted(CLIPModel, CLIPConfig)
    zero_shot.model.double()
    assert zero_shot(VIT.images(torch.float64)).dtype == torch.float64


def test_prompts_wait_for_an_explanation_in_another_thread() -> None:
    """And it for them: both put the model into evaluation mode."""
    zero_shot = prompted(CLIPModel, CLIPConfig)
    ready, explained, waited = threading.Event(), threading.Event(), []

    def hold(*_: object) -> None:
        ready.set()
        waited.append(not explained.wait(0.5))

    def explain() -> None:
        assert ready.wait(PATIENCE)
        GMAR(zero_shot).attribute(VIT.images(), TARGETS)
        explained.set()

    handle = zero_shot.model.text_model.register_forward_pre_hook(hold)
    other = threading.Thread(target=explain)
    other.start()
    ZeroShotModel(zero_shot.model, tokenizer(), PROMPTS)
    other.join()
    handle.remove()
    assert waited == [True]
    assert explained.is_set()


@pytest.mark.parametrize(
    "bad", [None, "words", nn.Linear(2, 2)], ids=lambda bad: type(bad).__name__
)
def test_what_is_no_tokenizer(bad: Any) -> None:
    with pytest.raises(OptionError, match=f"tokenizer of the model .* got {type(bad).__name__}"):
        ZeroShotModel(prompted(CLIPModel, CLIPConfig).model, bad, PROMPTS)


def test_a_tokenizer_of_another_model() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    words = tokenizer()
    words.add_tokens(["zebra"])
    with pytest.raises(OptionError, match="more than the 13 words"):
        ZeroShotModel(model, words, ["zebra"])


def test_a_wrapper_would_be_lost() -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    with pytest.raises(UnsupportedModelError, match=r"itself, one of CLIPModel.* got Sequential"):
        ZeroShotModel(nn.Sequential(model), tokenizer(), PROMPTS)


@pytest.mark.parametrize("prompts", [[], [""], ["a", "  "], ["a", 3], [None], None, 5], ids=str)
def test_what_is_no_prompt(prompts: Any) -> None:
    model = prompted(CLIPModel, CLIPConfig).model
    with pytest.raises(OptionError, match="one or more texts"):
        ZeroShotModel(model, tokenizer(), prompts)


@every_pair
@pytest.mark.parametrize("again", ["dog", " dog ", "dog  "])
def test_the_same_prompt_twice(model_class: Any, config_class: Any, again: str) -> None:
    """Whatever the model reads as the same text would be two classes with one score."""
    model = prompted(model_class, config_class).model
    with pytest.raises(OptionError, match=rf"'dog' and '{again}' are the same text.*give it once"):
        ZeroShotModel(model, tokenizer(), ["cat", "dog", again])


@every_pair
def test_a_prompt_that_is_too_long(model_class: Any, config_class: Any) -> None:
    model = prompted(model_class, config_class).model
    with pytest.raises(OptionError, match="32 tokens, and the model reads 9"):
        ZeroShotModel(model, tokenizer(), ["dog", "cat " * 30])


@pytest.mark.parametrize("model", [VIT.build(), nn.Linear(2, 2)], ids=["vit", "linear"])
def test_a_model_without_text(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"itself, one of CLIPModel"):
        ZeroShotModel(model, tokenizer(), PROMPTS)


def test_a_model_of_image_and_text_needs_prompts() -> None:
    with pytest.raises(UnsupportedModelError, match=r"ZeroShotModel\(model, processor, prompts\)"):
        GMAR(prompted(CLIPModel, CLIPConfig).model)


def test_a_head_of_ones_own_on_image_features() -> None:
    """Around a model of image and text without its text: a head may read what it likes."""
    model = prompted(SiglipModel, SiglipConfig).model

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = model, nn.Linear(32, 4)

        def forward(self, pixels: Tensor) -> Any:
            return self.head(self.model.get_image_features(pixels).pooler_output)

    with pytest.raises(UnsupportedModelError, match=r"SiglipModel.*readout="):
        GMAR(Own())
    gmar = GMAR(Own(), readout="pooling")
    assert gmar.adapter.tokens.rest == "attention"
    assert gmar.attribute(VIT.images(), 3).any()
