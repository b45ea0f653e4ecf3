"""``hf-gmar explain``: heatmaps for images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from hf_gmar.cli.options import (
    AttnImplementation,
    CacheDir,
    Device,
    Dtype,
    Images,
    MethodName,
    MethodOptions,
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
    method_options,
    model_name,
    out,
    quiet,
    said_errors,
    say,
)
from hf_gmar.data.image_files import open_image, unique_stems
from hf_gmar.errors import OptionError, TargetError
from hf_gmar.explanation import Explainer, Explanation
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.hub import load_model, sample_image
from hf_gmar.models.labels import find_class


def explain(
    images: Images = None,
    model: ModelName = None,
    prompts: Prompts = None,
    target: Annotated[
        str | None, typer.Option(help="The class to explain, as label (or prompt) or index.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Explain this many of the most probable classes.")
    ] = 1,
    contrast: Annotated[
        str | None,
        typer.Option(help="Another class, as label or index: why not this one?"),
    ] = None,
    method: MethodName = "gmar",
    option: MethodOptions = None,
    norm: Annotated[str | None, typer.Option(help="GMAR's head score: l1 or l2.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the residual connection, >= 0.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="streaming or dense.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explanations"),
    device: Device = "auto",
    dtype: Dtype = "float32",
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    use_safetensors: UseSafetensors = True,
) -> None:
    """Write a heatmap (PNG) and its numbers (NPZ) for each image."""
    with said_errors():
        if target is not None and top_k > 1:
            raise OptionError("give either --target (one class) or --top-k (several), not both")
        check_prompts(prompts, images, model)
        options = method_options(option, norm=norm, alpha=alpha, engine=engine)
        METHODS.check(method, options)
        make_folder(output)
        # Before the model: a misspelt file name should not cost a download.
        paths, missing = expand(images or [sample_image()], output)
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
        explainer = Explainer.build(loaded, method, **options)
        chosen, other = (
            None if label is None else find_class(loaded.model.config, label)
            for label in (target, contrast)
        )
        _check_contrast(method, chosen, other)
    failed = _run(explainer, paths, output, target=chosen, top_k=top_k, contrast=other)
    raise typer.Exit(1 if failed or missing else 0)


def _check_contrast(method: str, target: int | None, contrast: int | None) -> None:
    METHODS[method].check_contrast(contrast)
    if contrast is not None and target == contrast:
        raise TargetError("--target and --contrast are the same class; name two")


def _run(explainer: Explainer, paths: list[Path], output: Path, **classes: Any) -> int:
    """Explain every image, print the table, return how many failed."""
    failed = 0
    files: list[Path] = []
    table = Table(title="Explanations")
    for heading in ("image", "class", "probability"):
        table.add_column(heading, overflow="fold")
    stems = unique_stems(paths)
    for path, stem in track(
        list(zip(paths, stems, strict=True)), "Explaining", console=err, disable=len(paths) < 2
    ):
        try:
            for result in explainer.explain(open_image(path), path.name, **classes):
                files += result.save(output, stem)
                _add_row(table, path, result)
        except Exception as error:  # noqa: BLE001  # whatever one image provokes, the others go on
            failed += 1
            say(error, path)
    if table.row_count:
        out.print(table)
    for file in files:  # whole lines, to be copied
        out.print(escape(str(file)), soft_wrap=True, highlight=False)
    return failed


def _add_row(table: Table, path: Path, result: Explanation) -> None:
    table.add_row(
        "bundled scene" if path == sample_image() else escape(str(path)),
        escape(result.label),
        f"{result.probability:.1%}",
    )
