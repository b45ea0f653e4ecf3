"""Folders: names of any bytes, and files of a run that were changed."""

from __future__ import annotations

import io
import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_gmar._utils.files import save_arrays, save_json
from hf_gmar._utils.names import file_name
from hf_gmar.data import find_images, open_data
from hf_gmar.data.image_files import unique_stems
from hf_gmar.errors import EvaluationError
from hf_gmar.evaluation.run.examples import damaged_examples, load_examples
from hf_gmar.evaluation.run.store import Store
from tests.support.mutations import as_a_user, bounded, changed_bytes, changed_json

pytestmark = pytest.mark.extended

BYTES = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"caf\xe9", "caf\u00e9".encode(), "cafe\u0301".encode(), b"Cat", b"cat", b"CAT-2", b"\xff",
     "\u0130".encode(), "\ufb03".encode(), b"a\nb", b"\x1b[2J", b"a" * 250, "\u8996".encode() * 80,
     b"-", b" ", b"~", b"aux", b"a.b", b"..a", "\u202e".encode(), b"cat#2", b"\\"]
)  # fmt: skip


def _name(name: bytes) -> bytes:
    return name.replace(b"/", b"").replace(b"\0", b"")[:250].lstrip(b".") + b".png"


@given(st.lists(st.tuples(st.sampled_from([b"", b"d", b"D\xff"]), BYTES), min_size=1, max_size=8))
def test_names_of_any_bytes_are_found_and_have_results_of_their_own(
    names: list[tuple[bytes, bytes]],
) -> None:
    made = set()
    with tempfile.TemporaryDirectory() as folder, as_a_user():
        top = Path(folder)
        for part, name in names:
            below = top / os.fsdecode(part)
            below.mkdir(exist_ok=True)
            try:
                path = below / os.fsdecode(_name(name))
                path.write_bytes(b"")
            except OSError:  # no name of this file system
                continue
            if not path.name.startswith("."):
                made.add(path)
        if not made:
            return
        found = find_images(top)
        assert len(found) == len(set(found))
        assert {os.fsencode(path) for path in found} == {os.fsencode(path) for path in made}
        stems = unique_stems(found)
        forms = {
            unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
            for stem in stems
        }
        assert len(forms) == len(stems)
        results = top / "results"
        results.mkdir()
        for number, stem in enumerate(stems):
            save_arrays(results / file_name(stem, ".6-heart.npz"), number=np.array(number))
        for number, stem in enumerate(stems):
            with np.load(results / file_name(stem, ".6-heart.npz")) as archive:
                assert int(archive["number"]) == number
        assert len(list(results.iterdir())) == len(stems)
        flat = top / "d"
        if any(path.parent == flat for path in made):
            data = open_data(flat, {0: "cat"})
            keys = [data.key(index) for index in range(len(data))]
            assert len(set(keys)) == len(keys)
            save_json(results / "keys.json", keys)
            assert json.loads((results / "keys.json").read_text()) == keys


SETTINGS: dict[str, Any] = {
    "steps": 10, "data": {"name": "scenes", "limit": None}, "methods": ["gmar", {"name": "random"}],
    "model": {"name": "bundled", "config": "0" * 16, "weights": "1" * 16}, "seed": 0.5,
}  # fmt: skip


@given(changed_json(SETTINGS | {"digest": "0" * 16}, ("digest", "model", "name")))
@example(b'{"digest": "\\ud800", "model": {"name": []}}')
def test_any_settings_are_those_of_the_run_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "run"
    path.mkdir(exist_ok=True)
    store = Store(path)
    (path / "settings.json").unlink(missing_ok=True)
    store.file.unlink(missing_ok=True)
    store.open(SETTINGS, resume=True)
    store.append([{"index": 0, "key": "a", "method": "gmar", "values": {}}])
    (path / "settings.json").write_bytes(content)
    before = store.file.read_bytes()
    try:
        store.open(SETTINGS, resume=True)
    except EvaluationError as error:
        assert len(str(error)) < 3000  # noqa: PT017
        assert (path / "settings.json").read_bytes() == content
    assert store.file.read_bytes() == before


def _examples() -> list[bytes]:
    values: dict[str, Any] = {
        "picture": np.zeros((4, 5, 3), np.uint8), "title": "a cat  0.50\nb.png",
        "labels": np.array(["gmar", "random"]), "maps": np.ones((2, 3, 3), np.float32),
    }  # fmt: skip
    others: list[dict[str, Any]] = [
        {}, {"maps": np.full((2, 3, 3), np.nan)}, {"maps": np.ones((3, 3, 3))},
        {"picture": np.zeros((4, 5))}, {"labels": np.array([1, 2])}, {"title": np.array([b"a"])},
        {"maps": np.array(["a"])}, {"maps": np.ones((2, 0, 3))},
        {"maps": np.ones((2, 3, 3), "c16")},
    ]  # fmt: skip
    files = []
    for other in others:
        file = io.BytesIO()
        np.savez(file, **(values | other))
        files.append(file.getvalue())
    return files


@given(changed_bytes(_examples()) | st.sampled_from(_examples()))
def test_any_example_of_a_run_is_drawn_or_made_again(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "drawn"
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    (folder / "examples" / "000000.npz").write_bytes(content)
    with as_a_user(), bounded(100):
        examples = load_examples(folder, [0])
        assert damaged_examples(folder, [0]) == ([] if examples else [0])
        for example_maps in examples:
            assert all(isinstance(title, str) for title in [example_maps.title])
            for label, patches in example_maps.maps.items():
                assert isinstance(label, str)
                assert patches.isfinite().all()
                assert patches.numel()
