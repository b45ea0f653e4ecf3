"""Options of ``hf-gmar explain`` for questions without a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_gmar._utils.files import absence, kind_of
from hf_gmar.errors import OptionError
from hf_gmar.methods.registry import DEFAULT_METHODS, METHODS

if TYPE_CHECKING:
    from hf_gmar.explainer import Explainer

SimilarFile = Annotated[
    Path | None,
    typer.Option(help="Explain the similarity to this image file instead of a class."),
]
FromPatch = Annotated[
    str | None,
    typer.Option(
        help="Show the attention from one patch, counted from 0, instead of a class: 3,5.",
        metavar="ROW,COLUMN",
    ),
]


@dataclass(frozen=True)
class NoClass:
    """A question without a class, or none.

    Attributes:
        similar_to: the file of the other image.
        place: row and column of the patch where the map starts.
    """

    similar_to: Path | None
    place: tuple[int, int] | None

    @classmethod
    def parse(cls, similar_to: Path | None, from_patch: str | None) -> NoClass:
        """Read the options.

        Raises:
            OptionError: a place that is no two numbers, both questions at once, or no such file.
        """
        if similar_to is not None and from_patch is not None:
            raise OptionError("give either --similar-to or --from-patch; they are two questions")
        if similar_to is not None and kind_of(similar_to) != "file":
            raise OptionError(f"--similar-to needs an image file: {absence(similar_to, 'file')}")
        match = re.fullmatch(r"(\d{1,6})\s*,\s*(\d{1,6})", from_patch or "")
        if from_patch is not None and match is None:
            raise OptionError(
                f"--from-patch takes ROW,COLUMN of a patch, counted from 0, such as 3,5; got "
                f"{from_patch!r}"
            )
        return cls(similar_to, (int(match[1]), int(match[2])) if match else None)

    def check(self, **others: Any) -> None:
        """Raise an OptionError if an option of classes is given beside the question."""
        given = [name for name, value in others.items() if value]
        option = self._option
        if option and given:
            raise OptionError(
                f"{option} is a question without a class; leave out --{given[0].replace('_', '-')}"
            )

    def methods(self, names: list[str] | None) -> list[str]:
        """Return the methods, or the default ones.

        Raises:
            OptionError: a method with gradients from a patch.
        """
        names = names or list(DEFAULT_METHODS if self.place is None else ("raw-attention",))
        for name in names if self.place is not None else ():
            method = METHODS.parse(name)[0]
            if METHODS[method].needs_scores:
                able = [one for one in METHODS if not METHODS[one].needs_scores]
                raise OptionError(
                    f"--from-patch needs a method without gradients, one of {', '.join(able)}; "
                    f"{method} explains a score: leave --method or --from-patch out"
                )
        return names

    def head(self, methods: Sequence[str]) -> bool | None:
        """Return ``head`` of ``load_model``: a class head, or one if the model has it."""
        needs_scores = any(METHODS[name].needs_scores for name in methods)
        return True if needs_scores and self._option is None else None

    def asked(self, explainer: Explainer, targets: list[int]) -> tuple[Explainer, list[int]]:
        """Return the explainer of the question, and its targets."""
        if self.similar_to is None:
            return explainer, targets
        from hf_gmar.questions import SimilarTo

        return explainer.similar_to(SimilarTo(self.similar_to)), [0]

    @property
    def _option(self) -> str | None:
        if self.similar_to is not None:
            return "--similar-to"
        return None if self.place is None else "--from-patch"
