"""What ``mkdocs.yml`` needs beyond MkDocs: pages from outside ``docs/``, and formulas as MathML.

On GitHub, a page links to any file of the repository. On the site, such a file becomes a page
(Markdown, code, a folder) or a copy (pictures, notebooks), and the links lead there.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/results/engine.md": "results/engine.md",
    "benchmarks/results/prompts.md": "results/prompts.md",
    "hf_gmar/assets/model/README.md": "project/model-card.md",
}
"""Files of the repository that are pages with a name of their own."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_PICTURE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>')
_LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".txt": "text", ".csv": "text"}
_NOT_SEARCHED = ("repository/", "results/photos/", "results/scenes/")
_COPIED = {".png", ".jpg", ".webp", ".ipynb"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and copies of what lies outside ``docs/`` and is linked from a page."""
    waiting = [*NAMED, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    added: set[str] = set()
    while waiting:
        source = waiting.pop()
        if not source.startswith("docs/") and source not in added:
            added.add(source)
            files.append(_file(source, config))
        if source.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            waiting += [path for path in _linked(text, source) if path not in added | {source}
                        and not path.startswith("docs/")]  # fmt: skip
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to the pages and copies of the site."""
    del config, files
    if page.file.src_uri.startswith(_NOT_SEARCHED):
        page.meta["search"] = {"exclude": True}
    return with_links(markdown, page.file.src_uri)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show formulas as MathML, which needs no script, and let each picture open in full size."""
    del page, config, files
    return _PICTURE.sub(r'<a class="picture" href="\1">\g<0></a>', _FORMULA.sub(_mathml, content))


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula: str = convert(html.unescape(match[2]), display=display)
    return f'<div class="formula">{formula}</div>' if match[1] == "div" else formula


def site_path(path: str) -> str:
    """Say where a file of the repository is among the sources of the site.

    Example:
        >>> site_path("docs/gmar.md"), site_path("README.md"), site_path("examples/plugin")
        ('gmar.md', 'index.md', 'repository/examples/plugin/index.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in NAMED:
        return NAMED[path]
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    copied = PurePosixPath(path).suffix in _COPIED or path.endswith(".md")
    return f"repository/{path}" if copied else f"repository/{path}.md"


def repository_path(uri: str) -> str:
    """Say which file of the repository a source of the site is."""
    for path, name in NAMED.items():
        if name == uri:
            return path
    if not uri.startswith("repository/"):
        return f"docs/{uri}"
    path = uri.removeprefix("repository/").removesuffix("/index.md")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def with_links(text: str, uri: str) -> str:
    """Replace each link of a page to a file of the repository by the link to it on the site.

    Example:
        >>> with_links("[us](../README.md#which-models)", "gmar.md")
        '[us](index.md#which-models)'
    """
    source, folder = repository_path(uri), posixpath.dirname(uri)

    def replaced(match: re.Match[str]) -> str:
        path = _resolved(match[1], source)
        if path is None:
            return match[0]
        return posixpath.relpath(site_path(path), folder or ".") + match[2]

    return _LINK.sub(replaced, text)


def _resolved(link: str, source: str) -> str | None:
    """Resolve a link of a file; None if it leads to no file of the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _linked(text: str, source: str) -> Iterator[str]:
    for link, _ in _LINK.findall(text):
        path = _resolved(link, source)
        if path is not None:
            yield path


def _file(path: str, config: MkDocsConfig) -> File:
    uri, source = site_path(path), ROOT / path
    if source.is_file() and (source.suffix in _COPIED or source.suffix == ".md"):
        return File.generated(config, uri, abs_src_path=os.fspath(source))
    hidden = InclusionLevel.NOT_IN_NAV
    return File.generated(config, uri, content=code_page(path), inclusion=hidden)


def code_page(path: str) -> str:
    """Write a page that shows a file of code, or all files of a folder."""
    source = ROOT / path
    files = [source] if source.is_file() else sorted(_files_of(source))
    parts = [f"# {path}\n"]
    for file in files:
        if file != source:
            parts.append(f"## {file.relative_to(source).as_posix()}\n")
        language = _LANGUAGES.get(file.suffix, "text")
        parts.append(f"``````{language}\n{file.read_text(encoding='utf-8')}``````\n")
    return "\n".join(parts)


def _files_of(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.parts)
        if path.is_file() and not hidden and ".egg-info" not in path.as_posix():
            yield path
