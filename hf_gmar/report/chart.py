"""The figure of a check as SVG in a page: it takes the page's colours and letters."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from hf_gmar._utils.text import brief
from hf_gmar.faithfulness import FaithfulnessCheck, RandomScore
from hf_gmar.models.score_kind import ScoreKind

# Units of the drawing, about pixels.
_WIDTH, _HEIGHT = 176, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 6, 20, 18

PANELS = ("Only these patches", "All but these patches")


def charts(check: FaithfulnessCheck) -> list[Markup]:
    """Draw the scores over the share of patches, beside the range of random ones.

    Returns:
        Two ``<svg>`` elements: with only the top patches, and without them. Their classes, such as
        ``random`` and ``own``, get colours from the page.
    """
    pairs = [check.random(number) for number in range(len(check.fractions))]
    axis = _Axis(check, pairs)
    return [
        _panel(title, check, values, [pair[place] for pair in pairs], axis)
        for place, (title, values) in enumerate(
            zip(PANELS, (check.keep, check.remove), strict=True)
        )
    ]


class _Axis:
    """The scores from bottom to top: from 0 to 1 for probabilities."""

    def __init__(
        self, check: FaithfulnessCheck, pairs: Sequence[tuple[RandomScore, RandomScore]]
    ) -> None:
        self.low, self.high = 0.0, 1.0
        self.ticks = [0.0, 0.5, 1.0]
        self.text = "{:.0%}".format
        if check.score_kind is ScoreKind.VALUE:
            values = [check.score, *check.keep, *check.remove]
            values += [value for pair in pairs for random in pair for value in random]
            low, high = min(values), max(values)
            room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
            self.low, self.high = low - room, high + room
            self.ticks = [low, high] if high > low else [low]
            self.text = "{:.3g}".format

    def place(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{_TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM):.1f}"


def _panel(
    title: str,
    check: FaithfulnessCheck,
    values: Sequence[float],
    random: Sequence[RandomScore],
    axis: _Axis,
) -> Markup:
    shown, end = check.score_kind.text, _WIDTH - _RIGHT
    step = (end - _LEFT) / len(values)
    marks = [_ELEMENT["title"].format(title)]
    for tick in axis.ticks:
        marks.append(_ELEMENT["grid"].format(_LEFT, end, axis.place(tick)))
        marks.append(_ELEMENT["tick"].format(_LEFT - 4, axis.place(tick), axis.text(tick)))
    marks.append(_ELEMENT["whole"].format(_LEFT, end, axis.place(check.score)))
    texts = []
    for number, (value, scores) in enumerate(zip(values, random, strict=True)):
        share, middle = f"{check.fractions[number]:.0%}", _LEFT + (number + 0.5) * step
        ends = axis.place(scores.low), axis.place(scores.high)
        marks.append(_ELEMENT["random"].format(f"{middle:.1f}", *ends))
        marks.append(
            _ELEMENT["mean"].format(
                f"{middle - 6:.1f}", f"{middle + 6:.1f}", axis.place(scores.mean)
            )
        )
        marks.append(_ELEMENT["own"].format(f"{middle:.1f}", axis.place(value)))
        marks.append(_ELEMENT["share"].format(f"{middle:.1f}", _HEIGHT - 4, share))
        texts.append(f"{share}: {shown(value)}, random {shown(scores.mean)}")
    label = f"{title}, {check.score_kind.measure} of {brief(check.label)}: {'; '.join(texts)}"
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(_WIDTH, _HEIGHT, label) + Markup().join(marks) + Markup("</svg>")


_ELEMENT = {
    "title": Markup('<text class="title" x="36" y="11">{}</text>'),
    "grid": Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'),
    "tick": Markup('<text class="tick" x="{}" y="{}" dy="3.5" text-anchor="end">{}</text>'),
    "whole": Markup('<line class="whole" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'),
    "random": Markup('<line class="random" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'),
    "mean": Markup('<line class="mean" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'),
    "own": Markup('<circle class="own" cx="{}" cy="{}" r="4"/>'),
    "share": Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>'),
}
