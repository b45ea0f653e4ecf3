"""The report of an evaluation as one page of Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_gmar._utils.version import __version__
from hf_gmar.evaluation.report.results import ALPHA, Measure, Results
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
        caption: what it shows, for those who can't see it too.
        draw: makes the figure.
    """

    group: str
    file: str
    caption: str
    draw: Callable[[], Any]


def page(results: Results, pictures: Sequence[Picture] = ()) -> str:
    """The report: what was measured, tables, pictures, failures, limits, settings."""
    parts = [
        "# Evaluation of explanations",
        *_facts(results),
        *_how_to_read(results),
        *_groups(results, pictures),
        *_failures(results),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(results)),
        "## Settings",
        _settings(results.settings),
        f"hf-gmar {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(results: Results) -> Iterator[str]:
    settings, broken = results.settings, len(results.broken)
    names = {"Model": _name(settings.get("model")), "Data": _name(settings.get("data"))}
    facts = {fact: plain(name) for fact, name in names.items() if name}
    facts["Images"] = f"{results.images}{f', and {broken} broken' if broken else ''}"
    facts["Methods"] = str(len(results.methods))
    if results.baseline is not None:
        facts["Baseline"] = plain(results.baseline)
    for fact, setting in (("Explained class", "explained_class"), ("Score", "score")):
        if (value := settings.get(setting)) is not None:
            facts[fact] = _VALUES.get(str(value), plain(str(value)))
    yield "\n".join(f"- {fact}: {value}" for fact, value in facts.items())


_VALUES = {
    "predicted": "the top class",
    "label": "the image's label",
    "probability": "the probability of the explained class",
    "logit": "the logit of the explained class",
}


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
    groups = results.groups
    for title in dict.fromkeys([*groups, *(picture.group for picture in pictures)]):
        yield f"## {plain(title)}"
        if title in groups:
            yield from _tables(results, groups[title])
        for picture in pictures:
            if picture.group == title:
                yield f"![{plain(picture.caption)}]({picture.file})"
                yield f"*{plain(picture.caption)}*"


def _tables(results: Results, measures: Sequence[Measure]) -> Iterator[str]:
    heads, rows = means(results, measures)
    yield markdown_table(["method", *heads], rows)
    compared = results.compared(measures)
    if compared:
        heads, rows = differences(results, compared)
        yield f"### Differences to {plain(str(results.baseline))}"
        yield markdown_table(["method", *heads], rows)
    lacking = [plain(measure.title) for measure in measures if measure not in compared]
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
                for label, failures in failed.items()
                for reason, count in Counter(item.reason for item in failures).most_common()
            ],
            numbers=False,
        )
    if broken:
        yield "## Images that could not be measured"
        yield f"{len(broken)} are in none of the numbers."
        lines = [f"- {plain(item.key)}: {plain(item.reason)}" for item in broken[:_LISTED]]
        if more := len(broken) - len(lines):
            lines.append(f"- and {more} more, in `summary.json`")
        yield "\n".join(lines)


def _limits(results: Results) -> Iterator[str]:
    counts = [cell.images for cell in results.cells if cell.images]
    if counts and min(counts) < _FEW:
        yield (
            f"Some means are of fewer than {_FEW} images. The intervals of so few are too narrow, "
            "and a difference has to be large to be found."
        )
    others = len(results.methods) - 1
    few = [count for count in counts if 2.0 ** (1 - count) * others >= ALPHA]
    if results.baseline is not None and few:
        yield (
            f"No difference can count as one where a measure has {max(few)} images or fewer: with "
            f"{others} methods to correct for, the smallest p-value there is too large."
        )
    yield from LIMITS


def _name(setting: Any) -> str:
    """The name of a setting, which may stand beside other parts."""
    name = setting.get("name") if isinstance(setting, Mapping) else setting
    return "" if name is None else str(name)


def _settings(settings: Mapping[str, Any]) -> str:
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}: {part}", item) for part, item in value.items()]
        else:
            rows.append((str(key), value))
    texts = [[Text(key), Text(_value_text(value))] for key, value in rows]
    return (
        markdown_table(["setting", "value"], texts, numbers=False) if rows else "None were given."
    )


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_text, value))
    return json.dumps(value, default=str, ensure_ascii=False)
