"""How long visitors of ``hf-gmar app`` wait, and whether their maps are exact.

python -m benchmarks.page                                   prints a table
python -m benchmarks.page --output benchmarks/results       writes it as page.md, too
python -m benchmarks.page --picture docs/images/app.jpg     draws the picture of README as well
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from gradio_client import Client
from PIL import Image

from benchmarks.report import machine
from benchmarks.startup import cpu_seconds
from hf_gmar import Explainer, load_model
from hf_gmar._utils.files import whole_file
from hf_gmar.data import draw_scene
from tests.support.page_browser import MAP, changed, chromium_browser, upload
from tests.support.uploads import bad, file_of, sent

METHODS = ("gmar", "attn-lrp")
IN_PYTHON = ("gmar", "attn-lrp:resolution=pixel")
LIBRARIES = "import captum.attr, gradio, torch; from transformers import AutoModel"
VISITORS = 20
UPLOADS = 5


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    text = measured(options.picture)
    print(text)
    if options.output is not None:
        with whole_file(options.output / "page.md") as part:
            part.write_text(text, encoding="utf-8")


def measured(picture: Path | None) -> str:
    """Return the table, and draw a picture if asked."""
    library = cpu_seconds([sys.executable, "-c", LIBRARIES], runs=1)
    with _server() as (address, start):
        first, uploads = _in_browser(address, picture)
        one = _one_call()
        waits, exact = _visitors(address)
        refused, longest = _bad_uploads(address)
        again, exact_again = _visitors(address, 1)
    rows = [
        ("from the command to the page, of the CPU", start, f"{start / library:.1f} imports"),
        ("from the address to the first map, in Chromium", first, _calls(first, one)),
        ("from an upload to its map, in Chromium", median(uploads), _calls(median(uploads), one)),
        (f"{VISITORS} visitors at once, median", median(waits), _calls(median(waits), one)),
        (f"{VISITORS} visitors at once, slowest", max(waits), _calls(max(waits), one)),
        ("a visitor alone", again[0], _calls(again[0], one)),
        ("a broken or forbidden upload, slowest", longest, _calls(longest, one)),
    ]
    table = "".join(f"| {name} | {value:.2f} | {ratio} |\n" for name, value, ratio in rows)
    where = ", ".join(f"{name} {value}" for name, value in machine(torch.device("cpu"), 2).items())
    return (
        f"| waiting | seconds | relative to |\n|---|---|---|\n{table}\n"
        f"Exact, to the last bit: {exact + exact_again} of {VISITORS + 1} answers. Refused with a "
        f"message: {refused} of {len(bad())} uploads. Calls are of `Explainer` for one scene by "
        f"{' and '.join(METHODS)}, {one:.2f} s in this run; imports are those of Gradio, PyTorch, "
        f"Transformers and Captum, {library:.1f} s of the CPU. Machine: {where}.\n"
    )


def _calls(seconds: float, one: float) -> str:
    return f"{seconds / one:.1f} calls"


def seconds_of(run: Callable[[], object]) -> float:
    """Return the seconds that a function takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@contextmanager
def _server() -> Iterator[tuple[str, float]]:
    """Yield the address of a page, and the CPU's seconds until it was there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "hf_gmar", "app", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while not _answers(address):
            time.sleep(0.05)
        spent = psutil.Process(server.pid).cpu_times()
        yield address, spent.user + spent.system
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _in_browser(address: str, picture: Path | None) -> tuple[float, list[float]]:
    """Return the seconds until the first map, and from each upload to its map."""
    with chromium_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        begin = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(MAP)
        first, uploads = time.perf_counter() - begin, []
        for seed in range(UPLOADS):
            before = page.locator(MAP).first.get_attribute("src")
            content, begin = file_of(draw_scene(seed).image), time.perf_counter()
            upload(page, "scene.png", content)
            changed(page, before)
            uploads.append(time.perf_counter() - begin)
        if picture is not None:
            page.goto(f"{address}?example=18")
            page.wait_for_selector(MAP)
            page.wait_for_timeout(500)  # until lists have their classes
            with Image.open(io.BytesIO(page.screenshot())) as image:
                image.convert("RGB").save(picture, "JPEG", quality=85)
    return first, uploads


def _one_call() -> float:
    explainer = Explainer(load_model("bundled"), IN_PYTHON)
    return median(seconds_of(lambda: explainer(draw_scene(3).image)) for _ in range(UPLOADS))


def _visitors(address: str, count: int = VISITORS) -> tuple[list[float], int]:
    """Return the seconds that each of several visitors at once waits, and how many are exact."""
    clients = [Client(address, verbose=False) for _ in range(count)]
    images = [sent(file_of(draw_scene(seed).image)) for seed in range(count)]

    def ask(client: Client, image: str) -> tuple[float, Any]:
        begin = time.perf_counter()
        outputs = client.predict(image, "bundled", "", "", "", *METHODS, api_name="/explain")
        return time.perf_counter() - begin, outputs

    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(ask, clients, images))
    explainer = Explainer(load_model("bundled"), IN_PYTHON)
    exact = sum(
        _is_exact(outputs, explainer(draw_scene(seed).image))
        for seed, (_, outputs) in enumerate(answers)
    )
    return [seconds for seconds, _ in answers], exact


def _is_exact(outputs: Any, expected: Sequence[Any]) -> bool:
    """Return whether the numbers in an answer are those of Python."""
    links = re.findall(r'download="[^"]+\.npz" href="data:[^,"]+,([^"]+)"', outputs[1])
    found = [np.load(io.BytesIO(base64.b64decode(link))) for link in links]
    return len(found) == len(expected) and all(
        np.array_equal(mine["patches"], one.patches.numpy()) and float(mine["score"]) == one.score
        for mine, one in zip(found, expected, strict=True)
    )


def _bad_uploads(address: str) -> tuple[int, float]:
    """Return how many bad uploads are refused with a message, and the longest time it took."""
    client = Client(address, verbose=False)
    waits, refused = [], 0
    for value in bad().values():
        begin = time.perf_counter()
        try:
            client.predict(value, "bundled", "", "", "", *METHODS, api_name="/explain")
        except Exception as error:  # noqa: BLE001  # of Gradio's client
            refused += bool(re.search("image|413", str(error)))
        waits.append(time.perf_counter() - begin)
    return refused, max(waits)


if __name__ == "__main__":
    main()
