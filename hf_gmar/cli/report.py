"""``hf-gmar report``: explanations of images as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_gmar._utils.files import kind_of, reason_of_system
from hf_gmar._utils.text import counted
from hf_gmar.cli.explain_options import ExplainOptions
from hf_gmar.cli.options import Images, ModelOptions, command, out, print_lines, print_table
from hf_gmar.errors import HfGmarError, one_line
from hf_gmar.models.defaults import sample_image

_NAME = "report.html"


@command
def report(
    model: ModelOptions,
    question: ExplainOptions,
    images: Images = None,
    check: Annotated[
        bool,
        typer.Option(
            help="Ask the model what each map is worth, and for the fewest patches that suffice.",
        ),
    ] = True,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Explanations",
    output: Annotated[
        Path, typer.Option(help=f"The page, or a folder for {_NAME}.", metavar="FILE_OR_FOLDER")
    ] = Path(_NAME),
) -> None:
    """Run ``hf-gmar report``."""
    page = _page(output)
    inputs, results = question.prepare(model, images, page.parent, has_pictures=False)
    from hf_gmar.report.html_report import ReportWriter

    failed_methods: dict[str, str] = {}
    writer = ReportWriter(page, title, check=check, total=len(inputs.paths))

    def explain_one(path: Path, _: str) -> None:
        name = "bundled scene" if path == sample_image() else str(path)
        found = next(results)
        if isinstance(found, Exception):
            writer.add_error(name, found)
            raise found
        try:
            explanations = writer.add(found, name)
        except OSError:  # no further image can be written
            raise
        except Exception as error:
            writer.add_error(name, error)
            raise
        for label, reason in explanations.failures.items():
            failed_methods[label] = f"{label} failed: {one_line(reason)}"

    failed = 0
    try:
        with writer:
            failed = inputs.for_each("Explaining", explain_one)
            if not writer.images:
                raise typer.Exit(1)
    except OSError as error:
        raise HfGmarError(
            f"{page} can't be written: {reason_of_system(error)}; make room, or name another place "
            "with --output"
        ) from error
    finally:  # what was finished is listed after a stop as well
        if writer.is_written:
            if writer.summary.has_checks:
                print_table(writer.summary.table())
            print_lines(failed_methods.values())
            print_lines([page])
            size = page.stat().st_size / 1e6
            out.print(f"{counted(writer.images, 'image')}, {size:.1f} MB", highlight=False)
    # A method that nobody named may not fit the model.
    raise typer.Exit(1 if failed or inputs.failed or (question.method and failed_methods) else 0)


def _page(output: Path) -> Path:
    """Return the file: itself, or one in the folder that is named."""
    is_file = output.suffix.lower() in {".html", ".htm"} and kind_of(output) != "folder"
    return output if is_file else output / _NAME
