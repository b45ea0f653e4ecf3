"""Parts that the commands share: model options, errors, images and terminal output.

PyTorch is loaded only when a command runs, so help and typing errors are printed at once.
"""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from hf_gmar._utils.files import kind_of, reason_of_system
from hf_gmar._utils.option_strings import parse_value
from hf_gmar._utils.text import visible
from hf_gmar.errors import HfGmarError, OptionError, TargetError, one_line
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.defaults import BUNDLED, DEFAULT_MODEL, sample_image

if TYPE_CHECKING:
    from hf_gmar.data.prepared_image import PreparedImage
    from hf_gmar.models.hub import LoadedModel


_USUAL_WIDTH = 80  # columns


class _Console(Console):
    """A terminal that is sent no control characters but rich's own, and reads no markup.

    Names from outside stand in tables, errors and progress bars alike: whatever is printed becomes
    visible text here. A name that must stay in one line is passed through ``visible`` before.
    """

    def __init__(self, stderr: bool = False) -> None:
        """Print on standard output, or as errors."""
        super().__init__(stderr=stderr, markup=False, emoji=False)
        self.width = self.width or _USUAL_WIDTH  # a terminal may say that it has no columns

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string, with hidden characters as escapes before its width is measured."""
        return super().render_str(self._shown(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render all parts; the control codes of rich's own parts pass."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else self._shown(text), style, control)

    def _shown(self, text: str) -> str:
        """Show what the terminal obeys or has no letter for."""
        shown = visible(text, keep="\n")
        return shown.encode(self.encoding, "backslashreplace").decode(self.encoding)


out = _Console()
err = _Console(stderr=True)

_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")}
"""Errors of the file system that would meet the next result as well."""

_WIDE = 10_000  # columns of a terminal in which no table is broken
_INDENT = 2

_option = functools.partial(typer.Option, rich_help_panel="Model")

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="Image files or folders; default: the bundled scene."),
]
Revision = Annotated[str | None, _option(help="Branch, tag or commit on the Hub.")]
Token = Annotated[
    str | None,
    _option(help="Hub token for private and gated models; default: 'hf auth login' or HF_TOKEN."),
]
CacheDir = Annotated[Path | None, _option(help="Folder for downloads.")]
TrustRemoteCode = Annotated[
    bool, _option("--trust-remote-code", help="Run the Python code in the model's repository.")
]


@dataclass(frozen=True)
class ModelOptions:
    """The options of the model: the arguments of ``load_model``."""

    name: Annotated[
        str | None,
        _option(
            "--model",
            help=f"A model on the Hub, a local folder, or '{BUNDLED}'. "
            f"Default: {DEFAULT_MODEL} for images, '{BUNDLED}' without any.",
        ),
    ] = None
    prompts: Annotated[
        list[str] | None,
        _option(
            help='Texts as classes, for CLIP and SigLIP: --prompts "a photo of a dog" "... cat". '
            "Takes all values up to the next option; put images before it.",
            metavar="TEXT...",
        ),
    ] = None
    device: Annotated[str, _option(help="auto, cpu, cuda, cuda:1, ...")] = "auto"
    dtype: Annotated[str, _option(help="auto, float32, bfloat16, float16 or float64.")] = "float32"
    attn_implementation: Annotated[
        str | None, _option(help="Load with this attention implementation: sdpa, eager, ...")
    ] = None
    revision: Revision = None
    token: Token = None
    cache_dir: CacheDir = None
    trust_remote_code: TrustRemoteCode = False
    processor: Annotated[
        str | None,
        _option(
            help="A model on the Hub or a folder with the image processor, for models saved "
            "without one.",
            metavar="ID_OR_FOLDER",
        ),
    ] = None
    size: Annotated[
        str | None,
        _option(
            help="Pixels that the model gets, instead of its processor's: 224, or 224x448 for "
            "height and width.",
            metavar="N|HxW",
        ),
    ] = None
    interpolate: Annotated[
        bool,
        _option(
            "--interpolate", help="Interpolate the model's positions, for sizes other than its own."
        ),
    ] = False
    pickled: Annotated[
        bool, _option("--no-use-safetensors", help="Read pickled weights as well.")
    ] = False

    def check_prompts(self, has_images: bool) -> None:
        """Raise an OptionError for prompts that include an image path or have no model."""
        files = [prompt for prompt in self.prompts or () if kind_of(prompt) != "missing"]
        if files and not has_images:
            raise OptionError(
                f"the prompt {files[0]!r} is a file, and no image is given; put images before "
                "--prompts, as it takes all values up to the next option"
            )
        if self.prompts and self.name is None:
            raise OptionError(
                "--prompts need a model of image and text, and the default is none; name one with "
                "--model, such as --model openai/clip-vit-base-patch32"
            )

    def load(
        self, has_images: bool, device: str | None = None, head: bool | None = True
    ) -> LoadedModel:
        """Load the model, on ``device`` if given; print the name of a default model.

        ``head`` is that of ``load_model``; with prompts, it is loaded with them.
        """
        name = self.name
        if name is None:
            name = DEFAULT_MODEL if has_images else BUNDLED
            err.print(f"No --model given: using {name}{' from the Hub' if has_images else ''}.")
        quiet()
        from hf_gmar.models.hub import load_model

        options = {**asdict(self), "name": name, "device": device or self.device}
        return load_model(
            use_safetensors=not options.pop("pickled"),
            interpolate_pos_encoding=options.pop("interpolate"),
            head=True if self.prompts else head,
            **options,
        )


@dataclass(frozen=True)
class Inputs:
    """The model, images and classes of a command.

    Attributes:
        loaded: the model.
        paths: the image files.
        failed: number of files and folders that can't be read.
        targets: the indices of the named classes, in order.
        contrast: the index of the contrast class, if any.
    """

    loaded: LoadedModel
    paths: list[Path]
    failed: int
    targets: list[int]
    contrast: int | None

    @classmethod
    def prepare(
        cls,
        model: ModelOptions,
        images: list[Path] | None,
        output: Path,
        targets: Sequence[str | None] = (),
        contrast: str | None = None,
        most: int | None = None,
        has_pictures: bool = True,
        head: bool | None = True,
    ) -> Inputs:
        """Find the images, then load the model, so that a typing error costs no download.

        Args:
            model: the model's options.
            images: files and folders; the bundled scene without any.
            output: the folder of the results.
            targets: the named classes.
            contrast: the contrast class, if any.
            most: the largest number of images that the command takes.
            has_pictures: whether the results could be taken for images, so that images in the
                folder of the results are left out.
            head: see ``load_model``.

        Raises:
            OptionError: prompts are wrong, the folder is not writable, or images are too many.
            TargetError: the model has no such class, or a class is named twice.
        """
        model.check_prompts(bool(images))
        _make_folder(output)
        paths, failed = _expand(images or [sample_image()], output if has_pictures else None)
        if not paths:
            raise typer.Exit(1)
        if most is not None and len(paths) > most:
            raise OptionError(
                f"{len(paths)} images are too many to compare side by side; give up to {most}, or "
                "call hf_gmar.compare with batches of your own"
            )
        loaded = model.load(bool(images), head=head)
        from hf_gmar.models.labels import classes_of_model

        names = [label for label in targets if label is not None]
        indices = classes_of_model(loaded.model, names) if names else []
        other = None if contrast is None else classes_of_model(loaded.model, [contrast])[0]
        if other in indices:
            raise TargetError("--target and --contrast are the same class; name two")
        return cls(loaded, paths, failed, indices, other)

    @property
    def target(self) -> int | None:
        """The class of a command that takes one; ``None`` if it is not named."""
        return self.targets[0] if self.targets else None

    def read(self, path: Path) -> PreparedImage:
        """Read an image file for the model; a ``.npy`` file gives an array."""
        from hf_gmar.data.prepared_image import prepare_image

        return prepare_image(self.loaded, path)

    def for_each(self, description: str, work: Callable[[Path, str], None]) -> int:
        """Call ``work`` with each image file and its result stem; return the number of failures.

        Raises:
            OSError: no further result can be written.
        """
        from rich.progress import track

        from hf_gmar.data.image_files import unique_stems

        failed = 0
        pairs = list(zip(self.paths, unique_stems(self.paths), strict=True))
        for path, stem in track(pairs, description, console=err, disable=len(pairs) < 2):
            try:
                work(path, stem)
            except Exception as error:  # after any other error, go on with the next image
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                failed += 1
                say(error, path)
            stop_if_interrupted()
        return failed


class SafeGroup(TyperGroup):
    """The commands, with errors of their arguments and terminals of few letters made safe.

    Click's errors repeat arguments as they are. A terminal that lacks a letter gets its escape, as
    an error after the work would lose the list of results.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **options)
        except OSError as error:  # the help can't be written
            with suppress(OSError):
                say(_of_the_system(error, None))
            sys.exit(1)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the options before the command."""
        with _shown_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's options and run it."""
        with _shown_errors():
            return super().invoke(ctx)


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Show hidden characters of wrong arguments as escapes."""
    try:
        yield
    except _UsageError as error:
        message = error.format_message()
        if (shown := visible(message, keep="\n")) == message:
            raise
        raise _UsageError(shown, ctx=error.ctx) from None


_UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click


_PLACES = ("images", "data", "output", "name", "model", "processor", "cache_dir", "similar_to")
"""Arguments and options that name a file or folder."""


class StrictCommand(TyperCommand):
    """A command whose options may take several values, such as ``--prompts "a dog" "a cat"``.

    The metavar of such an option ends in an ellipsis. An option of one value is given once: click
    would take the last value and drop the others.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        for option in self.params:
            if (option.metavar or "").endswith("..."):
                fits = is_method if option.name == "method" else _any_word
                args = list(_repeated(option.opts[0], args, fits))
        if not ctx.resilient_parsing:
            self._check_words(ctx, args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def _check_words(self, ctx: Any, args: list[str]) -> None:
        """Raise an error for a repeated option of one value, ``--on --off`` included.

        An empty path is an error as well: an unset variable of the shell would name the current
        folder.
        """
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            value = given[option.name]
            if option.name in _PLACES and "" in (value if isinstance(value, tuple) else (value,)):
                raise typer.BadParameter(
                    "it is empty; name a file or folder, '.' for the current one, or leave it out",
                    param_hint=option.opts[0],
                )
        counts = Counter(item for item in order if item.param_type_name == "option")
        for option, count in counts.items():
            if count > 1 and not (option.multiple or option.is_eager):
                name = " / ".join([*option.opts, *option.secondary_opts])
                raise typer.BadParameter(
                    f"it is given {count} times; give it once", param_hint=name
                )


def is_method(word: str) -> bool:
    """Whether a word names a method, perhaps with options; an image may follow ``--method``."""
    return word.partition(":")[0] in METHODS


def _any_word(_: str) -> bool:
    return True


def _repeated(option: str, words: list[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """Repeat an option before each further value that fits."""
    in_option = is_first = False
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        if word == option and following.startswith("-"):
            raise typer.BadParameter("one or more values are needed after it", param_hint=option)
        if word.startswith("-"):
            in_option = is_first = word == option
        elif is_first:
            is_first = False
        else:
            in_option = in_option and fits(word)
        if in_option and word != option:
            yield option
        if not (in_option and word == option):
            yield word


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command.

    The fields of a parameter whose type is a dataclass, such as ``model: ModelOptions``, become
    options. Warnings print one line. An
    ``HfGmarError`` prints one line and exits: with 2 for a wrong option or target, else with 1. So
    do errors of the file system, and an interrupt, which exits with 130 or 143.
    """
    own = dict(inspect.signature(function, eval_str=True).parameters)
    groups: dict[str, Any] = {
        name: part.annotation for name, part in own.items() if is_dataclass(part.annotation)
    }
    fields = {
        name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()
    }
    options: dict[str, inspect.Parameter] = {}
    for name, option in own.items():  # a command's own option replaces that of a group
        options |= fields.get(name, {name: option})
    options |= {name: option for name, option in own.items() if name not in groups}

    @functools.wraps(function)
    def run(**values: Any) -> None:
        given = dict(values)
        for name, group in groups.items():
            values |= {name: group(**{option: given[option] for option in fields[name]})}
        values = {name: values[name] for name in own}
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(str(message))
            try:
                _prepare_process()
                with _stoppable(values.get("output"), resumes="resume" in values):
                    function(**values)
            except HfGmarError as error:
                say(error)
                raise typer.Exit(2 if isinstance(error, OptionError | TargetError) else 1) from None
            except OSError as error:
                if error.errno == errno.EPIPE:  # the reader of the output is gone
                    raise
                say(_of_the_system(error, values.get("output")))
                raise typer.Exit(1) from None

    signature = [option.replace(kind=option.KEYWORD_ONLY) for option in options.values()]
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run


def _prepare_process() -> None:
    """Check the folder of this process, and draw without a window whatever the user's setting.

    Raises:
        OptionError: the folder is gone; without it, PyTorch's libraries end the process.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise OptionError(
            "the current folder does not exist any more; change to another one, as with 'cd ~'"
        ) from None
    os.environ["MPLBACKEND"] = "agg"  # matplotlib refuses to be imported with an unknown one


@contextmanager
def _stoppable(output: Path | None, resumes: bool) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, say that what was finished is kept, and exit."""

    def terminate(*_: Any) -> None:  # the launcher ends a run if a process dies
        raise KeyboardInterrupt("terminated")

    def keep(event: Any) -> None:  # Python drops an interrupt in a destructor or a callback
        if isinstance(event.exc_value, KeyboardInterrupt):
            _dropped.append(event.exc_value.args)
        else:
            report(event)

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if in_main else None
    sys.unraisablehook, report = keep, sys.unraisablehook
    try:
        yield
    except KeyboardInterrupt as stop:
        text = "terminated" if stop.args else "stopped"
        if output is not None:
            text += f"; what was {'measured' if resumes else 'finished'} is in {output}"
        if resumes:
            text += ": run the same command again, and it goes on from there"
        say(HfGmarError(text))
        raise typer.Exit(143 if stop.args else 130) from None
    finally:
        sys.unraisablehook = report
        _dropped.clear()
        if in_main:
            signal.signal(signal.SIGTERM, before)


_dropped: list[tuple[Any, ...]] = []  # the arguments of interrupts that Python dropped


def stop_if_interrupted() -> None:
    """Raise an interrupt that Python dropped; called between two results."""
    if _dropped:
        raise KeyboardInterrupt(*_dropped.pop())


def _of_the_system(error: OSError, output: Path | None) -> HfGmarError:
    """Say what the file system refused, and what to do."""
    reason = reason_of_system(error)
    if error.errno in _FULL and output is not None:
        return HfGmarError(
            f"{output} can't be written: {reason}; what was finished is kept: make room, or name "
            "another folder with --output"
        )
    return HfGmarError(f"{error.filename}: {reason}" if error.filename else reason)


def method_options(pairs: list[str] | None, **shortcuts: Any) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` pairs and join them with options that have their own flags.

    Raises:
        OptionError: an option is not NAME=VALUE, or is given twice.
    """
    options = {name: value for name, value in shortcuts.items() if value is not None}
    for text in pairs or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--option takes NAME=VALUE, such as head_fusion=max; got {text!r}")
        if name in options:
            raise OptionError(f"the option {name} is given twice; give it once")
        options[name] = parse_value(value)
    return options


def quiet() -> None:
    """Silence the libraries' output on the terminal."""
    from huggingface_hub.utils import logging as huggingface_logging
    from transformers.utils import logging as transformers_logging

    # The Hub client logs each retry before the one error that follows.
    huggingface_logging.set_verbosity_error()
    # Progress bars of local files would clutter the results.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OptionError(
            f"nothing can be written to --output {output}: {reason_of_system(error)}; name another "
            "folder"
        ) from error


def _expand(sources: list[Path], output: Path | None) -> tuple[list[Path], int]:
    """Return the image files of ``sources``, and the number of sources that can't be read."""
    from hf_gmar.data.image_files import find_images

    paths: dict[Path, Path] = {}  # a file that is given twice is one image
    failed = 0
    for source in sources:
        if re.match(r"(https?|ftp|file|s3|gs):/", str(source)):
            raise OptionError(
                f"{visible(source)} is a URL, and images are files or folders here; download it "
                "first, as with 'curl -O URL'"
            )
        try:
            for path in find_images(source, skip=output):
                paths.setdefault(Path(os.path.realpath(path)), path)
        except HfGmarError as error:
            failed += 1
            say(error, source)
    return list(paths.values()), failed


def say(error: Exception, path: Path | None = None) -> None:
    """Print an error as one line, with the path of its file."""
    where = f"{visible(path)}: " if path is not None and str(path) not in str(error) else ""
    text = " ".join(f"{where}{one_line(error)}".split())
    print_marked("error", "red", text)


def note(text: str) -> None:
    """Print a notice to the user as one line."""
    print_marked("note", "yellow", text)


def print_marked(kind: str, colour: str, text: str) -> None:
    """Print a line on the error stream that begins with its kind."""
    line = Text.assemble((f"{kind}:", colour), f" {visible(text)}")
    err.print(line, soft_wrap=True, highlight=False)


def print_table(table: Table) -> None:
    """Print a table, or a list of its rows if the terminal would break words in its columns."""
    size = _size(table)
    if size.minimum <= out.width:
        if size.maximum > out.width:  # rich would break words of some columns, with room in others
            for column in table.columns:
                cells = [_size(cell) for cell in (column.header, *column.cells)]
                low, high = (max(side) for side in zip(*cells, strict=True))
                room = (out.width - size.minimum) / (size.maximum - size.minimum)
                column.width = low + int((high - low) * room)
        out.print(table)
        return
    if table.title:
        out.print(table.title, style="bold", highlight=False)
    headings = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        out.print()
        for heading, cell in zip(headings, row, strict=True):
            text = f"{heading}: {cell}" if heading else str(cell)
            # A word that is wider than the terminal stays whole, to be copied.
            is_narrow = max(map(len, text.split()), default=0) <= out.width - _INDENT
            padded = Padding(text, (0, 0, 0, _INDENT), expand=False)
            out.print(padded if is_narrow else text, soft_wrap=not is_narrow, highlight=False)
    out.print()


def _size(item: RenderableType) -> Measurement:
    """Measure the columns that an item needs with and without line breaks between words."""
    return Measurement.get(out, out.options.update(width=_WIDE), item)


def print_lines(lines: Iterable[object]) -> None:
    """Print lines without breaks, so that they can be copied."""
    for line in lines:
        out.print(visible(line), soft_wrap=True, highlight=False)
