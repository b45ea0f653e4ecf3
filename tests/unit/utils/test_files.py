"""Files are written whole, by any number of writers, and to their own place alone."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_gmar._utils.files import absence, kind_of, save_arrays, save_json, save_text, whole_file
from hf_gmar._utils.names import make_unique
from tests.support.limits import NEEDS_LIMITS, largest_file

CAFE = "caf\udce9"  # as Python reads the bytes of Latin-1


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each write succeeds, and whoever reads meanwhile gets all of one of them."""
    path, failures = tmp_path / "maps.npz", list[Exception]()
    save_arrays(path, number=np.zeros(2000))

    def write(number: int) -> None:
        try:
            for _ in range(8):
                save_arrays(path, number=np.full(2000, number))
                with np.load(path) as archive:
                    assert len(set(archive["number"].tolist())) == 1
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names_in(tmp_path) == ["maps.npz"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Neither one that someone put beside the file, nor one in its place."""
    folder, outside = tmp_path / "out", tmp_path / "outside.txt"
    folder.mkdir()
    outside.write_text("not ours")
    for name in ("report.md", "report.md.part", ".report.md.part"):
        (folder / name).symlink_to(outside)
    save_text(folder / "report.md", "ours")
    assert outside.read_text() == "not ours"
    assert (folder / "report.md").read_text() == "ours"
    assert not (folder / "report.md").is_symlink()
    assert (folder / "report.md.part").is_symlink()


def test_the_new_file_is_an_empty_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as one, whole_file(path) as other:
        assert len({one, other, path}) == 3
        assert {one.parent, other.parent} == {tmp_path}
        assert one.read_bytes() == other.read_bytes() == b""
        assert not path.exists()
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last one to be finished
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_text(tmp_path / "ours", "")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_is_there_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stopped() -> None:
        with whole_file(path) as part:
            part.write_text("new")
            raise error

    with pytest.raises(error):
        stopped()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


WRITERS: dict[str, Callable[[Path], None]] = {
    "arrays": lambda path: save_arrays(path, number=np.zeros(5000)),
    "text": lambda path: save_text(path, "a" * 5000),
    "json": lambda path: save_json(path, ["a" * 5000]),
}


@NEEDS_LIMITS
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_on_a_full_disk_the_old_file_is_there_alone(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with largest_file(1000), pytest.raises(OSError, match="too large"):
        write(path)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "a" * 255
    save_text(tmp_path / name, "text")
    assert names_in(tmp_path) == [name]


def test_what_utf_8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    save_text(tmp_path / "text", CAFE)
    assert (tmp_path / "text").read_text(encoding="utf-8") == r"caf\udce9"
    save_json(tmp_path / "json", {"name": CAFE})
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == {"name": CAFE}
    save_arrays(tmp_path / "arrays", one=CAFE, several=[CAFE, "b"], none=[], numbers=(1, 2))
    with np.load(tmp_path / "arrays") as archive:
        texts = [str(archive["one"]), *archive["several"].tolist()]
        assert texts == [r"caf\udce9", r"caf\udce9", "b"]
        assert archive["none"].shape == (0,)
        assert archive["numbers"].tolist() == [1, 2]


def test_what_is_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    kinds = [kind_of(tmp_path / name) for name in ("file", "", "no", "loop")]
    assert kinds == ["file", "folder", "missing", "missing"]
    assert kind_of("/dev/null") in ("other", "missing")
    for name, reason in {
        "a" * 300: "too long", "loop": "symbolic link", "a\0b": "null",
    }.items():  # fmt: skip
        assert kind_of(tmp_path / name) == "missing"
        assert reason in absence(tmp_path / name, "file")
    for name in ("no", "file/below"):
        assert absence(tmp_path / name, "file") == f"there is no file {tmp_path / name}"


class Counted(str):
    """A format that counts how often it is used."""

    __slots__ = ()
    used = 0

    def format(self, *args: object, **kwargs: object) -> str:
        """Count, and format."""
        Counted.used += 1
        return super().format(*args, **kwargs)


@pytest.mark.parametrize(
    "names", [["a"] * 5000, [f"a{'-2' * (n % 50)}" for n in range(5000)],
              ["a", *(f"a-{n}" for n in range(2500))] * 2]
)  # fmt: skip
def test_many_equal_names_are_numbered_one_by_one(names: list[str]) -> None:
    Counted.used = 0
    unique = make_unique(names, Counted("{}-{}"))
    assert len(set(unique)) == len(names)
    assert Counted.used <= 2 * len(names)
