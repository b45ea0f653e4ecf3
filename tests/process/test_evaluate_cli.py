"""The command: what it prints and writes, what it refuses, and what several processes do."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from hf_gmar.data import draw_scene
from tests.reference.tolerances import PATIENCE
from tests.support.command import run, run_elsewhere
from tests.support.interpreter import Interpreter

ROOT = Path(__file__).parents[2]
HELD = ROOT / "tests" / "support" / "held_command.py"
ASKED = ["scenes:6", "--methods", "gmar", "random", "--metrics", "deletion", "relevance-mass",
         "--steps", "4", "--examples", "1"]  # fmt: skip
LAUNCHED = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu",
            "--num_processes", "2", "--main_process_port", "0"]  # fmt: skip


def started(words: Sequence[object], cwd: Path) -> Interpreter:
    """A process of its own, with one thread, so that sums are added in one order."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    return Interpreter(words, cwd, own)


def command(output: Path) -> list[object]:
    """The module form."""
    return ["-m", "hf_gmar", "evaluate", *ASKED, "--output", output]


def held(output: Path, images: int) -> list[object]:
    """The same, but each process waits after so many images until it is killed."""
    return [HELD, images, *command(output)[2:]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = started(command(output), output.parent)
    out, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0, err
    assert "summary.json" in out
    return output


def test_the_command_prints_a_table_and_where_the_report_is(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("evaluate", *ASKED, "--perturbations", "blur", "token-dropping", "--output", output)
    assert done.code == 0
    for word in ("GMAR", "Random", "deletion", "relevance-", "mass", "token-dropping"):
        assert word in done.out
    for name in ("rows.jsonl", "settings.json", "summary.json", "report.md", "report.html"):
        assert (output / name).stat().st_size > 100
        assert name in done.out or name in ("rows.jsonl", "settings.json")
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert [(row["index"], row["method"]) for row in rows[:3]] == [
        (0, "gmar"), (0, "random"), (1, "gmar"),
    ]  # fmt: skip
    assert list(output.glob("examples/*.npz"))
    # Once more, from what is there, against another baseline.
    again = run("evaluate", *ASKED, "--perturbations", "blur", "token-dropping", "--output", output,
                "--baseline", "gmar")  # fmt: skip
    assert again.code == 0
    assert json.loads((output / "summary.json").read_text())["baseline"] == "gmar"


def test_a_folder_by_class_a_table_and_captum(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    lines = ["path,label"]
    for number in range(4):
        scene = draw_scene(number)
        place = folder / scene.names[0]
        place.mkdir(parents=True, exist_ok=True)
        scene.image.save(place / f"{number}.png")
        lines.append(f"images/{scene.names[0]}/{number}.png,{scene.names[0]}")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "table.csv").write_text("\n".join([*lines, "broken.png,disc"]) + "\n")
    common = ["--model", "bundled", "--methods", "gmar", "--metrics", "deletion", "--steps", "2"]
    done = run("evaluate", folder, *common, "--captum", "Saliency", "--output", tmp_path / "one",
               "--limit", "3")  # fmt: skip
    assert done.code == 0, done.err
    assert "Saliency" in done.out
    done = run("evaluate", tmp_path / "table.csv", *common, "--output", tmp_path / "two",
               "--explained-class", "label")  # fmt: skip
    assert done.code == 0, done.err
    assert "skipped: broken.png" in done.err.replace("\n", " ")
    rows = [json.loads(line) for line in (tmp_path / "two" / "rows.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["method"]]
    assert len(good) == 4
    assert all(row["target"] == row["label"] for row in good)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["no/such/place", "--model", "bundled"], "no/such/place"),
        (["scenes:2", "--methods", "gmra"], "gmra"),
        (["scenes:2", "--methods", "gmar:alhpa=2"], "alhpa"),
        (["scenes:2", "--metrics", "deletionn"], "deletionn"),
        (["scenes:2", "--metrics", "deletion:steps=3"], "steps"),
        (["scenes:2", "--perturbations", "blurr"], "blurr"),
        (["scenes:2", "--perturbations", "blur:radius=-1"], "radius"),
        (["scenes:2", "--captum", "Salience"], "Salience"),
        (["scenes:2", "--baseline", "rollout"], "rollout"),
        (["scenes:2", "--split", "train"], "split"),
        (["scenes:2", "--model", "no/such/model/at/all"], "no/such/model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], needed: str) -> None:
    output = tmp_path / "out"
    done = run("evaluate", *words, "--output", output)
    assert done.code in (1, 2)
    assert needed in done.error
    assert not list(tmp_path.glob("out/rows*"))


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "first", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    ],
    ids=len,
)
def test_processes_that_cannot_be_joined_are_one_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Batch systems leave such settings behind."""
    (done,) = run_elsewhere(
        [["evaluate", "scenes:1", "--model", "bundled"]], tmp_path, **environment
    )
    assert done.code == 1
    assert done.error.startswith("the processes that the environment names can't be joined (")
    assert f"'WORLD_SIZE': {environment['WORLD_SIZE']!r}" in done.error
    assert done.error.endswith("start them with 'accelerate launch', or unset WORLD_SIZE")


def test_processes_that_never_come_are_waited_for_with_a_word(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": port,
    }  # fmt: skip
    words = [sys.executable, "-m", "hf_gmar", "evaluate", "scenes:1", "--model", "bundled"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stderr.readline, "")  # type: ignore[union-attr]
        said = next(line for line in lines if "waiting for" in line)
        assert "the other processes of WORLD_SIZE=2; start them with 'accelerate" in said
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_a_run_with_other_settings_is_named(tmp_path: Path, whole: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    done = run("evaluate", *ASKED, "--seed", "1", "--output", output)
    assert done.code == 1
    assert "seed: 0 there, 1 now" in done.error
    assert "--no-resume" in done.error


def test_two_processes_give_what_one_gives(tmp_path: Path, whole: Path) -> None:
    installed = Path(sys.executable).with_name("hf-gmar")
    done = started([*LAUNCHED, installed, *command(tmp_path / "out")[2:]], tmp_path)
    out, err = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0, err
    files = sorted(path.name for path in (tmp_path / "out").glob("rows*"))
    assert files == ["rows.1.jsonl", "rows.jsonl"]
    for name in files:
        assert len((tmp_path / "out" / name).read_text().splitlines()) == 6
    for name in ("summary.json", "report.md"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert out.count("summary.json") == 1
    # A single process goes on from there, with nothing to do.
    again = started(command(tmp_path / "out"), tmp_path)
    again.communicate(timeout=PATIENCE)
    assert (tmp_path / "out" / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


def rows_in(output: Path) -> int:
    """How many whole rows are on disk."""
    return sum(path.read_bytes().count(b"\n") for path in output.glob("rows*.jsonl"))


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_at_five_moments_and_resumed(tmp_path: Path, whole: Path) -> None:
    output, chance = tmp_path / "out", random.Random(0)  # noqa: S311
    reached = []
    for _ in range(5):
        before = rows_in(output)
        process = started(held(output, 2), tmp_path)
        # Between the first image of this start and the third.
        wait_for(lambda: rows_in(output) > before or process.poll() is not None)  # noqa: B023
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(rows_in(output))
    assert reached == sorted(reached)
    assert 2 <= reached[0] <= 4
    process = started(command(output), tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    for name in ("summary.json", "report.md"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_run_and_loses_nothing(
    tmp_path: Path, whole: Path, victim: int
) -> None:
    output = tmp_path / "out"
    process = started([*LAUNCHED, *held(output, 1)], tmp_path)
    wait_for(lambda: rows_in(output) == 4 or process.poll() is not None)  # of two methods
    assert process.poll() is None
    workers = sorted(psutil.Process(process.pid).children(recursive=True), key=lambda one: one.pid)
    ranks = {one.environ().get("RANK"): one for one in workers if str(HELD) in one.cmdline()}
    ranks[str(victim)].send_signal(signal.SIGKILL)
    kept = rows_in(output)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "what was measured is" in err
    assert "run the same command again" in " ".join(err.split())
    assert rows_in(output) >= kept
    assert not (output / "summary.json").exists()
    if victim == 0:  # once is enough to see that the rest can be measured
        return
    again = started(command(output), tmp_path)
    again.communicate(timeout=PATIENCE)
    assert (output / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_stops_it_is_told_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    output = tmp_path / "out"
    words = command(output)
    words[3] = "scenes:200"
    process = started(words, tmp_path)
    wait_for(lambda: rows_in(output) > 0 or process.poll() is not None)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "it goes on from there" in " ".join(err.split())
