"""The section of a model's card: its numbers and texts, and its place in a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from hf_gmar import Explainer, Explanations
from hf_gmar.data import draw_scene
from hf_gmar.errors import InputError, OptionError, PushError
from hf_gmar.models import LoadedModel
from hf_gmar.report import insert_section, save_card
from hf_gmar.report.model_card import END, START
from tests.support.hostile import HOSTILE, hidden_in

METHOD_NAMES = ["gmar", "attn-lrp"]


@pytest.fixture(scope="module")
def results(bundled: LoadedModel) -> list[Explanations]:
    scenes = [draw_scene(seed).image for seed in (18, 19, 20)]
    return list(Explainer(bundled, METHOD_NAMES).stream(scenes, "heart", check=True))


def section_of(paths: list[Path]) -> str:
    return paths[0].read_text(encoding="utf-8")


def rendered(text: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_the_section_counts_and_shows(results: list[Explanations], tmp_path: Path) -> None:
    paths = save_card(results, tmp_path / "card", examples=2)
    assert [path.relative_to(tmp_path / "card").as_posix() for path in paths] == [
        "explanations.md", "explanations/example-1.webp", "explanations/example-2.webp",
    ]  # fmt: skip
    text = section_of(paths)
    assert text.startswith(START)
    assert text.endswith(f"{END}\n")
    for place, method in enumerate(("GMAR", "AttnLRP")):
        checks = [found[place].faithfulness for found in results]
        better = sum(check is not None and check.verdict == "better" for check in checks)
        kept = sum(check.keep[1] for check in checks if check) / 3
        random = sum(sum(check.random_keep[1]) / 9 for check in checks if check) / 3
        (row,) = re.findall(rf"^\| {method} \| 3 \| (.*) \|$", text, re.MULTILINE)
        cells = row.split(" | ")
        assert cells[0] == f"{better} of 3 ({better / 3:.0%})"
        assert cells[3] == f"{kept:.1%} ({random:.1%})"
    assert text.count("](explanations/example-") == text.count("\n#### ") == 2
    assert re.findall(r"\]\((.+?)\)", text) == [
        path.relative_to(tmp_path / "card").as_posix() for path in paths[1:]
    ]
    for found in results[:2]:
        for result in found:
            assert result.faithfulness is not None
            assert f"- {result.method_title}: {result.faithfulness.sentence}" in text
    for path in paths[1:]:
        with Image.open(path) as picture:
            picture.load()


def test_a_section_says_how_it_was_made(results: list[Explanations], tmp_path: Path) -> None:
    text = section_of(save_card([*results, InputError("broken")], tmp_path, examples=0))
    assert "- 3 images; 1 more could not be explained\n" in text
    assert "method GMAR, norm l1, alpha 1.0" in text
    assert "bundled" not in text  # perhaps a path on somebody's disk
    assert "check by token-dropping, 9 random choices, seed 0" in text
    assert "PyTorch" in text
    assert "### Examples" not in text
    assert "3 images are few" in text


def test_maps_are_checked(bundled: LoadedModel, tmp_path: Path) -> None:
    explainer = Explainer(bundled, "attn-lrp")
    text = section_of(save_card(explainer.stream([draw_scene(18).image]), tmp_path))
    assert "1 of 1 (100%)" in text
    assert "One image says little" in text


@pytest.mark.parametrize("name", [*HOSTILE, END])
def test_names_are_text(results: list[Explanations], tmp_path: Path, name: str) -> None:
    def renamed(found: Explanations) -> Explanations:
        return Explanations(
            replace(each, source=name, label=name, settings={**each.settings, "prompts": [name]},
                    faithfulness=each.faithfulness and replace(each.faithfulness, label=name))
            for each in found
        )  # fmt: skip

    text = section_of(save_card(map(renamed, results), tmp_path / "named"))
    plain = section_of(save_card(results, tmp_path / "plain"))
    assert hidden_in(text) <= {"\n"}
    assert (text.count(START), text.count(END)) == (1, 1)
    assert insert_section(insert_section("", text), text) == text
    tags = [re.findall(r"<(\w+)", rendered(one)) for one in (text, plain)]
    assert set(tags[0]) == set(tags[1])
    assert re.findall('(?:src|href)="(.*?)"', rendered(text)) == re.findall(
        '(?:src|href)="(.*?)"', rendered(plain)
    )


def test_a_stop_leaves_what_was_finished(results: list[Explanations], tmp_path: Path) -> None:
    def stopped() -> Iterator[Explanations]:
        yield results[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_card(stopped(), tmp_path)
    assert "on 1 image in all" in (tmp_path / "explanations.md").read_text(encoding="utf-8")


def test_a_card_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image was explained"):
        save_card([InputError("broken")], tmp_path / "card")
    with pytest.raises(OptionError, match="examples"):
        save_card([], tmp_path / "card", examples=-1)
    assert not (tmp_path / "card").exists()


METADATA = "---\n# why\nlicense:   mit\n---\n"
SECTION = f"{START}\n\nnew\n\n{END}\n"


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        ("", SECTION),
        ("# A\n", f"# A\n\n{SECTION}"),
        ("# A\n\n\n", f"# A\n\n{SECTION}"),
        (f"{METADATA}# A", f"{METADATA}# A\n\n{SECTION}"),
        (f"# A\n{START}\nold\n{END}\n# B\n", f"# A\n{SECTION.strip()}\n# B\n"),
        ("# A\r\n", f"# A\n\n{SECTION}".replace("\n", "\r\n")),
    ],
)  # fmt: skip
def test_a_section_has_one_place(card: str, wanted: str) -> None:
    once = insert_section(card, SECTION)
    assert once == wanted
    assert insert_section(once, SECTION) == once


@pytest.mark.parametrize(
    "card", [START, END, f"{END}{START}", f"{START}{START}{END}", f"{START}{END}{START}{END}"]
)
def test_marks_that_are_no_pair_are_refused(card: str) -> None:
    with pytest.raises(PushError, match="one of each is needed, in this order"):
        insert_section(card, SECTION)


def test_two_classes_are_told_apart(bundled: LoadedModel, tmp_path: Path) -> None:
    scene: Any = draw_scene(18).image
    results = Explainer(bundled, "attn-lrp")(scene, ["heart", "cross"])
    text = section_of(save_card([results], tmp_path))
    assert "- AttnLRP, heart: With the" in text
    assert "- AttnLRP, cross: With the" in text
