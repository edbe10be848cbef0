"""A strict reading of a page: tags are balanced, links lead somewhere, images say what they are."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "source", "br", "hr"}


@dataclass
class Page:
    """What a page holds."""

    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.page.ids.append(values["id"])
        if tag == "a":
            self.page.links.append(values["href"])
        if tag == "img":
            self.page.images.append(values)
            self.page.sources.append(values["src"])
        if tag == "source":
            self.page.sources.append(values["srcset"])
        if tag == "h2":
            self.page.headings.append("")
        if tag == "tr":
            self.page.rows.append([])
        if tag in ("td", "th"):
            self.page.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        if "h2" in self.open:
            self.page.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.page.rows[-1][-1] += data
        self.page.text += data


def read_page(path: Path) -> Page:
    """Parses a report and checks what every report promises."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    page = reader.page
    assert not reader.open
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (path.parent / link).is_file(), link
    for image in page.images:
        assert image["alt"]
        assert image["width"]
        assert image["height"]
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    page.text = " ".join(page.text.split())
    page.rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    return page
