"""Prepares docstrings for mkdocstrings: names of sections, links in place of Sphinx's roles."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Rewrite a docstring.

    Example:
        >>> print(rewritten("What :func:`explain` gives."))
        What <autoref optional identifier="hf_gmar.explain"><code>explain</code></autoref> gives.
    """
    return _ROLE.sub(_link, _EXAMPLE.sub(r"\1Examples:", text))


def _link(match: re.Match[str]) -> str:
    name = match[2]
    identifier = name if name.startswith("hf_gmar.") else f"hf_gmar.{name}"
    shown = name.rpartition(".")[2] if match[1] else name
    return f'<autoref optional identifier="{identifier}"><code>{shown}</code></autoref>'
