"""The report of any run folder, from ``run.json``, ``metrics.jsonl``, ``summary.json`` and ``media/``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from denoiserl.errors import BadRun
from denoiserl.evidence.comparison import Comparison
from denoiserl.show.curves import panels
from denoiserl.show.metrics import AXES, Row, axis, groups, numeric, read_metrics, stages
from denoiserl.show.report import (
    Figure,
    Fold,
    Gallery,
    Note,
    Piece,
    Prose,
    Section,
    Settings,
    Table,
    comparison_section,
    media_type,
    page,
    plotted,
)
from denoiserl.store import read_json

PICTURES = (".png", ".gif", ".jpg", ".mp4")


def run_report(folder: Path | str, limit: float = 30.0) -> str:
    """The page of the run in ``folder``. What is absent is said; pictures beyond ``limit`` MB are named, not embedded.

    ``run.json`` (recipe, args, versions) must be there: without it the folder is no run. ``summary.json``, where
    there is one, holds ``{"acts": [...]}`` with one ``Comparison`` each.
    """
    folder = Path(folder)
    run = read_json(folder / "run.json")
    if not isinstance(run, dict):
        raise BadRun(f"{folder / 'run.json'} is a {type(run).__name__}, not an object: give the folder of a run.")
    file = folder / "metrics.jsonl"
    rows = read_metrics(file) if file.exists() else []
    sections = [*_summary(folder), *curve_sections(rows), *_media(folder / "media", limit), _settings(run)]
    recipe = Path(str(run.get("recipe", "run"))).name.removesuffix(".py").rpartition(".")[2]
    return page(f"{recipe}: {folder.resolve().name}", sections, _lead(run, rows))


def curve_sections(rows: Sequence[Row]) -> list[Section]:
    """The numbers of a run, one section a stage; a run without any gets a section that says so."""
    found = []
    for stage, part in stages(rows).items():
        drawn = {k: v for k, v in groups(part).items() if any(math.isfinite(y) for c in v for y in c.y)}
        pieces: list[Piece] = []
        if drawn and len(part) == 1:
            pieces.append(_values(part[0]))
        elif drawn:
            kept = {k: [c for c in v if any(map(math.isfinite, c.y))] for k, v in drawn.items()}
            draw = partial(panels, kept, axis(part) or "row", half_life=3.0)
            figure = plotted(lambda theme, draw=draw: draw(theme=theme), alt=f"Curves of {', '.join(kept)}")
            pieces += [figure, Fold("Numbers", [_numbers(part)])]
        else:
            pieces.append(Note(f"No numbers to draw in {len(part)} rows."))
        pieces += [Note(text) for text in _absent(part)]
        title = f"Stage {stage}" if stage else "Numbers outside of stages"
        found.append(Section(title, pieces))
    return found or [Section("Curves", [Note("No metrics: the run wrote no rows, or stopped before its first one.")])]


def _values(row: Row) -> Table:
    return Table(("metric", "value"), [(k, float(row[k])) for k in row if numeric(row, k) and k not in AXES])


def _numbers(rows: Sequence[Row]) -> Table:
    x = axis(rows)
    keys = dict.fromkeys(k for row in rows for k in row if numeric(row, k) and k != x)
    table = []
    for key in keys:
        values = [float(row[key]) for row in rows if numeric(row, key) and math.isfinite(row[key])]
        if values:
            table.append((key, values[0], values[-1], min(values), max(values), len(values)))
    return Table(("metric", "first", "last", "least", "greatest", "rows"), table)


def _absent(rows: Sequence[Row]) -> list[str]:
    """What the curves do not show: values that are not finite, and keys that hold no numbers."""
    bad: dict[str, int] = {}
    other: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if numeric(row, key):
                bad[key] = bad.get(key, 0) + (not math.isfinite(value))
            elif key != "stage" and value is not None:
                other[key] = None
    said = [f"`{key}` is not finite in {n} of {len(rows)} rows." for key, n in bad.items() if n]
    return said + ([f"Not drawn, because they are no numbers: {', '.join(other)}."] if other else [])


def _summary(folder: Path) -> list[Section]:
    file = folder / "summary.json"
    if not file.exists():
        return []
    acts = read_json(file).get("acts", [])
    return [comparison_section([Comparison.from_dict(act) for act in acts])] if acts else []


def _media(folder: Path, limit: float) -> list[Section]:
    files = sorted((f for f in folder.rglob("*") if f.suffix.lower() in PICTURES), key=_natural)
    figures, left, room = [], [], limit * 1e6
    for file in files:
        data = file.read_bytes()
        name = file.relative_to(folder).as_posix()
        try:
            media_type(data)
        except BadRun:
            left.append(f"{name} (damaged)")
            continue
        if len(data) > room:
            left.append(f"{name} ({len(data) / 1e6:.1f} MB)")
            continue
        room -= len(data)
        figures.append(Figure(data, name, name))
    pieces: list[Piece] = [Gallery(figures)] if figures else []
    if left:
        pieces.append(Note(f"Not shown here, but in {folder.name}/: {', '.join(left)}."))
    return [Section("Pictures", pieces)] if pieces else []


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """step_2 before step_10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", path.as_posix()) if p]


def _settings(run: Mapping[str, Any]) -> Section:
    titles = {"args": "Options", "versions": "Versions"}
    rest = {k: v for k, v in run.items() if k not in (*titles, "recipe")}
    pieces: list[Piece] = [Settings(title, run[key]) for key, title in titles.items() if key in run]
    if rest:
        pieces.append(Settings("The run", rest))
    missing = [key for key in ("recipe", *titles) if key not in run]
    if missing:
        pieces.append(Note(f"run.json has no {' and no '.join(missing)}."))
    return Section("Settings", pieces or [Prose("None were recorded.")])


def _lead(run: Mapping[str, Any], rows: Sequence[Row]) -> str:
    count = f"{len(rows)} rows of metrics" if rows else "no metrics yet"
    open_ = " It has not finished." if "finished" in run and run["finished"] is None else ""
    return (f"Recipe `{run['recipe']}`, {count}." if "recipe" in run else f"A run with {count}.") + open_
