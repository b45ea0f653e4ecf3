"""``hf-gmar card``: the section in a folder, and its way to a local server that acts as the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_gmar.report.model_card import START
from tests.support import folders
from tests.support.command import Done, run, run_elsewhere
from tests.support.hub_server import serve_hub

README = "---\nlicense:   mit  # as the data\ntags: [b, a]\n---\n\n# My ViT\n\nIt is good.\n"


@pytest.fixture
def images(tmp_path: Path, scene: Image.Image) -> Path:
    """A folder of two images and a broken one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        scene.save(folder / f"{name}.png")
    return folder


def test_a_section_is_written(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "card"
    (images / "c.png").write_bytes(b"broken")
    done = run("card", "bundled", images, "--examples", "1", "--output", output)
    assert done.code == 1
    assert "c.png" in done.error
    text = (output / "explanations.md").read_text(encoding="utf-8")
    assert "- 2 images; 1 more could not be explained" in text
    assert "2 of 2 (100%)" in text
    assert [path.name for path in (output / "explanations").iterdir()] == ["example-1.webp"]
    assert "What the maps are worth" in done.out
    assert str(output / "explanations.md") in done.out.splitlines()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--push"], "bundled is no repository on the Hub; name the one to push to with --repo-id"),
        (["--repo-id", "me/my-vit"], "--repo-id and --create-pr are for a push; add --push"),
        (["--create-pr"], "--repo-id and --create-pr are for a push; add --push"),
        (["--examples", "-1"], "--examples"),
        (["--from-patch", "1,1"], "--from-patch has no score; leave it out"),
        (["--target", "nothing"], "nothing"),
    ],
)
def test_options_that_do_not_fit(images: Path, tmp_path: Path, words: Any, text: str) -> None:
    done = run("card", "bundled", images, *words, "--output", tmp_path / "card")
    assert done.code == 2
    assert text in done.err
    assert not list((tmp_path / "card").glob("*"))


def test_without_an_image_there_is_no_section(images: Path, tmp_path: Path) -> None:
    (images / "a.png").write_bytes(b"broken")
    done = run("card", "bundled", images / "a.png", "--output", tmp_path / "card")
    assert done.code == 1
    assert not list((tmp_path / "card").glob("*"))


CASES: dict[str, list[str]] = {
    "first": ["me/vit", *"ab"],
    "second": ["me/vit", *"ab", "--examples", "1"],
    "again": ["me/vit", *"ab", "--examples", "1"],
    "large": ["me/large", "a"],
    "proposed": ["me/other", "a", "--create-pr"],
    "wrong token": ["me/other", "a", "--token", "nobodys"],
    "no repository": ["me/absent", "a"],
    "no name": ["me/a/b", "a"],
    "no branch": ["me/other", "a", "--revision", "other"],
    "no right": ["me/other", "a", "--token", "reader"],
    "metadata": ["me/strange", "a"],
    "marks": ["me/marked", "a"],
    "busy": ["me/busy", "a"],
}

CARDS = {
    "me/vit": README,
    "me/large": None,
    "me/other": README,
    "me/strange": "---\nlicense: of my own\n---\n",
    "me/marked": START,
    "me/busy": README,
}
"""The cards of the repositories."""


@dataclass(frozen=True)
class Pushes:
    """What the command did for each case.

    Attributes:
        folder: the folder of the command, with the repositories in it.
        done: what it printed, by case.
        address: the address of the server.
        requests: what the server was asked.
    """

    folder: Path
    done: dict[str, Done]
    address: str
    requests: list[str]

    def card(self, name: str) -> str:
        """The card of a repository now."""
        return (self.folder / name / "README.md").read_bytes().decode()

    def section(self, case: str) -> str:
        """The section that the command wrote."""
        return (self.folder / f"out {case}" / "explanations.md").read_bytes().decode()


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory, scene: Image.Image) -> Pushes:
    """All cases, in one process whose Hub is a local server."""
    folder = tmp_path_factory.mktemp("pushes")
    for name in "ab":
        scene.save(folder / f"{name}.png")
    (folder / "me").mkdir()
    for name, card in CARDS.items():
        repository = folders.copy(folder / name)
        (repository / "README.md").unlink(missing_ok=True)
        if card is not None:
            (repository / "README.md").write_bytes(card.encode())
    calls = []
    for case, (name, *rest) in CASES.items():
        words = [f"{word}.png" if word in {"a", "b"} else word for word in rest]
        more = ["--method", "attn-lrp", "--push", "--repo-id", name, "--output", f"out {case}"]
        calls.append(["card", "bundled", *words, *more])
    served = {name: folder / name for name in CARDS}
    writers = dict.fromkeys(CARDS, "secret")
    environment = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "cache"), "HF_TOKEN": "secret"}
    with serve_hub(
        served, writers=writers, private={"me/private": "reader"}, large={"me/large"},
        busy={"me/busy"},
    ) as (address, requests):  # fmt: skip
        done = run_elsewhere(calls, folder, HF_ENDPOINT=address, **environment)
    return Pushes(folder, dict(zip(CASES, done, strict=True)), address, requests)


def test_a_push_leaves_the_rest_of_the_card(pushes: Pushes) -> None:
    for case in ("first", "second", "again"):
        done = pushes.done[case]
        assert done.code == 0, done.err
        assert "will be pushed to me/vit by owner of secret" in done.err
        assert done.out.splitlines()[-1].startswith(f"{pushes.address}/me/vit/commit/")
    assert pushes.section("first").count("![") == 2
    assert pushes.section("second").count("![") == 1
    assert pushes.card("me/vit") == f"{README}\n{pushes.section('second')}"


def test_a_push_is_one_commit_with_its_pictures(pushes: Pushes) -> None:
    """The second has one example less, so the other's picture is gone; the third is the same."""
    (picture,) = (pushes.folder / "me" / "vit" / "explanations").iterdir()
    assert picture.name == "example-1.webp"
    own = pushes.folder / "out second" / "explanations" / "example-1.webp"
    assert picture.read_bytes() == own.read_bytes()
    assert sum("me/vit/commit/" in request for request in pushes.requests) == 2


def test_large_files_and_a_repository_without_a_card(pushes: Pushes) -> None:
    assert pushes.done["large"].code == 0, pushes.done["large"].err
    assert pushes.card("me/large") == f"# large\n\n{pushes.section('large')}"
    name = "explanations/example-1.webp"
    written, own = pushes.folder / "me" / "large" / name, pushes.folder / "out large" / name
    assert written.read_bytes() == own.read_bytes()
    assert sum(request.startswith("PUT /lfs/") for request in pushes.requests) == 1


def test_a_pull_request_changes_nothing_yet(pushes: Pushes) -> None:
    done = pushes.done["proposed"]
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"{pushes.address}/me/other/discussions/1"
    assert pushes.card("me/other") == README


def test_no_token_is_printed(pushes: Pushes) -> None:
    for case, done in pushes.done.items():
        printed = (done.out + done.err).replace("owner of secret", "")
        assert not re.search("secret|nobodys", printed), case


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("wrong token", "the Hub does not accept the token (401"),
        ("no repository", "there is no model 'me/absent' on http://127"),
        ("no name", "there is no model 'me/a/b' on http://127"),
        ("no branch", "'me/other' has no branch 'other'"),
    ],
)
def test_what_is_known_before_the_work_is_said_before(pushes: Pushes, case: str, text: str) -> None:
    assert pushes.done[case].code == 1
    assert text in pushes.done[case].error
    assert not (pushes.folder / f"out {case}").exists()


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("no right", "the token may not write to 'me/other' (403"),
        ("metadata", "the card of 'me/strange' is refused: Invalid metadata in README.md. - \"li"),
        ("marks", "the card has 1 mark <!-- hf_gmar: explanations --> and 0 <!-- /hf_gmar"),
        ("busy", "'me/busy' was changed meanwhile (412"),
    ],
)
def test_a_refused_push_leaves_the_section_here(pushes: Pushes, case: str, text: str) -> None:
    assert pushes.done[case].code == 1
    assert text in pushes.done[case].error
    assert "1 of 1 (100%)" in pushes.section(case)
    (name, *_) = CASES[case]
    assert pushes.card(name) == CARDS[name]


def test_without_the_hub(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "card"
    words = ["bundled", images, "--push", "--repo-id", "me/vit", "--output", output]
    done = run("card", *words, "--token", "secret")
    assert done.code == 1
    assert "the Hub can't be reached as HF_HUB_OFFLINE is set" in done.error
    assert not output.exists()


def test_without_a_token(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("hf_gmar.report.push.get_token", lambda: None)
    done = run("card", "me/vit", images, "--push", "--output", tmp_path / "card")
    assert done.code == 1
    assert "no one is logged in, and a push needs that; log in with 'hf auth login'" in done.error
    assert not (tmp_path / "card").exists()
