"""Models in other forms: wrapped, bound, hooked; what is explained is the same model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
)
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hf_gmar import GMAR, LogitsModel
from hf_gmar._core.hooks import VisionRuns
from hf_gmar.errors import ModelOutputError, UnsupportedModelError
from tests.reference.cases import (
    ENGINE_OPTIONS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
    every_engine,
    every_model,
)
from tests.reference.parity import same


def explained(model: Any, engine: str, images: Tensor | None = None, **kwargs: Any) -> Tensor:
    """The heat of the tiny images' targets."""
    images = VIT.images() if images is None else images
    heat: Tensor = GMAR(model, **ENGINE_OPTIONS[engine]).attribute(images, TARGETS, **kwargs)
    return heat


@every_engine
@every_model
def test_a_model_of_logits_is_the_model(case: ModelCase, engine: str) -> None:
    model, images, options = case.build(), case.images(), dict(case.forward_kwargs)
    wanted = explained(model, engine, images, **options)
    # The keywords may be given with the model, or with the call.
    assert same(explained(LogitsModel(model, **options), engine, images), wanted)
    assert same(explained(LogitsModel(model), engine, images, **options), wanted)


def _hooked_by_accelerate(model: Any) -> Any:
    """As ``device_map="auto"`` leaves a model: its forward is replaced."""
    return add_hook_to_module(model, AlignDevicesHook(execution_device="cpu"))


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "LogitsModel": LogitsModel,
    "LogitsModel twice": lambda model: LogitsModel(LogitsModel(model)),
    "sequential": lambda model: nn.Sequential(nn.Identity(), model),
    "partial": lambda model: functools.partial(model, output_hidden_states=True),
    "partial of a partial": lambda model: functools.partial(
        functools.partial(model, labels=None), output_hidden_states=True
    ),
    "bound method": lambda model: model.forward,
    "partial of a bound method": lambda model: functools.partial(model.forward, labels=None),
    "accelerate": _hooked_by_accelerate,
    "tuple": lambda model: functools.partial(model, return_dict=False),
    "attentions asked for": lambda model: functools.partial(model, output_attentions=True),
}


@pytest.mark.pairwise
@every_engine
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("form", WRAPPED)
def test_a_model_in_another_form(form: str, attention: str, engine: str) -> None:
    got = explained(WRAPPED[form](VIT.build(attention=attention)), engine)
    assert same(got, explained(VIT.build(), engine))


@every_engine
def test_a_module_that_normalises_first(engine: str) -> None:
    images = VIT.images().sigmoid()
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    model = Around(VIT.build(), lambda vit, pixels: vit((pixels - mean) / 0.25).logits)
    wanted = explained(VIT.build(), engine, (images - mean) / 0.25)
    assert same(explained(model, engine, images), wanted)


@every_engine
def test_a_model_held_twice_is_one_model(engine: str) -> None:
    model = Around(VIT.build(), lambda vit, pixels: vit(pixels))
    model.again = nn.ModuleList([model.model])
    model.inner = model.model.vit
    assert same(explained(model, engine), explained(VIT.build(), engine))


SEEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, {"logits"}),
    "attentions": ({"output_attentions": True}, {"logits", "attentions"}),
    "hidden states": ({"output_hidden_states": True}, {"logits", "hidden_states"}),
    "a dict": ({"return_dict": True}, {"logits"}),
}


@every_engine
@pytest.mark.parametrize("asked", SEEN)
@pytest.mark.parametrize("by_config", [False, True])
def test_a_module_sees_what_it_asked_for(by_config: bool, asked: str, engine: str) -> None:
    """Attention maps that only the package asked for must not reach the module around."""
    options, keys = SEEN[asked]
    # Transformers lets a config ask for attention maps only if they are computed.
    vit = VIT.build(attention="eager", **options) if by_config else VIT.build()
    seen = []

    def how(inner: Any, pixels: Tensor) -> Any:
        seen.append(inner(pixels, **({} if by_config else options)))
        return seen[-1].logits

    assert same(explained(Around(vit, how), engine), explained(VIT.build(), engine))
    assert [set(output) for output in seen] == [keys]


@every_engine
def test_a_module_that_unpacks_a_tuple(engine: str) -> None:
    def how(vit: Any, pixels: Tensor) -> Any:
        (logits,) = vit(pixels, return_dict=False)
        return logits

    assert same(explained(Around(VIT.build(), how), engine), explained(VIT.build(), engine))


@every_engine
def test_a_hook_of_the_user_that_changes_the_output(engine: str) -> None:
    model = VIT.build()
    model.register_forward_hook(lambda *called: called[2].logits)
    assert same(explained(model, engine), explained(VIT.build(), engine))


@every_engine
def test_a_method_of_a_module_around(engine: str) -> None:
    model = Around(VIT.build(), lambda vit, pixels: vit(pixels))
    assert same(explained(model.forward, engine), explained(VIT.build(), engine))


@every_engine
def test_a_compiled_model_is_explained_as_the_model_inside(engine: str) -> None:
    model = VIT.build()
    compiled = torch.compile(model, backend="eager")
    assert same(explained(compiled, engine), explained(model, engine))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of one process, as a training script starts it."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


PARALLEL = pytest.mark.parametrize("wrapper", [DataParallel, DistributedDataParallel])


@pytest.mark.usefixtures("process_group")
@every_engine
@PARALLEL
def test_a_parallel_model_is_explained_as_the_model_inside(wrapper: Any, engine: str) -> None:
    model = VIT.build()
    parallel = wrapper(model)
    wanted = explained(model, engine)
    for _ in range(2):  # DistributedDataParallel counts forwards that had no backward of its own
        assert same(explained(parallel, engine), wanted)
    assert same(explained(torch.compile(parallel, backend="eager"), engine), wanted)
    parallel(VIT.images()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.vit.layers.parameters())


@pytest.mark.usefixtures("process_group")
@every_engine
@PARALLEL
def test_a_parallel_model_inside_a_module(wrapper: Any, engine: str) -> None:
    model = Around(wrapper(VIT.build()), lambda inner, pixels: inner(pixels).logits)
    with pytest.raises(UnsupportedModelError, match=rf"a {wrapper.__name__} inside.*\.module"):
        explained(model, engine)


@every_engine
def test_weights_that_accelerate_keeps_on_disk(tmp_path: Path, engine: str) -> None:
    """A device map: each layer's weights are there while it runs, and for the backward."""
    model = VIT.build()
    wanted = explained(model, engine)
    places = {"vit.embeddings": "cpu", "vit.layernorm": "cpu", "classifier": "disk"}
    places |= {f"vit.layers.{index}": "disk" if index else "cpu" for index in range(3)}
    spread = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path))
    where = {name: weight.device.type for name, weight in spread.named_parameters()}
    assert set(where.values()) == {"cpu", "meta"}
    assert same(explained(spread, engine), wanted)
    assert {name: weight.device.type for name, weight in spread.named_parameters()} == where


@every_engine
def test_scores_are_those_of_the_model(engine: str) -> None:
    model = VIT.build(hidden_dropout_prob=0.5).train()
    scores = GMAR(model, **ENGINE_OPTIONS[engine]).scores(VIT.images())
    assert not scores.requires_grad
    assert torch.allclose(scores, VIT.build()(VIT.images()).logits, atol=1e-6)
    assert model.training


def test_a_tower_that_is_called_by_keyword() -> None:
    """Also one of whose class Transformers believes that it takes text, as of all classes."""
    kind = type(VIT.build())
    own = type("Own", (kind,), {"main_input_name": "input_ids"})
    model: Any = own(VIT.build().config).eval()
    model.load_state_dict(VIT.build().state_dict())

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = model

        def forward(self, images: Tensor) -> Any:
            """Call the tower by keyword."""
            return self.tower(pixel_values=images).logits

    wanted = GMAR(model).attribute(VIT.images(), 3)
    torch.testing.assert_close(GMAR(ByKeyword()).attribute(VIT.images(), 3), wanted)


def test_inputs_by_an_unknown_name() -> None:
    with pytest.raises(ModelOutputError, match="called with images; it must get the inputs"):
        VisionRuns().enter(nn.Identity(), (), {"images": torch.zeros(1)})
