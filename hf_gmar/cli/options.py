"""What the commands share: options, errors, images and the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from huggingface_hub.utils import logging as huggingface_logging
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as transformers_logging
from typer.core import TyperCommand

from hf_gmar._utils.option_strings import parse_value
from hf_gmar.data.image_files import find_images
from hf_gmar.errors import HfGmarError, OptionError, TargetError
from hf_gmar.models.hub import BUNDLED, DEFAULT_MODEL

out = Console()
err = Console(stderr=True)

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="Image files or folders; without any, the bundled scene."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        help=f"A model on the Hub, a local folder, or '{BUNDLED}'. "
        f"Default: {DEFAULT_MODEL} for images, '{BUNDLED}' without any."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        help='Texts as classes, for CLIP and SigLIP: --prompts "a photo of a dog" "... cat". '
        "All values up to the next option; put images before it.",
        metavar="TEXT...",
    ),
]
MethodName = Annotated[
    str, typer.Option(help="The explanation method; 'hf-gmar methods' lists them.")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="An option of the method, such as --option head_fusion=max; may be repeated.",
        metavar="NAME=VALUE",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")]
AttnImplementation = Annotated[
    str | None, typer.Option(help="Load with this attention implementation: sdpa, eager, ...")
]
UseSafetensors = Annotated[
    bool, typer.Option(help="Read safetensors weights alone, or pickled ones as well.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Token = Annotated[
    str | None,
    typer.Option(
        help="For private and gated models; else the token of 'hf auth login' or HF_TOKEN."
    ),
]
CacheDir = Annotated[Path | None, typer.Option(help="Where downloads are kept.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code in the model's repository."),
]


class ManyValues(TyperCommand):
    """``--prompts "a dog" "a cat"``: all up to the next option; click alone takes one for each."""

    many: ClassVar[tuple[str, ...]] = (
        "--prompts",
        "--methods",
        "--captum",
        "--metrics",
        "--perturbations",
    )
    """Options that take many values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say the option anew before each of its values."""
        for option in self.many:
            args = list(_each_named(option, args))
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def _each_named(option: str, words: list[str]) -> Iterator[str]:
    named = False
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        if word == option and following.startswith("-"):
            raise typer.BadParameter("one or more values are needed after it", param_hint=option)
        if word.startswith("-"):
            named = word == option
        if named and word != option:
            yield option
        if not (named and word == option):
            yield word


def method_options(given: list[str] | None, **shortcuts: Any) -> dict[str, Any]:
    """``NAME=VALUE`` and the options that have a name of their own, as Python values.

    Raises:
        OptionError: no NAME=VALUE, or an option that is given twice.
    """
    found = {name: value for name, value in shortcuts.items() if value is not None}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise OptionError(f"--option takes NAME=VALUE, such as head_fusion=max; got {one!r}")
        if name in found:
            raise OptionError(f"the option {name} is given twice; give it once")
        found[name] = parse_value(value)
    return found


@contextmanager
def said_errors() -> Iterator[None]:
    """An error of ours is one line and an exit code: 2 for what was typed, 1 for all else."""
    try:
        yield
    except HfGmarError as error:
        say(error)
        raise typer.Exit(2 if isinstance(error, OptionError | TargetError) else 1) from None


def check_prompts(prompts: list[str] | None, images: list[Path] | None, model: str | None) -> None:
    """An OptionError for prompts that took an image along, or that have no model."""
    files = [prompt for prompt in prompts or () if Path(prompt).exists()]
    if files and not images:
        raise OptionError(
            f"the prompt {files[0]!r} is a file, and no image is given; put images before "
            "--prompts, as it takes all values up to the next option"
        )
    if prompts and model is None:
        raise OptionError(
            "--prompts need a model of image and text, and the default is none; name one with "
            "--model, such as --model openai/clip-vit-base-patch32"
        )


def make_folder(output: Path) -> None:
    """Make the folder for results; an OptionError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OptionError(
            f"nothing can be written to --output {output}: {error.strerror}; name another folder"
        ) from error


def model_name(model: str | None, has_images: bool) -> str:
    """The model that is meant; the default is said."""
    if model is not None:
        return model
    name = DEFAULT_MODEL if has_images else BUNDLED
    err.print(f"No --model given: using {name}{' from the Hub' if has_images else ''}.")
    return name


def quiet() -> None:
    """Keep libraries from printing between our lines."""
    # What the Hub's client says of each retry is noise before the one error that follows.
    huggingface_logging.set_verbosity_error()
    # Results go to the terminal; the bars of a local file that loads in a blink do not.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def expand(sources: list[Path], output: Path) -> tuple[list[Path], int]:
    """The image files of files and folders, and how many of these can't be read."""
    paths: dict[Path, Path] = {}  # one that is given twice is one image
    failed = 0
    for source in sources:
        try:
            for path in find_images(source, skip=output):
                paths.setdefault(path.resolve(), path)
        except HfGmarError as error:
            failed += 1
            say(error, source)
    return list(paths.values()), failed


def say(error: Exception, path: Path | None = None) -> None:
    """One line of error, whatever it is."""
    where = f"{path}: " if path is not None and str(path) not in str(error) else ""
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    text = " ".join(f"{where}{kind}{error}".split())  # one line, whatever it says
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True, highlight=False)
