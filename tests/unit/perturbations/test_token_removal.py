"""Forwards without some patches: what is left is the model on the other tokens, and no more."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, BeitConfig, BeitForImageClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_gmar import GMAR, TokenLayout, register_layout
from hf_gmar._core.attention import masked_keys_here
from hf_gmar._core.execution import exclusive_eval
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import HfGmarError, InputError, ModelOutputError, UnsupportedModelError
from hf_gmar.perturbations.token_removal import (
    DropSites,
    drop_tokens,
    fewest_patches,
    mask_tokens,
)
from tests.reference import timm_models
from tests.reference.cases import LAYERS, MODELS, MORE_MODELS, VIT, Around, ModelCase, every_model
from tests.reference.models import build
from tests.reference.parity import same
from tests.reference.tolerances import PATIENCE
from tests.support.state import unchanged, used
from tests.support.threads import Halfway

CASES = {case.name: case for case in (*MODELS, *MORE_MODELS)}
WAYS = {"dropped": drop_tokens, "unattended": mask_tokens}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def adapter_of(case: ModelCase, model: Any = None) -> ModelAdapter:
    """A model in float64, in which rounding hides no mistake."""
    model = case.build() if model is None else model
    return ModelAdapter.of(model.double(), case.options.get("readout"))


def layers_of(adapter: ModelAdapter) -> Any:
    """The layers of a ViT."""
    vision_model: Any = adapter.vision_model
    return vision_model.layers


def some(case: ModelCase, copies: int = 1, missing: int = 3, seed: int = 0) -> Tensor:
    """Patches that are kept, others in each copy but as many, (copies, P)."""
    patches = case.grid[0] * case.grid[1]
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(copies, patches, generator=generator).argsort(1)
    return order >= missing


def scores(adapter: ModelAdapter, case: ModelCase, copies: int = 1) -> Tensor:
    """Scores of copies of one image."""
    pixels = case.images(torch.float64)[:1].expand(copies, -1, -1, -1)
    with torch.no_grad():
        return adapter(pixels, **case.forward_kwargs)


def hidden(way: Callable[..., Any], adapter: ModelAdapter, case: ModelCase, kept: Tensor) -> Tensor:
    """Scores of copies whose patches are missing."""
    with way(adapter, kept):
        return scores(adapter, case, len(kept))


class WithoutColumns(TorchFunctionMode):
    """The oracle: plain attention, step by step, from which the columns of some keys are left out.

    All tokens stay where they are in the model.
    """

    def __init__(self, stay: Tensor) -> None:
        """``stay`` are the places of the other keys."""
        super().__init__()
        self.stay = stay

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Attention by its definition; anything else as ever."""
        if func is functional.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *_: Any,
        scale: float | None = None,
        **__: Any,
    ) -> Tensor:
        """softmax(q k^T s + bias) v over the keys that stay."""
        raw = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        raw = raw if attn_mask is None else raw + attn_mask
        return raw[..., self.stay].softmax(-1) @ value[:, :, self.stay]


def without_columns(case: ModelCase, kept: Tensor) -> Tensor:
    """Scores of an image some of whose patches are missing, by the oracle.

    What leaves the top layer is without their tokens: a head that averages patches does not count
    them.
    """
    adapter = adapter_of(case)
    stay = torch.cat([torch.arange(case.prefix), case.prefix + kept.nonzero()[:, 0]])
    top = [
        one for one in adapter.vision_model.modules() if isinstance(one, GradientCheckpointingLayer)
    ]

    def leave(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return output[0][:, stay], *output[1:]
        return output[:, stay]

    top[-1].register_forward_hook(leave)
    with WithoutColumns(stay):
        return scores(adapter, case)[0]


@every_case
def test_only_the_other_tokens_are_left(case: ModelCase) -> None:
    adapter, kept = adapter_of(case), some(case, copies=2)
    got = torch.cat([hidden(drop_tokens, adapter, case, one[None]) for one in kept])
    wanted = torch.stack([without_columns(case, one) for one in kept])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert (got - scores(adapter, case)).abs().max() > 1e-3  # something was missing
    if not case.name.startswith("data2vec"):
        unattended = hidden(mask_tokens, adapter, case, kept)
        torch.testing.assert_close(unattended, wanted, rtol=0, atol=1e-10)


@every_case
def test_several_copies_in_one_forward(case: ModelCase) -> None:
    adapter, kept = adapter_of(case), some(case, copies=3)
    alone = torch.cat([hidden(drop_tokens, adapter, case, one[None]) for one in kept])
    assert DropSites.of(adapter).one_by_one == case.name.startswith("mlcd")
    if not DropSites.of(adapter).one_by_one:
        together = hidden(drop_tokens, adapter, case, kept)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@every_way
@every_model
def test_nothing_missing(case: ModelCase, way: Any) -> None:
    adapter = adapter_of(case)
    everything = torch.ones(2, case.grid[0] * case.grid[1], dtype=torch.bool)
    got = hidden(way, adapter, case, everything)
    torch.testing.assert_close(got, scores(adapter, case, 2), rtol=0, atol=1e-12)


@every_way
@every_model
def test_models_that_were_loaded_eager(case: ModelCase, way: Any) -> None:
    eager = adapter_of(case, case.build(attention="eager"))
    kept = some(case, copies=2)
    wanted = torch.stack([without_columns(case, one) for one in kept])
    # Their softmax is in float32.
    torch.testing.assert_close(hidden(way, eager, case, kept), wanted, rtol=0, atol=1e-5)


@every_way
@pytest.mark.parametrize("name", ["vit", "deit-teacher", "dinov3-cls"])
def test_no_patch_at_all(name: str, way: Any) -> None:
    case = CASES[name]
    adapter, nothing = adapter_of(case), some(case, missing=16)
    assert not nothing.any()
    got = hidden(way, adapter, case, nothing)[0]
    torch.testing.assert_close(got, without_columns(case, nothing[0]), rtol=0, atol=1e-10)


NEEDS_ONE = (
    *("beit-mean", "dinov2", "dinov2-registers", "ijepa", "clip", "metaclip2", "siglip"),
    *("siglip-prompts", "data2vec-mean", "dinov3-patches", "dinov3-cls+patches"),
    "dinov2-patches",
)


@every_case
def test_how_many_patches_must_stay(case: ModelCase) -> None:
    adapter = adapter_of(case)
    assert fewest_patches(adapter) == (case.name.removesuffix("-tall") in NEEDS_ONE)


@pytest.mark.parametrize(
    ("name", "attention"),
    # Under SDPA, BEiT adds the mask's flags to its bias as numbers.
    [("vit", "sdpa"), ("vit", "eager"), ("beit-cls", "eager")],
)
@every_way
def test_beside_a_mask_that_the_caller_gives(way: Any, name: str, attention: str) -> None:
    """The mask hides patch 2, the call patch 5: both are missing."""
    case = CASES[name]
    adapter = adapter_of(case, case.build(attention=attention))
    mask, kept = torch.ones(2, 17), torch.ones(2, 16, dtype=torch.bool)
    mask[:, 1 + 2], kept[:, 5] = 0, False
    with torch.no_grad(), way(adapter, kept):
        pixels = case.images(torch.float64)[:1].expand(2, -1, -1, -1)
        got = adapter(pixels, attention_mask=mask)
    kept[:, 2] = False
    wanted = without_columns(case, kept[0])
    atol = 1e-10 if attention == "sdpa" else 1e-5
    torch.testing.assert_close(got, wanted.expand(2, -1), rtol=0, atol=atol)


def test_biases_that_are_stretched() -> None:
    """BEiT stretches them to as many tokens as there are, and they must be those of all tokens."""
    model = build(
        BeitForImageClassification,
        BeitConfig,
        use_mean_pooling=False,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
    ).double()
    case = CASES["beit-cls"]
    adapter, kept = ModelAdapter.of(model), some(case, copies=2)
    with torch.no_grad():
        with drop_tokens(adapter, kept):
            wanted = adapter(case.images(torch.float64)[:2])
        with drop_tokens(adapter, kept):
            got = adapter(case.images(torch.float64)[:2], interpolate_pos_encoding=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_a_model_that_computes_attention_itself() -> None:
    tokens = torch.zeros(1, 17, dtype=torch.bool)
    refused = pytest.raises(UnsupportedModelError, match=r"not call Transformers'.*token-dropping")
    with refused, masked_keys_here(VIT.build().vit, LAYERS, tokens):
        pass


@contextmanager
def loaded_as(model: Any, name: str, function: Any) -> Iterator[None]:
    """A model with an attention function of another kind."""
    with patch.dict(AttentionInterface._global_mapping, {name: function}):
        model.config._attn_implementation_internal = name
        yield


def test_attention_that_honours_no_mask() -> None:
    """Flash attention is such a kind; SDPA takes its place."""

    def deaf(_module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        found = functional.scaled_dot_product_attention(query, key, value)
        return found.transpose(1, 2), None

    adapter, kept = adapter_of(VIT), some(VIT)
    wanted = hidden(mask_tokens, adapter, VIT, kept)
    plain = scores(adapter, VIT)
    with loaded_as(adapter.vision_model, "deaf", deaf):
        torch.testing.assert_close(scores(adapter, VIT), plain)
        got = hidden(mask_tokens, adapter, VIT, kept)
        assert adapter.vision_model.config._attn_implementation == "deaf"
        with (
            patch.object(type(adapter.vision_model), "_supports_sdpa", False),
            pytest.raises(UnsupportedModelError, match="has no SDPA attention"),
        ):
            hidden(mask_tokens, adapter, VIT, kept)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@every_way
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["vit", "beit-mean", "data2vec-cls", "mlcd-cls", "siglip"])
def test_the_model_comes_back(name: str, attention: str, way: Any) -> None:
    case = CASES[name]
    if way is mask_tokens and name.startswith("data2vec"):
        pytest.skip("refused")
    model = used(case, attention)
    adapter = ModelAdapter.of(model, case.options.get("readout"))
    kept = some(case)
    with unchanged(model), torch.no_grad(), exclusive_eval(adapter), way(adapter, kept):
        adapter(case.images()[:1])
    adapter.vision_model.register_forward_hook(lambda *_: 1 // 0)
    with unchanged(model), exclusive_eval(adapter):  # noqa: SIM117  # after the error
        with pytest.raises(ZeroDivisionError), torch.no_grad(), way(adapter, kept):
            adapter(case.images()[:1])


@every_way
@pytest.mark.parametrize("name", ["vit", "beit-mean"])
def test_a_plain_forward_of_another_thread(name: str, way: Any) -> None:
    case = CASES[name]
    adapter, kept, halfway = adapter_of(case), some(case), Halfway()
    wanted, plain = hidden(way, adapter, case, kept), scores(adapter, case)
    [*layers] = [
        m for m in adapter.vision_model.modules() if isinstance(m, GradientCheckpointingLayer)
    ]
    layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        work = halfway.during(lambda: hidden(way, adapter, case, kept), pool)
        meanwhile = scores(adapter, case)
        halfway.go_on.set()
        assert same(work.result(PATIENCE), wanted)
    assert torch.equal(meanwhile, plain)


@every_way
def test_an_explanation_in_the_middle(way: Any) -> None:
    """A hook that explains the model sees all of its tokens."""
    model = VIT.build().double()
    adapter, kept = ModelAdapter.of(model), some(VIT)
    wanted = hidden(way, adapter, VIT, kept)
    explained: list[Any] = []
    gmar = GMAR(model)
    alone = gmar.attribute_patches(VIT.images(torch.float64), 2)

    def explain(*_: Any) -> None:
        if not explained:
            explained.append(None)
            explained.append(gmar.attribute_patches(VIT.images(torch.float64), 2))

    model.vit.layers[1].register_forward_hook(explain)
    assert same(hidden(way, adapter, VIT, kept), wanted)
    assert explained[1] is not None
    assert same(explained[1], alone)


def test_another_model_in_the_middle() -> None:
    """What a hook calls pays attention to everything."""
    model, other = VIT.build().double(), VIT.build().double()
    other.config = model.config  # its attention asks the same config
    for part in other.modules():
        if hasattr(part, "config"):
            part.config = model.config
    adapter, kept, seen = ModelAdapter.of(model), some(VIT), []
    pixels = VIT.images(torch.float64)
    wanted, plain = hidden(mask_tokens, adapter, VIT, kept), other(pixels).logits
    model.vit.layers[1].register_forward_hook(lambda *_: seen.append(other(pixels).logits))
    assert same(hidden(mask_tokens, adapter, VIT, kept), wanted)
    assert same(seen[0], plain)


def twice(model: Any, pixels: Tensor) -> Any:
    return model(pixels).logits + model(pixels).logits


def shuffled(model: Any, pixels: Tensor) -> Any:
    """The layers run from the top down."""
    layers = model.vit.layers
    tokens = model.vit.embeddings(pixels)
    for layer in (layers[0], layers[2], layers[1]):
        tokens = layer(tokens)
    return model.classifier(tokens[:, 0])


@pytest.mark.parametrize(("way", "error"), [(drop_tokens, "layers"), (mask_tokens, "layers")])
def test_a_model_that_runs_twice(way: Any, error: str) -> None:
    adapter = ModelAdapter.of(Around(VIT.build().double(), twice))
    with pytest.raises(ModelOutputError, match=error):
        hidden(way, adapter, VIT, some(VIT))


def test_layers_in_another_order() -> None:
    adapter = ModelAdapter.of(Around(VIT.build().double(), shuffled))
    with pytest.raises(ModelOutputError, match=r"lowest first; they ran in the order \[0, 2, 1\]"):
        hidden(drop_tokens, adapter, VIT, some(VIT))


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("way", [drop_tokens, mask_tokens])
@pytest.mark.parametrize("prefix", [(1.0, 0.0), (0.5,) * 2])
def test_a_layout_with_other_tokens(way: Any, prefix: tuple[float, ...]) -> None:
    register_layout("ViTForImageClassification", TokenLayout(prefix))
    with pytest.raises(ModelOutputError, match=r"18 tokens are needed.*register_layout"):
        hidden(way, adapter_of(VIT), VIT, some(VIT))


def test_other_images_than_said() -> None:
    adapter = adapter_of(VIT)
    for way in WAYS.values():
        refused = pytest.raises(ModelOutputError, match="2 images of 17 tokens")
        with refused, way(adapter, some(VIT, copies=2)):
            scores(adapter, VIT, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequencies", torch.zeros(17, 4)),
        ("frequencies", torch.zeros(2, 16)),
        ("rope", torch.zeros(3, 16)),
        ("attention_mask", torch.zeros(1, 17)),
        ("attention_mask", torch.zeros(1, 1, 17, 5)),
        ("attention_mask", (torch.zeros(1, 1, 17, 17),)),
    ],
)
def test_layers_that_take_more_of_each_token(name: str, value: Any) -> None:
    adapter, kept = adapter_of(VIT), some(VIT)
    layers_of(adapter)[0].register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, name: value}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModelError, match=f"{name}.*attention-masking"):
        hidden(drop_tokens, adapter, VIT, kept)


def test_layers_that_take_something_else() -> None:
    """What has no number for each token passes as it is."""
    adapter, kept = adapter_of(VIT), some(VIT)
    wanted, seen = hidden(drop_tokens, adapter, VIT, kept), []
    given = {"more": torch.zeros(5, 3), "rope": None, "sizes": (17, 16), "mode": "x"}
    layer = layers_of(adapter)[0]
    layer.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, **given}), with_kwargs=True
    )
    forward = layer.forward

    def looked_at(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return forward(*args)

    with patch.object(layer, "forward", looked_at):
        assert same(hidden(drop_tokens, adapter, VIT, kept), wanted)
    assert all(seen[0][name] is value for name, value in given.items())


@pytest.mark.parametrize("shape", [(1, 4, 17, 17), (4, 17, 17), (1, 1, 1, 17), (1, 17, 17)])
def test_biases_that_layers_take(shape: tuple[int, ...]) -> None:
    """Of each head or all, of each query or all: as attention adds them to its scores."""
    adapter, kept = adapter_of(VIT), some(VIT, copies=2)
    bias = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for layer in layers_of(adapter):
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: (args[:1], {**kwargs, "attention_mask": bias}),
            with_kwargs=True,
        )
    assert (scores(adapter, VIT) - scores(adapter_of(VIT), VIT)).abs().max() > 0.1
    dropped = hidden(drop_tokens, adapter, VIT, kept)
    unattended = hidden(mask_tokens, adapter, VIT, kept)
    torch.testing.assert_close(dropped, unattended, rtol=0, atol=1e-10)


def test_tokens_that_are_given_by_name() -> None:
    adapter, kept = adapter_of(VIT), some(VIT)
    wanted = hidden(drop_tokens, adapter, VIT, kept)
    for layer in layers_of(adapter):
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: ((), {"hidden_states": args[0], **kwargs}),
            with_kwargs=True,
        )
    assert same(hidden(drop_tokens, adapter, VIT, kept), wanted)


def test_a_top_layer_that_gives_more_than_tokens() -> None:
    case = CASES["clip"]
    adapter, kept = adapter_of(case), some(case)
    more: list[Any] = []
    wanted = hidden(mask_tokens, adapter, case, kept)
    top = [m for m in adapter.vision_model.modules() if isinstance(m, GradientCheckpointingLayer)][
        -1
    ]
    top.register_forward_hook(lambda _module, _inputs, tokens: (tokens, "more"))
    with mask_tokens(adapter, kept):
        handle = top.register_forward_hook(lambda _module, _inputs, output: more.append(output))
        last = top.register_forward_hook(lambda _module, _inputs, output: output[0])
        got = scores(adapter, case)
        handle.remove()
        last.remove()
    assert same(got, wanted)
    assert [one[1:] for one in more] == [("more",)]


def test_other_numbers_of_patches() -> None:
    kept = some(VIT, copies=2)
    kept[0] = True
    with pytest.raises(InputError, match=r"as many patches each, got \[16, 13\]"):
        hidden(drop_tokens, adapter_of(VIT), VIT, kept)
    # A head that reads CLS alone needs no such thing.
    together = hidden(mask_tokens, adapter_of(VIT), VIT, kept)
    wanted = torch.stack([without_columns(VIT, one) for one in kept])
    torch.testing.assert_close(together, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_is_fixed_when_built(attention: str) -> None:
    case = CASES["data2vec-mean"]
    adapter = adapter_of(case, case.build(attention=attention))
    with pytest.raises(UnsupportedModelError, match=r"Data2VecVision.*use token-dropping"):
        hidden(mask_tokens, adapter, case, some(case))
    sdpa = hidden(drop_tokens, adapter_of(case), case, some(case))
    torch.testing.assert_close(hidden(drop_tokens, adapter, case, some(case)), sdpa)


def test_the_count_of_layers_is_checked() -> None:
    vision_model, tokens = VIT.build().vit, torch.zeros(1, 17, dtype=torch.bool)
    for layers in (LAYERS - 1, LAYERS + 1):
        refused = pytest.raises(ModelOutputError, match=f"{layers} layers made 3.*are masked")
        with refused, masked_keys_here(vision_model, layers, tokens):
            vision_model(VIT.images()[:1])


def _timm(name: str) -> Any:
    """A case of a timm model; skipped where it can't be imported."""
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as reason:
        pytest.skip(f"timm can't be imported: {reason}")
    shared = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}
    architectures = {
        **timm_models.ARCHITECTURES,
        "beit-shared": ("beit_base_patch16_224", shared, [0.0]),
    }
    architecture, settings, readout = architectures[name]
    model = timm_models.build(architecture, **settings)
    return ModelCase(
        name, lambda: timm_models.build(architecture, **settings), VIT.shape, VIT.grid, len(readout)
    ), model


TIMM = [
    "vit",
    "vit-mean",
    "vit-registers",
    "deit-distilled",
    "eva",
    "beit",
    "beit-shared",
    "dinov3",
]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    case, model = _timm(name)
    adapter, kept = adapter_of(case, model), some(case, copies=2)
    alone = torch.cat([hidden(drop_tokens, adapter, case, one[None]) for one in kept])
    torch.testing.assert_close(alone, torch.stack([_by_columns(case, one) for one in kept]))
    assert DropSites.of(adapter).one_by_one == (name in ("eva", "dinov3"))
    if not DropSites.of(adapter).one_by_one:
        torch.testing.assert_close(hidden(drop_tokens, adapter, case, kept), alone)
    with pytest.raises(HfGmarError, match="use token-dropping"):
        hidden(mask_tokens, adapter, case, kept)


def _by_columns(case: ModelCase, kept: Tensor) -> Tensor:
    adapter = adapter_of(case)
    stay = torch.cat([torch.arange(case.prefix), case.prefix + kept.nonzero()[:, 0]])
    top: Any = adapter.vision_model
    top.timm_model.blocks[-1].register_forward_hook(lambda _m, _i, output: output[:, stay])
    with WithoutColumns(stay):
        return scores(adapter, case)[0]
