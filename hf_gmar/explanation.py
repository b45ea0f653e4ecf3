"""The explanation of one image, and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from hf_gmar._utils.files import save_arrays, whole_file
from hf_gmar._utils.names import cut, file_name, slug
from hf_gmar._utils.version import __version__
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.image_view import ImageView, measure_view
from hf_gmar.models.labels import label_of
from hf_gmar.models.pixel_values import ImageLike, picture_of_input
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.models.wrappers import ZeroShotModel

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure

_NOT_IN_CAPTION = ("prompts", "contrast", "contrast_target")  # the title names the classes
_LONGEST_PART = 60  # bytes of a class, and of a method with its options, in a file name
_DEFAULTS = {"start_layer": 0, "engine": "streaming", "checkpoint": False}


@dataclass(frozen=True)
class Explanation:
    """The attribution map of one image for one class.

    Attributes:
        source: the image's name.
        image: the original image.
        view: the part of the image that the model saw.
        patches: relevance of each patch, (rows, columns).
        target: the explained class.
        label: the name of the class.
        score: its probability, or the value of a model without probabilities.
        score_kind: what the score is: softmax, sigmoid or value.
        settings: model, method and options.
        contrast: the name of the contrast class, if any.
        contrast_target: its index.
    """

    source: str
    image: Image.Image
    view: ImageView
    patches: Tensor
    target: int
    label: str
    score: float
    score_kind: ScoreKind
    settings: dict[str, Any]
    contrast: str | None = None
    contrast_target: int | None = None

    def save(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write ``STEM.INDEX-LABEL.png`` and ``.npz``: both or, after an error, none of them.

        The label is followed by the contrast, and by the method unless it is GMAR with its default
        options, for example ``STEM.6-heart-not-4-cross.grad-sam-head_fusion=max.png``. A name that
        is too long for a file system is shortened, and gets a digest.

        The archive has ``patches``, their place on the image (``size`` and ``box`` of
        :class:`~hf_gmar.models.image_view.ImageView`), ``target``, ``label``, ``score``,
        ``score_kind`` (softmax, sigmoid or value), ``source``, ``settings`` (JSON) and ``version``;
        ``numpy.load`` reads it without pickle.
        """
        from hf_gmar.visualization.overlay import save_figure

        name = _class_slug(self.target, self.label)
        if self.contrast is not None:
            name += f"-not-{_class_slug(self.contrast_target, self.contrast)}"
        if method := self._method:
            name += f".{slug(method, _LONGEST_PART)}"
        picture, archive = (
            folder / file_name(stem, f".{name}{suffix}") for suffix in (".png", ".npz")
        )
        with whole_file(picture) as drawing, whole_file(archive) as arrays:
            save_arrays(
                arrays,
                patches=self.patches.numpy(),
                size=self.view.size,
                box=self.view.box,
                target=self.target,
                label=self.label,
                score=self.score,
                score_kind=self.score_kind.value,
                source=self.source,
                settings=json.dumps(self.settings),
                version=__version__,
            )
            save_figure(self.figure(), drawing)
        return picture, archive

    @property
    def _method(self) -> str:
        """The method with the options that differ from its defaults; empty for GMAR without any."""
        method, options = self.settings.get("method", "gmar"), ""
        for name, default in METHODS.options(method).items():
            if (value := self.settings.get(name, default)) != default:
                options += f"-{name}={value}"
        return f"{method}{options}" if options or method != "gmar" else ""

    def figure(self) -> Figure:
        """Draw the image beside its map, without a window."""
        from hf_gmar.visualization.overlay import overlay_figure

        method = self.settings.get("method", "gmar")
        options = ", ".join(
            f"{key} {value}"
            for key, value in self.settings.items()
            if key not in _NOT_IN_CAPTION and (key, value) not in _DEFAULTS.items()
        )
        title = f"{self.label}  {self.score_kind.text(self.score)}"
        if self.contrast is not None:  # two spaces stand before the score alone
            contrast = " ".join(self.contrast.split()) or f"class {self.contrast_target}"
            title += f" rather than {contrast}"
        caption = f"{self.source}   ({options})   {self.score_kind.note}".rstrip()
        unit = METHODS[method].unit
        return overlay_figure(self.image, self.patches, title, caption, self.view, unit)


@dataclass(frozen=True)
class Explainer:
    """A loaded model with a method and its options.

    Attributes:
        loaded: the model and its processor.
        method: the method on that model.
        settings: the settings that are saved with each result.
    """

    loaded: LoadedModel
    method: AttributionMethod
    settings: dict[str, Any]

    @classmethod
    def build(cls, loaded: LoadedModel, method: str = "gmar", **options: Any) -> Explainer:
        """Build the method of that name on the loaded model.

        Raises:
            OptionError: there is no such method, or an option is outside its range.
            UnsupportedModelError: the model's family can't be explained.
        """
        values = {**METHODS.options(method), **options}
        known = {name: value for name, value in values.items() if value is not None}
        settings = {"model": loaded.name, "method": method, **known, **loaded.forward_kwargs}
        if isinstance(loaded.model, ZeroShotModel):  # CLIP's probabilities depend on all prompts
            settings["prompts"] = loaded.model.prompts
        return cls(loaded, METHODS.build(method, loaded.model, **options), settings)

    def explain(
        self,
        image: ImageLike,
        source: str,
        target: int | Sequence[int] | None = None,
        top_k: int = 1,
        contrast: int | None = None,
    ) -> Iterator[Explanation]:
        """Explain classes of an image in their order, or its top classes, highest score first.

        All classes share one forward of the model.

        Args:
            image: an image of any size, or an array with the model's channels; the model's
                processor resizes it.
            source: the image's name in the results.
            target: the class, or several; ``None`` takes the ``top_k`` most probable classes.
            top_k: number of classes.
            contrast: a class whose score is subtracted from each explained score.

        Raises:
            InputError: the image or the processor's pixels do not fit the model.
            TargetError: a class is its own contrast.
            OptionError: the method's map is the same for all classes, so it takes no contrast.
            ModelOutputError: the model gives no scores or no finite gradient.
        """
        pixels = self.loaded.pixels(image)
        picture = picture_of_input(image, self.loaded.channels)
        view = measure_view(self.loaded.processor, (picture.height, picture.width))
        config, settings = self.loaded.model.config, self.settings
        keywords = self.loaded.forward_kwargs
        logits = self.method.scores(pixels, **keywords)
        kind = ScoreKind.of(config, logits)
        scores = kind.convert(logits)[0].cpu()
        if target is None:
            target = scores.topk(min(top_k, len(scores))).indices.tolist()
        targets = [target] if isinstance(target, int) else list(target)
        maps = self.method.attribute_targets(pixels, targets, contrast=contrast, **keywords)
        other = None if contrast is None else label_of(config, contrast)
        if other is not None:
            settings = {**settings, "contrast": other, "contrast_target": contrast}
        for index, patches in zip(targets, maps[:, 0].float().cpu(), strict=True):
            label, score = label_of(config, index), float(scores[index])
            yield Explanation(
                source, picture, view, patches, index, label, score, kind, settings, other, contrast
            )


def _class_slug(index: int | None, label: str) -> str:
    """Convert a class to a part of a file name; labels need not be unique, so it has the index."""
    return cut(re.sub(r"[^\w-]+", "-", f"{index}-{label}"), _LONGEST_PART).rstrip("-")
