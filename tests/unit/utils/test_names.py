"""Names of files that any file system takes, and that stay different."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from hf_gmar._utils.names import cut, file_name, shorten, slug

TEXTS = st.text(st.characters(exclude_categories=[])) | st.text("aé视🐈\udce9", min_size=40)
LONG = ("a" * 300, "é" * 300, "视" * 300, "🐈" * 300, "\udce9" * 300)


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@given(TEXTS)
@example("a" * 251)
@example("é" * 125 + "a")
@example("视" * 85)
@example("\udce9" * 200)
def test_a_file_name_fits_and_keeps_its_ending(stem: str) -> None:
    name = file_name(stem, ".6-heart.png")
    assert size(name) <= 250
    assert name.endswith(".6-heart.png")
    if size(stem) <= 200:
        assert name == f"{stem}.6-heart.png"


@given(TEXTS, st.integers(0, 300))
def test_a_text_is_cut_between_two_characters(text: str, most: int) -> None:
    beginning = cut(text, most)
    assert text.startswith(beginning)
    assert size(beginning) <= most
    assert beginning == text or size(text[: len(beginning) + 1]) > most


def test_long_names_stay_different() -> None:
    stems = [f"{text}{number}" for text in LONG for number in range(9)]
    for made in (
        [file_name(stem, ".png") for stem in stems],
        [shorten(stem, 60) for stem in stems],
        [slug(stem, 60) for stem in stems],
    ):
        assert len(set(made)) == len(stems)


def test_texts_of_the_same_letters_stay_different() -> None:
    texts = ["".join(letters) for letters in itertools.product("a -/:\n\x1b", repeat=3)]
    slugs = {slug(text, 60) for text in texts}
    assert len(slugs) == len(texts)
    assert all(set(made) <= set("a-~0123456789abcdef") for made in slugs)
