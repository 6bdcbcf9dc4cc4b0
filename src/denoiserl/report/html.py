"""Self-contained HTML pages: one file, without network access or other files.

A report is a title and sections; a section is a title and pieces: ``Prose``, ``Code``, ``Note``, ``Table``, ``Figure``,
``Gallery``, ``Settings``, ``Fold``. The page is ``templates/page.html.j2``: all text is escaped, and a content policy
forbids it to load anything.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.report.style import DARK, LIGHT, Theme
from denoiserl.stats.comparison import LABELS, Comparison

ON_PAGE = 0.57
"""pixels on the page per pixel of a plot"""


@dataclass(frozen=True)
class Prose:
    """Paragraphs, separated by empty lines; `backticks` (or ``two``) are code. Everything else is text."""

    text: str

    def paragraphs(self) -> list[str]:
        """Return the text, split at empty lines."""
        return [p for p in re.split(r"\n\s*\n", self.text.strip()) if p]


@dataclass(frozen=True)
class Code:
    """Lines that keep their breaks and spaces: commands, equations."""

    text: str


@dataclass(frozen=True)
class Note:
    """A highlighted remark: a warning, a limit, or what is missing."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a head. Columns whose cells are all numbers are aligned at their right.

    ``strong`` are the indices of rows in bold, ``numbers`` those of columns of numbers that were given as text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    strong: Sequence[int] = ()
    numbers: Sequence[int] = ()

    def number_columns(self) -> list[bool]:
        """Return which columns hold numbers. Raise RunError for a row without one cell per column."""
        width = len(self.head)
        for i, row in enumerate(self.rows):
            if len(row) != width:
                raise RunError(f"row {i} of the table has {len(row)} cells under {width} heads: give one per column.")
        columns = zip(*self.rows, strict=True) if self.rows else [()] * width
        found = [bool(c) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in c) for c in columns]
        return [j in self.numbers or number for j, number in enumerate(found)]


@dataclass(frozen=True)
class Figure:
    """A picture or video: PNG, JPEG, GIF, SVG or MP4.

    ``dark`` is the same picture for dark pages, ``width`` its width in pixels of the page.
    """

    data: bytes
    caption: str = ""
    alt: str = ""
    dark: bytes | None = None
    width: int | None = None


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, as many in a line as there is room for."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Settings:
    """A value as JSON, initially folded."""

    title: str
    values: Any

    def as_text(self) -> str:
        """Return the value as JSON."""
        return json.dumps(self.values, indent=2, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Fold:
    """Pieces that are initially folded."""

    title: str
    pieces: Sequence[Piece]


Piece = Prose | Code | Note | Table | Figure | Gallery | Settings | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    pieces: Sequence[Piece]


def render_page(title: str, sections: Sequence[Section], lead: str = "", footer: str = "") -> str:
    """Return the whole document as a string. Raise RunError for a piece that a report cannot show."""
    foot = footer or f"Made by DenoiseRL on {datetime.datetime.now().astimezone():%d %B %Y, %H:%M}."
    return (
        _environment()
        .get_template("page.html.j2")
        .render(title=title, sections=_anchor(sections), lead=lead, footer=foot, light=LIGHT, dark=DARK)
    )


def write_page(path: Path | str, title: str, sections: Sequence[Section], lead: str = "", footer: str = "") -> Path:
    """Write the page to ``path``, whole or not at all, and return the path."""
    return store.write_text(path, render_page(title, sections, lead, footer))


def make_figure(draw: Callable[[Theme], bytes], caption: str = "", alt: str = "", width: int | None = None) -> Figure:
    """Return a Figure for light and dark pages from ``draw(theme) -> PNG bytes``, with the same letter size in all."""
    light = draw(LIGHT)
    return Figure(light, caption, alt, draw(DARK), width or round(int.from_bytes(light[16:20], "big") * ON_PAGE))


def comparison_section(comparisons: Sequence[Comparison], title: str = "Before and after") -> Section:
    """Return a section with the comparisons as a plot, as sentences and as a table."""
    from denoiserl.report.learning_curves import plot_comparisons

    verdicts = [f"{c.name}, {c.metric}: {c.verdict()}." for c in comparisons]
    figure = make_figure(
        lambda theme: plot_comparisons(comparisons, theme),
        "Dots are means, lines are 95 % intervals.",
        " ".join(verdicts),
        760,
    )
    return Section(title, [figure, Prose("\n\n".join(verdicts)), comparison_table(comparisons)])


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table of every row of every comparison, with its interval and number of observations."""
    rows: list[tuple[object, ...]] = []
    strong: list[int] = []
    for c in comparisons:
        for label, row in c.rows:
            if label == LABELS["after"]:
                strong.append(len(rows))
            mean, low, high = c.format_value(row.mean), c.format_value(row.low), c.format_value(row.high)
            rows.append((c.name, c.metric, label, mean, f"{low} – {high}", row.n))
    return Table(("task", "metric", "", "mean", "95 % interval", "n"), rows, strong=strong, numbers=(3, 4))


def media_type(data: bytes) -> str:
    """Return the media type of a picture or video from its first bytes. Raise RunError for an unknown one."""
    kinds: dict[bytes, str] = {b"\x89PNG": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}
    kinds |= {b"<svg": "image/svg+xml"}  # in <img>, where its scripts cannot run
    for start, kind in kinds.items():
        if data.startswith(start):
            return kind
    if data[4:8] == b"ftyp":
        return "video/mp4"
    raise RunError(f"these {len(data)} bytes are no PNG, JPEG, GIF, SVG or MP4: the file may be truncated.")


def _anchor(sections: Sequence[Section]) -> dict[str, Section]:
    """Return the sections by anchors that are unique on the page."""
    found: dict[str, Section] = {}
    for section in sections:
        base = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        marks = (base, *(f"{base}-{i}" for i in range(2, len(sections) + 1)))
        found[next(mark for mark in marks if mark not in found)] = section
    return found


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    made.filters |= {"inline": _inline, "cell": _cell, "kind": _kind, "data_url": _data_url, "media_type": media_type}
    return made


def _kind(piece: object) -> str:
    if not isinstance(piece, Piece):
        raise RunError(f"a report cannot show a {type(piece).__name__}: use the pieces of denoiserl.report.html.")
    return type(piece).__name__


def _data_url(data: bytes) -> str:
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode('ascii')}"


def _inline(text: str) -> Markup:
    return Markup(re.sub(r"(`+)([^`\n]+)\1", r"<code>\2</code>", str(escape(text))))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
