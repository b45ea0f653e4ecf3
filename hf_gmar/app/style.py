"""The looks of the page: Gradio's theme, and the style sheet and script of its own elements."""

from __future__ import annotations

from importlib.resources import files

import gradio as gr


def page_theme() -> gr.themes.Base:
    """Return Gradio's theme with the fonts of the visitor's system, and legible greys."""
    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
    )


def page_style() -> str:
    """Return the style sheet of the page's own elements."""
    return _asset("page.css")


def page_script() -> str:
    """Return the script of the page's own elements, as HTML."""
    return f"<script type='module'>{_asset('elements.js')}</script>"


def _asset(name: str) -> str:
    return (files("hf_gmar") / "assets" / "app" / name).read_text(encoding="utf-8")
