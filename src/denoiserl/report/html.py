"""One HTML file that holds everything it shows: no network, no fonts to fetch, nothing beside it.

A report is a title and sections; a section is a title and pieces: ``Prose``, ``Code``, ``Note``, ``Table``, ``Figure``,
``Gallery``, ``Settings``, ``Fold``. All text is escaped. A content policy in the page forbids it to load anything.
"""

from __future__ import annotations

import base64
import datetime
import html
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.report.style import CSS, DARK, LIGHT, Theme
from denoiserl.stats.comparison import LABELS, Comparison

ON_PAGE = 0.57
"""pixels of the page for one of a plot's picture"""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Prose:
    """Paragraphs, separated by empty lines; `backticks` (or ``two``) are code. Everything else is text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines that keep their breaks and spaces: commands, equations."""

    text: str


@dataclass(frozen=True)
class Note:
    """Something that the reader must not miss: a warning, a limit, what is absent."""

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


@dataclass(frozen=True)
class Figure:
    """A picture or film: PNG, JPEG, GIF, SVG or MP4 as bytes, or an SVG of our own making as a string.

    ``dark`` is the same picture for dark pages, ``width`` its width in pixels of the page. An SVG goes into
    the page as it is, where it takes the page's colours: it must come from this library and not from a user.
    """

    data: bytes | str
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
    """A value as JSON, folded away until it is asked for."""

    title: str
    values: Any


@dataclass(frozen=True)
class Fold:
    """Pieces that are folded away until they are asked for."""

    title: str
    pieces: Sequence[Piece]


Piece = Prose | Code | Note | Table | Figure | Gallery | Settings | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    pieces: Sequence[Piece]


def page(title: str, sections: Sequence[Section], lead: str = "", footer: str = "") -> str:
    """The whole document as a string."""
    marks = _marks(sections)
    links = " ".join(f'<a href="#{m}">{_text(s.title)}</a>' for m, s in zip(marks, sections, strict=True))
    body = "".join(
        f'<section id="{mark}"><h2>{_text(s.title)}</h2>{"".join(map(piece, s.pieces))}</section>\n'
        for mark, s in zip(marks, sections, strict=True)
    )
    head = f'<p class="lead">{_inline(lead)}</p>' if lead else ""
    head += f"<nav>{links}</nav>" if len(sections) > 1 else ""
    made = footer or f"Made by DenoiseRL on {datetime.datetime.now().astimezone():%d %B %Y, %H:%M}."
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">'
        f"<title>{_text(title)}</title><style>{CSS}</style></head>\n<body>"
        f"<header><h1>{_text(title)}</h1>{head}</header>\n<main>\n{body}</main>\n"
        f"<footer>{_inline(made)}</footer></body></html>\n"
    )


def write(path: Path | str, title: str, sections: Sequence[Section], lead: str = "", footer: str = "") -> Path:
    """Write the page to ``path``, whole or not at all: a reader sees the old page or the new one."""
    return write_text(path, page(title, sections, lead, footer))


def write_text(path: Path | str, text: str) -> Path:
    """Write a text file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    return path


def piece(given: Piece) -> str:
    """One piece as HTML."""
    match given:
        case Prose(text):
            return "".join(f"<p>{_inline(p)}</p>" for p in re.split(r"\n\s*\n", text.strip()) if p)
        case Code(text):
            return f"<pre>{_text(text)}</pre>"
        case Note(text):
            return f'<div class="note">{_inline(text)}</div>'
        case Table():
            return _table(given)
        case Figure():
            return _figure(given)
        case Gallery(figures):
            return f'<div class="gallery">{"".join(map(_figure, figures))}</div>'
        case Settings(title, values):
            text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
            return f"<details><summary>{_text(title)}</summary><pre>{_text(text)}</pre></details>"
        case Fold(title, pieces):
            return f"<details><summary>{_text(title)}</summary>{''.join(map(piece, pieces))}</details>"
    raise RunError(f"a report cannot show a {type(given).__name__}: use the pieces of denoiserl.report.html.")


def make_figure(draw: Callable[[Theme], bytes], caption: str = "", alt: str = "", width: int | None = None) -> Figure:
    """A Figure for light and dark pages from ``draw(theme) -> PNG bytes``; letters have one size in all of them."""
    light = draw(LIGHT)
    return Figure(light, caption, alt, draw(DARK), width or round(int.from_bytes(light[16:20], "big") * ON_PAGE))


def comparison_section(comparisons: Sequence[Comparison], title: str = "Before and after") -> Section:
    """The claim of a run: dots with intervals, the same as a table, and a sentence for each."""
    from denoiserl.report.learning_curves import dots

    said = [f"{c.name}, {c.metric}: {c.verdict()}." for c in comparisons]
    figure = make_figure(
        lambda theme: dots(comparisons, theme),
        "Dots are means, lines are 95 % intervals.",
        " ".join(said),
        760,
    )
    return Section(title, [figure, Prose("\n\n".join(said)), comparison_table(comparisons)])


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Every row of every comparison with its interval and number of observations."""
    rows: list[tuple[object, ...]] = []
    strong: list[int] = []
    for c in comparisons:
        for label, row in c.rows:
            if label == LABELS["after"]:
                strong.append(len(rows))
            mean, low, high = c.show(row.mean), c.show(row.low), c.show(row.high)
            rows.append((c.name, c.metric, label, mean, f"{low} – {high}", row.n))
    return Table(("task", "metric", "", "mean", "95 % interval", "n"), rows, strong=strong, numbers=(3, 4))


def _table(given: Table) -> str:
    width = len(given.head)
    for i, row in enumerate(given.rows):
        if len(row) != width:
            raise RunError(f"row {i} of the table has {len(row)} cells under {width} heads: give one a column.")
    number = [
        j in given.numbers
        or (bool(given.rows) and all(isinstance(r[j], int | float) and not isinstance(r[j], bool) for r in given.rows))
        for j in range(width)
    ]
    mark = [' class="number"' if n else "" for n in number]
    head = "".join(f'<th scope="col"{m}>{_text(h)}</th>' for h, m in zip(given.head, mark, strict=True))
    body = "".join(
        ('<tr class="strong">' if i in given.strong else "<tr>")
        + "".join(f"<td{m}>{_text(_cell(c))}</td>" for c, m in zip(row, mark, strict=True))
        + "</tr>"
        for i, row in enumerate(given.rows)
    )
    caption = f"<caption>{_inline(given.caption)}</caption>" if given.caption else ""
    head = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{caption}{head}</table></div>'


def _figure(given: Figure) -> str:
    size = f' width="{given.width}"' if given.width else ""
    if isinstance(given.data, str):
        if not given.data.startswith("<svg"):
            raise RunError("a figure given as text must be an SVG that starts with <svg; give pictures as bytes.")
        shown = given.data
    else:
        kind, source = media_type(given.data), _embed(given.data)
        if kind.startswith("video"):
            label = f' aria-label="{_text(given.alt)}"' if given.alt else ""
            shown = f'<video src="{source}"{size}{label} controls loop muted autoplay playsinline></video>'
        else:
            shown = f'<img src="{source}" alt="{_text(given.alt or given.caption)}"{size}>'
            if given.dark is not None:
                other = f'<source media="(prefers-color-scheme: dark)" srcset="{_embed(given.dark)}">'
                shown = f"<picture>{other}{shown}</picture>"
    return f"<figure>{shown}{f'<figcaption>{_inline(given.caption)}</figcaption>' if given.caption else ''}</figure>"


def media_type(data: bytes) -> str:
    """The media type of a picture or film, from its first bytes."""
    kinds: dict[bytes, str] = {b"\x89PNG": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}
    kinds |= {b"<svg": "image/svg+xml"}  # as an image, where nothing in it can run
    for start, kind in kinds.items():
        if data.startswith(start):
            return kind
    if data[4:8] == b"ftyp":
        return "video/mp4"
    raise RunError(f"these {len(data)} bytes are no PNG, JPEG, GIF, SVG or MP4: the file may be cut short.")


def _embed(data: bytes) -> str:
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode('ascii')}"


def _marks(sections: Sequence[Section]) -> list[str]:
    """Anchors that are unique on the page."""
    found: list[str] = []
    for section in sections:
        base = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        mark, i = base, 2
        while mark in found:
            mark, i = f"{base}-{i}", i + 1
        found.append(mark)
    return found


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


def _inline(text: str) -> str:
    return re.sub(r"(`+)([^`\n]+)\1", r"<code>\2</code>", _text(text))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
