"""The report of an evaluation as one page of Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_gmar._utils.text import markdown
from hf_gmar._utils.version import __version__
from hf_gmar.evaluation.report.results import ALPHA, Measure, Results
from hf_gmar.evaluation.report.statistics import FLIPS
from hf_gmar.evaluation.report.tables import Text, differences, legend, markdown_table, means
from hf_gmar.metrics.registry import METRICS

_LISTED = 20  # broken images that the page names; the summary names all
_FEW = 20  # with fewer images, the page warns about the intervals

LIMITS = (
    (
        "Intervals and p-values cover the random choice of these images. They do not cover other "
        "models, data, options or seeds."
    ),
    (
        "P-values are corrected for the number of methods within one measure, but not for the "
        "number of measures. Among many measures, some differences will be due to chance."
    ),
    "The mean in bold is the best mean. It may not differ significantly from the second best.",
    "“No difference” means that no difference was found in these images. One may still exist.",
    (
        "The model was not trained on images with removed patches, and their scores depend on "
        "the perturbation. A ranking of methods is more reliable if several perturbations give "
        "the same ranking."
    ),
    (
        "Localisation is not faithfulness. A model may use something other than the object. A "
        "faithful map then shows this and scores low on localisation."
    ),
    (
        "If a method failed or a measure was undefined on some images, the means of one measure "
        "are over different images. Differences use only images that both methods have."
    ),
)
"""The limits of the numbers."""


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        group: the heading above the figure; a new heading unless it exists.
        file: the name of the file beside the page.
        caption: a description of the figure, also used as its alternative text.
        draw: makes the figure.
    """

    group: str
    file: str
    caption: str
    draw: Callable[[], Any]


def page(results: Results, pictures: Sequence[Picture] = ()) -> str:
    """Write the report: overview, tables, figures, failures, limits, settings."""
    parts = [
        "# Evaluation of explanations",
        *_facts(results),
        *_how_to_read(results),
        *_metrics(results),
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
    facts = {fact: markdown(name) for fact, name in names.items() if name}
    facts["Images"] = f"{results.images}{f', and {broken} broken' if broken else ''}"
    facts["Methods"] = str(len(results.methods))
    if left_out := settings.get("left_out"):
        facts["Left out"] = markdown(str(left_out))
    if results.baseline is not None:
        facts["Baseline"] = markdown(results.title(results.baseline))
    for fact, setting in (("Explained class", "explained_class"), ("Score", "score")):
        if (value := settings.get(setting)) is not None:
            facts[fact] = _VALUES.get(str(value), markdown(str(value)))
    yield "\n".join(f"- {fact}: {value}" for fact, value in facts.items())


_VALUES = {
    "predicted": "the top class",
    "label": "the image's label",
    "probability": "the probability of the explained class",
    "logit": "the logit of the explained class",
    "value": "the model's value, as it gives no probabilities",
}


def _how_to_read(results: Results) -> Iterator[str]:
    yield "## How to read the tables"
    yield (
        "Each number is a mean over n images, with its 95 % interval in brackets (percentile "
        "bootstrap over images). An arrow shows which direction is better, and bold marks the best "
        f"mean. {markdown('–')} means that there is no value."  # noqa: RUF001
    )
    if results.baseline is None:
        return
    yield (
        "A difference is the method's value minus the baseline's value on the same image, averaged "
        "over the images that have both values. Marks show significant differences: "
        f"{markdown(legend(results))}. △ and ▽ mean higher and lower if neither direction "
        "is better. The p-values are of a two-sided sign-flip permutation test with all flips or "
        f"{FLIPS:,} random flips, after Holm's correction over the methods of one measure. They "
        "are in `summary.json`."
    )
    if results.baseline not in results.methods:
        yield f"There are no differences, as the baseline {markdown(results.baseline)} has no rows."


def _metrics(results: Results) -> Iterator[str]:
    """Explain each metric that is shown; metrics of other packages need not be installed."""
    names = dict.fromkeys(measure.metric for measure in results.measures)
    lines = [
        f"- `{name}`: {markdown(METRICS[name].summary)}"
        for name in names
        if name in METRICS and METRICS[name].summary
    ]
    if lines:
        yield "## What the metrics measure"
        yield "\n".join(lines)


def _groups(results: Results, pictures: Sequence[Picture]) -> Iterator[str]:
    groups = results.groups
    for title in dict.fromkeys([*groups, *(picture.group for picture in pictures)]):
        yield f"## {markdown(title)}"
        if title in groups:
            yield from _tables(results, groups[title])
        for picture in pictures:
            if picture.group == title:
                yield f"![{markdown(picture.caption)}]({picture.file})"
                yield f"*{markdown(picture.caption)}*"


def _tables(results: Results, measures: Sequence[Measure]) -> Iterator[str]:
    heads, rows = means(results, measures)
    yield markdown_table(["method", *heads], rows)
    compared = results.compared(measures)
    if compared:
        heads, rows = differences(results, compared)
        yield f"### Differences to {markdown(results.title(str(results.baseline)))}"
        yield markdown_table(["method", *heads], rows)
    missing = [markdown(measure.title) for measure in measures if measure not in compared]
    if missing and results.baseline in results.methods and len(results.methods) > 1:
        yield f"Not compared, because no image has both values: {', '.join(missing)}."


def _failures(results: Results) -> Iterator[str]:
    failed, broken = results.failed, results.broken
    if failed:
        yield "## Where methods failed"
        yield markdown_table(
            ["method", "images", "reason"],
            [
                [Text(results.title(label)), Text(str(count)), Text(reason)]
                for label, failures in failed.items()
                for reason, count in Counter(item.reason for item in failures).most_common()
            ],
            numbers=False,
        )
    if broken:
        yield "## Images that could not be measured"
        yield f"The numbers do not include these images ({len(broken)})."
        lines = [f"- {markdown(item.key)}: {markdown(item.reason)}" for item in broken[:_LISTED]]
        if more := len(broken) - len(lines):
            lines.append(f"- and {more} more, in `summary.json`")
        yield "\n".join(lines)


def _limits(results: Results) -> Iterator[str]:
    counts = [cell.images for cell in results.cells if cell.images]
    if counts and min(counts) < _FEW:
        yield (
            f"Some means are over fewer than {_FEW} images. Their intervals are too narrow, and "
            "only large differences can be significant."
        )
    others = len(results.methods) - 1
    few = [count for count in counts if 2.0 ** (1 - count) * others >= ALPHA]
    if results.baseline is not None and few:
        yield (
            f"With {max(few)} images or fewer, no difference can be significant: after the "
            f"correction for {others} methods, the smallest possible p-value is too large."
        )
    yield from LIMITS


def _name(setting: Any) -> str:
    """Return the name in a setting, which is a name or a mapping with other parts."""
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
    return markdown_table(["setting", "value"], texts, numbers=False) if rows else "No settings."


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_text, value))
    return json.dumps(value, default=str, ensure_ascii=False)
