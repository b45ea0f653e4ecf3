"""Loading: from the package, a folder, and a server that answers as the Hub does."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTModel,
)

from hf_gmar import GMAR, LogitsModel
from hf_gmar.errors import (
    HfGmarError,
    HubUnreachableError,
    ModelLoadError,
    OptionError,
    UnsupportedModelError,
)
from hf_gmar.models import LoadedModel, bundled_folder, load_config, load_model
from hf_gmar.models.hub import pick_device
from tests.reference.models import PROMPTS
from tests.support import folders
from tests.support.hub_server import commit_of, serve_hub
from tests.support.interpreter import run_python

# What a user's machine would do, in a process of its own: the Hub's settings are read at import.
_LOAD = """
import json, sys
from hf_gmar.errors import HfGmarError
from hf_gmar.models import load_config, load_model
from tests.support.interpreter import run_python

def outcome(call):
    load = load_config if call.pop("config", False) else load_model
    try:
        loaded = load(**call)
    except HfGmarError as error:
        return {"error": type(error).__name__, "said": str(error)}
    return facts_of_config(loaded) if load is load_config else facts(loaded)

def facts_of_config(config):
    return {"config": type(config).__name__, "label": config.id2label[0]}

def facts(loaded):
    model, processor = loaded.model, loaded.processor
    of_two = getattr(model, "model", None)
    return {
        "model": type(model).__name__,
        "labels": model.config.id2label,
        "processor": type(processor).__name__,
        "bias": float(model.text.norm() if of_two else model.classifier.bias[0]),
        "mean": processor.image_mean[0],
        "dtype": str(model.dtype),
        "attention": (of_two or model).config._attn_implementation,
    }

print(json.dumps([outcome(call) for call in json.loads(sys.argv[1])]))
"""

Outcome = dict[str, Any]


def _load_elsewhere(calls: list[dict[str, Any]], home: Path, **environment: str) -> list[Outcome]:
    """What each call of load_model gives in a process of its own."""
    words = ["-c", _LOAD, json.dumps(calls)]
    done = run_python(words, home.parent, {"HF_HOME": str(home), **environment})
    outcomes: list[Outcome] = json.loads(done.stdout)
    return outcomes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the bundled model, to be changed."""
    shutil.copytree(bundled_folder(), tmp_path / "model")
    return tmp_path / "model"


def test_the_bundled_model_loads(bundled: LoadedModel) -> None:
    assert type(bundled.model).__name__ == "ViTForImageClassification"
    assert not bundled.model.training


def test_a_local_folder_loads(model: Path) -> None:
    assert load_model(str(model)).model.config.num_labels == 8


def test_the_hub_then_the_cache(tmp_path: Path) -> None:
    calls = [{"name": "owner/scenes"}]
    with serve_hub({"owner/scenes": bundled_folder()}) as (address, requests):
        (fresh,) = _load_elsewhere(calls, tmp_path, HF_ENDPOINT=address)
        assert any("model.safetensors" in request for request in requests)
    assert fresh["model"] == "ViTForImageClassification"
    # The server is gone now; the cache is enough, with and without the offline switch.
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": address}):
        assert _load_elsewhere(calls, tmp_path, **settings) == [fresh]


@pytest.mark.parametrize(
    "settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_unreachable_and_not_cached(tmp_path: Path, settings: dict[str, str]) -> None:
    calls = [{"name": "google/vit-base-patch16-224"}]
    (outcome,) = _load_elsewhere(calls, tmp_path, **settings)
    assert outcome["error"] == HubUnreachableError.__name__
    for words in ("--model bundled", "--model FOLDER", *settings):
        assert words.replace("HF_ENDPOINT", "127.0.0.1:9") in outcome["said"]


def _talk_nonsense(server: socket.socket) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:  # closed
            return
        with caller:
            caller.recv(1000)
            caller.sendall(b"nonsense\r\n\r\n")


def test_whatever_answers_is_not_the_hub(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_talk_nonsense, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        (outcome,) = _load_elsewhere([{"name": "owner/a"}], tmp_path, HF_ENDPOINT=address)
    assert outcome["error"] == HubUnreachableError.__name__
    assert address in outcome["said"]


# Each row is loaded from the one server, in this order and by one process. "CACHE" is a folder
# that only the rows with it use.
CALLS: dict[str, dict[str, Any]] = {
    "main": {"name": "owner/scenes"},
    "tag": {"name": "owner/scenes", "revision": "v2", "cache_dir": "CACHE"},
    "pull request": {"name": "owner/scenes", "revision": "refs/pr/1"},
    "commit": {"name": "owner/scenes", "revision": commit_of("owner/scenes", "v2")},
    "no such revision": {"name": "owner/scenes", "revision": "v9"},
    "half": {"name": "owner/scenes", "dtype": "bfloat16"},
    "eager": {"name": "owner/scenes", "attn_implementation": "eager"},
    "no such model": {"name": "owner/nothing"},
    "private, no token": {"name": "owner/private"},
    "private, another's token": {"name": "owner/private", "token": "hf_gated"},
    "private, no one logged in": {"name": "owner/private", "token": True},
    "private": {"name": "owner/private", "token": "hf_private"},
    "a token that no one has": {"name": "owner/gated", "token": "hf_nobody"},
    "gated, no token": {"name": "owner/gated"},
    "gated, another's token": {"name": "owner/gated", "token": "hf_private"},
    "config, gated": {"config": True, "name": "owner/gated"},
    "gated": {"name": "owner/gated", "token": "hf_gated"},
    "no processor": {"name": "owner/blind"},
    "no weights": {"name": "owner/empty"},
    "pickled, off": {"name": "owner/pickled"},
    "pickled, on": {"name": "owner/pickled", "use_safetensors": False},
    "code, off": {"name": "owner/own"},
    "code, on": {"name": "owner/trusted", "trust_remote_code": True},
    "code, off again": {"name": "owner/trusted"},
    "no config": {"name": "owner/bare"},
    "prompts": {"name": "owner/clip", "prompts": PROMPTS[:2]},
    "prompts, tag": {"name": "owner/clip", "prompts": PROMPTS[:2], "revision": "v2"},
    "prompts, no tokenizer": {"name": "owner/mute", "prompts": PROMPTS[:2]},
    "prompts, tokenizer of a tag": {
        "name": "owner/mute", "prompts": PROMPTS[:2], "revision": "v2", "cache_dir": "CACHE",
    },
    "prompts, private": {
        "name": "owner/hidden", "prompts": PROMPTS[:2], "token": "hf_private",
    },
    "config": {"config": True, "name": "owner/config"},
    "config, tag": {"config": True, "name": "owner/config", "revision": "v2"},
    "config, no such tag": {"config": True, "name": "owner/config", "revision": "v9"},
    "config, private": {"config": True, "name": "owner/private", "token": "hf_private"},
    "config, private, no token": {"config": True, "name": "owner/private"},
    "config, code, off": {"config": True, "name": "owner/own"},
    "config, code, on": {"config": True, "name": "owner/trusted", "trust_remote_code": True},
    "config, no such model": {"config": True, "name": "owner/nothing"},
    "config, unknown": {"config": True, "name": "owner/zorro"},
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """What came of CALLS, and what was left behind."""

    outcomes: dict[str, Outcome]
    requests: list[str]
    folder: Path

    def said(self, row: str) -> str:
        """The message of the one error that is a ModelLoadError and no other."""
        assert self.outcomes[row].get("error") == "ModelLoadError", self.outcomes[row]
        return str(self.outcomes[row]["said"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("served")
    made = {
        name: folders.variant(root / name)
        for name in ("blind", "empty", "pickled", "own", "trusted")
    }
    (made["blind"] / "preprocessor_config.json").unlink()
    (made["empty"] / "model.safetensors").unlink()
    for name in ("own", "trusted"):
        folders.own_processor(
            folders.own_model(made[name], root / f"{name}.ran"), root / f"{name}.processed"
        )
    (root / "bare").mkdir()
    (root / "bare" / "README.md").write_text("no model")
    mute = folders.of_two(root / "mute")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    other = folders.of_two(root / "other", "siglip")
    revisions = {
        "main": bundled_folder(),
        "v2": folders.variant(root / "v2", 0.25),
        "refs/pr/1": folders.variant(root / "request", 0.125),
    }
    repositories: dict[str, Path | dict[str, Path]] = {
        **{f"owner/{name}": folder for name, folder in made.items()},
        "owner/pickled": folders.pickled(made["pickled"]),
        "owner/scenes": revisions,
        "owner/private": bundled_folder(),
        "owner/gated": bundled_folder(),
        "owner/bare": root / "bare",
        "owner/clip": {"main": folders.of_two(root / "clip"), "v2": other},
        "owner/hidden": root / "clip",
        "owner/mute": {"main": mute, "v2": root / "clip"},
        "owner/config": {
            "main": bundled_folder(),
            "v2": folders.copy(root / "named", id2label={"0": "crane"}),
        },
        "owner/zorro": folders.copy(root / "zorro", model_type="zorro"),
    }
    cache = {"cache_dir": str(root / "cache")}
    calls = [{**call, **(cache if "cache_dir" in call else {})} for call in CALLS.values()]
    private = {"owner/private": "hf_private", "owner/hidden": "hf_private"}
    gated = {"owner/gated": "hf_gated"}
    with serve_hub(repositories, private, gated) as (address, requests):
        outcomes = _load_elsewhere(calls, root / "home", HF_ENDPOINT=address)
    return Served(dict(zip(CALLS, outcomes, strict=True)), requests, root)


@pytest.mark.parametrize(
    ("row", "number"), [("tag", 0.25), ("commit", 0.25), ("pull request", 0.125)]
)
def test_a_revision_is_that_of_weights_and_processor(
    served: Served, row: str, number: float
) -> None:
    assert served.outcomes["main"]["bias"] != number
    assert served.outcomes[row]["bias"] == served.outcomes[row]["mean"] == number


def test_dtype_and_attention_reach_a_model_of_the_hub(served: Served) -> None:
    found = {row: served.outcomes[row] for row in ("main", "half", "eager")}
    assert [outcome["dtype"] for outcome in found.values()] == [
        "torch.float32", "torch.bfloat16", "torch.float32",
    ]  # fmt: skip
    assert [outcome["attention"] for outcome in found.values()] == ["sdpa", "sdpa", "eager"]


@pytest.mark.parametrize("row", ["private", "gated"])
def test_a_token_opens_a_model(served: Served, row: str) -> None:
    expected = served.outcomes["main"]
    assert served.outcomes[row] == expected


LOG_IN = ("token=", "--token", "hf auth login")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("no such revision", ("'owner/scenes'", "no revision 'v9'", "tag", "commit")),
        ("no such model", ("there is no model 'owner/nothing'", "check the name", *LOG_IN)),
        ("private, no token", ("there is no model 'owner/private'", "private", *LOG_IN)),
        ("private, another's token", ("'owner/private'", "private", *LOG_IN)),
        ("private, no one logged in", ("token=True", "no one is logged in", "hf auth login")),
        ("a token that no one has", ("refuses", "'owner/gated'", "401", "token is valid", *LOG_IN)),
        ("gated, no token", ("'owner/gated' is gated", "ask for access", *LOG_IN)),
        ("gated, another's token", ("'owner/gated' is gated", "ask for access", *LOG_IN)),
        ("no processor", ("'owner/blind' has no image processor", "preprocessor_config.json")),
        ("no weights", ("no weights of 'owner/empty'", "model.safetensors", "pytorch_model.bin")),
        ("pickled, off", ("only pickled", "use_safetensors=False", "--no-use-safetensors")),
        ("code, off", ("'owner/own'", "trust_remote_code=True", "--trust-remote-code")),
        ("code, off again", ("'owner/trusted'", "trust_remote_code=True", "--trust-remote-code")),
        ("no config", ("'owner/bare' has no config.json", "save_pretrained")),
        ("prompts, no tokenizer", ("'owner/mute' has no tokenizer", "tokenizer.json")),
        ("config, no such tag", ("'owner/config'", "no revision 'v9'", "tag", "commit")),
        ("config, private, no token", ("there is no model 'owner/private'", "private", *LOG_IN)),
        ("config, gated", ("'owner/gated' is gated", "ask for access", *LOG_IN)),
        ("config, code, off", ("'owner/own'", "trust_remote_code=True", "--trust-remote-code")),
        ("config, no such model", ("there is no model 'owner/nothing'", "check the name", *LOG_IN)),
        ("config, unknown", ("'owner/zorro' is of the model type 'zorro'", "Transformers 5.")),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    served: Served, row: str, words: tuple[str, ...]
) -> None:
    said = served.said(row)
    assert all(word in said for word in words), said
    assert "hf_" not in said  # no token


def test_code_of_a_repository_runs_only_where_it_is_trusted(served: Served) -> None:
    assert not (served.folder / "own.ran").exists()
    assert not (served.folder / "own.processed").exists()
    assert (served.folder / "trusted.ran").exists()
    assert (served.folder / "trusted.processed").exists()
    outcome = served.outcomes["code, on"]
    assert (outcome["model"], outcome["processor"]) == ("OwnViT", "OwnProcessor")
    assert outcome["bias"] == outcome["mean"] == 0.5


def test_pickled_weights_are_read_where_asked_for(served: Served) -> None:
    assert served.outcomes["pickled, on"]["bias"] == 0.5


def test_nothing_is_asked_to_convert_pickled_weights(served: Served) -> None:
    """Transformers would look for a pull request, and have one opened."""
    assert any("/owner/pickled/" in request for request in served.requests)
    asked = [request for request in served.requests if "discussions" in request]
    asked += [request for request in served.requests if "/commits/" in request]
    assert asked == []


def test_prompts_with_a_model_of_the_hub(served: Served) -> None:
    main, tag = served.outcomes["prompts"], served.outcomes["prompts, tag"]
    assert main["model"] == tag["model"] == "ZeroShotModel"
    assert main["labels"] == tag["labels"] == {"0": PROMPTS[0], "1": PROMPTS[1]}
    assert (main["processor"], tag["processor"]) == (
        "CLIPImageProcessorPil", "SiglipImageProcessorPil",
    )  # fmt: skip


@pytest.mark.parametrize("row", ["prompts, tokenizer of a tag", "prompts, private"])
def test_options_reach_the_tokenizer(served: Served, row: str) -> None:
    assert served.outcomes[row] == served.outcomes["prompts"]


def test_a_config_is_that_of_its_revision(served: Served) -> None:
    assert served.outcomes["config"]["config"] == "ViTConfig"
    assert served.outcomes["config"]["label"] != "crane"
    assert served.outcomes["config, tag"]["label"] == "crane"
    assert served.outcomes["config, private"] == served.outcomes["config"]
    assert served.outcomes["config, code, on"]["config"] == "OwnConfig"


def test_for_a_config_nothing_else_is_fetched(served: Served) -> None:
    """Only load_config asked for anything in this repository."""
    asked = [request.split("/resolve/") for request in served.requests if "owner/config" in request]
    files = [rest[0].split("/", 1)[1].split("?")[0] for _, *rest in asked if rest]
    assert "config.json" in files
    # Of an adapter, the config is elsewhere: whether it is one is asked, and answered with no.
    assert set(files) <= {"config.json", "adapter_config.json"}
    kept = served.folder / "home/hub/models--owner--config/snapshots"
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {"config.json"}


def test_all_files_are_of_the_commit_that_was_asked_for_once(served: Served) -> None:
    asked = [request for request in served.requests if "/owner/pickled" in request]
    calls = [call for call in CALLS.values() if call["name"] == "owner/pickled"]
    assert sum("api/models/owner/pickled" in request for request in asked) == len(calls)


def test_a_cache_of_its_own_is_enough_without_the_hub(served: Served, tmp_path: Path) -> None:
    cache = served.folder / "cache"
    assert list(cache.rglob("model.safetensors"))
    assert list(cache.rglob("preprocessor_config.json"))
    place = {"name": "owner/scenes", "cache_dir": str(cache)}
    calls = [{**place, "revision": "v2"}, {**place, "revision": "v3"}, {"name": "owner/scenes"}]
    kept, absent, elsewhere = _load_elsewhere(calls, tmp_path, HF_HUB_OFFLINE="1")
    assert kept == served.outcomes["tag"]
    assert absent["error"] == elsewhere["error"] == HubUnreachableError.__name__
    assert "'owner/scenes' at revision 'v3'" in absent["said"]
    assert str(cache) in absent["said"]
    assert "the local cache" in elsewhere["said"]


def test_the_client_keeps_nothing_of_that_cache_elsewhere(served: Served) -> None:
    commit = commit_of("owner/scenes", "v2")
    kept = served.folder / "cache" / "models--owner--scenes" / "refs" / "v2"
    assert kept.read_text() == commit
    assert not (served.folder / "home/hub/models--owner--scenes/refs/v2").exists()


def test_pickled_weights_of_a_folder(model: Path) -> None:
    before = load_model(model).model.state_dict()
    folders.pickled(model)
    with pytest.raises(ModelLoadError, match="use_safetensors=False"):
        load_model(model)
    after = load_model(model, use_safetensors=False).model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("damage", ["cut", "nonsense", "code"])
def test_pickled_weights_that_are_not_read(model: Path, tmp_path: Path, damage: str) -> None:
    weights = folders.pickled(model) / "pytorch_model.bin"
    trace = tmp_path / "ran"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:50_000])
    elif damage == "nonsense":
        weights.write_bytes(b"nonsense")
    else:
        torch.save(_Code(trace), weights)
    with pytest.raises(ModelLoadError, match=r"pickled weights of .* can't be read"):
        load_model(model, use_safetensors=False)
    assert not trace.exists()
    if damage == "code":
        torch.load(weights, weights_only=False)
        assert trace.exists()


class _Code:
    """What unpickles as a call."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def test_pickled_weights_by_another_name_are_not_read(model: Path) -> None:
    folders.pickled(model)
    names = [*load_model(model, use_safetensors=False).model.state_dict()]

    def index(shard: str) -> str:
        return json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)})

    (model / "model.safetensors.index.json").write_text(index("pytorch_model.bin"))
    with pytest.raises(ModelLoadError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        load_model(model)
    (model / "own.safetensors.index.json").write_text(index("pytorch_model.bin"))
    for named in ("own.safetensors.index.json", "adapter_model.bin"):
        folders.edit(model / "config.json", transformers_weights=named)
        with pytest.raises(ModelLoadError, match=r"only pickled weights \((pytorch|adapter)_model"):
            load_model(model)
    folders.edit(model / "config.json", transformers_weights=None)
    (model / "pytorch_model.bin").rename(model / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"weights of .* can't be read"):
        load_model(model)


@pytest.mark.parametrize("place", ["{folder}/model.safetensors", "../model.safetensors"])
def test_weights_outside_of_the_folder_are_not_read(
    model: Path, tmp_path: Path, place: str
) -> None:
    names = [*load_model(model).model.state_dict()]
    (model / "model.safetensors").rename(tmp_path / "model.safetensors")
    shards = dict.fromkeys(names, place.format(folder=tmp_path))
    index = {"metadata": {}, "weight_map": shards}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="names weights outside of its folder"):
        load_model(model)


def test_weights_in_several_files(model: Path) -> None:
    loaded: Any = load_model(model).model
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="50KB")
    assert (model / "model.safetensors.index.json").is_file()
    again = load_model(model).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "name", ["", "  ", "a" * 5000, "owner/" + "a" * 300, "~nobody-of-this-name/model"]
)
def test_names_that_no_system_takes(name: str) -> None:
    with pytest.raises(ModelLoadError):
        load_model(name)


def test_safetensors_go_before_pickled_weights(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"nonsense")
    assert load_model(model, use_safetensors=False).model.config.num_labels == 8


@pytest.mark.parametrize("own", [folders.own_model, folders.own_processor])
def test_code_in_a_folder_is_not_run(
    model: Path, tmp_path: Path, own: Callable[[Path, Path], Path]
) -> None:
    own(model, tmp_path / "ran")
    with pytest.raises(ModelLoadError, match=r"trust_remote_code=True.*--trust-remote-code"):
        load_model(model)
    assert not (tmp_path / "ran").exists()


def test_a_known_family_is_loaded_without_the_code_beside_it(model: Path, tmp_path: Path) -> None:
    folders.own_model(model, tmp_path / "ran")
    auto_map = {"AutoModelForImageClassification": "modeling_own.OwnViT"}
    folders.edit(model / "config.json", model_type="vit", auto_map=auto_map)
    assert type(load_model(model).model).__name__ == "ViTForImageClassification"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.float16, torch.float16),
        ("float64", torch.float64),
        ("float32", torch.float32),
    ],
)
def test_the_dtype_of_a_model_saved_in_half_precision(
    tmp_path: Path, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    saved: Any = load_model(dtype=torch.bfloat16).model
    saved.save_pretrained(tmp_path)
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    found = load_model(tmp_path, dtype=dtype).model
    assert {parameter.dtype for parameter in found.parameters()} == {expected}
    plain = load_model(tmp_path).model
    assert plain.dtype == torch.float32
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name).float())


@pytest.mark.parametrize("dtype", ["fp16", "Float32", "int8", "", torch.int64, torch.complex64])
def test_a_dtype_that_is_not_there(dtype: str | torch.dtype) -> None:
    with pytest.raises(OptionError, match="dtype must be one of 'auto', 'float32'") as caught:
        load_model(dtype=dtype)
    assert repr(dtype) in str(caught.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_what_the_model_is_loaded_with(attention: str) -> None:
    assert load_model(attn_implementation=attention).model.config._attn_implementation == attention


@pytest.mark.parametrize("attention", ["sdp", "", "some-one/kernel", "paged|eager"])
def test_an_attention_that_is_not_there(attention: str) -> None:
    with pytest.raises(
        OptionError, match=r"attn_implementation must be one of 'eager'.*'sdpa'"
    ) as caught:
        load_model(attn_implementation=attention)
    assert repr(attention) in str(caught.value)


def test_an_attention_that_the_model_does_not_have(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=r"'sdpa' can't be used here: ResNet\w+ does not support"):
        load_model(tmp_path, attn_implementation="sdpa")


@pytest.mark.parametrize("token", ["", " ", "hf_secret\n", "hf_secret word", "hf_s\xe9cret"])
def test_a_token_that_can_be_none_is_not_shown(token: str) -> None:
    with pytest.raises(OptionError, match="the token is empty or has characters") as caught:
        load_model("owner/model", token=token)
    assert "hf_s" not in str(caught.value)


def test_a_folder_has_no_revisions(model: Path) -> None:
    for name in (str(model), "bundled"):
        with pytest.raises(OptionError, match=r"'v2' is given, but .* is a local folder") as caught:
            load_model(name, revision="v2")
        assert repr(name) in str(caught.value)


def test_what_is_for_the_hub_alone_does_no_harm_to_a_folder(model: Path, tmp_path: Path) -> None:
    for name in (model, "bundled"):
        loaded = load_model(name, token="hf_any", cache_dir=tmp_path / "cache")  # noqa: S106
        assert loaded.model.config.num_labels == 8
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("before", ["0", None])
def test_the_environment_is_as_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    if before is not None:
        monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", before)
    (model / "model.safetensors").unlink()
    load_model()
    with pytest.raises(HfGmarError):
        load_model(model)
    assert os.environ.get("DISABLE_SAFETENSORS_CONVERSION") == before


def test_a_folder_without_a_processor_or_weights(model: Path) -> None:
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLoadError, match="has no image processor"):
        load_model(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="no weights of"):
        load_model(model)


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    config: Any = load_config()  # one of its own, as saving writes into it
    backbone = ViTModel(config, add_pooling_layer=False)
    backbone.save_pretrained(tmp_path)
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    with pytest.raises(ModelLoadError, match=r"lack classifier\.bias, classifier\.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here"])
def test_a_missing_folder_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no model folder"):
        load_model(name)


@pytest.mark.parametrize("value", [100, "one hundred", None])
@pytest.mark.parametrize("options", [{}, {"attn_implementation": "sdpa"}])
def test_a_config_that_does_not_fit_is_refused(
    model: Path, value: object, options: dict[str, Any]
) -> None:
    folders.edit(model / "config.json", intermediate_size=value)
    text = r"could not be loaded as an image classifier: |has the shape \(384,\), and .* \(100,\)"
    with pytest.raises(ModelLoadError, match=text):
        load_model(model, **options)


@pytest.mark.parametrize("config", [{"id2label": {}}, {"num_labels": 0, "id2label": None},
                                    {"num_labels": -1}])  # fmt: skip
def test_a_classifier_without_classes_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """Transformers would give the features of the last layer as scores."""
    folder = folders.copy(tmp_path / "model", **config)
    with pytest.raises(ModelLoadError, match=r"has no classes \(id2label, num_labels\)"):
        load_model(folder)


def test_a_tokenizer_whose_library_panics(tmp_path: Path) -> None:
    """A panic in Rust is no Exception of Python."""
    folder = folders.of_two(tmp_path / "model")
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(values))
    with pytest.raises(
        ModelLoadError, match=r"prompts can't be read.*RuntimeError: no entry found"
    ):
        load_model(folder, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("config", "lost"),
    [({"num_hidden_layers": 4}, "vit.layers.4."), ({"qkv_bias": False}, "k_proj.bias")],
)
def test_weights_that_the_config_has_no_place_for_are_said(
    model: Path, config: dict[str, object], lost: str
) -> None:
    folders.edit(model / "config.json", **config)
    with pytest.warns(UserWarning, match="no place: they are left out") as said:
        load_model(model)
    assert lost in str(said[0].message)
    assert "give the folder the config.json that it was trained with" in str(said[0].message)


def test_weights_of_parts_that_a_classifier_does_without_are_not_said(
    model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = model / "model.safetensors"
    parts = ("vit.pooler.dense.weight", "vit.embeddings.mask_token", "text.w.bias", "logit_scale")
    unused = {part: torch.zeros(1) for part in parts}
    save_file({**load_file(file), **unused}, file, {"format": "pt"})
    load_model(model)
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]


def test_a_path_and_a_home_folder_are_local(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    for name in (model, "~/model"):
        assert load_model(name).model.config.num_labels == 8


@pytest.mark.parametrize("damage", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_damaged_files_are_an_error_of_ours(model: Path, damage: str) -> None:
    (model / damage).write_bytes((model / damage).read_bytes()[:50])
    with pytest.raises(ModelLoadError):
        load_model(model)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>"]
)
def test_weights_that_are_no_weights_say_where_to_get_them(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"Git LFS .then run 'git lfs pull'.: get it"):
        load_model(model)


def test_a_text_model_is_no_image_classifier(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelLoadError, match="explains images, and BertModel takes text"):
        load_model(str(tmp_path))


def test_swin_loads_but_is_not_explained(tmp_path: Path) -> None:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4
    )
    SwinForImageClassification(config).save_pretrained(tmp_path)
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    with pytest.raises(UnsupportedModelError, match="windows"):
        GMAR(load_model(str(tmp_path)).model)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", "", "meta"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(OptionError, match="device"):
        pick_device(name)


def test_a_device_that_is_not_there_is_said_in_a_line() -> None:
    """PyTorch lists all of its backends."""
    with pytest.raises(OptionError) as caught:
        pick_device("xla")
    assert len(str(caught.value)) < 600
    assert str(caught.value).endswith("name another one, such as 'cpu', or 'auto'")


def test_auto_is_a_device_that_works() -> None:
    assert torch.zeros(1, device=pick_device("auto")).item() == 0


def test_auto_asks_whether_the_accelerator_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for CUDA on a machine without a GPU."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert pick_device("auto") == torch.device("cpu")


def test_logits_model_shares_the_model_and_its_mode(bundled: LoadedModel) -> None:
    logits = LogitsModel(bundled.model)
    pixels = torch.rand(2, 3, 96, 96)
    assert torch.equal(logits(pixels), bundled.model(pixels).logits)
    assert logits.model is bundled.model
    assert logits.training == bundled.model.training
    assert {id(p) for p in logits.parameters()} == {id(p) for p in bundled.model.parameters()}


def test_logits_model_passes_keywords_on(bundled: LoadedModel) -> None:
    pixels = torch.rand(1, 3, 96, 144)
    fixed = LogitsModel(bundled.model, interpolate_pos_encoding=True)
    given = LogitsModel(bundled.model)(pixels, interpolate_pos_encoding=True)
    assert torch.equal(fixed(pixels), given)
    with pytest.raises(ValueError, match="size"):
        fixed(pixels, interpolate_pos_encoding=False)
