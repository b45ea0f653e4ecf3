"""Explanations of one image or many as one page of HTML, without other files, links or scripts."""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from jinja2 import Environment, Template
from markupsafe import Markup

from hf_gmar._utils.files import absence, kind_of, whole_file
from hf_gmar._utils.text import brief, counted, visible
from hf_gmar.errors import HfGmarError, InputError, OptionError, one_line
from hf_gmar.explanation import Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.faithfulness import FaithfulnessCheck, Verdict
from hf_gmar.report.chart import charts
from hf_gmar.report.pictures import Tiles, colour_bar, data_uri
from hf_gmar.report.summary import Summary, joined, settings_of, versions

_LONGEST = 300  # letters of a name
_SIGNS: dict[Verdict | None, str] = {"better": "▲", "no better": "=", "worse": "▼", None: "·"}


def save_report(
    results: Iterable[Explanation | Explanations | Exception] | Explanation,
    path: str | Path,
    title: str = "Explanations",
    *,
    check: bool = True,
) -> Path:
    """Write explanations as one HTML page that needs no other file and no network.

    The images are written one after the other, so any number of them needs the memory of one. If
    the iteration is stopped or fails, the page of what came before is written, and says so.

    Args:
        results: explanations of any number of images, as :meth:`hf_gmar.Explainer.stream` yields
            them, also with ``return_errors=True``; or those of one image.
        path: the file; its folder must exist.
        title: the title of the page.
        check: ask the model what each map is worth, and for the fewest patches that suffice.
            ``False`` shows only the checks that the explanations have.

    Returns:
        The path of the file.

    Raises:
        InputError: there is no explanation.
        OptionError: the folder does not exist.
        OSError: the file can't be written; an older file of that name is kept.

    Example:
        >>> import tempfile
        >>> from hf_gmar import Explainer
        >>> from hf_gmar.data import draw_scene
        >>> explainer = Explainer("bundled", ["gmar", "attn-lrp"])
        >>> results = explainer.stream(draw_scene(seed).image for seed in (18, 19))
        >>> save_report(results, f"{tempfile.mkdtemp()}/report.html").name
        'report.html'
    """
    alone = isinstance(results, Explanation | Explanations)
    items: Iterable[Any] = [results] if alone else results  # type: ignore[assignment]
    with ReportWriter(path, title, check=check, total=1 if alone else None) as report:
        for number, item in enumerate(items, start=1):
            if isinstance(item, Exception):
                report.add_error(f"image {number}", item)
            else:
                report.add(item)
    return Path(path)


@dataclass(frozen=True)
class _Entry:
    """A line of the contents.

    Attributes:
        name: the image.
        classes: the explained classes with their scores.
        verdicts: the methods, each with its worst verdict.
    """

    name: str
    classes: list[str]
    verdicts: Sequence[tuple[str, str, str]]


class ReportWriter:
    """Writes a page image by image; used in a ``with`` statement.

    The page is in place when the statement ends: also after an error or an interrupt, with the
    images before it, if there are any.

    Args:
        path: the file, or a text buffer.
        title: the title of the page.
        check: see :func:`save_report`.
        total: the number of images that are expected; a page of fewer says so.

    Attributes:
        path: the file, or the buffer.
        summary: the verdicts so far.
        is_written: whether the page is in place.

    Raises:
        OptionError: the folder does not exist.
    """

    def __init__(
        self,
        path: str | Path | io.StringIO,
        title: str = "Explanations",
        *,
        check: bool = True,
        total: int | None = None,
    ) -> None:
        self.path = path if isinstance(path, io.StringIO) else Path(path)
        if isinstance(self.path, Path) and kind_of(self.path.parent) != "folder":
            raise OptionError(f"{absence(self.path.parent, 'folder')}; make it, or name another")
        self.summary = Summary()
        self.is_written = self._is_full = False
        self._title, self._check, self._total = title, check, total
        # Without a name, so that a killed process leaves nothing, and on the disk of the page.
        self._sections: IO[str] = (
            tempfile.TemporaryFile("w+", dir=self.path.parent, encoding="utf-8")  # noqa: SIM115
            if isinstance(self.path, Path)
            else io.StringIO()
        )
        self._entries: list[_Entry] = []
        self._errors: list[tuple[str, str]] = []
        self._models: dict[str, None] = {}

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the page, unless no image was explained or the disk refused one."""
        with self._sections:
            if self._is_full:
                return
            if self._entries:
                self._write(stopped=error is not None)
            elif error is None:
                raise InputError("no image was explained, so there is nothing to report")

    @property
    def images(self) -> int:
        """The number of images so far."""
        return len(self._entries)

    def add(self, found: Explanation | Explanations, name: str | None = None) -> Explanations:
        """Write the explanations of one image; return them with their checks.

        Args:
            found: one explanation, or several of the same image.
            name: the name of the image, by default the explanation's source.

        Raises:
            OSError: the disk is full.
        """
        results = Explanations([found]) if isinstance(found, Explanation) else found
        results, note = self._checked(results)
        name = brief(name or results[0].source, _LONGEST)
        section = _template().module.image(  # type: ignore[attr-defined]
            number=self.images + 1,
            several=self._total != 1,
            name=name,
            rows=self._rows(results),
            failures=[(title, one_line(error)) for title, error in results.failures.items()],
            settings=[*settings_of(results), *filter(None, [results[0].score_kind.note])],
            note=note,
        )
        try:
            self._sections.write(section)
            self._sections.flush()  # a full disk is an error here and not at the end
        except OSError:
            self._is_full = True
            raise
        self.summary.add(results)
        self._models[str(results[0].settings.get("model", ""))] = None
        self._entries.append(_entry(name, results))
        return results

    def add_error(self, name: str, error: Exception) -> None:
        """Name an image that could not be explained, with the reason."""
        self._errors.append((brief(name, _LONGEST), one_line(error)))

    def _checked(self, results: Explanations) -> tuple[Explanations, str]:
        """Check the maps unless they are; return the reason if the model can't be asked."""
        asked = self._check and all(map(_can_be_asked, results))
        if not asked or all(result.faithfulness is not None for result in results):
            return results, ""
        try:
            return results.checked(), ""
        except HfGmarError as error:
            return results, f"The maps are not checked: {one_line(error)}"

    def _rows(self, results: Explanations) -> list[dict[str, Any]]:
        """Return what the page shows of each class."""
        tiles = Tiles(results[0].image, results[0].view)
        plain = data_uri(tiles.plain)
        rows: dict[tuple[int, int | None], dict[str, Any]] = {}
        for result in results:
            row = rows.setdefault(
                (result.target, result.contrast_target),
                {"title": brief(result.title, _LONGEST), "plain": plain, "maps": []},
            )
            row["maps"].append(self._map(result, tiles))
        return list(rows.values())

    def _map(self, result: Explanation, tiles: Tiles) -> dict[str, Any]:
        check = result.faithfulness
        strip, low, high = colour_bar(result.drawn_map)
        per = "" if result.fine_map is None else f", per {result.per}"
        found: dict[str, Any] = {
            "method": result.method_title,
            "shows": result.shows,
            "overlay": data_uri(tiles.overlay(result)),
            "alt": f"{brief(result.title, _LONGEST)}, {result.method_title}",
            "bar": (data_uri(strip), low, high, " ".join(result.unit.split()) + per),
            "flatness": result.flatness,
        }
        if check is not None:
            found["verdict"] = check.verdict, _SIGNS[check.verdict], check.verdict_text
            found["sentence"] = check.sentence.removesuffix(f" {check.verdict_text}")
            found["table"] = _table(check)
            found["charts"] = charts(check)
        if self._check and _can_be_asked(result):
            try:
                fewest = result.sufficient_set()
            except HfGmarError as error:
                found["no_set"] = f"No sufficient set: {one_line(error)}"
            else:
                found["kept"] = data_uri(tiles.kept(fewest.mask)), fewest.sentence
        return found

    def _write(self, stopped: bool) -> None:
        """Write the page: what is known only now comes first."""
        count = counted(self.images, "image")
        expected = f" of {self._total}" if self._total and self._total > 1 else ""
        partial = f"Stopped before the end: this is {count}{expected}." if stopped else ""
        module: Any = _template().module
        head = module.head(
            title=brief(self._title, _LONGEST),
            count=count,
            models=joined([brief(name, _LONGEST) for name in self._models if name]),
            methods=joined(list(self.summary.methods)),
            partial=partial,
            summary=self.summary,
            entries=self._entries,
            errors=self._errors,
            many=any(len(entry.classes) > 1 for entry in self._entries),
            versions=versions(),
        )
        with self._page() as page:
            page.write(head)
            self._sections.seek(0)
            shutil.copyfileobj(self._sections, page)
            page.write(module.foot())
        self.is_written = True

    @contextmanager
    def _page(self) -> Iterator[IO[str]]:
        """Open the page."""
        if not isinstance(self.path, Path):
            yield self.path
            return
        with whole_file(self.path) as part, part.open("w", encoding="utf-8") as page:
            yield page


def _can_be_asked(result: Explanation) -> bool:
    """Whether the model is there, and has a score that patches could change."""
    return result.subject is not None and result.has_score


def _table(check: FaithfulnessCheck) -> dict[str, Any]:
    """Return the scores of each share of the patches, with the ranges of random ones."""
    text = check.score_kind.text
    rows = []
    for number, fraction in enumerate(check.fractions):
        cells = []
        pairs = zip((check.keep[number], check.remove[number]), check.random(number), strict=True)
        for value, random in pairs:
            cells += [
                (text(value), ""),
                (text(random.mean), f"{text(random.low)} to {text(random.high)}"),
            ]
        rows.append((f"{fraction:.0%}", cells))
    return {
        "caption": f"{brief(check.label, _LONGEST)}: {text(check.score)} with all patches",
        "headings": ["patches", "only these", "only random", "without these", "without random"],
        "rows": rows,
    }


def _entry(name: str, results: Explanations) -> _Entry:
    """Return the line of the contents; of several classes, the worst verdict stands for all."""
    classes = dict.fromkeys(brief(result.title, 80) for result in results)
    worst: dict[str, Verdict | None] = {}
    order = ["worse", "no better", "better", None]
    for result in results:
        verdict = result.faithfulness.verdict if result.faithfulness else None
        known = [*([worst[result.method_title]] if result.method_title in worst else []), verdict]
        worst[result.method_title] = min(known, key=order.index)
    verdicts = [(_SIGNS[verdict], verdict or "", title) for title, verdict in worst.items()]
    return _Entry(name, list(classes), verdicts)


@functools.cache
def _template() -> Template:
    """Return the macros of the page; every value is made visible and escaped."""

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    source = (files("hf_gmar") / "assets" / "explanations.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown)
    return environment.from_string(source)
