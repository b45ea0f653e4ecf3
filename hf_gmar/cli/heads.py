"""``hf-gmar heads``: which attention heads a class depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hf_gmar._utils.validation import check_option
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
from hf_gmar.data.image_files import open_image, unique_stems
from hf_gmar.heads.ablation import ablate_heads
from hf_gmar.heads.head_methods import head_maps
from hf_gmar.heads.importance import HEAD_CRITERIA, HeadImportance, head_importance
from hf_gmar.methods.layer_rules import NORMS
from hf_gmar.models.hub import LoadedModel, load_model, sample_image
from hf_gmar.models.image_view import measure_view
from hf_gmar.models.labels import find_class
from hf_gmar.visualization.head_figures import head_maps_figure
from hf_gmar.visualization.overlay import save_figure

_SHOWN = 5  # heads from each end of the ranking


def heads(
    images: Images = None,
    model: ModelName = None,
    prompts: Prompts = None,
    target: Annotated[
        str | None,
        typer.Option(help="The class, as label (or prompt) or index. Default: each image's top."),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="gmar: share of the gradient; taylor: estimated loss of score without the head."
        ),
    ] = "gmar",
    norm: Annotated[str, typer.Option(help="Norm of the gradient, for gmar: l1 or l2.")] = "l1",
    maps: Annotated[
        bool, typer.Option("--maps", help="Draw where each head looks, for each image.")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Mask the heads in order and watch the score.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("heads"),
    device: Device = "auto",
    dtype: Dtype = "float32",
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    use_safetensors: UseSafetensors = True,
) -> None:
    """Say which attention heads a class depends on, over all images."""
    with said_errors():
        check_option("norm", norm, NORMS)
        check_option("criterion", criterion, HEAD_CRITERIA)
        check_prompts(prompts, images, model)
        make_folder(output)
        paths, failed = expand(images or [sample_image()], output)
        if not paths:
            raise typer.Exit(1)
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
        chosen = None if target is None else find_class(loaded.model.config, target)
        measured = {"criterion": criterion, "norm": norm}
        job = _Job(loaded, chosen, measured, output, maps)
        found, broken = job.measure(paths)
        if found:
            files = job.save(found)
            _tell(found)
            _list(*files, *job.each_image(list(found)))
        if found and ablate:
            job.ablate(found)
    raise typer.Exit(1 if failed or broken else 0)


@dataclass(frozen=True)
class _Job:
    """What is measured, on which model, and where it is written."""

    loaded: LoadedModel
    target: int | None
    measured: dict[str, Any]
    output: Path
    maps: bool
    stems: dict[Path, str] = field(default_factory=dict)

    def measure(self, paths: list[Path]) -> tuple[dict[Path, HeadImportance], int]:
        """The importance of each image, with its files on disk; and how many failed."""
        found: dict[Path, HeadImportance] = {}
        failed = 0
        self.stems.update(zip(paths, unique_stems(paths), strict=True))
        pairs = list(self.stems.items())
        for path, stem in track(pairs, "Measuring", console=err, disable=len(paths) < 2):
            try:
                found[path] = self._measure_one(path, stem)
            except Exception as error:  # noqa: BLE001  # whatever one image provokes, others go on
                failed += 1
                say(error, path)
        return found, failed

    def _measure_one(self, path: Path, stem: str) -> HeadImportance:
        image = open_image(path)
        pixels = self._pixels(image)
        found = head_importance(self.loaded.model, pixels, self.target, **self.measured)
        found.save_numbers(self.output, f"{stem}.heads")
        if self.maps:
            view = measure_view(self.loaded.processor, (image.height, image.width))
            looks = head_maps(self.loaded.model, pixels)[0]
            figure = head_maps_figure(image, looks, caption=path.name, view=view)
            save_figure(figure, self.output / f"{stem}.maps.png")
        return found

    def save(self, found: dict[Path, HeadImportance]) -> tuple[Path, ...]:
        """Write what holds for all images."""
        whole = HeadImportance.joined(list(found.values()))
        return replace(whole, settings=self._settings(found)).save(self.output, "importance")

    def _settings(self, found: Iterable[Path]) -> dict[str, Any]:
        return {"model": self.loaded.name, "images": [str(path) for path in found]}

    def ablate(self, found: dict[Path, HeadImportance]) -> None:
        """Mask the heads of each image in its own order; print the areas and the files."""
        importance = HeadImportance.joined(list(found.values()))
        images = track(found, "Masking", console=err, disable=len(found) < 2)
        done = ablate_heads(self.loaded.model, self._batches(images), importance)
        done = replace(done, settings={**done.settings, **self._settings(found)})
        files = done.save(self.output)
        out.print(done.table())
        _list(*files)

    def each_image(self, paths: list[Path]) -> list[Path]:
        """Where what belongs to one image is; of many, that of the first and an ellipsis."""
        endings = ["heads.npz", "maps.png"] if self.maps else ["heads.npz"]
        stems = [stem for path, stem in self.stems.items() if path in paths]
        shown = stems if len(stems) <= _SHOWN else [stems[0]]
        files = [self.output / f"{stem}.{ending}" for stem in shown for ending in endings]
        return files if shown == stems else [*files, Path(f"... and of {len(stems) - 1} more")]

    def _batches(self, paths: Iterable[Path]) -> Iterator[Tensor]:
        for path in paths:
            yield self._pixels(open_image(path))

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.loaded.processor(images=image, return_tensors="pt").pixel_values
        return pixels.to(self.loaded.model.device, self.loaded.model.dtype)


def _tell(found: dict[Path, HeadImportance]) -> None:
    """The most and the least important heads."""
    importance = HeadImportance.joined(list(found.values()))
    mean, spread, order = importance.mean(), importance.spread(), importance.rank()
    columns, shares = (5 if len(found) > 1 else 4), importance.criterion == "gmar"
    what, form = ("share of its layer", ".1%") if shares else ("loss of score without it", "+.3f")
    title = f"Head importance, {importance.title}: {importance.caption}"
    table = Table(title=escape(title))
    for heading in ("rank", "layer", "head", what, "spread over images")[:columns]:
        table.add_column(heading, justify="right")
    places = range(1, len(order) + 1)
    for place, (layer, head) in zip(places, order, strict=True):
        if place <= _SHOWN or place > len(order) - _SHOWN:
            numbers = format(mean[layer, head], form), format(spread[layer, head], form.strip("+"))
            cells = (str(place), str(layer), str(head), *numbers)[:columns]
            last = place == _SHOWN and len(order) > 2 * _SHOWN
            table.add_row(*cells, end_section=last)
    out.print(table)
    if shares:
        out.print(f"An even share is {1 / mean.shape[1]:.1%}.")


def _list(*files: Path) -> None:
    """Where the results are, one a line."""
    for file in files:
        out.print(escape(str(file)), soft_wrap=True, highlight=False)
