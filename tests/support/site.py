"""The built site: its pages, as they are on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {
    ("script", "src"), ("img", "src"), ("source", "src"), ("source", "srcset"), ("iframe", "src"),
    ("link", "href"), ("object", "data"), ("embed", "src"), ("video", "src"), ("audio", "src"),
}  # fmt: skip


@dataclass
class Page(HTMLParser):
    """What a page names, loads and links to."""

    path: Path
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    tags: list[str] = field(default_factory=list)
    """Of its content, without those of the frame around it."""

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = False
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag names, loads and links to."""
        named = {name: value or "" for name, value in attrs}
        self.loads += [value for name, value in named.items() if (tag, name) in _LOADED]
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        self._inside |= tag == "article"
        if self._inside:
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """End the content."""
        self._inside &= tag != "article"


def read_site(folder: Path) -> dict[Path, Page]:
    """Read all pages of a built site."""
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def is_external(link: str) -> bool:
    """Whether a link leads to another place than the folder of the site."""
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def broken_links(site: dict[Path, Page]) -> Iterator[str]:
    """Each link inside the site that leads to no file, or to no anchor of its page."""
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if is_external(link) or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = site[target].anchors if target in site else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                yield f"{path.name}: {link}"
