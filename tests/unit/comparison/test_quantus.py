"""Methods as explanation functions of Quantus, with its own metrics where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hf_gmar import AttnLRP, GradSAM, LogitsModel, quantus_explain
from hf_gmar.data import open_data
from hf_gmar.errors import InputError, OptionError, TargetError
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel, load_model
from hf_gmar.models.labels import labels_of

SILENT = {"display_progressbar": False, "disable_warnings": True}


@pytest.fixture(scope="module")
def scenes(bundled: LoadedModel) -> dict[str, NDArray[Any]]:
    """A batch as Quantus takes it."""
    examples = list(open_data("scenes:4", labels_of(bundled.config)))
    masks = [example.mask_of(example.label or 0) for example in examples]
    return {
        "x_batch": torch.cat([bundled.pixels(example.image) for example in examples]).numpy(),
        "y_batch": np.array([example.label for example in examples]),
        "s_batch": np.stack([np.asarray(mask) for mask in masks])[:, None],
    }


QUICK: dict[str, dict[str, Any]] = {"shapley-values": {"samples": 2, "groups": (4, 4)}}


@pytest.mark.parametrize("name", METHODS.built_in)
def test_every_method(name: str, bundled: LoadedModel, scenes: dict[str, NDArray[Any]]) -> None:
    inputs, targets, options = scenes["x_batch"], scenes["y_batch"], QUICK.get(name, {})
    model = LogitsModel(bundled.model)
    found = quantus_explain(
        model=model, inputs=inputs, targets=targets, method=name, device="cpu", **options
    )
    assert isinstance(found, np.ndarray)
    assert (str(found.dtype), found.shape) == ("float32", (4, 1, 96, 96))
    plain = METHODS.build(name, bundled.model, **options)
    wanted = plain.attribute(torch.from_numpy(inputs), torch.from_numpy(targets))
    assert np.array_equal(found, wanted[:, :1].numpy())


def test_options_and_types(bundled: LoadedModel, scenes: dict[str, NDArray[Any]]) -> None:
    inputs, model = scenes["x_batch"][:2], LogitsModel(bundled.model)
    found = quantus_explain(model, inputs.astype(np.float64), [3, 5], method="gmar", norm="l2")
    assert np.allclose(found, quantus_explain(model, inputs, np.array([3, 5]), norm="l2"))
    assert not np.allclose(found, quantus_explain(model, inputs, np.array([3, 5])))
    top = quantus_explain(model, inputs, method="grad-sam")
    assert np.array_equal(top, GradSAM(model).attribute(torch.from_numpy(inputs))[:, :1].numpy())
    half = LogitsModel(load_model("bundled", dtype="bfloat16").model)
    assert quantus_explain(half, inputs, [3, 5]).dtype == np.float32
    with pytest.raises(OptionError, match="there is no method 'saliency'"):
        quantus_explain(model, inputs, [3, 5], method="saliency")
    with pytest.raises(TargetError, match="8 classes"):
        quantus_explain(model, inputs, [3, 8])
    with pytest.raises(InputError, match="channels"):
        quantus_explain(model, inputs[:, :2], [3, 5])


METRICS: dict[str, dict[str, Any]] = {
    "PixelFlipping": {"features_in_step": 1152, "perturb_baseline": "mean"},
    "RelevanceMassAccuracy": {},
    "PointingGame": {},
    "Sparseness": {},
    "MaxSensitivity": {"nr_samples": 1},
    "RandomLogit": {"num_classes": 8},
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_quantus(
    name: str, bundled: LoadedModel, scenes: dict[str, NDArray[Any]]
) -> None:
    quantus: Any = pytest.importorskip("quantus")
    metric = getattr(quantus, name)(**METRICS[name], **SILENT)
    model = LogitsModel(bundled.model)
    given = {**scenes, "model": model, "device": "cpu"}
    options = {"method": "attn-lrp"}
    scores = metric(
        **given, a_batch=None, explain_func=quantus_explain, explain_func_kwargs=options
    )
    assert np.isfinite(np.asarray(scores, float)).all()
    if name in ("PixelFlipping", "RelevanceMassAccuracy", "PointingGame", "Sparseness"):
        targets = torch.from_numpy(scenes["y_batch"])
        maps = AttnLRP(bundled.model).attribute(torch.from_numpy(scenes["x_batch"]), targets)[:, :1]
        assert np.allclose(scores, metric(**given, a_batch=maps.numpy()))


def test_a_whole_evaluation_of_quantus(
    bundled: LoadedModel, scenes: dict[str, NDArray[Any]]
) -> None:
    quantus: Any = pytest.importorskip("quantus")
    metrics = {"mass": quantus.RelevanceMassAccuracy(**SILENT)}
    found = quantus.evaluate(
        metrics=metrics, xai_methods={"gmar": quantus_explain, "attn-lrp": quantus_explain},
        model=LogitsModel(bundled.model), **scenes, agg_func=np.mean, explain_func_kwargs={},
        call_kwargs={"a": {"device": "cpu"}},
    )  # fmt: skip
    assert set(found) == {"gmar", "attn-lrp"}
    assert found["attn-lrp"]["mass"] != found["gmar"]["mass"]
