"""Train a small CLIP on captions of synthetic scenes.

    python examples/train_prompt_model.py OUTPUT_FOLDER

The folder then holds a ``CLIPModel`` with image processor and tokenizer, which
``hf_gmar.load_model(OUTPUT_FOLDER, prompts=["a heart", "a red ring"])`` loads, and the training log
as JSON lines. The last line of the log has the accuracy on new scenes.

The image tower starts with the weights of the bundled scene classifier; the text tower and both
projections start at random. Each batch asks a sigmoid whether each caption is true of each image,
as SigLIP does. CLIP's own loss counts a caption as wrong for every image but its own. Few captions
describe these scenes, so most captions of a batch are true of several images. Here the truth of
every pair is known from the scene.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from train_bundled_model import (
    BATCH,
    PATCH,
    SIZE,
    Stage,
    augment,
    class_areas,
    draw_pool,
    grey_areas,
    indices,
    new_processor,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    ViTForImageClassification,
)

from hf_gmar.data import CLASSES
from hf_gmar.models import bundled_folder

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
"""Names of the hues 0, 60, 120, 180, 240 and 300 degrees."""

WORDINGS = ("{}", "a photo of {}", "a picture of {}", "a scene with {}", "there is {}")
PAD, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unknown>", "<start>", "<end>")
LENGTH, WIDTH, LOG_EVERY = 20, 128, 100
LEARNING_RATE = 7e-4
UNSURE = 8.0  # degrees between a hue and the border of two colours, where neither name is wrong

VIT_PARTS = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.o_proj",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of a layer of CLIP, and what a ViT calls them."""

STAGE = Stage((0.9, 1.0), turn=True, scenes=10_000, steps=1_500, hide=0.3, hint=0.0)

Thing = tuple[int, int | None]
"""A class, and a colour if the caption names one; both as indices."""


@dataclass(frozen=True)
class Caption:
    """A text and the things that it names."""

    text: str
    things: tuple[Thing, ...]


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word of the captions."""
    words = {word for wording in WORDINGS for word in wording.replace("{}", "a and").split()}
    vocabulary = [*SPECIAL, *sorted(words), *COLOURS, *CLASSES]
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, pad_token=PAD,
        unk_token=UNKNOWN, bos_token=START, eos_token=END,
    )  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Build a CLIP whose image tower has the shape and the weights of the bundled model."""
    shape = {"hidden_size": WIDTH, "num_attention_heads": 4, "hidden_act": "gelu"}
    vision = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": 6}
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "num_hidden_layers": 2,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    config = CLIPConfig(
        vision_config={**shape, **vision, "intermediate_size": 384, "layer_norm_eps": 1e-12},
        text_config={**shape, **text, "intermediate_size": 256},
        projection_dim=WIDTH,
    )
    model = CLIPModel(config)
    # The fused CPU kernel's backward is slower than plain matrix products at this size.
    model.set_attn_implementation("eager")
    copy_tower(ViTForImageClassification.from_pretrained(bundled_folder()), model)
    return model


@torch.no_grad()
def copy_tower(classifier: ViTForImageClassification, model: CLIPModel) -> None:
    """Copy a ViT into the image tower, whose layer norm before the layers the ViT lacks."""
    source, tower = classifier.vit, model.vision_model
    embeddings, projection = tower.embeddings, source.embeddings.patch_embeddings.projection
    embeddings.patch_embedding.weight.copy_(projection.weight)
    embeddings.class_embedding.copy_(source.embeddings.cls_token[0, 0])
    positions = source.embeddings.position_embeddings[0].clone()
    # CLIP's patch embedding has no bias.
    positions[1:] += projection.get_parameter("bias")
    embeddings.position_embedding.weight.copy_(positions)
    for old, new in zip(source.layers, tower.encoder.layers, strict=True):
        for name, part in VIT_PARTS.items():
            new.get_submodule(name).load_state_dict(old.get_submodule(part).state_dict())
    tower.post_layernorm.load_state_dict(source.layernorm.state_dict())
    # The added norm divides tokens by their standard deviation; its weight restores the mean size.
    images, _ = draw_pool(replace(STAGE, scenes=BATCH), 8_000_000)
    tokens = embeddings(images.float() / 127.5 - 1)
    tower.pre_layrnorm.weight.fill_(tokens.std(-1).mean().item())


def hues(colours: Tensor) -> Tensor:
    """Return the hues in degrees (...) of colours (..., 3)."""
    red, green, blue = colours.unbind(-1)
    return torch.rad2deg(torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def colour_truth(images: Tensor, classes: Tensor) -> Tensor:
    """Say of each class and colour (B, C, colours) whether it is the colour of the object.

    Returns:
        1 or 0, and NaN for the two names of a hue near their border; undefined for absent classes.
    """
    bins = len(CLASSES) + 1
    index = (classes.flatten(1).long() + torch.arange(len(classes))[:, None] * bins).flatten()
    values = images.float().permute(0, 2, 3, 1).reshape(-1, 3)
    sums = torch.zeros(len(classes) * bins, 3).index_add_(0, index, values)
    found = hues(sums).view(len(classes), bins, 1)[:, 1:]
    distance = (found - torch.arange(0, 360, 60)).abs()
    distance = torch.minimum(distance, 360 - distance)
    truth = (distance < 30).float()
    return truth.masked_fill((distance - 30).abs() < UNSURE, math.nan)


def thing_truth(present: Tensor, colours: Tensor, things: list[Thing]) -> Tensor:
    """Say of each thing whether it is in each image, (B, things): 1, 0, or NaN if unsure."""
    columns = []
    for kind, colour in things:
        here = present[:, kind]
        right = here if colour is None else colours[:, kind, colour]
        # An absent object has no colour, so that of its class does not matter.
        columns.append(torch.where(here == 0, here, here * right))
    return torch.stack(columns, 1)


def caption_truth(present: Tensor, colours: Tensor, captions: list[Caption]) -> Tensor:
    """Say whether each caption is true of each image, (B, captions): 1, 0, or NaN if unsure."""
    columns = []
    for caption in captions:
        parts = thing_truth(present, colours, list(caption.things))
        columns.append(torch.where((parts == 0).any(1), 0.0, parts.prod(1)))
    return torch.stack(columns, 1)


def phrase(thing: Thing) -> str:
    """Name a thing: "a heart", or "a red heart"."""
    kind, colour = thing
    return f"a {CLASSES[kind]}" if colour is None else f"a {COLOURS[colour]} {CLASSES[kind]}"


def draw_captions(present: Tensor, colours: Tensor, random: Random) -> list[Caption]:
    """Draw captions: each class, each class in each colour, and two objects of each image."""
    named: list[tuple[Thing, ...]] = [((kind, None),) for kind in range(len(CLASSES))]
    named += [((kind, hue),) for kind, hue in product(range(len(CLASSES)), range(len(COLOURS)))]
    for here, hue in zip(present, colours.nan_to_num(0.5).argmax(-1), strict=True):
        kinds = here.nonzero()[:, 0].tolist()
        if len(kinds) > 1:
            chosen = random.sample(kinds, 2)
            named.append(tuple((kind, random.choice([None, int(hue[kind])])) for kind in chosen))
    return [
        Caption(random.choice(WORDINGS).format(" and ".join(map(phrase, things))), things)
        for things in dict.fromkeys(named)
    ]


@dataclass(frozen=True)
class Batch:
    """Images, captions, and which captions are true of which images.

    Attributes:
        pixels: (B, 3, H, W), from -1 to 1.
        captions: K captions.
        truth: (B, K): 1, 0, or NaN if unsure.
    """

    pixels: Tensor
    captions: list[Caption]
    truth: Tensor

    @classmethod
    def draw(cls, images: Tensor, classes: Tensor, stage: Stage, random: Random) -> Batch:
        """Augment the images, cover parts of some with grey, and draw captions."""
        images, classes = augment(images, classes, stage.turn)
        colours, before = colour_truth(images, classes), class_areas(classes)
        pixels = images.float() / 127.5 - 1
        if stage.hide:
            grey = grey_areas(classes, stage.hide)
            pixels = pixels.masked_fill(grey[:, None], 0.0)
            classes = classes.masked_fill(grey, 0)
        seen = class_areas(classes) / before.clamp(min=1)
        present = (seen >= 0.5).float().masked_fill((seen > 0.1) & (seen < 0.5), math.nan)
        captions = draw_captions((seen >= 0.5).float(), colours, random)
        return cls(pixels, captions, caption_truth(present, colours, captions))


def text_features(model: CLIPModel, tokenizer: Any, texts: list[str]) -> Tensor:
    """Encode texts as features (texts, dimensions) of length 1."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    features = model.get_text_features(tokens.input_ids, tokens.attention_mask)
    return functional.normalize(features.pooler_output.float(), dim=-1)


def scores(model: CLIPModel, tokenizer: Any, pixels: Tensor, texts: list[str]) -> Tensor:
    """Compute CLIP's scores of images and texts, (B, texts)."""
    image = functional.normalize(model.get_image_features(pixels).pooler_output.float(), dim=-1)
    return image @ text_features(model, tokenizer, texts).T * model.logit_scale.exp()


def train(
    model: CLIPModel, tokenizer: Any, stage: Stage, seed: int, half: bool
) -> Iterator[dict[str, float]]:
    """Train the model; yield a log entry every ``LOG_EVERY`` steps."""
    # Seeds below a million are reserved for tests and measurements on new scenes.
    images, maps = draw_pool(stage, 9_000_000)
    random = Random(seed)  # noqa: S311  # only captions
    # The softmax of CLIP needs no bias, and the saved model has none.
    bias = nn.Parameter(torch.tensor(-3.0))
    scalars = [model.logit_scale, bias]
    weights: list[nn.Parameter] = [
        weight for weight in model.parameters() if weight is not model.logit_scale
    ]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": scalars, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, stage.steps, pct_start=0.05
    )
    log: list[tuple[float, ...]] = []
    for step, index in enumerate(indices(len(images), stage.steps), start=1):
        batch = Batch.draw(images[index], maps[index], stage, random)
        texts = [caption.text for caption in batch.captions]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = scores(model, tokenizer, batch.pixels, texts) + bias
        sure, truth = ~batch.truth.isnan(), batch.truth.nan_to_num()
        loss = functional.binary_cross_entropy_with_logits(logits, truth, sure.float())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.append((loss.item(), *_shares_right(logits.detach(), batch.truth)))
        if step % LOG_EVERY == 0 or step == stage.steps:
            names = ("loss", "classes_right", "true_found")
            yield {"step": step, **dict(zip(names, np.mean(log, axis=0).tolist(), strict=True))}
            log = []


def _shares_right(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the share of class captions judged right, and that of true captions found."""
    sure, classes = ~truth.isnan(), slice(0, len(CLASSES))
    right = ((logits > 0) == (truth > 0))[:, classes][sure[:, classes]]
    return right.float().mean().item(), (logits > 0)[truth == 1].float().mean().item()


@torch.no_grad()
def measure(model: CLIPModel, tokenizer: Any, scenes: int) -> dict[str, float]:
    """Measure the prompts on new scenes, seeds from 0.

    Returns:
        ``present_first``: pairs of a present and an absent class whose present one scores higher.
        ``best_is_present``: scenes whose best of eight prompts names an object of the scene.
        ``colour_right``: objects whose own colour scores highest of the six.
    """
    images, maps = draw_pool(replace(STAGE, difficulty=(1.0, 1.0), scenes=scenes), 0)
    present = class_areas(maps) > 0
    kinds, hue = range(len(CLASSES)), range(len(COLOURS))
    texts = [f"a photo of {phrase((kind, None))}" for kind in kinds]
    texts += [f"a photo of {phrase(thing)}" for thing in product(kinds, hue)]
    pixels = images.float() / 127.5 - 1
    parts = [scores(model, tokenizer, part, texts) for part in pixels.split(BATCH)]
    plain, coloured = torch.cat(parts).split([len(CLASSES), len(CLASSES) * len(COLOURS)], 1)
    higher = plain[:, :, None] > plain[:, None]
    pairs = present[:, :, None] & ~present[:, None]
    truth = colour_truth(images, maps)[present]
    sure = ~truth.isnan().any(-1)
    chosen = coloured.view(-1, len(CLASSES), len(COLOURS))[present].argmax(-1)
    return {
        "scenes": scenes,
        "present_first": higher[pairs].float().mean().item(),
        "best_is_present": present.gather(1, plain.argmax(1)[:, None]).float().mean().item(),
        "colour_right": (chosen == truth.argmax(-1))[sure].float().mean().item(),
    }


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the files for ``from_pretrained``: weights, config, image processor and tokenizer."""
    model.save_pretrained(folder)
    CLIPProcessor(new_processor(), tokenizer).save_pretrained(folder)


def main(
    output: Path,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and captions.")] = 0,
    share: Annotated[float, typer.Option(help="Share of the scenes and steps, for a trial.")] = 1.0,
    half: Annotated[
        bool, typer.Option(help="Compute in bfloat16; a processor without it is faster in float32.")
    ] = True,
) -> None:
    """Train the model and save it, with its log, in OUTPUT."""
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    model = new_model(tokenizer).train()
    stage = replace(
        STAGE,
        scenes=max(BATCH, int(STAGE.scenes * share)),
        steps=math.ceil(STAGE.steps * share),
    )
    output.mkdir(parents=True, exist_ok=True)
    with (output / "training_log.jsonl").open("w") as log:

        def write(entry: dict[str, float]) -> None:
            line = json.dumps({**entry, "seconds": round(time.monotonic() - started)})
            log.write(line + "\n")
            log.flush()
            typer.echo(line)

        for entry in train(model, tokenizer, stage, seed, half):
            write(entry)
        save(model.eval(), tokenizer, output)
        write(measure(model, tokenizer, max(BATCH, int(2_000 * share))))


if __name__ == "__main__":
    typer.run(main)
