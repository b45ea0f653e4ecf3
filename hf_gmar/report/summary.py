"""What the methods are worth on the images of a report: counts of verdicts, and mean scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import transformers
from rich.table import Table

from hf_gmar._utils.text import brief, visible
from hf_gmar._utils.version import __version__
from hf_gmar.explanation import Explanation, caption_of
from hf_gmar.faithfulness import FaithfulnessCheck, Verdict
from hf_gmar.models.score_kind import ScoreKind

VERDICT_TITLES: dict[Verdict, str] = {
    "better": "better than random",
    "no better": "no better",
    "worse": "worse",
}
"""The columns of verdicts, in their order."""


@dataclass
class MethodSummary:
    """The checks of one method's maps.

    Attributes:
        title: the method as papers write it.
        maps: number of maps.
        verdicts: number of maps by verdict.
        scores: sums of the scores with a map's top patches alone, with random ones, without the top
            patches, and without random ones, by the share of the patches and the kind of score.
    """

    title: str
    maps: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    scores: dict[tuple[float, ScoreKind], list[list[float]]] = field(default_factory=dict)

    @property
    def checked(self) -> int:
        """The number of maps that were checked."""
        return self.verdicts.total()

    def add(self, check: FaithfulnessCheck | None) -> None:
        """Count a map, and its check if there is one."""
        self.maps += 1
        if check is None:
            return
        self.verdicts[check.verdict] += 1
        number = check.middle
        kept, removed = check.random(number)
        scores = [check.keep[number], kept.mean, check.remove[number], removed.mean]
        key = check.fractions[number], check.score_kind
        for values, score in zip(
            self.scores.setdefault(key, [[], [], [], []]), scores, strict=True
        ):
            values.append(score)

    def means(self, share: float, kind: ScoreKind) -> list[str] | None:
        """Return the four mean scores as texts; ``None`` without a check of that share and kind."""
        if not (scores := self.scores.get((share, kind))):
            return None
        return [kind.text(math.fsum(values) / len(values)) for values in scores]


class Summary:
    """The checks of all maps, by method.

    Attributes:
        methods: the methods in the order in which they came.

    Example:
        >>> from hf_gmar import explain
        >>> from hf_gmar.data import draw_scene
        >>> summary = Summary()
        >>> summary.add([explain(draw_scene(18).image, "bundled", method="attn-lrp", check=True)])
        >>> summary.rows()[0][:3]
        ['AttnLRP', '1', '1 of 1 (100%)']
    """

    def __init__(self) -> None:
        self.methods: dict[str, MethodSummary] = {}

    def add(self, results: Iterable[Explanation]) -> None:
        """Count maps."""
        for result in results:
            title = result.method_title
            self.methods.setdefault(title, MethodSummary(title)).add(result.faithfulness)

    @property
    def has_checks(self) -> bool:
        """Whether any map was checked."""
        return any(method.checked for method in self.methods.values())

    @property
    def _measure(self) -> tuple[float, ScoreKind] | None:
        """The share and the kind of score of all checks; ``None`` if they are not the same."""
        found = {key for method in self.methods.values() for key in method.scores}
        return found.pop() if len(found) == 1 else None

    @property
    def share(self) -> str:
        """The share of the patches that the mean scores are about, such as "20%", or empty."""
        return f"{self._measure[0]:.0%}" if self._measure else ""

    def headings(self) -> list[str]:
        """Return the headings of :meth:`rows`."""
        verdicts = list(VERDICT_TITLES.values()) if self.has_checks else []
        scores = [f"top {self.share} alone (random)", "without them (random)"] if self.share else []
        return ["method", "maps", *verdicts, *scores]

    def rows(self) -> list[list[str]]:
        """Return one row for each method: its maps, verdicts and mean scores."""
        return [self._row(method) for method in self.methods.values()]

    def _row(self, method: MethodSummary) -> list[str]:
        cells = [method.title, str(method.maps)]
        if self.has_checks:
            cells += [_share(method.verdicts[name], method.checked) for name in VERDICT_TITLES]
        if self._measure:
            kept, random_kept, removed, random_removed = method.means(*self._measure) or [""] * 4
            pairs = ((kept, random_kept), (removed, random_removed))
            cells += [f"{value} ({random})" if value else "" for value, random in pairs]
        return cells

    def table(self) -> Table:
        """Return the rows as a table of the terminal."""
        table = Table(title="What the maps are worth")
        for number, heading in enumerate(self.headings()):
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        for row in self.rows():
            table.add_row(*map(visible, row))
        return table


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})" if total else "not checked"


def versions() -> str:
    """Name the versions that maps and checks depend on."""
    return (
        f"hf_gmar {__version__}, PyTorch {torch.__version__}, "
        f"Transformers {transformers.__version__}"
    )


def joined(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    Example:
        >>> joined(["GMAR", "AttnLRP"]), joined(["a", "b", "c"])
        ('GMAR and AttnLRP', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def settings_of(results: Sequence[Explanation], with_model: bool = True) -> list[str]:
    """Return the settings of each method and of the checks of one image, a line each."""
    left_out = set() if with_model else {"model"}
    lines = [
        caption_of(
            "", {key: result.settings[key] for key in result.settings if key not in left_out}
        )
        for result in results
    ]
    lines = [line.strip().strip("()") for line in lines]
    checks = [result.faithfulness for result in results if result.faithfulness is not None]
    lines += [
        f"check by {check.perturbation}, {len(check.advantages)} random choices, seed {check.seed}"
        for check in checks
    ]
    if prompts := results[0].settings.get("prompts"):
        lines.append(f"the classes are these texts: {'; '.join(map(str, prompts))}")
    return [brief(line, 2000) for line in dict.fromkeys(lines)]
