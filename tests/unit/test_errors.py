"""Targets, inputs and options that are refused, with an error that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR, LogitsModel, errors
from hf_gmar._utils.registry import Registry
from hf_gmar.errors import HfGmarError, InputError, OptionError, TargetError
from hf_gmar.methods import METHODS
from hf_gmar.metrics import METRICS
from hf_gmar.perturbations import PERTURBATIONS
from tests.reference.cases import BATCH, ENGINE_NAMES, ENGINE_OPTIONS, VIT, shared
from tests.reference.refused import Action, Refused, around, explaining, run


def option(**options: Any) -> Action:
    """An option that does not exist."""
    return lambda engine: GMAR(VIT.build(), **{**ENGINE_OPTIONS[engine], **options})


def built(registry: Registry[Any], name: str, option: str, value: Any) -> Action:
    """A method, metric or perturbation with an option's value."""

    def build(_: str) -> Any:
        made = registry.build(name, *[shared(VIT)] * (registry is METHODS), **{option: value})
        # Some values are checked with the image.
        return made.bind(shared(VIT), VIT.images()[:1]) if registry is PERTURBATIONS else made

    return build


def several(targets: Any) -> Action:
    """Targets for attribute_targets."""
    return lambda engine: GMAR(VIT.build(), **ENGINE_OPTIONS[engine]).attribute_targets(
        VIT.images(), targets
    )


def with_pixel(value: float) -> Tensor:
    images = VIT.images()
    images[1, 0, 4, 5] = value
    return images


def images_of(*shape: int) -> Tensor:
    return torch.zeros(shape)


def beta(make: Callable[[Tensor], Tensor]) -> Action:
    """Images in a form of which PyTorch says that it is not finished."""

    def explain(engine: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = make(VIT.images())
        return explaining(images)(engine)

    return explain


def nested(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.nested.nested_tensor(list(images), layout=layout)


TARGETS_REFUSED = (
    Refused("too large", explaining(target=7), TargetError, ("7", "out of range", "0 to 6")),
    Refused("beyond floats", explaining(target=10**400), TargetError, ("1000", "out of range")),
    Refused("beyond text", explaining(target=10**5000), TargetError, ("digits", "out of range")),
    Refused("negative", explaining(target=-1), TargetError, ("-1", "out of range", "0 to 6")),
    Refused(
        "too large in a list", explaining(target=[0, 1, 7]), TargetError, ("7", "image 2", "0 to 6")
    ),
    Refused(
        "too large in a tensor",
        explaining(target=torch.tensor([0, 9, 1])),
        TargetError,
        ("9", "image 1", "0 to 6"),
    ),
    Refused("too few", explaining(target=[1, 2]), TargetError, ("2 targets", "3 images")),
    Refused("none", explaining(target=[]), TargetError, ("0 targets", "3 images")),
    Refused(
        "too many in a tensor",
        explaining(target=torch.arange(4)),
        TargetError,
        ("(4,)", "3 images", "(3,)"),
    ),
    Refused(
        "tensor of two dimensions",
        explaining(target=torch.zeros(BATCH, 2, dtype=torch.long)),
        TargetError,
        ("(3, 2)", "3 images"),
    ),
    Refused("float", explaining(target=1.0), TargetError, ("1.0", "integer")),
    Refused("bool", explaining(target=True), TargetError, ("True", "integer")),
    Refused("str", explaining(target="cat"), TargetError, ("'cat'", "integer")),
    Refused("array", explaining(target=np.array([0, 5, 1])), TargetError, ("array", "integer")),
    Refused("str in a list", explaining(target=["a", 1, 2]), TargetError, ("'a'", "image 0")),
    Refused("float tensor", explaining(target=torch.zeros(3)), TargetError, ("float32", "integer")),
    Refused(
        "bool tensor",
        explaining(target=torch.ones(3, dtype=torch.bool)),
        TargetError,
        ("bool", "integer"),
    ),
    Refused("bool in a list", explaining(target=[True, 1, 2]), TargetError, ("True", "integer")),
    Refused("long tuple", explaining(target=(1, 2)), TargetError, ("(1, 2)", "2 indices", "(7,)")),
    Refused("empty tuple", explaining(target=()), TargetError, ("()", "0 indices")),
    Refused(
        "top of two dimensions",
        run(lambda: around(lambda vit, x: vit(x).logits[:, :6].reshape(-1, 2, 3)), None),
        TargetError,
        ("(3, 2, 3)", "top class", "tuple"),
    ),
    Refused(
        "int for two dimensions",
        run(lambda: around(lambda vit, x: vit(x).logits[:, :6].reshape(-1, 2, 3)), 1),
        TargetError,
        ("1 indices", "(2, 3)"),
    ),
)

INPUTS_REFUSED = (
    Refused(
        "NaN", explaining(with_pixel(float("nan"))), InputError, ("images [1]", "NaN", "infinity")
    ),
    Refused(
        "infinity", explaining(with_pixel(float("inf"))), InputError, ("images [1]", "infinity")
    ),
    Refused("channels", explaining(images_of(3, 1, 32, 32)), InputError, ("3 channels", "got 1")),
    Refused(
        "channels last", explaining(images_of(3, 32, 32, 3)), InputError, ("3 channels", "got 32")
    ),
    Refused(
        "no batch dimension",
        explaining(images_of(3, 32, 32)),
        InputError,
        ("3 dimensions", "unsqueeze(0)"),
    ),
    Refused(
        "five dimensions", explaining(images_of(1, 1, 3, 32, 32)), InputError, ("5 dimensions",)
    ),
    Refused(
        "no image", explaining(images_of(0, 3, 32, 32)), InputError, ("empty", "at least one image")
    ),
    Refused(
        "whole numbers",
        explaining(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)),
        InputError,
        ("floating-point", "uint8", "image processor"),
    ),
    Refused("array", explaining(VIT.images().numpy()), InputError, ("pixel values", "ndarray")),
    Refused("list", explaining([VIT.images()]), InputError, ("pixel values", "list")),
    Refused(
        "two tensors",
        explaining((VIT.images(), VIT.images())),
        InputError,
        ("tuple of 2", "additional_forward_args"),
    ),
    Refused("empty tuple", explaining(()), InputError, ("tuple of 0",)),
    Refused(
        "no whole patches",
        explaining(images_of(3, 3, 32, 36)),
        InputError,
        ("32 x 36", "8 x 8", "resize"),
    ),
    Refused(
        "smaller than a patch",
        explaining(images_of(3, 3, 32, 0)),
        InputError,
        ("empty",),
    ),
    Refused(
        "another size",
        explaining(images_of(3, 3, 48, 32)),
        InputError,
        ("48 x 32", "interpolate_pos_encoding=True", "resize"),
    ),
    Refused(
        "no values",
        explaining(images_of(3, 3, 32, 32).to("meta")),
        InputError,
        ("meta device", "no values", "on the model's device"),
    ),
    Refused(
        "no weights",
        run(lambda: VIT.build().to("meta")),
        InputError,
        ("the model is on the meta device", "no weights", "from_pretrained"),
    ),
    *(
        Refused(
            str(dtype),
            explaining(images_of(3, 3, 32, 32).to(dtype)),
            InputError,
            (str(dtype), "float32", "bfloat16", ".float()"),
        )
        for dtype in (
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.float8_e4m3fnuz,
            torch.float8_e8m0fnu,
        )
    ),
    *(
        Refused(name, beta(make), InputError, words)
        for name, make, words in (
            ("sparse", torch.Tensor.to_sparse, ("torch.sparse_coo", "dense", "to_dense()")),
            (
                "sparse rows",
                lambda images: images[0, 0].to_sparse_csr(),
                ("torch.sparse_csr", "dense", "to_dense()"),
            ),
            ("of MKL-DNN", torch.Tensor.to_mkldnn, ("torch._mkldnn", "dense", "to_dense()")),
            ("nested", nested(torch.strided), ("nested", "dense", "torch.stack")),
            ("jagged", nested(torch.jagged), ("nested", "dense", "torch.stack")),
        )
    ),
    Refused(
        "complex",
        explaining(images_of(3, 3, 32, 32).to(torch.complex64)),
        InputError,
        ("floating-point", "complex64"),
    ),
)

OPTIONS_REFUSED = (
    Refused("norm", option(norm="l3"), OptionError, ("norm", "'l1'", "'l2'", "'l3'")),
    Refused("norm as a list", option(norm=["l1"]), OptionError, ("norm", "'l1'", "['l1']")),
    Refused("no norm", option(norm=None), OptionError, ("norm", "None")),
    Refused("alpha below 0", option(alpha=-0.1), OptionError, ("alpha", ">= 0", "-0.1")),
    Refused("alpha NaN", option(alpha=float("nan")), OptionError, ("alpha", "nan")),
    Refused("alpha infinite", option(alpha=float("inf")), OptionError, ("alpha", "inf")),
    Refused("alpha as text", option(alpha="1"), OptionError, ("alpha", "'1'")),
    Refused("alpha True", option(alpha=True), OptionError, ("alpha", "True")),
    Refused("alpha beyond floats", option(alpha=10**400), OptionError, ("alpha", ">= 0", "1000")),
    Refused("rows beyond floats", option(chunk_size=-(10**400)), OptionError, ("chunk_size",)),
    Refused("shares beyond floats", option(readout=(10**400,)), OptionError, ("readout", "1000")),
    Refused("layer too high", option(start_layer=3), OptionError, ("start_layer", "0 to 2", "3")),
    Refused("layer below 0", option(start_layer=-1), OptionError, ("start_layer", "0 to 2", "-1")),
    Refused("layer as float", option(start_layer=1.0), OptionError, ("start_layer", "1.0")),
    Refused("layer True", option(start_layer=True), OptionError, ("start_layer", "True")),
    Refused("engine", option(engine="fast"), OptionError, ("engine", "'dense'", "'fast'")),
    Refused("engine as a list", option(engine=["dense"]), OptionError, ("engine", "['dense']")),
    Refused("no rows", option(chunk_size=0), OptionError, ("chunk_size", ">= 1", "0")),
    Refused("rows as float", option(chunk_size=2.0), OptionError, ("chunk_size", "2.0")),
    Refused("rows True", option(chunk_size=True), OptionError, ("chunk_size", "True")),
    Refused(
        "checkpoint 1", option(checkpoint=1), OptionError, ("checkpoint", "True or False", "1")
    ),
    Refused(
        "rows of the dense engine",
        option(engine="dense", chunk_size=5),
        OptionError,
        ("chunk_size", "'dense'", "streaming"),
    ),
    Refused(
        "checkpoint of the dense engine",
        option(engine="dense", checkpoint=True),
        OptionError,
        ("checkpoint", "'dense'", "streaming"),
    ),
    Refused("no targets", several([]), TargetError, ("list of one or more", "[]")),
    Refused("one target for several", several(3), TargetError, ("list of one", "3", "attribute")),
    Refused("tensor of one", several(torch.tensor(3)), TargetError, ("list of one", "tensor(3)")),
    Refused("second of several", several([3, 99]), TargetError, ("99", "out of range")),
    Refused("too few in one of several", several([[1, 2]]), TargetError, ("2 targets", "3 images")),
    Refused(
        "misspelt keyword",
        explaining(tagret=3),
        OptionError,
        ("tagret", "interpolate_pos_encoding"),
    ),
    Refused(
        "misspelt keyword behind a module that takes any",
        lambda engine: GMAR(LogitsModel(VIT.build()), **ENGINE_OPTIONS[engine]).attribute(
            VIT.images(), 3, tagret=3
        ),
        OptionError,
        ("tagret", "interpolate_pos_encoding"),
    ),
    Refused(
        "keyword of a module that takes none",
        lambda engine: GMAR(
            around(lambda vit, pixels: vit(pixels)), **ENGINE_OPTIONS[engine]
        ).attribute(VIT.images(), 3, interpolate_pos_encoding=True),
        OptionError,
        ("interpolate_pos_encoding", "none"),
    ),
)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("row", TARGETS_REFUSED + INPUTS_REFUSED + OPTIONS_REFUSED, ids=str)
def test_refused(row: Refused, engine: str) -> None:
    row.check(engine)


NUMBERS = [
    (registry, name, option)
    for registry in (METHODS, METRICS, PERTURBATIONS)
    for name in registry
    for option, default in registry.options(name).items()
    if isinstance(default, int | float) and not isinstance(default, bool)
]


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**5000, Fraction(10**400)], ids=["400", "-400", "5000", "a"]
)
@pytest.mark.parametrize(
    ("registry", "name", "option_name"), NUMBERS, ids=lambda part: getattr(part, "kind", part)
)
def test_a_number_beyond_floats_is_refused(
    registry: Registry[Any], name: str, option_name: str, value: Any
) -> None:
    """Python can't make a float of it, and not write a number of more than 4,300 digits."""
    Refused(name, built(registry, name, option_name, value), OptionError, (option_name,)).check("")


def test_numbers_of_numpy_are_numbers() -> None:
    options: Any = {"start_layer": np.int64(1), "chunk_size": np.int64(5), "alpha": np.float32(1)}
    gmar = GMAR(VIT.build(), **options)
    wanted = GMAR(VIT.build(), start_layer=1, chunk_size=5)
    assert torch.equal(gmar.attribute(VIT.images(), 3), wanted.attribute(VIT.images(), 3))


def test_every_error_is_also_a_built_in_one() -> None:
    family = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, HfGmarError) and value is not HfGmarError
    ]
    assert len(family) >= 5
    assert all(issubclass(error, (ValueError, TypeError)) for error in family)
