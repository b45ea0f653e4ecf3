"""Attribution methods by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_gmar._utils.registry import Registry
from hf_gmar.errors import OptionError

if TYPE_CHECKING:  # listing the names does not import PyTorch
    from hf_gmar._core.model_adapter import ModelAdapter
    from hf_gmar.methods.base import AttributionMethod

METHODS: Registry[AttributionMethod] = Registry(
    "method",
    "hf_gmar.methods.base:AttributionMethod",
    {
        "gmar": "hf_gmar.methods.gmar:GMAR",
        "attention-rollout": "hf_gmar.methods.attention_rollout:AttentionRollout",
        "raw-attention": "hf_gmar.methods.raw_attention:RawAttention",
        "gradient-rollout": "hf_gmar.methods.gradient_rollout:GradientRollout",
        "legrad": "hf_gmar.methods.legrad:LeGrad",
        "grad-sam": "hf_gmar.methods.grad_sam:GradSAM",
        "token-grad-cam": "hf_gmar.methods.token_grad_cam:TokenGradCAM",
        "input-x-gradient": "hf_gmar.methods.input_x_gradient:InputXGradient",
        "attn-lrp": "hf_gmar.methods.attn_lrp:AttnLRP",
        "shapley-values": "hf_gmar.methods.shapley_values:ShapleyValues",
        "random": "hf_gmar.methods.random_attribution:RandomAttribution",
    },
    positional=1,  # the model
)
"""Methods by their name on the command line, in the pipeline, ``compare`` and ``evaluate``."""

DEFAULT_METHODS = ("gmar", "attn-lrp")
"""The methods of the page and of ``hf-gmar explain``: what the model looks at, and what speaks for
the class."""


PIXELS = ("resolution", "pixel")
"""The option of a map of pixels; titles and names of files call it "pixels"."""


def method_title(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """Return a method's title with the options that differ from their defaults.

    The readout is left out: it is a fact of the model, or is in the label of the map.

    Args:
        name: the name of the method.
        settings: values of options by name; names of other things are ignored.

    Raises:
        OptionError: there is no such method.

    Example:
        >>> method_title("gmar", {"norm": "l2", "alpha": 1.0, "model": "bundled"})
        'GMAR (norm l2)'
        >>> method_title("attn-lrp", {"resolution": "pixel"})
        'AttnLRP (pixels)'
    """
    settings = settings or {}
    changed = [
        "pixels" if (option, settings[option]) == PIXELS else f"{option} {settings[option]}"
        for option, default in METHODS.options(name).items()
        if option in settings and settings[option] != default and option != "readout"
    ]
    title = METHODS[name].title
    return f"{title} ({', '.join(changed)})" if changed else title


_LABEL = re.compile(r"([a-z0-9][a-z0-9._-]*)((?: \(\w+=.*\))?(?: \(\d+\))?)", re.DOTALL)


def title_of_label(label: str, kind: str) -> str:
    """Return the title for a label that the registry made; other labels are returned unchanged.

    Args:
        label: the label of a method, such as ``"gmar (norm=l2)"``.
        kind: module and name of its class; the label of another class is the user's own.

    Example:
        >>> title_of_label("gmar (norm=l2)", "hf_gmar.methods.gmar.GMAR")
        'GMAR (norm l2)'
        >>> title_of_label("my map", "hf_gmar.methods.gmar.GMAR")
        'my map'
    """
    match = _LABEL.fullmatch(label)
    if match is None or match[1] not in METHODS:
        return label
    try:
        method = METHODS[match[1]]
    except OptionError:  # another package's, which can't be loaded
        return label
    if kind != f"{method.__module__}.{method.__qualname__}":
        return label
    return method.title + re.sub(r"(\w+)=", r"\1 ", match[2])


def register_method(name: str, method: type[AttributionMethod]) -> None:
    """Register a method under a name in this process.

    A package registers a method in every process by an entry point of the group
    ``hf_gmar.methods``.

    Args:
        name: lower-case letters, digits, dots, dashes and underscores.
        method: a subclass of :class:`~hf_gmar.methods.AttributionMethod`.

    Raises:
        OptionError: the name is taken or has other characters, or the class is no such subclass.

    Example:
        >>> from hf_gmar import GMAR, register_method
        >>> class Residual(GMAR):
        ...     class_specific = True
        >>> register_method("residual-gmar", Residual)
        >>> "residual-gmar" in METHODS
        True
    """
    METHODS.register(name, method)


def with_options(
    methods: str | Sequence[str], options: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Return each method's name with its options.

    Args:
        methods: a name, or a list of names; options may follow each, as in ``"gmar:norm=l2"``.
        options: further options; each method takes those that it has.

    Raises:
        OptionError: there is no method, a method is named twice, or an option is unknown to all
            methods or given twice.

    Example:
        >>> with_options(["gmar:norm=l2", "attn-lrp"], {"alpha": 0.5})
        [('gmar', {'norm': 'l2', 'alpha': 0.5}), ('attn-lrp', {})]
    """
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names:
        raise OptionError(f"name a method; there are {', '.join(METHODS)}")
    specs = [METHODS.parse(name) for name in names]
    if len(names) == 1:
        METHODS.check(specs[0][0], options)
    known = [METHODS.options(name) for name, _ in specs]
    for option in options:
        if not any(option in of_method for of_method in known):
            raise OptionError(f"none of the methods {', '.join(names)} has an option {option}")
        if any(option in own for _, own in specs):
            raise OptionError(f"the option {option} is given twice; give it once")
    taken = [
        (name, {**own, **{key: value for key, value in options.items() if key in of_method}})
        for (name, own), of_method in zip(specs, known, strict=True)
    ]
    full = [(name, {**METHODS.options(name), **own}) for name, own in taken]
    for number, spec in enumerate(full):
        if spec in full[:number]:  # also with a default that is written out
            label = METHODS.label(*taken[number])
            raise OptionError(f"the method {label} is named twice; name it once")
    return taken


def with_pixels(names: Sequence[str], adapter: ModelAdapter) -> list[str]:
    """Return methods with ``resolution="pixel"`` if they have it and the model has patches.

    Such a map costs one explanation, and shows better where an object is
    (``python -m benchmarks.sharper``). Cells of a model without patches are small already.

    Args:
        names: names of methods, without options.
        adapter: the model.

    Raises:
        OptionError: there is no such method.

    Example:
        >>> from hf_gmar import load_model
        >>> from hf_gmar._core.model_adapter import ModelAdapter
        >>> with_pixels(["gmar", "attn-lrp"], ModelAdapter.of(load_model("bundled").model))
        ['gmar', 'attn-lrp:resolution=pixel']
    """
    return [
        f"{name}:resolution=pixel"
        if "pixel" in METHODS[name].resolutions and not adapter.has_cells
        else name
        for name in names
    ]
