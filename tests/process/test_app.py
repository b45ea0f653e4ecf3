"""The page in a process, by plain HTTP: what is answered, what is refused, and what is left."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_gmar import explain, head_maps, load_model
from hf_gmar.data import draw_scene
from tests.support import folders
from tests.support.hostile import HOSTILE
from tests.support.interpreter import Interpreter, run_python
from tests.support.page_server import (
    IN_PYTHON,
    METHODS,
    Server,
    free_port,
    page_server,
    until_stopped,
)
from tests.support.uploads import bad, file_of, good, no_texts, sent

NAME = HOSTILE[-1]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose folder and classes have hostile names."""
    labels = {str(index): f"{NAME}{index}" for index in range(8)}
    return folders.copy(tmp_path_factory.mktemp("models") / NAME, id2label=labels, label2id={})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.of_two(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hostile: Path, clip: Path) -> Iterator[Server]:
    words = ["--models", "bundled", str(hostile), str(clip), "--prompts", "a dog", "a cat"]
    with page_server(tmp_path_factory.mktemp("page"), *words) as running:
        yield running


def numbers(outputs: Any) -> list[Any]:
    """The archives in an answer."""
    links = re.findall(r'download="[^"]+\.npz" href="data:[^,"]+,([^"]+)"', outputs[1])
    return [np.load(io.BytesIO(base64.b64decode(link))) for link in links]


def test_twenty_visitors_at_once_get_what_explain_gives(server: Server) -> None:
    """To the last bit: each map, of each image, class and method."""
    bundled = load_model("bundled")
    asked = [(seed, target) for seed in range(10) for target in ("", "heart")]
    with ThreadPoolExecutor(20) as visitors:
        answers = list(
            visitors.map(
                lambda one: server.explain(sent(file_of(draw_scene(one[0]).image)), target=one[1]),
                asked,
            )
        )
    for (seed, target), outputs in zip(asked, answers, strict=True):
        expected = explain(draw_scene(seed).image, bundled, target or None, method=IN_PYTHON)
        found = numbers(outputs)
        assert len(found) == len(expected) == 2
        for mine, one in zip(found, expected, strict=True):
            assert np.array_equal(mine["patches"], one.patches.numpy())
            assert ("fine_map" in mine) == (one.fine_map is not None)
            assert one.fine_map is None or np.array_equal(mine["fine_map"], one.fine_map.numpy())
            assert float(mine["score"]) == one.score
            assert int(mine["target"]) == one.target


@pytest.mark.parametrize("kind", ["check", "reveal", "heads"])
def test_further_questions_are_answered(server: Server, kind: str) -> None:
    (page,) = server.ask(kind, "example:18", "bundled", "", "heart", "", *METHODS)
    parts = {"check": "than all 9 random choices", "reveal": "<gmar-reveal", "heads": "<gmar-heads"}
    assert parts[kind] in page


def test_the_attention_of_a_patch_is_that_of_head_maps(server: Server, clip: Path) -> None:
    """To the last bit, of which the page gets eight."""
    scene = draw_scene(4).image
    loaded = load_model("bundled"), load_model(clip, prompts=["a dog", "a cat"])
    for name, model in zip(("bundled", clip.name), loaded, strict=True):
        (page,) = server.ask("attention", sent(file_of(scene)), name, "", "1,2")
        state = json.loads(html.unescape(page.partition('data-state="')[2].partition('"')[0]))
        maps = head_maps(model.model, model.pixels(scene), readout=(1, 2))[0].numpy()
        shares = maps / maps.max((2, 3), keepdims=True) * np.float32(255)
        assert state["place"] == [1, 2]
        assert base64.b64decode(state["levels"]) == shares.round().astype(np.uint8).tobytes()
    error = server.ask("attention", "example:4", "bundled", "", "8,0")
    assert "a place outside of the images" in error


def test_good_files_are_explained(server: Server) -> None:
    for name, content in good().items():
        outputs = server.explain(sent(content), methods=("raw-attention", ""))
        assert isinstance(outputs, list), (name, outputs)
        assert len(numbers(outputs)) == 1


def test_bad_files_and_paths_are_refused(server: Server) -> None:
    """Each gets a message in words; the server goes on."""
    for name, value in {**bad(), **no_texts()}.items():
        if name == "too many bytes":
            continue
        error = server.explain(value)
        assert isinstance(error, str), name
        assert not re.search(r"Traceback|File \"|root:|\.py", error), error
        assert error.startswith(("the image", "there is no image", "an image is", "each input")), (
            name,
            error,
        )
    assert isinstance(server.explain(), list)


def test_each_input_takes_texts_alone(server: Server) -> None:
    for name, value in no_texts().items():
        for place in range(7):
            inputs: list[Any] = ["example:18", "bundled", "", "", "", *METHODS]
            inputs[place] = value
            error = server.ask("explain", *inputs)
            assert isinstance(error, str), (name, place)
            assert "each input is a text" in error


def test_other_models_are_refused(server: Server, tmp_path: Path) -> None:
    folder = folders.copy(tmp_path / "model")
    for name in ("google/vit-base-patch16-224", str(folder), "", "../../etc", "<b>"):
        error = server.explain(model=name)
        assert "is not offered here" in error
        assert "<b>" not in error


def test_names_are_text(server: Server, hostile: Path) -> None:
    outputs = server.explain(model=hostile.name)
    assert "<img src=x" not in outputs[1]
    assert "alert(1)" in outputs[1]
    for list_of_classes in outputs[2:4]:
        assert len(list_of_classes["choices"]) == 9
    error = server.explain(model=hostile.name, target="<img src=x onerror=alert(1)>")
    assert "<" not in error
    assert "no class is called" in error


def test_prompts_are_the_visitors(server: Server, clip: Path) -> None:
    scene = draw_scene(18).image
    for prompts in ("", "a cat\n\n a photo of a dog \na cat"):
        texts = ["a dog", "a cat"] if not prompts else ["a cat", "a photo of a dog"]
        outputs = server.explain(model=clip.name, prompts=prompts, methods=("gmar", ""))
        (found,) = numbers(outputs)
        expected = explain(scene, load_model(clip, prompts=texts))
        assert np.array_equal(found["patches"], expected.patches.numpy())
        assert str(found["label"]) == expected.label


REFUSED = [
    ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/gradio_api/file=http://127.0.0.1:1/"), ("GET", "/file=/etc/passwd"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"), ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/upload_progress?upload_id=1"), ("GET", "/static/../../../etc/passwd"),
    ("GET", "/assets/..%2f..%2f..%2fetc/passwd"), ("GET", "/static/%2e%2e/%2e%2e/routes.py"),
    ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"), ("GET", "/gradio_api/vibe-code"), ("GET", "/monitoring"),
    ("GET", "/gradio_api/deep_link"), ("POST", "/gradio_api/run/explain"),
    ("POST", "/gradio_api/api/explain"), ("POST", "/login"), ("PUT", "/"), ("DELETE", "/config"),
    ("GET", "/gradio_api/openapi.json"), ("GET", "/docs"), ("GET", "/redoc"),
    ("GET", "/gradio_api/custom_component/1/client/component/index.js"),
    ("POST", "/gradio_api/stream/1"), ("GET", "/gradio_api/run-history/buckets"),
    ("GET", "/pwa_icon"), ("GET", "/gradio_api/dev/reload"), ("OPTIONS", "/config"),
]  # fmt: skip


def test_other_addresses_lead_nowhere(server: Server) -> None:
    for method, path in REFUSED:
        body = b"{}" if method in ("POST", "PUT") else None
        assert server.request(path, body, method).status == 404, (method, path)


def test_large_requests_are_refused_unread(server: Server) -> None:
    body = json.dumps({"data": [bad()["too many bytes"]]}).encode()
    assert server.request("/gradio_api/call/explain", body).status == 413


def test_the_browser_is_told_to_ask_nobody_else(server: Server) -> None:
    reply = server.request("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self' data: blob:" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    page = reply.content.decode()
    assert not re.search(r'(src|href)="?(https?:)?//', page.replace(server.address, ""))
    assert server.request("/config").status == 200


def test_nothing_of_a_visitor_is_left(server: Server) -> None:
    """Neither a file, nor an image in what the server says of itself."""
    server.explain(sent(good()["jpeg"]))
    assert server.files() == []
    config = server.request("/config").content.decode()
    assert sent(good()["jpeg"])[30:200] not in config


def test_the_folder_is_gone_with_the_server(tmp_path: Path) -> None:
    """Behind a proxy that does not answer, too."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")
    with page_server(tmp_path, **proxies) as running:
        assert isinstance(running.explain(), list)
        assert len(list(running.folder.glob("hf-gmar-app-*"))) == 1
    assert list(running.folder.glob("hf-gmar-app-*")) == []
    assert running.files() == []
    assert running.process.returncode == 130
    printed, errors = running.process.communicate()
    assert f"hf-gmar app: {running.address}/" in printed
    assert errors.splitlines()[-1] == "error: stopped"
    assert "Traceback" not in errors


def test_the_space_runs_from_a_clean_folder(tmp_path: Path) -> None:
    """Its files alone, as a Space has them."""
    folder, port = shutil.copytree(ROOT / "examples" / "space", tmp_path / "space"), free_port()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "app.py", "requirements.txt",
    ]  # fmt: skip
    variables = {"MODELS": "bundled", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    process = Interpreter([folder / "app.py"], folder, variables)
    with until_stopped(Server(f"http://127.0.0.1:{port}", process, tmp_path)) as server:
        assert len(numbers(server.explain())) == 2


def test_the_card_of_the_space_has_what_the_hub_reads() -> None:
    _, head, _ = (ROOT / "examples" / "space" / "README.md").read_text().split("---\n")
    card = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    tested = (ROOT / "constraints.txt").read_text()
    assert f"gradio=={card['sdk_version']}\n" in tested
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert len(card["short_description"]) <= 60


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a page shows of itself from inside."""
    done = run_python(["-m", "tests.support.page_inside"], tmp_path_factory.mktemp("inside"))
    return json.loads(done.stdout.splitlines()[-1])


def test_a_link_sets_what_is_allowed(inside: Any) -> None:
    assert inside["links"] == [
        ["example:18", "bundled", "", "", "gmar", "attn-lrp"],
        ["example:5", "bundled", "index:6", "cross", "legrad", ""],
        ["example:18", "bundled", "", "", "gmar", "grad-sam"],
        ["example:18", "bundled", "x" * 300, "", "gmar", "attn-lrp"],
    ]


def test_the_server_asks_no_other_machine(inside: Any) -> None:
    assert set(inside["hosts"]) <= {"127.0.0.1", "localhost", "None"}


def test_work_stops_when_its_visitor_leaves(inside: Any) -> None:
    assert inside["stops"] is True


def test_nothing_of_a_visitor_stays_in_memory(inside: Any) -> None:
    assert inside["keeps"] == []


def test_without_gradio_a_line_says_how_to_get_it(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['gradio'] = None; sys.argv[1:] = ['app']\n"
    code = hide + "from hf_gmar.cli.main import app; app()"
    done = run_python(["-c", code], tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith('not installed: pip install "hf-gmar[app]"')


def test_nothing_else_imports_gradio(tmp_path: Path) -> None:
    code = (
        "import sys, hf_gmar, hf_gmar.app, hf_gmar.cli.main; hf_gmar.explain, hf_gmar.evaluate;"
        "print([name for name in sys.modules if name.split('.')[0] in ('gradio', 'fastapi')])"
    )
    assert run_python(["-c", code], tmp_path).stdout.strip() == "[]"
