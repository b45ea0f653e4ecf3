"""How long visitors of ``hf-gmar app`` wait; and the picture of the page in the documentation.

python -m benchmarks.page                                   prints the seconds, by wall clock
python -m benchmarks.page --picture docs/images/app.jpg     writes a picture as well
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from hf_gmar.data import draw_scene

MAP = ".gmar-answer .gmar-card > img"
CHANGED = """([selector, before]) => {
  const map = document.querySelector(selector);
  return map && map.src != before;
}"""


def main() -> None:
    """Measure, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    picture = parser.parse_args().picture
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    begin = time.perf_counter()
    server = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "hf_gmar", "app", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        while not _answers(address):
            time.sleep(0.05)
        print(f"from the command to the page: {time.perf_counter() - begin:.1f} s")
        _visit(address, picture)
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _visit(address: str, picture: Path | None) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 930})
        begin = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(MAP)
        print(f"from the address to the first map: {time.perf_counter() - begin:.1f} s")
        for seed in (3, 4, 5):
            print(f"from an upload to its map: {_upload(page, seed):.2f} s")
        if picture is not None:
            page.goto(f"{address}?example=18")
            page.wait_for_selector(MAP)
            page.wait_for_timeout(500)  # until lists have their classes
            with Image.open(io.BytesIO(page.screenshot())) as image:
                image.convert("RGB").save(picture, "JPEG", quality=85)
        browser.close()


def _upload(page: Any, seed: int) -> float:
    file = io.BytesIO()
    draw_scene(seed).image.save(file, "PNG")
    before = page.locator(MAP).first.get_attribute("src")
    begin = time.perf_counter()
    page.get_by_label("Image file").set_input_files(
        {"name": "scene.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    page.wait_for_function(CHANGED, arg=[MAP, before])
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
