"""The explanations of one image: several classes, by several methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gmar._utils.files import whole_file
from hf_gmar._utils.names import file_name, slug
from hf_gmar.errors import HfGmarError, InputError, reason_of
from hf_gmar.explanation import COMPRESSION, Explanation, caption_of
from hf_gmar.faithfulness import (
    DRAWS,
    FRACTIONS,
    FaithfulnessCheck,
    check_maps,
)

if TYPE_CHECKING:
    from PIL import Image

    from hf_gmar.visualization.overlay import Scale

_LONGEST_PART = 80  # bytes of the classes, and of the methods, in a file name


class Explanations(list[Explanation]):
    """The explanations of one image, a list: for each class, the methods in their order.

    Attributes:
        failures: the errors of methods without a map, by the title of the method.

    Example:
        >>> from hf_gmar import explain
        >>> from hf_gmar.data import draw_scene
        >>> scene = draw_scene(18).image
        >>> results = explain(scene, "bundled", ["heart", "cross"], method=["gmar", "attn-lrp"])
        >>> [(result.label, result.method) for result in results]
        [('heart', 'gmar'), ('heart', 'attn-lrp'), ('cross', 'gmar'), ('cross', 'attn-lrp')]
        >>> [check.verdict for check in results.check()]
        ['better', 'better', 'better', 'better']
    """

    def __init__(
        self,
        explanations: Iterable[Explanation] = (),
        failures: Mapping[str, HfGmarError] | None = None,
    ) -> None:
        super().__init__(explanations)
        self.failures = dict(failures or {})

    def check(
        self,
        fractions: Sequence[float] = FRACTIONS,
        draws: int = DRAWS,
        perturbation: str | None = None,
        seed: int = 0,
    ) -> list[FaithfulnessCheck]:
        """Check each map as :meth:`Explanation.check` does; all share the random patches.

        Raises:
            HfGmarError: see :meth:`Explanation.check`.
            InputError: the explanations are of several images.
        """
        if not self:
            return []
        if any(result._asked.pixels is not self[0]._asked.pixels for result in self):
            raise InputError(
                "the explanations are of several images, and a check is of one; check each "
                "explanation by itself"
            )
        maps = [(result.patches, result._explained) for result in self]
        return check_maps(self[0]._asked, maps, fractions, draws, perturbation, seed)

    def checked(self) -> Explanations:
        """Return the explanations with their checks, to be drawn and saved."""
        pairs = zip(self, self.check(), strict=True)
        checked = (replace(result, faithfulness=check) for result, check in pairs)
        return Explanations(checked, self.failures)

    def picture(self, scale: Scale = "max") -> Image.Image:
        """Draw one row for each class and one column for each method.

        Args:
            scale: see :meth:`Explanation.overlay`.
        """
        from hf_gmar.visualization.explanation_grid import Cell, Column, explanation_grid

        rows = {_row(result): result.title for result in self}
        columns = {_column(result): Column(result.method_title, result.shows) for result in self}
        cells: dict[tuple[int, int], Cell] = {}
        for result in self:
            place = list(rows).index(_row(result)), list(columns).index(_column(result))
            check = result.faithfulness
            verdict, texts = ("", []) if check is None else (check.verdict, check.lines)
            of = "." if check is None else "; the check is of patches."
            resolution = "" if result.fine_map is None else f"Values are per {result.per}{of}"
            texts = [*texts, *filter(None, [resolution, result.flatness])]
            cells[place] = Cell(result.drawn_map, result.unit, verdict, tuple(texts))
        for title, error in self.failures.items():
            columns["", title] = Column(title)
            cells[0, len(columns) - 1] = Cell(None, texts=(f"failed: {reason_of(error)}",))
        first = self[0]
        return explanation_grid(
            first.image,
            first.view,
            list(rows.values()),
            list(columns.values()),
            cells,
            self.caption,
            scale,
        )

    @property
    def caption(self) -> str:
        """The image, the settings that all explanations share, and notes on their scores."""
        first = self[0]
        shared = {
            name: value
            for name, value in first.settings.items()
            if all(result.settings.get(name) == value for result in self)
        }
        return caption_of(first.source, shared, first.score_kind.note)

    def save(self, folder: str | Path, stem: str) -> tuple[Path, ...]:
        """Write one picture, and the numbers of each explanation: all files or none of them.

        Args:
            folder: the folder of the files.
            stem: the beginning of their names; classes and methods follow.

        Returns:
            The path of the picture, and of the archive of each explanation; see
            :meth:`Explanation.save`.

        Raises:
            OSError: a file can't be written.
        """
        folder = Path(folder)
        if len(self) == 1 and not self.failures:
            return self[0].save(folder / self[0].file_name(stem))
        picture = folder / f"{self.file_name(stem)}.png"
        archives = [folder / f"{result.file_name(stem)}.npz" for result in self]
        with ExitStack() as stack:
            drawing = stack.enter_context(whole_file(picture))
            for result, archive in zip(self, archives, strict=True):
                result.save_numbers(stack.enter_context(whole_file(archive)))
            self.picture().save(drawing, "PNG", compress_level=COMPRESSION)
        return picture, *archives

    def file_name(self, stem: str) -> str:
        """Return a name for the picture that no other classes or methods of a folder have."""
        parts = [result.file_name("").removeprefix(".").partition(".") for result in self]
        classes = dict.fromkeys(name for name, _, _ in parts)
        methods = dict.fromkeys(method or "gmar" for _, _, method in parts)
        names = (slug("+".join(items), _LONGEST_PART) for items in (classes, methods))
        return file_name(stem, f".{'.'.join(names)}.png").removesuffix(".png")

    def _repr_html_(self) -> str:
        """Show the picture in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        text = "; ".join(f"{result.title}, {result.method_title}" for result in self)
        return html_image(self.picture(), text) if self else "[]"


def _column(result: Explanation) -> tuple[str, str]:
    """Return what identifies a method with its options; titles need not be unique."""
    return result.method, result.method_title


def _row(result: Explanation) -> tuple[int, int | None]:
    """Return what identifies a class; labels need not be unique."""
    return result.target, result.contrast_target
