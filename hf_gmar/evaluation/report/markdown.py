"""The report of an evaluation as one page of Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_gmar._utils.version import __version__
from hf_gmar.evaluation.report.results import ALPHA, Failure, Measure, Results
from hf_gmar.evaluation.report.statistics import FLIPS
from hf_gmar.evaluation.report.tables import Text, differences, legend, markdown_table, means, plain

_LISTED = 20  # broken images that are named in the page; the summary has all
_FEW = 20  # images below which intervals are said to be rough

LIMITS = (
    (
        "Intervals and p-values say how far the means could be off because these images were "
        "drawn and not others. They say nothing of other models, other data, other options or "
        "another seed."
    ),
    (
        "P-values are corrected for the number of methods within one measure, not for the "
        "number of measures. Among many measures one will stand out by chance."
    ),
    "A mean in bold is the best one. It need not differ from the next.",
    "“No difference” means that none was found in these images, not that there is none.",
    (
        "An image with patches removed is none that the model was trained on. What its score "
        "says depends on how patches are removed: trust an order of methods more where it is "
        "the same under several perturbations."
    ),
    (
        "Faithful to the model is not the same as on the object. A model may well look at "
        "something else, and an explanation that says so is right and scores low on "
        "localisation."
    ),
    (
        "Means of one measure can be of different images where a method failed or the measure "
        "was not defined. The differences are of images that both methods have."
    ),
)
"""What the numbers do not say."""


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        group: the heading below which it stands; a heading of its own if there is none such.
        file: its name beside the page.
        words: what it shows, for those who can't see it and as its caption.
    """

    group: str
    file: str
    words: str


def page(results: Results, pictures: Sequence[Picture] = ()) -> str:
    """The report: what was measured, tables, pictures, failures, limits, settings."""
    parts = [
        "# Evaluation of explanations",
        *_first_words(results),
        *_how_to_read(results),
        *_groups(results, pictures),
        *_failures(results),
        "## Limits",
        "\n".join(f"- {one}" for one in _limits(results)),
        "## Settings",
        _settings(results.settings),
        f"hf-gmar {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _first_words(results: Results) -> Iterator[str]:
    said = {key: _name(results.settings.get(key)) for key in ("model", "data")}
    known = [f"{key}: {plain(value)}" for key, value in said.items() if value]
    broken = len(results.broken)
    known.append(f"images: {results.images}{f', and {broken} broken' if broken else ''}")
    known.append(f"methods: {len(results.methods)}")
    if results.baseline is not None:
        known.append(f"baseline: {plain(results.baseline)}")
    if (target := results.settings.get("target")) is not None:
        known.append(f"explained class: {_target(str(target))}")
    if (score := results.settings.get("score")) is not None:
        known.append(f"score: {_score(str(score))}")
    yield "\n".join(f"- {one[0].upper()}{one[1:]}" for one in known)


def _score(kind: str) -> str:
    return {
        "probability": "the probability of the explained class",
        "logit": "the logit of the explained class",
    }.get(kind, plain(kind))


def _how_to_read(results: Results) -> Iterator[str]:
    yield "## How to read the tables"
    yield (
        "Each number is a mean over images; n is how many. In brackets is its 95 % interval: the "
        "percentile bootstrap over images. An arrow says which direction is better, and bold marks "
        f"the best mean. {plain('–')} stands where there is no value."  # noqa: RUF001
    )
    if results.baseline is None:
        return
    yield (
        "Differences are taken image by image, a method's value minus the baseline's, over the "
        "images that have both. Marks say whether that difference is more than chance: "
        f"{plain(legend(results.baseline))}. △ and ▽ are higher and lower where neither direction "
        "is better. The p-values are of a two-sided sign-flip permutation test, of all flips or "
        f"{FLIPS:,} random ones, after Holm's correction over the methods of one measure. They are "
        "in `summary.json`."
    )
    if results.baseline not in results.methods:
        yield f"There are no rows of the baseline {plain(results.baseline)}, so no differences."


def _groups(results: Results, pictures: Sequence[Picture]) -> Iterator[str]:
    shown = [one.group for one in pictures]
    for title in dict.fromkeys([*results.groups, *shown]):
        yield f"## {plain(title)}"
        if measures := results.groups.get(title):
            yield from _tables(results, measures)
        for one in pictures:
            if one.group == title:
                yield f"![{plain(one.words)}]({one.file})"
                yield f"*{plain(one.words)}*"


def _tables(results: Results, measures: Sequence[Measure]) -> Iterator[str]:
    heads, rows = means(results, measures)
    yield markdown_table(["method", *heads], rows)
    compared = results.compared(measures)
    if compared:
        heads, rows = differences(results, compared)
        yield f"### Differences to {plain(str(results.baseline))}"
        yield markdown_table(["method", *heads], rows)
    lacking = [plain(one.title) for one in measures if one not in compared]
    if lacking and results.baseline in results.methods and len(results.methods) > 1:
        yield f"Not compared, for want of images with both values: {', '.join(lacking)}."


def _failures(results: Results) -> Iterator[str]:
    failed, broken = results.failed, results.broken
    if failed:
        yield "## Where methods failed"
        yield markdown_table(
            ["method", "images", "reason"],
            [
                [Text(label), Text(str(count)), Text(reason)]
                for label, ones in failed.items()
                for reason, count in _reasons(ones)
            ],
            numbers=False,
        )
    if broken:
        yield "## Images that could not be measured"
        yield f"{len(broken)} are in none of the numbers."
        listed = [f"- {plain(one.key)}: {plain(one.reason)}" for one in broken[:_LISTED]]
        more = len(broken) - len(listed)
        yield "\n".join([*listed, *([f"- and {more} more, in `summary.json`"] if more else [])])


def _reasons(failures: Sequence[Failure]) -> list[tuple[str, int]]:
    """The most frequent first."""
    return Counter(one.reason for one in failures).most_common()


def _limits(results: Results) -> Iterator[str]:
    counts = [cell.images for cell in results.cells if cell.images]
    if counts and min(counts) < _FEW:
        yield (
            f"Some means are of fewer than {_FEW} images. The intervals of so few are too narrow, "
            "and a difference has to be large to be found."
        )
    rivals = len(results.methods) - 1
    few = [count for count in counts if 2.0 ** (1 - count) * rivals >= ALPHA]
    if results.baseline is not None and few:
        yield (
            f"No difference can count as one where a measure has {max(few)} images or fewer: with "
            f"{rivals} methods to correct for, the smallest p-value there is too large."
        )
    yield from LIMITS


def _target(kind: str) -> str:
    return {"predicted": "the top class", "label": "the image's label"}.get(kind, plain(kind))


def _name(said: Any) -> str:
    """What a setting is called, where it has a name beside others."""
    found = said.get("name") if isinstance(said, Mapping) else said
    return "" if found is None else str(found)


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [[Text(key), Text(_said(value))] for key, value in _each(settings)]
    return markdown_table(["setting", "value"], rows, numbers=False) if rows else "None were given."


def _each(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A row for each setting, and for each part of one that has parts."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {part}", one) for part, one in value.items())
        else:
            yield str(key), value


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return json.dumps(value, default=str, ensure_ascii=False)
