"""``hf-gmar compare``: several methods side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from hf_gmar.cli.options import (
    AttnImplementation,
    CacheDir,
    Device,
    Dtype,
    Images,
    ModelName,
    Prompts,
    Revision,
    Token,
    TrustRemoteCode,
    UseSafetensors,
    check_prompts,
    err,
    expand,
    make_folder,
    model_name,
    out,
    quiet,
    said_errors,
    say,
)
from hf_gmar.comparison.method_specs import (
    MethodLike,
    MethodSpec,
    captum_columns,
    check_captum_names,
    check_names,
)
from hf_gmar.comparison.result import R_EXPLAINED, Comparison
from hf_gmar.comparison.run import compare as side_by_side
from hf_gmar.data.image_files import open_image
from hf_gmar.errors import HfGmarError, InputError, OptionError
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.hub import LoadedModel, load_model, sample_image
from hf_gmar.models.image_view import seen_part
from hf_gmar.models.labels import find_class
from hf_gmar.models.wrappers import LogitsModel, ZeroShotModel

_MOST = 16  # images: all go through the model at once, several times over for some methods


def compare(
    images: Images = None,
    model: ModelName = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods of hf_gmar; all of them by default. All values up to the next option; "
            "put images before it.",
            metavar="NAME...",
        ),
    ] = None,
    captum: Annotated[
        list[str] | None,
        typer.Option(
            help="Captum's methods: IntegratedGradients, Saliency, Occlusion, ...",
            metavar="NAME...",
        ),
    ] = None,
    prompts: Prompts = None,
    target: Annotated[
        str | None,
        typer.Option(help="The class to explain, as label (or prompt) or index; else the top one."),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="A class whose score is taken off: why not this one?")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            help="Time each method and measure its memory; it runs two to six times then."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of Captum's random methods.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("comparison"),
    device: Device = "auto",
    dtype: Dtype = "float32",
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    use_safetensors: UseSafetensors = True,
) -> None:
    """Explain images by several methods; write one figure, a table and the maps."""
    with said_errors():
        check_prompts(prompts, images, model)
        _check_methods(methods or [], captum or [])
        make_folder(output)
        # Before the model: a misspelt file name should not cost a download.
        paths, missing = expand(images or [sample_image()], output)
        _check_count(paths)
        name = model_name(model, bool(images))
        quiet()
        loaded = load_model(
            name,
            device,
            prompts=prompts,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        classes = [
            None if word is None else find_class(loaded.model.config, word)
            for word in (target, contrast)
        ]
        batch, failed = _read(loaded, paths)
        columns = _columns(loaded, methods, captum or [])
        found = _run(loaded, batch, columns, classes, measure, seed)
        files = found.save(output)
    _print(found, files)
    raise typer.Exit(1 if failed or missing or not found.maps else 0)


@dataclass(frozen=True)
class _Batch:
    """Images that go through the model together.

    Attributes:
        pixels: pixel values (B, channels, height, width).
        pictures: the part of each image that the model sees; ``None`` if that is not known.
        names: of the images, each another.
    """

    pixels: Tensor
    pictures: list[Image.Image] | None
    names: list[str]


def _check_methods(methods: Sequence[str], captum: Sequence[str]) -> None:
    for option, names in (("--methods", methods), ("--captum", captum)):
        files = [name for name in names if Path(name).is_file()]
        if files:
            raise OptionError(
                f"{option} got the file {files[0]!r}; put images before {option}, as it takes all "
                "values up to the next option"
            )
    check_names(methods)
    check_captum_names(captum)


def _check_count(paths: Sequence[Path]) -> None:
    if not paths:
        raise typer.Exit(1)
    if len(paths) > _MOST:
        raise OptionError(
            f"{len(paths)} images are too many to compare side by side; give up to {_MOST}, or "
            "call hf_gmar.compare with batches of your own"
        )


def _read(loaded: LoadedModel, paths: Sequence[Path]) -> tuple[_Batch, int]:
    """The images that can be read, and how many can't; an InputError if they don't fit together."""
    failed, images, pixels, names = 0, [], [], []
    alike = Counter(path.name for path in paths)
    for path in paths:
        try:
            image = open_image(path)
            pixels.append(loaded.processor(images=image, return_tensors="pt").pixel_values)
        except HfGmarError as error:
            failed += 1
            say(error, path)
        else:
            images.append(image)
            names.append(path.name if alike[path.name] == 1 else str(path))
    if not pixels:
        raise typer.Exit(1)
    sizes = sorted({tuple(one.shape[-2:]) for one in pixels})
    if len(sizes) > 1:
        raise InputError(
            f"the model's processor gives images of {len(sizes)} sizes ({sizes[0]}, {sizes[1]}, "
            "...), and one figure needs one; give images of one size"
        )
    batch = torch.cat(pixels).to(loaded.model.device, loaded.model.dtype)
    return _Batch(batch, _as_seen(loaded, images), names), failed


def _as_seen(loaded: LoadedModel, images: Sequence[Image.Image]) -> list[Image.Image] | None:
    try:
        return [seen_part(loaded.processor, image) for image in images]
    except InputError:  # what it does to an image is nothing that can be drawn on it
        return None


def _columns(
    loaded: LoadedModel, methods: Sequence[str] | None, captum: Sequence[str]
) -> list[MethodLike]:
    logits = LogitsModel(loaded.model)
    own = [MethodSpec(name) for name in methods or METHODS]
    return [*own, *captum_columns(captum, logits)]


def _run(
    loaded: LoadedModel,
    batch: _Batch,
    columns: Sequence[MethodLike],
    classes: Sequence[int | None],
    measure: bool,
    seed: int,
) -> Comparison:
    target, contrast = classes
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("Comparing", total=len(columns) + 1)

        def next_one(label: str) -> None:
            bar.update(task, description=f"Comparing: {escape(label)}", advance=1)

        found = side_by_side(
            loaded.model,
            batch.pixels,
            columns,
            target,
            contrast,
            images=batch.pictures,
            names=batch.names,
            measure=measure,
            seed=seed,
            progress=next_one,
        )
    said: dict[str, Any] = {"model": loaded.name}
    if isinstance(loaded.model, ZeroShotModel):
        said["prompts"] = loaded.model.prompts
    return replace(found, settings={**found.settings, **said})


def _print(found: Comparison, files: Sequence[Path]) -> None:
    """The table, as many of its columns as the terminal has room for, and where the files are."""
    heads, rows = found.cells()
    table = _table(heads, rows)
    if out.measure(table, options=out.options.update(width=10_000)).maximum > out.width:
        table = _table(heads[:5], rows)
    out.print(table)
    said = f"{R_EXPLAINED}; time: by that of a plain forward of the same images."
    out.print(said, highlight=False)
    for label, reason in found.failures.items():
        out.print(f"{escape(label)} failed: {escape(reason)}", soft_wrap=True, highlight=False)
    for file in files:
        out.print(escape(str(file)), soft_wrap=True, highlight=False)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title="Comparison")
    for number, heading in enumerate(heads):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row[: len(heads)]))
    return table
