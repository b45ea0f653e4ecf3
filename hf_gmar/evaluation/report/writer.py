"""Writes the files of a report: JSON, Markdown, HTML and figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token
from matplotlib.figure import Figure
from PIL import Image

from hf_gmar._utils.files import save_text, whole_file
from hf_gmar.evaluation.report.figures import curves_figure, differences_figure, examples_figure
from hf_gmar.evaluation.report.markdown import Picture, page
from hf_gmar.evaluation.report.results import ExampleMaps, Results, faithfulness
from hf_gmar.evaluation.report.summary import Summary
from hf_gmar.visualization.overlay import save_figure

_LONGEST_STEM = 100  # letters of a figure's file name
_MAX_PNG = 1_000_000  # bytes; the page embeds larger figures as WebP

EXAMPLES = "Examples"
"""The heading above the example maps."""


def write_report(
    folder: str | Path, summary: Summary, examples: Sequence[ExampleMaps] | None = None
) -> list[Path]:
    """Write ``summary.json``, ``report.md``, ``report.html`` and the figures.

    If one file can't be made, none is written. ``report.md`` links the figures beside it;
    ``report.html`` embeds them.

    Args:
        folder: the output folder, created if it is missing.
        summary: the result of :func:`~hf_gmar.evaluation.report.summary.summarize`.
        examples: images with their maps, for one more figure.

    Returns:
        The paths of the files.

    Example:
        >>> import tempfile
        >>> from hf_gmar.evaluation import summarize
        >>> rows = [{"index": 0, "key": "a", "method": "gmar", "values": {"deletion:blur": 0.2}}]
        >>> paths = write_report(tempfile.mkdtemp(), summarize(rows, {}, {"deletion": False}))
        >>> [path.name for path in paths]
        ['summary.json', 'report.md', 'report.html']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(summary, [item for item in examples or () if item.maps])
    markdown = page(summary, pictures)
    texts = {"summary.json": summary.to_json(), "report.md": markdown}
    with ExitStack() as stack:
        figures = {}
        for picture in pictures:
            part = stack.enter_context(whole_file(folder / picture.file))
            save_figure(picture.draw(), part)
            figures[picture.file] = part.read_bytes()
        texts["report.html"] = html(markdown, figures)
        for name, text in texts.items():
            save_text(stack.enter_context(whole_file(folder / name)), text)
    return [folder / name for name in (*texts, *figures)]


def html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    r"""Convert a page of Markdown to HTML with embedded figures.

    Args:
        markdown: the page; its first line is the title.
        pictures: PNG files by the name that the page links.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("text", _text)
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(markdown)
    headings = list(_name_headings(tokens))  # adds the ids that are rendered below
    _embed(tokens, pictures)
    # The contents stand between the first section's heading and what is above it.
    sections = (place for place, token in enumerate(tokens) if token.tag == "h2")
    start = next(sections, len(tokens))
    head, body = (
        parser.renderer.render(part, parser.options, {})
        for part in (tokens[:start], tokens[start:])
    )
    source = (files("hf_gmar") / "assets" / "report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(source)
    title = _words(tokens[1])
    return template.render(title=title, headings=headings, head=head, body=body)


def pictures_of(results: Results, examples: Sequence[ExampleMaps]) -> list[Picture]:
    """List the figures in the order of the page."""
    pictures: list[Picture] = []
    files: set[str] = set()

    def add(group: str, stem: str, caption: str, draw: Callable[[], Figure]) -> None:
        pictures.append(Picture(group, _unique_file(stem, files), caption, draw))

    for name in dict.fromkeys(curve.perturbation for curve in results.curves):
        caption = (
            "Mean score of the explained class while more and more patches are removed, most or "
            f"least relevant first, by {name}, with 95 % bands. The further apart a method's two "
            "curves are, the better its ranking of the patches."
        )
        draw = partial(curves_figure, results, name)
        add(faithfulness(name), f"curves-{name}", caption, draw)
    for title, measures in results.groups.items():
        if compared := results.compared(measures):
            baseline = results.title(str(results.baseline))
            caption = (
                f"Paired differences to {baseline} with 95 % intervals. "
                "Filled marks are significant after Holm's correction."
            )
            stem = f"differences-{measures[0].perturbation or title}"
            add(title, stem, caption, partial(differences_figure, results, compared))
    if examples:
        caption = "Maps of each method on some of the images."
        add(EXAMPLES, "examples", caption, partial(examples_figure, results, examples))
    return pictures


def _unique_file(stem: str, taken: set[str]) -> str:
    """Return a unique file name of plain letters."""
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:_LONGEST_STEM]
    name, number = slug, 2
    while name in taken:
        name, number = f"{slug}-{number}", number + 1
    taken.add(name)
    return f"{name}.png"


def _name_headings(tokens: Sequence[Token]) -> Iterator[tuple[str, str]]:
    """Give each second-level heading an id; yield the id and the text."""
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            name = f"section-{place}"
            token.attrSet("id", name)
            yield name, _words(tokens[place + 1])


def _words(inline: Token) -> str:
    return "".join(token.content for token in inline.children or ())


def _embed(tokens: Sequence[Token], pictures: Mapping[str, bytes]) -> None:
    for inline in tokens:
        for token in inline.children or ():
            if token.type == "image":
                kind, data = "png", pictures[str(token.attrGet("src"))]
                if len(data) > _MAX_PNG:
                    kind, data = "webp", _as_webp(data)
                code = base64.b64encode(data).decode()
                token.attrSet("src", f"data:image/{kind};base64,{code}")


def _as_webp(png: bytes) -> bytes:
    webp = BytesIO()
    with Image.open(BytesIO(png)) as picture:
        picture.convert("RGB").save(webp, "WEBP", quality=85)
    return webp.getvalue()


def _text(_renderer: Any, tokens: Sequence[Token], place: int, *_rest: Any) -> str:
    """Render a text, with intervals and marks in their own elements."""
    text = escapeHtml(tokens[place].content)
    # Only intervals contain a no-break space: in users' names it becomes a plain space.
    text = re.sub(r"\[[^\]]*\u00a0[^\]]*\]", r'<span class="interval">\g<0></span>', text)
    for sign, name in (("▲", "better"), ("▼", "worse"), ("[△▽]", "differs")):
        text = re.sub(rf"{sign}\**", rf'<span class="{name}">\g<0></span>', text)
    return text
