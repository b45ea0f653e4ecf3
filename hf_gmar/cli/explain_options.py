"""The options of the commands that explain images: classes, methods, batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_gmar._utils.precision import Precision
from hf_gmar.cli.no_class import FromPatch, NoClass, SimilarFile
from hf_gmar.cli.options import Inputs, ModelOptions, method_options
from hf_gmar.errors import OptionError
from hf_gmar.methods.registry import DEFAULT_METHODS, METHODS, with_options, with_pixels


@dataclass(frozen=True)
class ExplainOptions:
    """The classes and methods of a command, and how its images are explained."""

    target: Annotated[
        list[str] | None,
        typer.Option(
            help="The class to explain, as label (or prompt) or index; may be repeated.",
            metavar="LABEL",
        ),
    ] = None
    top_k: Annotated[
        int, typer.Option(min=1, help="Explain this many of the most probable classes.")
    ] = 1
    contrast: Annotated[
        str | None,
        typer.Option(help="Class whose score is subtracted, as label or index: why not this one?"),
    ] = None
    similar_to: SimilarFile = None
    from_patch: FromPatch = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One or more methods, side by side; default: {' '.join(DEFAULT_METHODS)}, by "
            "pixels where a method has them. 'hf-gmar methods' lists them.",
            metavar="NAME...",
        ),
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the methods that have it, such as --option head_fusion=max; may be "
            "repeated.",
            metavar="NAME=VALUE",
        ),
    ] = None
    norm: Annotated[str | None, typer.Option(help="Norm of GMAR's head score: l1 or l2.")] = None
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the residual connection, >= 0.")
    ] = None
    engine: Annotated[str | None, typer.Option(help="Engine: streaming or dense.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward.")] = 4
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the forward, by autocast; default: the model's.",
            rich_help_panel="Model",
        ),
    ] = None

    def prepare(
        self,
        model: ModelOptions,
        images: list[Path] | None,
        output: Path,
        has_pictures: bool = True,
    ) -> tuple[Inputs, Iterator[Any]]:
        """Find the images, load the model, and explain the images as the iterator is read.

        Args:
            model: the model's options.
            images: files and folders.
            output: the folder of the results.
            has_pictures: see :meth:`Inputs.prepare`.

        Returns:
            The inputs, and for each path of them its explanations, or the error.

        Raises:
            OptionError: options do not fit together, or as of :meth:`Inputs.prepare`.
            TargetError: the model has no such class, or a class is named twice.
        """
        if self.target and self.top_k > 1:
            raise OptionError(
                "give either --target (those classes) or --top-k (the best), not both"
            )
        no_class = NoClass.parse(self.similar_to, self.from_patch)
        no_class.check(
            target=self.target,
            contrast=self.contrast,
            top_k=self.top_k > 1,
            prompts=model.prompts,
        )
        methods = no_class.methods(self.method)
        options = method_options(
            self.option,
            norm=self.norm,
            alpha=self.alpha,
            engine=self.engine,
            readout=no_class.place,
        )
        names = [name for name, _ in with_options(methods, options)]
        for name in names:
            METHODS[name].check_contrast(self.contrast)
        inputs = Inputs.prepare(
            model,
            images,
            output,
            self.target or (),
            self.contrast,
            head=no_class.head(names),
            has_pictures=has_pictures,
        )
        from hf_gmar._core.model_adapter import ModelAdapter
        from hf_gmar.explainer import Explainer

        # A named method is as in Python, and the tokens of AttnLRP's lower layers have no pixels.
        if not (self.method or {"resolution", "layers"} & options.keys()):
            adapter = ModelAdapter.of(inputs.loaded.model, needs_scores=False)
            methods = with_pixels(methods, adapter)
        explainer = Explainer(inputs.loaded, methods, precision=self.precision, **options)
        explainer, targets = no_class.asked(explainer, inputs.targets)
        results = explainer.stream(
            inputs.paths,
            targets or None,
            inputs.contrast,
            self.top_k,
            batch_size=self.batch_size,
            num_workers=1,  # reads images while the model runs
            return_errors=True,
        )
        return inputs, results
