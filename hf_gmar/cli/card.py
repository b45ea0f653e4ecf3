"""``hf-gmar card``: the section "Explanations" of a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_gmar._utils.files import kind_of
from hf_gmar.cli.explain_options import ExplainOptions
from hf_gmar.cli.options import ModelOptions, command, err, out, print_lines, print_table
from hf_gmar.errors import HfGmarError, OptionError, one_line
from hf_gmar.models.defaults import BUNDLED

if TYPE_CHECKING:
    from hf_gmar.explanations import Explanations


@command
def card(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"A model on the Hub, a local folder, or '{BUNDLED}'."
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    model: ModelOptions,
    question: ExplainOptions,
    examples: Annotated[int, typer.Option(min=0, help="Images that are shown.")] = 4,
    push: Annotated[
        bool,
        typer.Option("--push", help="Put the section into the card of the model on the Hub."),
    ] = False,
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository to push to; default: MODEL.", metavar="OWNER/NAME"),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Push as a pull request, to models of others.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the section and pictures.")] = Path(
        "card"
    ),
) -> None:
    """Run ``hf-gmar card``."""
    if question.from_patch is not None:
        raise OptionError(
            "a card says what maps of scores are worth, and --from-patch has no score; leave it out"
        )
    repository = _repository(name, repo_id, push, create_pr)
    from hf_gmar.report.model_card import CardWriter
    from hf_gmar.report.push import check_push, push_card

    if repository is not None:  # before the work, which may be long
        user = check_push(repository, token=model.token, revision=model.revision)
        err.print(f"The section will be pushed to {repository} by {user}.", highlight=False)
    inputs, results = question.prepare(model, images, output)
    failed_methods: dict[str, str] = {}
    writer = CardWriter(output, examples)

    def explain_one(_path: Path, _stem: str) -> None:
        found: Explanations | Exception = next(results)
        if isinstance(found, Exception):
            writer.add_error()
            raise found
        try:
            writer.add(found)
        except HfGmarError:  # the model can't be asked
            writer.add_error()
            raise
        for label, reason in found.failures.items():
            failed_methods[label] = f"{label} failed: {one_line(reason)}"

    try:
        with writer:
            failed = inputs.for_each("Explaining", explain_one)
            if not writer.images:
                raise typer.Exit(1)
    finally:  # what was finished is listed after a stop as well
        if writer.images:
            print_table(writer.summary.table())
        print_lines(failed_methods.values())
        print_lines(writer.paths)
    if repository is not None:
        address = push_card(
            output, repository, token=model.token, revision=model.revision, create_pr=create_pr
        )
        out.print(address, soft_wrap=True, highlight=False)
    # A method that nobody named may not fit the model.
    raise typer.Exit(1 if failed or inputs.failed or (question.method and failed_methods) else 0)


def _repository(name: str, repo_id: str | None, push: bool, create_pr: bool) -> str | None:
    """Return the repository to push to, or ``None``.

    Raises:
        OptionError: the model is no repository and none is named, or nothing is to be pushed.
    """
    if not push:
        if repo_id is not None or create_pr:
            raise OptionError("--repo-id and --create-pr are for a push; add --push, or drop them")
        return None
    if repo_id is None and (name == BUNDLED or kind_of(name) == "folder"):
        raise OptionError(
            f"{name} is no repository on the Hub; name the one to push to with --repo-id OWNER/NAME"
        )
    return repo_id or name
