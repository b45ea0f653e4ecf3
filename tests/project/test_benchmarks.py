"""The benchmarks run, and measure what they say."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.main import get_command

from benchmarks import gpu, large, prompts, shapley
from benchmarks.contest import (
    BACKWARD,
    CONTESTANTS,
    FORWARD,
    GRADIENTS,
    OCCLUSION,
    STREAMING,
    TARGET_CONTESTANTS,
    Bench,
    Case,
    LongRun,
    no_room,
)
from benchmarks.growth import GROWING, exponent
from benchmarks.interrupts import WAYS
from benchmarks.memory import measure, peak_above
from benchmarks.report import spread
from benchmarks.timing import Times, round_robin, time_long_run
from hf_gmar import load_model
from hf_gmar.data import draw_scene
from hf_gmar.methods import METHODS, RandomAttribution
from tests.reference.tolerances import PATIENCE
from tests.support.interpreter import run_python, start_fork_server

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Case("T", 64)

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system can't say a peak of memory"
)


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> None:
    """That of the benchmarks has the Hub's client, offline as here, for all later tests."""
    start_fork_server()


@pytest.mark.example
def test_the_script_runs_from_end_to_end(tmp_path: Path) -> None:
    options = ["--quick", "--case", "T32", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    options += [
        "--dtype",
        "bfloat16",
        "--dense-limit-gb",
        "0.000005",
    ]  # room for 32 pixels, not for 64
    done = run_python(["-m", "benchmarks.engine", *options, "--output", tmp_path], ROOT)
    assert done.stdout == (tmp_path / "engine.md").read_text(encoding="utf-8")
    for name in CONTESTANTS + TARGET_CONTESTANTS:
        assert f"| T32 | {name} |" in done.stdout
    assert "the limit is 5e-06 GB" in done.stdout
    _check_numbers(json.loads((tmp_path / "engine.json").read_text(encoding="utf-8")))
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.example
def test_the_comparison_prints_its_table(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.compare", "--captum", "Saliency", "--threads", "1"]
    done = run_python([*words, "--output", tmp_path], ROOT)
    titles = [method.title for _, method in METHODS.items() if method.by_default]
    for name in [*titles, "Saliency"]:
        assert f"| {name} |" in done.stdout
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in stored["images"]] == ["scene 18", "scene 3", "scene 7"]
    assert stored["settings"]["threads"] == 1


@pytest.mark.example
def test_the_interrupts_print_their_table() -> None:
    done = run_python(["-m", "benchmarks.interrupts", "--tries", len(WAYS)], ROOT)
    *_, total = done.stdout.splitlines()
    assert total.startswith(f"| all | {len(WAYS)} | 0 | nothing |")
    for name in WAYS:
        assert f"| {name} | 1 | 0 | nothing |" in done.stdout


@pytest.mark.example
def test_the_questions_print_their_table(tmp_path: Path) -> None:
    for seed in (3, 18):
        draw_scene(seed).image.save(tmp_path / f"{seed}.png")
    words = ["-m", "benchmarks.questions", tmp_path, "--batch", "1", "--repeats", "1"]
    lines = run_python(words, ROOT).stdout.splitlines()
    assert lines[4].startswith("| GMAR, a class | 1.00 | ")
    assert len(lines) == 4 + 9


def _check_numbers(found: dict[str, Any]) -> None:
    times = found["cases"]["T32"]["times"]
    assert set(times["ratios"]) == set(CONTESTANTS)
    assert set(times["to_streaming"]) == set(TARGET_CONTESTANTS)
    assert times["ratios"][FORWARD]["to_forward"] == [1, 1]
    streaming, plain = times["seconds"][STREAMING], times["seconds"][FORWARD]
    expected = [one / other for one, other in zip(streaming, plain, strict=True)]
    assert times["ratios"][STREAMING]["to_forward"] == expected
    assert set(found["growth"]["curves"]) == set(GROWING)


@pytest.mark.example
def test_what_a_gpu_runs_is_tried_on_the_cpu(tmp_path: Path) -> None:
    """Its engine's part is the benchmark above."""
    words = ["--device", "cpu", "--quick", "--output", tmp_path]
    words += ["--part", "tests", "--part", "large", "--part", "evaluation"]
    page = run_python(["-m", "benchmarks.gpu", *words], ROOT).stdout
    assert page == (tmp_path / "gpu.md").read_text(encoding="utf-8")
    wanted = [
        r"## tests\n\nended \(\d+ s\)\n\n    \d+ (passed|skipped), ",
        r"\| tiny \| 64 \| 2 \| gmar, checkpoint \| bfloat16 \| 0\.\d+ \| yes \|",
        r"\| tiny \| 64 \| 2 \| attn-lrp \| float32 \| 0\.\d+ \| yes \|",
        r"\| T96 \| cpu \| 3 \| \S+ \| 1\.00 \|",
    ]
    assert [pattern for pattern in wanted if not re.search(pattern, page)] == []
    stored = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert len(stored["large"]["numbers"]["results"]) == 2 * len(large.WAYS)
    assert stored["evaluation"]["numbers"]["results"][0]["rate"] > 0


@pytest.mark.parametrize("quick", [True, False])
def test_the_parts_of_a_gpu_are_commands_of_under_ten_minutes(quick: bool) -> None:
    parts = gpu.parts("cuda", quick)
    assert sum(part.seconds for part in parts) < 600 - 30  # each starts Python
    for part in parts[1:]:
        module, *words = part.words.split()
        app = typer.Typer()
        app.command()(importlib.import_module(module).main)
        get_command(app).make_context(module, words)  # all options are known


@needs_proc
def test_a_part_is_stopped_after_its_budget(tmp_path: Path) -> None:
    part = gpu.Part("slow", 0.2, "benchmarks.threads --seconds 600")
    found = gpu.run(part, tmp_path)
    assert found["ended"] == "stopped after its 0.2 s; rows until then"
    assert found["seconds"] < PATIENCE
    assert gpu.run(gpu.Part("wrong", 60, "timeit 1/0"), tmp_path)["ended"] == "ended with code 1"


def test_parts_of_earlier_runs_stay(tmp_path: Path) -> None:
    done = {"large": {"ended": "ended", "seconds": 1.0, "text": "| a |\n", "numbers": None}}
    page = gpu.save(tmp_path, {"device": "cuda"}, done)
    assert page == "# On a GPU\n\ndevice cuda\n\n## large\n\nended (1 s)\n\n| a |\n"
    assert gpu.earlier(tmp_path) == done


@needs_proc
def test_a_large_model_is_stopped_or_says_that_it_does_not_fit() -> None:
    case = large.LargeCase("tiny", 64, 1, "gmar", "float32")
    found = large.on_cpu(case, 0.001, 1, 600)
    assert found.fits is False
    assert found.peak is not None
    assert large.row(case, found)[6] == "no"
    stopped = large.on_cpu(case, 12, 1, 0)
    assert stopped.peak is None
    assert large.row(case, stopped)[5:] == ("stopped after 0 s",) * 3


def test_exponent_of_an_exact_power_law() -> None:
    tokens = [197, 577, 1025, 4097]
    assert exponent(tokens, [5 * n**1.7 for n in tokens]) == pytest.approx(1.7)
    assert exponent(tokens, [2.0 * n for n in tokens[:3]] + [None]) == pytest.approx(1)
    assert exponent(tokens, [None, 0, -3, 8]) is None


@needs_proc
def test_memory_of_a_known_allocation() -> None:
    torch.ones(50_000_000)  # a higher peak, which is over
    assert peak_above(lambda: torch.ones(25_000_000), CPU).bytes == pytest.approx(1e8, rel=0.05)


@needs_proc
def test_memory_that_was_freed_before_hides_nothing() -> None:
    def small_tensors() -> list[torch.Tensor]:
        return [torch.ones(25_000) for _ in range(1000)]

    freed = small_tensors()
    above = [torch.ones(25_000) for _ in range(10)]  # the C library can't give back what is below
    del freed
    assert peak_above(small_tensors, CPU).bytes == pytest.approx(1e8, rel=0.05)
    del above


@needs_proc
def test_a_process_that_fails_gives_its_reason() -> None:
    peak = measure(TINY, "nobody", CPU, 1)
    assert peak.failed
    assert peak.reason == "KeyError: 'nobody'"


def test_all_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = round_robin(runs, 2, CPU, lambda: calls.append("|"))
    assert "".join(calls) == "ab|ab|ab|"
    assert [len(times) for times in seconds.values()] == [2, 2]


@pytest.mark.parametrize(("limit", "scaled"), [(1e9, ""), (0, "5 of 50 passes")])
def test_a_long_run_is_measured_in_part_only_above_the_limit(limit: float, scaled: str) -> None:
    amounts: list[int] = []
    method = LongRun(amounts.append, passes=int, whole=50, few=5, backward=True)
    times = Times({FORWARD: [1.0], BACKWARD: [2.0]})
    time_long_run(Bench.build(TINY, CPU), GRADIENTS, method, times, limit)
    assert amounts == [5 if scaled else 50]
    assert times.ratios[GRADIENTS].scaled == scaled
    assert spread([8.0], scaled) == ("~8.00" if scaled else "8.00")


@pytest.mark.parametrize("name", [GRADIENTS, OCCLUSION])
def test_passes_are_those_that_the_model_makes(name: str) -> None:
    """In images, since several go through the model in one batch."""
    bench = Bench.build(Case("T", 80), CPU)
    images: list[int] = []
    bench.model.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    method = bench.long_runs()[name]
    for amount in (method.few, method.whole, 2):
        images.clear()
        method.run(amount)
        assert sum(images) == method.passes(amount)


def test_the_unmodified_model_comes_back_as_it_was() -> None:
    bench = Bench.build(TINY, CPU)
    first = next(bench.model.parameters()).requires_grad_(False)
    bench.runs()[BACKWARD]()
    assert not first.requires_grad
    assert all(weight.requires_grad for weight in list(bench.model.parameters())[1:])
    assert all(weight.grad is None for weight in bench.model.parameters())


def test_names_of_cases() -> None:
    for name in ("S224", "B224x8"):
        assert Case.parse(name).name == name
    for name in ("224", "X224", "S225", "S224x0", "S224x8x"):
        with pytest.raises(ValueError, match="such as S224x8"):
            Case.parse(name)


def test_no_room_for_dense_says_why() -> None:
    case = Case("B", 1024)
    assert no_room(case, CPU, 16) == "not run: needs about 29 GB, the limit is 16 GB"
    assert not no_room(TINY, CPU, 16)
    larger = dataclasses.replace(case, batch=10**6)
    assert no_room(larger, CPU, 1e12).endswith("GB are free")


@pytest.mark.example
def test_the_command_and_its_precision_are_measured(photos: Path) -> None:
    words = ["-m", "benchmarks.command_line", str(photos), "--images", "3", "--rounds", "1"]
    lines = run_python([*words, "--batch-size", "2"], ROOT).stdout.splitlines()
    assert lines[0].startswith("3 images by gmar in batches of 2; start ")
    assert [line.split("|")[1].strip() for line in lines[4:]] == [
        "`attribute_patches`", "`hf-gmar explain`",
    ]  # fmt: skip
    assert float(lines[4].split("|")[3]) == 1
    words = ["-m", "benchmarks.precision", str(photos), "--images", "2", "--methods", "gmar"]
    last = run_python(words, ROOT).stdout.splitlines()[-1].split("|")[1:-1]
    assert last[0].strip() == "gmar"
    assert 0.99 < float(last[2]) <= float(last[1]) <= 1


def test_shapley_values_beside_enumeration() -> None:
    """The scores of three players, and what each adds on average over the six orders."""
    values = np.array([1.0, 2.0, 4.0, 8.0, 0.0, 5.0, 3.0, 9.0])  # bit i is player i
    wanted = np.zeros(3)
    for order in itertools.permutations(range(3)):
        before = 0
        for player in order:
            wanted[player] += (values[before | 1 << player] - values[before]) / 6
            before |= 1 << player
    assert np.allclose(shapley.enumerated(values), wanted)
    estimates = [shapley.independent_estimate(values, 6, seed) for seed in range(200)]
    assert np.allclose([one.sum() for one in estimates], 8)
    assert np.allclose(np.mean(estimates, axis=0), wanted, atol=0.2)


@pytest.mark.example
def test_the_tables_of_shapley_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shapley, "SEEDS", range(1))
    monkeypatch.setattr(shapley, "groups_for", lambda grid, *_: (grid[0] // 2, grid[1] // 2))
    shapley.main(images=2, samples=4, few=1, batch=16, side=2, kit=tmp_path)
    printed = capsys.readouterr()
    assert "no photos" in printed.err
    assert "enumeration of 16 coalitions, 1 images" in printed.out
    assert "| 4 |" in printed.out
    for name, method in METHODS.items():
        assert (f"| {name} |" in printed.out) == method.by_default


def test_a_map_that_is_the_mask_follows_its_prompt() -> None:
    """And a map that is the mask of the other object does the opposite."""
    scenes = [draw_scene(seed, objects=2) for seed in range(6)]
    cover = torch.from_numpy(np.stack([scene.masks for scene in scenes])).double()
    cover = cover.reshape(6, 2, 8, 12, 8, 12).mean((3, 5))
    named = torch.tensor([scene.classes for scene in scenes])
    empty = torch.zeros(6, dtype=torch.int64)
    whole = prompts.Scenes(
        torch.zeros(6, 3, 96, 96), cover, named, empty, empty, torch.zeros(6, 36)
    )

    class Masks(RandomAttribution):
        def attribute_patches(self, *inputs: Any, target: Any = None, **_: Any) -> Any:
            target = inputs[1] if len(inputs) > 1 else target
            places = named.eq(torch.tensor(target)[:, None]).int().argmax(1)
            return cover[torch.arange(6), places]

    maps = prompts.named_maps(Masks(load_model("bundled").model), whole)
    shares = prompts.shares_of_named(maps, whole)
    squares, product = cover.square().sum((2, 3)), cover.prod(1).sum((1, 2))
    sums = cover.sum((2, 3))
    assert torch.allclose(shares[0], (squares / sums).mean(1))
    assert torch.allclose(shares[1], (product[:, None] / sums).mean(1))
    assert shares[2].tolist() == [1] * 6
