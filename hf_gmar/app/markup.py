"""Answers as HTML: every text from outside is escaped, and pictures are part of the page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from torch import Tensor

from hf_gmar._utils.html import html_line, html_table, html_text
from hf_gmar._utils.text import brief
from hf_gmar.app.answers import Answer, Heads, PatchAttention, Question, Reveal
from hf_gmar.app.images import EXAMPLES, example_of
from hf_gmar.data.scenes import draw_scene
from hf_gmar.errors import HfGmarError, reason_of
from hf_gmar.explanation import COMPRESSION, Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.faithfulness import FaithfulnessCheck
from hf_gmar.models.image_view import ImageView
from hf_gmar.report.html_report import ReportWriter
from hf_gmar.visualization.notebook import html_image
from hf_gmar.visualization.overlay import (
    COLOUR_MAP,
    OPACITY,
    ColourScale,
    colour_scale,
    overlay_image,
)

_SIDE = 640  # pixels of the longer side of a picture on the page


def explanation_html(question: Question, answer: Answer) -> str:
    """Return the maps, each with its colours, and what can be downloaded."""
    results = answer.results
    first = results[0]
    shown = _resized(first.image)
    cards = [_card(result, shown) for result in results]
    cards += [_failure(title, error) for title, error in results.failures.items()]
    links = "".join(_download(item) for item in downloads(results))
    notes = "".join(html_line(note) for note in (first.score_kind.note,) if note)
    lead = "The chosen class" if question.target.strip() else "The model's answer"
    return (
        f'<section class="gmar-answer" aria-label="Explanation">{_link(question, first)}'
        f'<p class="gmar-hint">{lead}</p><h2>{html_text(first.title)}</h2>{notes}'
        f'<div class="gmar-cards">{"".join(cards)}</div>'
        f'<p class="gmar-downloads">{links}</p></section>'
    )


def _card(result: Explanation, shown: Image.Image) -> str:
    view = result.view.scaled(shown.height, shown.width)
    colours = colour_scale(result.drawn_map)
    heatmap = view.project(result.drawn_map, smooth=True)
    picture = overlay_image(shown, heatmap, colours.name, scale=(colours.low, colours.high))
    unseen = " Dark parts are not seen by the model." if result.view.unexplained else ""
    values = f"{result.unit} per {result.per}"
    text = f"The image under the map of {result.method_title} for {result.title}: {values}"
    return (
        f'<figure class="gmar-card"><figcaption><strong>{html_text(result.method_title)}</strong>'
        f"<span>{html_text(result.shows + unseen)}</span></figcaption>"
        f"{_picture(picture, text)}{_bar(colours, values)}"
        f"{html_line(result.flatness) if result.flatness else ''}</figure>"
    )


def _failure(title: str, error: HfGmarError) -> str:
    return (
        f'<figure class="gmar-card"><figcaption><strong>{html_text(title)}</strong></figcaption>'
        f"<p>No map: {html_text(reason_of(error), 600)}</p></figure>"
    )


def _bar(colours: ColourScale, values: str) -> str:
    ramp = np.linspace(colours.low, colours.high, 256, dtype=np.float32)[None]
    strip = Image.blend(Image.new("RGB", (256, 1), "white"), colours.picture(ramp), OPACITY)
    low, high = f"{colours.low:.2g}", f"{colours.high:.2g}"
    if colours.low < 0:
        low, high = f"{low} (against)", f"{high} (for)"
    return (
        f'<div class="gmar-bar"><img alt="" src="{_data(_png(strip))}"><span>{low}</span>'
        f"<span>{high}</span><span>{html_text(values)}</span></div>"
    )


@dataclass(frozen=True)
class Download:
    """A file that the visitor may save; it is part of the page.

    Attributes:
        title: what the link says.
        name: the name of the file.
        kind: its media type.
        content: its bytes.
    """

    title: str
    name: str
    kind: str
    content: bytes


def downloads(results: Explanations) -> Iterable[Download]:
    """Yield the picture, and the numbers of each map.

    The files are those of ``Explanations.save``.
    """
    picture = _png(results.picture())
    name = results.file_name("image") if len(results) > 1 else results[0].file_name("image")
    yield Download("Download the picture (PNG)", f"{name}.png", "image/png", picture)
    for result in results:
        title = f"Download the numbers of {result.method_title} for NumPy"
        stem = result.file_name("image")
        yield Download(title, f"{stem}.npz", "application/octet-stream", result.archive())


def _download(item: Download) -> str:
    return (
        f'<a download="{html_text(item.name)}" href="{_data(item.content, item.kind)}">'
        f"{html_text(item.title)}</a>"
    )


def _link(question: Question, first: Explanation) -> str:
    """Return the element that puts the state of the page into its address."""
    seed = example_of(question.image)
    if seed is None:
        return '<gmar-link href="?"></gmar-link>'
    values = {
        "example": seed,
        "model": question.model,
        "prompts": question.prompts if "prompts" in first.settings else "",
        "class": question.target and f"index:{first.target}",
        "contrast": question.contrast and f"index:{first.contrast_target}",
        "methods": ",".join(filter(None, question.methods)),
    }
    query = urlencode({name: value for name, value in values.items() if value != ""})
    return f'<gmar-link href="?{html.escape(query)}"></gmar-link>'


def checks_html(results: Explanations, checks: Sequence[FaithfulnessCheck]) -> str:
    """Return the sentence, the figure and the table of each check, and a report with all of it."""
    parts = []
    for result, check in zip(results, checks, strict=True):
        verdict = check.verdict.replace(" ", "-")
        parts.append(
            f'<section class="gmar-check gmar-{verdict}"><h3>{html_text(result.method_title)}</h3>'
            f"{_line(check.sentence + _patches_of(result))}"
            f"{html_image(check.figure(stacked=True), _figure_text(check))}"
            f"<details><summary>All numbers</summary>{html_table(check.table())}</details>"
            "</section>"
        )
    link = _download(_report(results, checks))
    return f'<div class="gmar-cards">{"".join(parts)}</div><p class="gmar-downloads">{link}</p>'


def _patches_of(result: Explanation) -> str:
    """Return what a patch has of a map of pixels: it is patches that the model is asked about."""
    return "" if result.fine_map is None else " A patch has the sum of its pixels."


def _figure_text(check: FaithfulnessCheck) -> str:
    """Return what the figure shows, for those who don't see it; the table has its numbers."""
    return (
        f"Figure: {check.score_kind.measure} of {check.label} with only the map's patches, and "
        "with all but them, beside random patches"
    )


def _report(results: Explanations, checks: Sequence[FaithfulnessCheck]) -> Download:
    """Return the maps with their checks as a page of their own, as of ``hf-gmar report``."""
    pairs = zip(results, checks, strict=True)
    checked = Explanations(
        (replace(result, faithfulness=check) for result, check in pairs), results.failures
    )
    page = StringIO()
    with ReportWriter(page, results[0].title, check=False, total=1) as writer:
        writer.add(checked)
    return Download("Report (HTML)", "report.html", "text/html", page.getvalue().encode())


def reveals_html(reveals: Sequence[Reveal]) -> str:
    """Return an element for each map, on which a slider moves the number of patches."""
    return f'<div class="gmar-cards">{"".join(map(_reveal, reveals))}</div>'


def _reveal(item: Reveal) -> str:
    result = item.result
    text = result.score_kind.text
    total = item.counts[-1]
    sentences = [
        f"{count} of {total} patches ({count / total:.0%}): {brief(result.label)} {text(score)}"
        for count, score in zip(item.counts, item.scores, strict=True)
    ]
    found = item.enough
    enough = (
        f"{item.counts[found]} of {total} patches keep 90% of the score; the whole image has "
        f"{text(item.scores[-1])}."
        if found is not None
        else "The score of the whole image is not positive, so no share of it can be kept."
    )
    low, high = min(0.0, *item.scores), max(item.scores)
    high = 1.0 if result.probability is not None else high
    state = {
        **_scene(result),
        "ranks": item.ranks.flatten().tolist(),
        "counts": item.counts,
        "texts": sentences,
        "heights": [(score - low) / ((high - low) or 1) for score in item.scores],
        "start": found if found is not None else len(item.counts) - 1,
    }
    return (
        f'<figure class="gmar-card"><figcaption><strong>{html_text(result.method_title)}</strong>'
        f"<span>{html_text(enough + _patches_of(result))}</span></figcaption>"
        f'<gmar-reveal data-state="{_json(state)}"></gmar-reveal></figure>'
    )


def heads_html(item: Heads) -> str:
    """Return an element with the heads' importance, which shows where a chosen head attends."""
    result = item.result
    best = int(item.importance[-1].argmax())
    state = {
        **_scene(result),
        **_attention(item.maps),
        "importance": [[round(value, 4) for value in row] for row in item.importance.tolist()],
        "palette": base64.b64encode(_palette(COLOUR_MAP)).decode(),
        "opacity": OPACITY,
        "start": [len(item.importance) - 1, best],
        "label": brief(result.label),
    }
    return f'{_line(_HEADS_LEAD)}<gmar-heads data-state="{_json(state)}"></gmar-heads>'


_HEADS_LEAD = (
    "Each cell is a head. Its number says how much it moves the class, as a share of its layer in "
    "percent (GMAR's weight). Choose a head to see where it looks when the model forms its "
    "answer. Choose a patch to see where that patch looks."
)


def attention_html(item: PatchAttention) -> str:
    """Return an element that hands the attention of a patch to that of the heads."""
    state = {**_attention(item.maps), "place": item.place}
    return f'<gmar-attention data-state="{_json(state)}"></gmar-attention>'


def _attention(maps: Tensor) -> dict[str, Any]:
    """Return maps (layers, H, rows, columns) as bytes, each with its maximum as a number."""
    peaks = maps.flatten(2).amax(2)
    levels = (maps / peaks[..., None, None].clamp_min(1e-30) * 255).round().byte()
    return {
        "levels": base64.b64encode(levels.numpy().tobytes()).decode(),
        "peaks": [[float(f"{value:.2g}") for value in row] for row in peaks.tolist()],
    }


def examples_html(most: int) -> str:
    """Return the element that takes an image: a file, one that is pasted or dropped, an example.

    Args:
        most: the most bytes of a file.
    """
    examples = []
    for seed in EXAMPLES:
        scene = draw_scene(seed)
        source = _data(_png(scene.image))
        examples.append({"seed": seed, "src": source, "name": ", ".join(scene.names)})
    return f'<gmar-upload data-most="{most}" data-examples="{_json(examples)}"></gmar-upload>'


def example_picture(seed: int) -> str:
    """Return an example as a data URI."""
    return _data(_png(draw_scene(seed).image))


def _scene(result: Explanation) -> dict[str, Any]:
    """Return the picture and the place of the patches on it."""
    shown = _resized(result.image)
    view: ImageView = result.view.scaled(shown.height, shown.width)
    return {
        "src": _data(_photo(shown), "image/jpeg"),
        "size": [shown.height, shown.width],
        "box": [round(edge, 3) for edge in view.box],
        "grid": list(result.patches.shape),
    }


def _resized(image: Image.Image) -> Image.Image:
    """Return a copy for the page, made larger if the image is small."""
    share = _SIDE / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.convert("RGB").resize(size, reducing_gap=2.0)


def _picture(image: Image.Image, text: str) -> str:
    return f'<img alt="{html_text(text)}" src="{_data(_photo(image), "image/jpeg")}">'


def _palette(name: str) -> bytes:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return ColourScale(name, 0.0, 1.0).picture(ramp).tobytes()


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=COMPRESSION)
    return file.getvalue()


def _photo(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _json(value: object) -> str:
    return html.escape(json.dumps(value, separators=(",", ":")))


def _line(text: str) -> str:
    return f"<p>{html_text(text, 600)}</p>"
