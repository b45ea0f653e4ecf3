"""The section "Explanations" of a model's card: Markdown, with pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hf_gmar._utils.files import save_text, whole_file
from hf_gmar._utils.text import brief, counted, markdown
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import InputError, PushError
from hf_gmar.explanation import Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.report.pictures import webp
from hf_gmar.report.summary import Summary, joined, settings_of, versions

SECTION = "explanations.md"
"""The file of the section."""

PICTURES = "explanations"
"""The folder of its pictures, beside the section and in the repository of the model."""

START, END = "<!-- hf_gmar: explanations -->", "<!-- /hf_gmar: explanations -->"
"""The marks of the section in a card; readers of the card do not see them."""

_LONGEST = 200  # letters of a name
_FEW = 30  # images


def save_card(
    results: Iterable[Explanation | Explanations | Exception],
    folder: str | Path,
    *,
    examples: int = 4,
) -> list[Path]:
    """Write the section "Explanations" of a model's card.

    All maps are checked and counted; the first images are shown.

    Args:
        results: explanations by one model of any number of images, as
            :meth:`hf_gmar.Explainer.stream` yields them, also with ``return_errors=True``.
        folder: the folder of ``explanations.md`` and of the pictures, in ``explanations/``; it is
            created if it is missing.
        examples: the number of images that are shown.

    Returns:
        The paths of the section and of the pictures.

    Raises:
        InputError: there is no explanation.
        OptionError: ``examples`` is negative.
        UnsupportedModelError: the model can't be checked, see :meth:`hf_gmar.Explanation.check`.
        OSError: a file can't be written.

    Example:
        >>> import tempfile
        >>> from hf_gmar import Explainer
        >>> from hf_gmar.data import draw_scene
        >>> explainer = Explainer("bundled", ["gmar", "attn-lrp"])
        >>> scenes = (draw_scene(seed).image for seed in (18, 19))
        >>> paths = save_card(explainer.stream(scenes), tempfile.mkdtemp(), examples=1)
        >>> [path.name for path in paths]
        ['explanations.md', 'example-1.webp']
    """
    with CardWriter(folder, examples) as card:
        for item in results:
            if isinstance(item, Exception):
                card.add_error()
            else:
                card.add(item)
    return card.paths


class CardWriter:
    """Writes the section image by image; used in a ``with`` statement.

    The section is in place when the statement ends: also after an error or an interrupt, with the
    images before it, if there are any.

    Args:
        folder: see :func:`save_card`.
        examples: see :func:`save_card`.

    Attributes:
        paths: the files.
        summary: the verdicts so far.
        images: the number of explained images.
    """

    def __init__(self, folder: str | Path, examples: int = 4) -> None:
        check_option("examples", examples, range(10_001))
        self._folder, self._examples = Path(folder), examples
        self.paths: list[Path] = []
        self.summary = Summary()
        self.images = self._errors = 0
        self._shown: list[str] = []
        self._settings: dict[str, None] = {}
        self._shows: dict[str, str] = {}
        self._notes: dict[str, None] = {}

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the section, unless no image was explained."""
        if self.images:
            path = self._folder / SECTION
            self._folder.mkdir(parents=True, exist_ok=True)
            save_text(path, self._text())
            self.paths.insert(0, path)
        elif error is None:
            raise InputError("no image was explained, so a card has nothing to show")

    def add(self, found: Explanation | Explanations) -> None:
        """Check and count the explanations of one image; draw them if it is one of the first."""
        results = Explanations([found]) if isinstance(found, Explanation) else found
        if any(result.faithfulness is None for result in results):
            results = results.checked()
        if len(self._shown) < self._examples:
            self._shown.append(self._example(results, len(self._shown) + 1))
        self.images += 1
        self.summary.add(results)
        self._settings |= dict.fromkeys(settings_of(results, with_model=False))
        self._notes |= {results[0].score_kind.note: None}
        self._shows |= {result.method_title: result.shows for result in results}

    def add_error(self) -> None:
        """Count an image that could not be explained."""
        self._errors += 1

    def _example(self, results: Explanations, number: int) -> str:
        """Write the picture of an image; return its part of the section."""
        name = f"{PICTURES}/example-{number}.webp"
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_bytes(webp(results.picture()))
        self.paths.append(path)
        classes = joined([_plain(title) for title in dict.fromkeys(one.title for one in results)])
        methods = joined([_plain(one) for one in dict.fromkeys(r.method_title for r in results)])
        several = len({(result.target, result.contrast_target) for result in results}) > 1
        checks = [
            f"- {_plain(result.method_title)}{f', {_plain(result.label)}' if several else ''}: "
            f"{markdown(result.faithfulness.sentence)}"
            for result in results
            if result.faithfulness is not None
        ]
        title = f"#### {number}. {_plain(results[0].source)}: {classes}"
        picture = f"![The image and its maps for {classes}, by {methods}]({name})"
        return "\n\n".join([title, picture, "\n".join(checks)])

    def _text(self) -> str:
        parts = [
            START,
            "## Explanations",
            self._introduction(),
            "### What the maps are worth",
            _table(self.summary),
            self._meaning(),
            *(["### Examples"] if self._shown else []),
            *self._shown,
            "### How this was computed",
            "\n".join(f"- {markdown(line)}" for line in self._how()),
            "### Limits",
            "\n".join(f"- {line}" for line in self._limits()),
            END,
        ]
        return "\n\n".join(parts) + "\n"

    def _introduction(self) -> str:
        shows = "; ".join(f"{_plain(title)} shows {text}" for title, text in self._shows.items())
        return (
            "Which patches of an image led this model to its class? The maps below answer, each "
            f"method in its way: {shows}."
        )

    def _meaning(self) -> str:
        share = self.summary.share
        scores = (
            f" *Top {share} alone* is the mean score of the class when the model sees only the "
            f"{share} of the patches that a map ranks highest: high is good. *Without them*, it "
            "sees all others: low is good. Random patches stand in brackets."
            if share
            else ""
        )
        return (
            f"Each map was tested on its own image, on {counted(self.images, 'image')} in all: the "
            "model sees only the patches that the map ranks highest, then all others, and the same "
            "for random patches. A map is better than random if it beats all random choices. By "
            f"chance, one random map in ten is called better, and one worse.{scores}"
        )

    def _how(self) -> list[str]:
        errors = f"; {counted(self._errors, 'more')} could not be explained" if self._errors else ""
        lines = [f"{counted(self.images, 'image')}{errors}", *self._settings]
        return [*lines, *filter(None, self._notes), versions()]

    def _limits(self) -> list[str]:
        few = (
            f"{counted(self.images, 'image')} are few: another sample gives other shares."
            if 1 < self.images < _FEW
            else "One image says little about the model."
            if self.images == 1
            else "The numbers hold for these images; other images give others."
        )
        return [
            few,
            "The images were chosen by whoever made this section.",
            "A map that is better than random names patches that the model uses.",
            "No map says that the model is right, or what it sees in its patches.",
            "A map is also called no better where the model needs no particular patches.",
            "Images with missing patches are unlike those that the model was trained on.",
        ]


def insert_section(card: str, section: str) -> str:
    r"""Put the section into a card, in the place of an older one, or at the end.

    All else in the card stays as it is, its metadata too.

    Args:
        card: the card, as in ``README.md``.
        section: the section, from its first mark to its last.

    Raises:
        PushError: the marks in the card are no pair.

    Example:
        >>> print(insert_section("# A model\n", f"{START}\n\n## Explanations\n\n{END}\n"))
        # A model
        <BLANKLINE>
        <!-- hf_gmar: explanations -->
        <BLANKLINE>
        ## Explanations
        <BLANKLINE>
        <!-- /hf_gmar: explanations -->
        <BLANKLINE>
    """
    ending = "\r\n" if "\r\n" in card else "\n"
    section = section.strip().replace("\n", ending)
    starts, ends = card.count(START), card.count(END)
    if (starts, ends) == (0, 0):
        before = card.rstrip()
        return f"{before}{ending * 2}{section}{ending}" if before else f"{section}{ending}"
    start, end = card.find(START), card.find(END)
    if (starts, ends) != (1, 1) or end < start:
        raise PushError(
            f"the card has {counted(starts, 'mark')} {START} and {ends} {END}, and one of each is "
            "needed, in this order; remove the older section by hand"
        )
    return card[:start] + section + card[end + len(END) :]


def _table(summary: Summary) -> str:
    rows: list[list[str]] = [summary.headings(), *summary.rows()]
    lines = [[_plain(cell) for cell in row] for row in rows]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: Any) -> str:
    return markdown(brief(text, _LONGEST))
