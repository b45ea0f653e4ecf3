"""The explanation of one image, and its files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar._core.cell_layout import drawn_map
from hf_gmar._core.targets import NO_CLASS
from hf_gmar._utils.files import absence, archive_of, kind_of, whole_file
from hf_gmar._utils.names import cut, file_name, slug
from hf_gmar._utils.option_strings import plain_value
from hf_gmar._utils.text import brief
from hf_gmar._utils.version import __version__
from hf_gmar.errors import InputError, OptionError
from hf_gmar.faithfulness import (
    DRAWS,
    FRACTIONS,
    NO_MODEL,
    ExplainedScore,
    FaithfulnessCheck,
    ModelInput,
    SufficientSet,
    check_maps,
    sufficient_set,
)
from hf_gmar.methods.registry import METHODS, PIXELS, method_title
from hf_gmar.models.image_view import ImageView
from hf_gmar.models.score_kind import ScoreKind

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure

    from hf_gmar.visualization.overlay import Scale

_NOT_IN_CAPTION = ("prompts", "contrast", "contrast_target", "similar_to")  # in the title
_TEXTS = ("prompts", "similar_to")  # lists
_LONGEST_PART = 60  # bytes of a class, and of a method with its options, in a file name
_DEFAULTS = {
    "start_layer": 0,
    "engine": "streaming",
    "checkpoint": False,
    "layers": "input",
    "resolution": "patch",
    "batch_size": 8,
    "progress": False,
}


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The attribution map of one image for one class.

    Two explanations are equal if they are the same object.

    Attributes:
        source: the image's name.
        image: the original image.
        view: the part of the image that the model saw.
        patches: relevance of each patch, (rows, columns).
        target: the explained class, -1 for a map of no class.
        label: the name of the class, or what the map shows without one.
        score: its probability, or the value of a model without probabilities; NaN without a class.
        score_kind: what the score is: softmax, sigmoid, value or none.
        settings: model, method and options.
        contrast: the name of the contrast class, if any.
        contrast_target: its index.
        faithfulness: the check that is drawn and saved with the map, if there is any.
        subject: the model with its image; ``None`` for an explanation from a file or a
            pickle.
        fine_map: the map at the method's ``resolution``, if it is finer than the patch: relevance
            of each cell, (rows * k, columns * k), or of each pixel of the model's input, (height,
            width).
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
    faithfulness: FaithfulnessCheck | None = None
    subject: ModelInput | None = None
    fine_map: Tensor | None = None

    def __repr__(self) -> str:
        """Name the class with its score, the image and the method."""
        title = method_title(self.method, self.settings)
        shorter = replace(
            self, label=brief(self.label), contrast=self.contrast and brief(self.contrast)
        )
        return f"Explanation({brief(shorter.title, 200)}, {brief(self.source)}, {brief(title)})"

    @property
    def method(self) -> str:
        """The name of the method."""
        return str(self.settings.get("method", "gmar"))

    @property
    def has_score(self) -> bool:
        """Whether the map is of a class, or of another score."""
        return self.score_kind is not ScoreKind.NONE

    @property
    def probability(self) -> float | None:
        """The probability of the class; ``None`` for a model that gives values, or no class."""
        has_none = self.score_kind in (ScoreKind.VALUE, ScoreKind.NONE)
        return None if has_none else self.score

    @functools.cached_property
    def heatmap(self) -> NDArray[np.float32]:
        """Relevance of each pixel of the image, (height, width); NaN where the model did not look.

        A pixel has the value of its patch, or of its cell or its own if the method's resolution is
        finer.
        """
        finest = self.patches if self.fine_map is None else self.fine_map
        values: NDArray[np.float32] = self.view.project(finest).float().numpy()
        return values

    @functools.cached_property
    def drawn_map(self) -> Tensor:
        """The map of the pictures, (rows, columns) of any number: the finest one.

        Relevance of pixels is averaged over a patch around each pixel, near ones more than others:
        single pixels can't be read, and their mean ranks them better.
        """
        return drawn_map(self.patches, self.fine_map, self.settings.get("resolution", "patch"))

    @property
    def title(self) -> str:
        """The class with its probability or value, and the contrast."""
        title = f"{self.label}  {self.score_kind.text(self.score)}".rstrip()
        if self.contrast is not None:  # two spaces stand before the score alone
            contrast = " ".join(self.contrast.split()) or f"class {self.contrast_target}"
            title += f" rather than {contrast}"
        return title

    def check(
        self,
        fractions: Sequence[float] = FRACTIONS,
        draws: int = DRAWS,
        perturbation: str | None = None,
        seed: int = 0,
    ) -> FaithfulnessCheck:
        """Ask the model what the map is worth on this image.

        The model sees only the patches of highest relevance, then all others, and the same for
        random patches.

        Args:
            fractions: shares of the patches that are kept and removed, above 0 and below 1.
            draws: number of random choices of patches, at least 3.
            perturbation: how patches are removed: a name in ``hf_gmar.perturbations``, with options
                as in ``"blur:radius=8"``. Dropped tokens leave nothing in their place.
            seed: seed of the random patches.

        Raises:
            OptionError: an option is outside its range, or the explanation is from a file.
            InputError: the image has a single patch.
            UnsupportedModelError: the perturbation does not apply to the model.

        Example:
            >>> from hf_gmar import explain
            >>> from hf_gmar.data import draw_scene
            >>> explain(draw_scene(18).image, "bundled", method="attn-lrp").check().verdict
            'better'
        """
        (check,) = check_maps(
            self._asked, [(self.patches, self._explained)], fractions, draws, perturbation, seed
        )
        return check

    def sufficient_set(self, share: float = 0.9, perturbation: str | None = None) -> SufficientSet:
        """Find the fewest patches of highest relevance with which the model keeps the class.

        Sets are tried from one patch on, up to 40 patches one by one, then in steps of 5 %. Source:
        a sufficient input subset, Carter et al., AISTATS 2019 (arXiv 1810.03805), here of the
        map's highest patches.

        Args:
            share: the share of the whole image's score that they must keep, at most 1.
            perturbation: see :meth:`check`.

        Raises:
            OptionError: an option is outside its range, or the explanation is from a file.
            InputError: the score of the whole image is not positive.
            UnsupportedModelError: the perturbation does not apply to the model.
        """
        from hf_gmar.visualization.overlay import kept_image

        return sufficient_set(
            self._asked,
            self.patches,
            self._explained,
            share,
            perturbation,
            functools.partial(kept_image, self.image, view=self.view),
        )

    @property
    def _asked(self) -> ModelInput:
        if not self.has_score:
            raise OptionError(
                "the map is of no class, so the model has no score that patches could change"
            )
        if self.subject is None:
            raise OptionError(NO_MODEL)
        return self.subject

    @property
    def _explained(self) -> ExplainedScore:
        label = self.label if self.contrast is None else f"{self.label} rather than {self.contrast}"
        return ExplainedScore(label, self.score_kind, self.target, self.contrast_target)

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write a picture, ``PATH.png``, and the numbers, ``PATH.npz``: both or none of them.

        The archive has ``patches``, ``fine_map`` if there is one, their place on the image
        (``size`` and ``box`` of :class:`~hf_gmar.models.image_view.ImageView`), ``target``,
        ``label``, ``score``, ``score_kind`` (softmax, sigmoid, value or none), ``source``,
        ``contrast`` and its target,
        ``settings`` (JSON), ``faithfulness`` (JSON, or empty), ``version``, and the bytes of a
        small JPEG of the image; ``numpy.load`` reads it without pickle, and so does :meth:`load`.

        Args:
            path: the folder and the name of the files; a suffix ``.npz`` or ``.png`` is dropped.

        Returns:
            The paths of the picture and of the archive.

        Raises:
            OSError: a file can't be written.
        """
        path = Path(path)
        stem = path.name.removesuffix(".npz").removesuffix(".png")
        picture, archive = (path.with_name(f"{stem}{suffix}") for suffix in (".png", ".npz"))
        with whole_file(picture) as drawing, whole_file(archive) as arrays:
            self.save_numbers(arrays)
            self.picture().save(drawing, "PNG", compress_level=COMPRESSION)
        return picture, archive

    def save_numbers(self, path: Path) -> None:
        """Write the archive of :meth:`save` alone."""
        content = self.archive()
        with whole_file(path) as part:
            part.write_bytes(content)

    def archive(self) -> bytes:
        """Return the bytes of the archive of :meth:`save`, without writing a file."""
        fine = {} if self.fine_map is None else {"fine_map": self.fine_map.numpy()}
        return archive_of(
            patches=self.patches.numpy(),
            **fine,
            size=self.view.size,
            box=self.view.box,
            target=self.target,
            label=self.label,
            score=self.score,
            score_kind=self.score_kind.value,
            source=self.source,
            contrast=self.contrast or "",
            contrast_target=-1 if self.contrast_target is None else self.contrast_target,
            settings=json.dumps(self.settings),
            faithfulness=json.dumps(self.faithfulness.to_dict()) if self.faithfulness else "",
            version=__version__,
            image=_jpeg(self.image),
        )

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Read what :meth:`save` wrote; the image is a small copy, enlarged to its size.

        Args:
            path: the archive, with or without its suffix ``.npz``.

        Raises:
            InputError: there is no such file, or it is no explanation.

        Example:
            >>> import tempfile
            >>> from hf_gmar import explain
            >>> from hf_gmar.data import draw_scene
            >>> result = explain(draw_scene(18).image, "bundled")
            >>> paths = result.save(f"{tempfile.mkdtemp()}/scene")
            >>> Explanation.load(paths[1])
            Explanation(heart 99.9%, image, GMAR)
        """
        path = Path(path)
        archive = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        try:
            with archive.open("rb") as file, np.load(file, allow_pickle=False) as data:
                height, width = data["size"].tolist()
                with Image.open(BytesIO(data["image"].tobytes())) as small:
                    image = small.convert("RGB").resize((width, height))
                contrast, check = int(data["contrast_target"]), str(data["faithfulness"])
                settings = {  # JSON has no tuples
                    name: value if name in _TEXTS else plain_value(value)
                    for name, value in json.loads(str(data["settings"])).items()
                }
                return cls(
                    str(data["source"]),
                    image,
                    ImageView((height, width), tuple(data["box"].tolist())),
                    torch.from_numpy(data["patches"]),
                    int(data["target"]),
                    str(data["label"]),
                    float(data["score"]),
                    ScoreKind(str(data["score_kind"])),
                    settings,
                    str(data["contrast"]) if contrast >= 0 else None,
                    contrast if contrast >= 0 else None,
                    FaithfulnessCheck.from_dict(json.loads(check)) if check else None,
                    fine_map=torch.from_numpy(data["fine_map"]) if "fine_map" in data else None,
                )
        except Exception as error:  # of NumPy, Pillow or JSON, whatever a broken file provokes
            if kind_of(archive) != "file":
                raise InputError(absence(archive, "file")) from error
            raise InputError(
                f"{archive} is no explanation that hf_gmar {__version__} reads ({error}); save it "
                "again with Explanation.save"
            ) from error

    def file_name(self, stem: str) -> str:
        """Return a name for the files that no other class, contrast or method of a folder has.

        The index and label of the class follow, those of the contrast, and the method unless it is
        GMAR with its default options: ``STEM.6-heart-not-4-cross.grad-sam-head_fusion=max``. A name
        that is too long for a file system is shortened, and gets a digest.
        """
        name = _class_slug(self.target, self.label)
        if self.contrast is not None:
            name += f"-not-{_class_slug(self.contrast_target, self.contrast)}"
        if method := self._method:
            name += f".{slug(method, _LONGEST_PART)}"
        return file_name(stem, f".{name}.png").removesuffix(".png")

    @property
    def _method(self) -> str:
        """The method with the options that differ from its defaults; empty for GMAR without any."""
        method, options = self.method, ""
        for name, default in METHODS.options(method).items():
            if (value := self.settings.get(name, default)) != default:
                options += "-pixels" if (name, value) == PIXELS else f"-{name}={value}"
        return f"{method}{options}" if options or method != "gmar" else ""

    @property
    def caption(self) -> str:
        """The image, the settings and what a reader has to know of the numbers, in one line."""
        return caption_of(self.source, self.settings, self.score_kind.note, self.flatness)

    @property
    def _below(self) -> str:
        """The lines below the picture: the check, if any, and the caption."""
        check = [] if self.faithfulness is None else [self.faithfulness.sentence]
        return "\n".join([*check, " ".join(self.caption.splitlines())])

    @property
    def flatness(self) -> str:
        """A sentence for a map whose values hardly differ; empty for others."""
        low, high = float(self.drawn_map.min()), float(self.drawn_map.max())
        if not 0 < _FLAT * high <= low:
            return ""
        return (
            f"The map is nearly flat: its values are from {low / high:.0%} to 100% of the highest; "
            'scale="percentile" spreads the colours over them.'
        )

    def figure(self, scale: Scale = "max") -> Figure:
        """Draw the image beside its map with matplotlib, without a window.

        Args:
            scale: see :meth:`overlay`.
        """
        from hf_gmar.visualization.overlay import overlay_figure

        return overlay_figure(*self._drawing(scale))

    def picture(self, scale: Scale = "max") -> Image.Image:
        """Draw the image beside its map as :meth:`figure` does, but faster, as a Pillow image.

        Args:
            scale: see :meth:`overlay`.
        """
        from hf_gmar.visualization.picture import overlay_picture

        return overlay_picture(*self._drawing(scale))

    def _drawing(self, scale: Scale) -> tuple[Any, ...]:
        """Return the arguments that both ways of drawing take."""
        image, values, view = self.image, self.drawn_map, self.view
        return image, values, self.title, self._below, view, self.unit, scale, self.per

    @property
    def unit(self) -> str:
        """The meaning of a value of the map."""
        return METHODS[self.method].unit

    @property
    def per(self) -> str:
        """What a value of the drawn map belongs to, such as ``"patch"``."""
        if self.fine_map is None and self.subject is not None and self.subject.adapter.has_cells:
            return "cell"
        return METHODS[self.method].per(self.settings.get("resolution", "patch"))

    @property
    def shows(self) -> str:
        """The question that the method's maps answer, in a few words."""
        return METHODS[self.method].shows

    @property
    def method_title(self) -> str:
        """The method as papers write it, with the options that are not its defaults."""
        return method_title(self.method, self.settings)

    def overlay(
        self,
        colormap: str | None = None,
        opacity: float = 0.6,
        scale: Scale = "max",
        smooth: bool = True,
    ) -> Image.Image:
        """Return the image under its map, pixel for pixel, without axes or text.

        Args:
            colormap: a colour map of matplotlib; by default ``"inferno"``, or ``"RdBu_r"`` over a
                grey image for maps with negative values.
            opacity: opacity of the map, from 0 to 1.
            scale: the values at the ends of the colours: ``"max"`` is from zero to the maximum,
                ``"percentile"`` from the 2nd to the 98th percentile, for maps that are nearly flat,
                or the two values. With negative values, the first two are symmetric about zero.
            smooth: interpolate between the patches or cells.

        Raises:
            OptionError: an option is outside its range.
        """
        from hf_gmar.visualization.overlay import overlay_image

        heatmap = self.view.project(self.drawn_map.float(), smooth)
        return overlay_image(self.image, heatmap, colormap, opacity, scale)

    def _repr_html_(self) -> str:
        """Show the picture in a notebook, with its class, method and settings."""
        from hf_gmar.visualization.notebook import html_image

        return html_image(self.picture(), f"{self.title}   {self._below}")


def caption_of(source: str, settings: Mapping[str, Any], *notes: str) -> str:
    """Join the name of an image, the settings and notes to one line."""
    options = ", ".join(
        f"{key} {method_title(value) if key == 'method' else value}"
        for key, value in settings.items()
        if key not in _NOT_IN_CAPTION and (key, value) not in _DEFAULTS.items()
    )
    return "   ".join([source, f"({options})", *filter(None, notes)])


_FLAT = 0.5  # share of the highest value below which no patch of a flat map is


def _jpeg(image: Image.Image) -> NDArray[np.uint8]:
    """Return the bytes of a small copy of an image."""
    small, buffer = image.convert("RGB"), BytesIO()
    small.thumbnail((_SMALL, _SMALL))
    small.save(buffer, "JPEG", quality=90)
    return np.frombuffer(buffer.getvalue(), np.uint8)


_SMALL = 768  # pixels of the longer side
COMPRESSION = 1  # of the picture: a third of the time for some more bytes


def _class_slug(index: int | None, label: str) -> str:
    """Convert a class to a part of a file name; labels need not be unique, so it has the index."""
    text = label if index == NO_CLASS else f"{index}-{label}"
    return cut(re.sub(r"[^\w-]+", "-", text), _LONGEST_PART).rstrip("-")
