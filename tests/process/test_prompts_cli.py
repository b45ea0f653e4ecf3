"""Text prompts from a model's name to files: load_model and the command."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
    Tipsv2Config,
)

from hf_gmar import GMAR, ZeroShotModel
from hf_gmar.errors import ModelLoadError, OptionError, UnsupportedModelError
from hf_gmar.models import hub, load_model
from tests.reference import models
from tests.reference.models import PROMPTS
from tests.support import folders
from tests.support.command import Done, run

WIDE = (160, 64)  # width and height of a photo that is not square


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP; no test changes it."""
    return folders.of_two(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def photo(tmp_path: Path, scene: Image.Image) -> Path:
    """A wide photo."""
    scene.resize(WIDE).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def of_the_library(folder: Path, photo: Path, prompts: list[str], **how: Any) -> torch.Tensor:
    """Scores of the prompts for an image, by Transformers alone."""
    processor: Any = AutoProcessor.from_pretrained(folder, backend="pil")
    with Image.open(photo) as image:
        inputs = processor(images=image, text=prompts, return_tensors="pt", **how)
    with torch.no_grad():
        scores = AutoModel.from_pretrained(folder)(**inputs).logits_per_image[0]
    return cast("torch.Tensor", scores)


@pytest.mark.parametrize("name", folders.IMAGE_TEXT_MODEL)
def test_a_folder_with_prompts_is_a_classifier(tmp_path: Path, photo: Path, name: str) -> None:
    folder = folders.of_two(tmp_path / name, name)
    loaded = load_model(folder, prompts=PROMPTS)
    model: Any = loaded.model
    assert isinstance(model, ZeroShotModel)
    assert type(model.model) is folders.IMAGE_TEXT_MODEL[name][0]
    assert not any(part.training for part in model.modules())
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    with Image.open(photo) as image:
        pixels = loaded.processor(images=image, return_tensors="pt").pixel_values
    how = {"padding": "max_length", "max_length": 9} if name == "siglip" else {"padding": True}
    wanted = of_the_library(folder, photo, PROMPTS, **how)
    assert torch.allclose(model(pixels)[0], wanted, atol=1e-5)


def test_options_reach_a_model_with_prompts(clip: Path) -> None:
    half: Any = load_model(
        clip, prompts=PROMPTS, dtype="bfloat16", attn_implementation="eager"
    ).model
    assert half.dtype == half.text.dtype == torch.bfloat16
    assert half.model.config._attn_implementation == "eager"


def test_the_text_moves_to_the_device_with_the_model(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that every machine has, and that a user can't name."""
    monkeypatch.setattr(hub, "pick_device", lambda _: torch.device("meta"))
    model: Any = load_model(clip, "elsewhere", prompts=PROMPTS).model
    assert model.device.type == model.text.device.type == "meta"


def test_pickled_weights_with_prompts(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    before: Any = load_model(folder, prompts=PROMPTS).model
    torch.save(before.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="use_safetensors=False"):
        load_model(folder, prompts=PROMPTS)
    after: Any = load_model(folder, prompts=PROMPTS, use_safetensors=False).model
    assert torch.equal(after.text, before.text)


NEEDED = r"scores images by text prompts; give some: prompts=\[.*--prompts"


@pytest.mark.parametrize("name", folders.IMAGE_TEXT_MODEL)
@pytest.mark.parametrize("named", [True, False])
def test_without_prompts_they_are_asked_for(tmp_path: Path, name: str, named: bool) -> None:
    """From the config, or where that names no class, from the weights that are missing."""
    folder = folders.of_two(tmp_path / name, name)
    if not named:
        folders.edit(folder / "config.json", architectures=None)
    with pytest.raises(OptionError, match=NEEDED):
        load_model(folder)


def test_they_are_asked_for_before_any_weights_are_read(tmp_path: Path) -> None:
    CLIPConfig(architectures=["CLIPModel"]).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=NEEDED):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "architecture", ["ViTForImageClassification", "CLIPForImageClassification"]
)
def test_a_class_model_takes_no_prompts(tmp_path: Path, architecture: str) -> None:
    folder = folders.copy(tmp_path / "model", architectures=[architecture])
    words = (
        rf"one of CLIPModel, .* is of the class {architecture}: .*leave the prompts out.*--prompts"
    )
    with pytest.raises(OptionError, match=words):
        load_model(folder, prompts=PROMPTS)


def test_a_class_model_that_does_not_say_so(tmp_path: Path) -> None:
    folder = folders.copy(tmp_path / "model", architectures=None)
    with pytest.raises(ModelLoadError, match=r"as a model of image and text: .* its ViTConfig"):
        load_model(folder, prompts=PROMPTS)


def test_weights_without_the_text(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    model: Any = load_model(folder, prompts=PROMPTS).model
    vision = {key: value for key, value in model.model.state_dict().items() if "text" not in key}
    model.model.save_pretrained(folder, state_dict=vision)
    with pytest.raises(ModelLoadError, match=r"lack text_.* no trained model of image and text"):
        load_model(folder, prompts=PROMPTS)


def test_a_model_of_image_and_text_that_is_not_proven(tmp_path: Path) -> None:
    Tipsv2Config(architectures=["Tipsv2Model"]).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="is of the class Tipsv2Model"):
        load_model(tmp_path, prompts=PROMPTS)


@pytest.mark.parametrize("prompts", [[], [""], [3], ["cat", "cat " * 30]], ids=str)
def test_what_is_no_prompt(clip: Path, prompts: Any) -> None:
    with pytest.raises(OptionError, match=r"one or more texts|32 tokens"):
        load_model(clip, prompts=prompts)


@pytest.mark.parametrize("name", folders.IMAGE_TEXT_MODEL)
@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]], ids=["none", "settings"])
def test_a_folder_without_a_tokenizer(tmp_path: Path, name: str, left: list[str]) -> None:
    """Transformers makes an empty one of some, which reads every text as unknown words."""
    folder = folders.of_two(tmp_path / name, name)
    for file in folder.glob("tokenizer*"):
        if file.name not in left:
            file.unlink()
    with pytest.raises(ModelLoadError, match=r"has no tokenizer \(such as tokenizer\.json\)"):
        load_model(folder, prompts=PROMPTS)


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    (folder / "tokenizer.json").write_text('{"version')
    with pytest.raises(ModelLoadError, match=r"the tokenizer of .* can't be loaded: "):
        load_model(folder, prompts=PROMPTS)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    larger = models.tokenizer()
    larger.add_tokens([f"word{n}" for n in range(50)])
    larger.save_pretrained(folder)
    load_model(folder, prompts=["a photo", CAT])
    with pytest.raises(OptionError, match="the tokenizer knows more than the 13 words"):
        load_model(folder, prompts=["a photo of word49", CAT])


def test_whatever_goes_wrong_with_the_prompts_is_an_error_of_ours(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(CLIPModel, "get_text_features", fail)
    words = r"the prompts can't be read with .*clip.*: IndexError: out of range"
    with pytest.raises(ModelLoadError, match=words):
        load_model(clip, prompts=[CAT, HEART])


def test_a_single_prompt(clip: Path, photo: Path, tmp_path: Path) -> None:
    done, stored = explain(tmp_path / "out", photo, "--model", clip, "--prompts", CAT)
    assert done.code == 0, done.err
    assert set(stored) == {CAT}


def test_a_model_of_image_and_text_without_an_image_processor(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLoadError, match="has no image processor"):
        load_model(folder, prompts=PROMPTS)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP with a tokenizer of its own kind, as Google's are: a model of SentencePiece."""
    folder = tmp_path_factory.mktemp("siglip")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 20), model_writer=written, vocab_size=40,
        hard_vocab_limit=False, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "trained.model").write_bytes(written.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "trained.model"), model_max_length=32)
    tokenizer.save_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 32,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip

    def config(**settings: Any) -> SiglipConfig:
        found = models.of_two(SiglipConfig, **settings)
        return SiglipConfig(
            vision_config=found.vision_config.to_dict(),
            text_config={**found.text_config.to_dict(), **text},
        )

    models.build(SiglipModel, functools.partial(config)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_siglips_own_tokenizer(siglip: Path, photo: Path, tmp_path: Path) -> None:
    """A prompt is padded to the longest that the model reads, or its features are others."""
    assert (siglip / "spiece.model").exists()
    assert not (siglip / "tokenizer.json").exists()
    prompts = ["a photo of a heart", "a cat"]
    done = run(
        "explain", "--method", "gmar", photo, "--model", siglip, "--output", tmp_path / "out",
        "--top-k", 2, "--prompts", *prompts,
    )  # fmt: skip
    assert done.code == 0, done.err
    right, wrong = (
        of_the_library(siglip, photo, prompts, padding=padding, max_length=32).sigmoid()
        for padding in ("max_length", "longest")
    )
    for archive in (tmp_path / "out").glob("*.npz"):
        with np.load(archive) as stored:
            found, prompt = float(stored["score"]), prompts.index(str(stored["label"]))
            assert found == pytest.approx(right[prompt].item(), abs=1e-6)
            assert found != pytest.approx(wrong[prompt].item(), abs=1e-4)
            assert stored["patches"].min() >= 0
            assert 0 < stored["patches"].sum() <= 1 + 1e-6
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2


def test_siglips_own_tokenizer_without_its_words(siglip: Path, tmp_path: Path) -> None:
    for file in siglip.iterdir():
        if file.name not in ("spiece.model", "trained.model"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        load_model(tmp_path, prompts=PROMPTS)


def explain(output: Path, *arguments: object) -> tuple[Done, dict[str, Any]]:
    """The command, and what is in its archives, by label."""
    done = run("explain", "--output", output, "--method", "gmar", *arguments)
    stored = {}
    for archive in output.glob("*.npz"):
        with np.load(archive) as file:
            stored[str(file["label"])] = dict(file)
    return done, stored


CAT, HEART = "a photo of a cat", "a photo of a heart"


def test_prompts_are_all_values_up_to_the_next_option(
    clip: Path, photo: Path, tmp_path: Path
) -> None:
    done, stored = explain(
        tmp_path / "out", photo, "--prompts", CAT, HEART, "a photo", "--top-k", 5, "--model", clip
    )
    assert done.code == 0, done.err
    assert set(stored) == {CAT, HEART, "a photo"}
    wanted = of_the_library(clip, photo, [CAT, HEART, "a photo"], padding=True).softmax(0)
    for prompt, share in zip((CAT, HEART, "a photo"), wanted, strict=True):
        assert float(stored[prompt]["score"]) == pytest.approx(share.item(), abs=1e-6)


@pytest.mark.parametrize("place", ["last", "again", "after a dash", "joined"])
def test_where_prompts_may_stand(clip: Path, photo: Path, tmp_path: Path, place: str) -> None:
    words: dict[str, list[object]] = {
        "last": [photo, "--model", clip, "--top-k", 2, "--prompts", CAT, HEART],
        "again": [photo, "--prompts", CAT, "--model", clip, "--top-k", 2, "--prompts", HEART],
        "after a dash": ["--top-k", 2, "--model", clip, "--prompts", CAT, HEART, "--", photo],
        "joined": ["--model", clip, "--top-k", 2, f"--prompts={CAT}", f"--prompts={HEART}", photo],
    }
    done, stored = explain(tmp_path / "out", *words[place])
    assert done.code == 0, done.err
    assert set(stored) == {CAT, HEART}


@pytest.mark.parametrize("said", [HEART, "1", HEART.upper()])
def test_a_target_is_a_prompt(clip: Path, photo: Path, tmp_path: Path, said: str) -> None:
    done, stored = explain(
        tmp_path / "out", photo, "--model", clip, "--target", said, "--prompts", CAT, HEART
    )
    assert done.code == 0, done.err
    (label,) = stored
    assert (label, int(stored[label]["target"])) == (HEART, 1)
    loaded = load_model(clip, prompts=[CAT, HEART])
    with Image.open(photo) as image:
        pixels = loaded.processor(images=image, return_tensors="pt").pixel_values
    wanted = GMAR(loaded.model).attribute_patches(pixels, 1)[0]
    assert np.allclose(stored[label]["patches"], wanted, atol=1e-6)


def test_where_clip_looked_on_a_wide_photo(clip: Path, photo: Path, tmp_path: Path) -> None:
    """Its processor takes the middle: the file says which part of the photo that is."""
    _, stored = explain(tmp_path / "out", photo, "--model", clip, "--prompts", CAT, HEART)
    (found,) = stored.values()
    assert found["size"].tolist() == [64, 160]
    assert np.allclose(found["box"], [0, 48, 64, 112], atol=0.2)


# Exit code 2 is for what was typed, 1 for all else.
WRONG: dict[str, tuple[int, list[object], str]] = {
    "no such prompt": (2, ["--target", "a zebra", "--prompts", CAT, HEART], "no class is called"),
    "target out of range": (2, ["--target", 2, "--prompts", CAT, HEART], "has 2 classes"),
    "an empty prompt": (2, ["--prompts", ""], "one or more texts"),
    "too long": (2, ["--prompts", CAT, "cat " * 30], "the model reads 9"),
    "none": (2, [], "scores images by text prompts"),
    "a class model": (2, ["--model", "bundled", "--prompts", CAT], "leave the prompts out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_prompts_that_are_wrong(clip: Path, photo: Path, tmp_path: Path, name: str) -> None:
    code, arguments, words = WRONG[name]
    model = [] if "--model" in arguments else ["--model", clip]
    done, stored = explain(tmp_path / "out", photo, *model, *arguments)
    assert done.code == code
    assert words in done.error
    assert not stored


def test_an_option_without_a_prompt(clip: Path, photo: Path, tmp_path: Path) -> None:
    for words in (["--prompts"], ["--prompts", "--top-k", "1"]):
        done, _ = explain(tmp_path / "out", photo, "--model", clip, *words)
        assert done.code == 2
        assert "--prompts" in done.err
        assert "one or more values are needed after it" in " ".join(done.err.split())


def test_a_photo_after_the_prompts_is_taken_for_one(
    clip: Path, photo: Path, tmp_path: Path
) -> None:
    done, stored = explain(tmp_path / "out", "--model", clip, "--prompts", CAT, photo)
    assert done.code == 2
    assert f"the prompt {str(photo)!r} is a file, and no image is given" in done.error
    assert "put images before" in done.error
    assert not stored


def test_a_prompt_may_be_the_name_of_a_file_where_images_are_given(
    clip: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").touch()
    done, stored = explain(tmp_path / "out", photo, "--model", clip, "--prompts", "cat", "dog")
    assert done.code == 0
    assert set(stored) < {"cat", "dog"}


def test_prompts_without_a_model(photo: Path, tmp_path: Path) -> None:
    """The default takes none, so that nothing is fetched to find out."""
    done, _ = explain(tmp_path / "out", photo, "--prompts", CAT)
    assert done.code == 2
    assert "--model openai/clip-vit-base-patch32" in done.error


def test_a_missing_tokenizer_is_one_line(tmp_path: Path, photo: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    done, _ = explain(tmp_path / "out", photo, "--model", folder, "--prompts", CAT)
    assert done.code == 1
    assert "has no tokenizer" in done.error


def test_engines_agree_on_prompts(clip: Path, photo: Path, tmp_path: Path) -> None:
    maps = {}
    common: list[object] = [photo, "--model", clip, "--target", CAT, "--prompts", CAT, HEART]
    for engine in ("streaming", "dense"):
        _, stored = explain(tmp_path / engine, "--engine", engine, *common)
        settings = json.loads(str(stored[CAT]["settings"]))
        assert (settings["engine"], CAT in settings["prompts"]) == (engine, True)
        maps[engine] = stored[CAT]["patches"]
    assert np.allclose(maps["streaming"], maps["dense"], atol=1e-6)
    assert maps["dense"].shape == (4, 4)


@pytest.mark.parametrize("named", [None, "OwnCLIP"])
def test_code_of_a_repository_with_prompts(tmp_path: Path, named: str | None) -> None:
    """Its class is not known before it runs."""
    folder = folders.of_two(tmp_path / "clip")
    (folder / "modeling_own.py").write_text(
        "from transformers import CLIPModel\nclass OwnCLIP(CLIPModel):\n    pass\n"
    )
    auto_map = {"AutoModelForZeroShotImageClassification": "modeling_own.OwnCLIP"}
    folders.edit(folder / "config.json", architectures=named and [named], auto_map=auto_map)
    model: Any = load_model(folder, prompts=[CAT, HEART], trust_remote_code=True).model
    assert type(model.model).__name__ == "OwnCLIP"
    other = "    def forward(self, pixel_values=None):\n        return pixel_values\n"
    with (folder / "modeling_own.py").open("a") as file:
        file.write(other)
    with pytest.raises(UnsupportedModelError, match="got OwnCLIP"):
        load_model(folder, prompts=[CAT, HEART], trust_remote_code=True)
