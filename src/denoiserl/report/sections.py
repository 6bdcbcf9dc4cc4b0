"""Sections that the reports of one run and of several runs share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.quick import NOTE
from denoiserl.report.html import Code, Figure, Fold, Gallery, Note, Piece, Section, media_type
from denoiserl.stats.interval import Interval
from denoiserl.stats.standing import ComparisonRow, ComparisonTable

PLOT = "plot.png"
"""the evaluation's plot of its main metric"""
VERDICT = "verdict"
"""the folder of a run with the trials before and after its improvement"""
PICTURES = (".png", ".gif", ".jpg", ".svg", ".mp4")


def quick_note(runs: Iterable[Any]) -> list[Piece]:
    """Return a note if one of the runs is a quick trial."""
    quick = [run.name for run in runs if (run.record.get("args") or {}).get("quick")]
    return [Note(f"{', '.join(quick)}: {NOTE}")] if quick else []


def evaluation_files(folder: Path) -> list[Path]:
    """Return the records of a run's evaluations: that of ``denoiserl eval``, and that of the run's own end."""
    return [folder / place / "eval.json" for place in ("eval", VERDICT)]


def trial_files(place: Path, evaluation: Mapping[str, Any]) -> list[Path]:
    """Return an evaluation's pictures, videos and texts, except ``PLOT``, which a page draws in both themes."""
    return [place / name for name in evaluation.get("files", []) if name != PLOT]


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[ComparisonTable]:
    """Return the tables of an evaluation, the main metric first, with verdicts if policies were compared."""
    compared = ComparisonTable.from_dict(evaluation["standings"]) if evaluation.get("standings") else None
    found = [compared] if compared else []
    for metric, each in evaluation["metrics"].items():
        if metric in evaluation.get("tables", {}):
            if compared is None or metric != compared.metric:
                found.append(ComparisonTable.from_dict(evaluation["tables"][metric]))
        elif compared is None or metric != compared.metric:
            measured = {name: saved for name, saved in each["policies"].items() if saved is not None}
            intervals = {name: Interval(**saved) for name, saved in measured.items()}
            if intervals:  # a metric that too few trials have has no interval
                found.append(intervals_table(metric, each.get("what", ""), each.get("unit", ""), intervals))
    return found


def intervals_table(metric: str, what: str, unit: str, intervals: Mapping[str, Interval]) -> ComparisonTable:
    """Return a table of policies with their intervals over trials, without letters and verdicts of a test."""
    rows = tuple(ComparisonRow(name, found, (found.mean,), "") for name, found in intervals.items())
    return ComparisonTable(metric, what, unit, "higher", 0.05, rows, (), "trials")


def held_out(keys: Iterable[str]) -> list[str]:
    """Return the keys that are results: those of held-out trials, or else rollout and final metrics."""
    keys = list(keys)
    return [k for k in keys if k.startswith("eval/")] or [
        k for k in keys if k in ("rollout/success", "rollout/return", "rollout/reward") or k.startswith("final/")
    ]


def media_sections(folder: Path, places: Sequence[str] = ("media",), limit: float = 30.0) -> list[Section]:
    """Return a section with all pictures and videos in the given subfolders."""
    files = [f for place in places for f in sorted((folder / place).rglob("*"), key=_natural)]
    pieces = gallery([f for f in files if f.suffix.lower() in PICTURES], folder, limit)
    return [Section("Pictures", pieces)] if pieces else []


def gallery(files: Sequence[Path], base: Path, limit: float = 30.0) -> list[Piece]:
    """Return pictures and videos side by side, texts under them, and a list of missing, damaged or large files."""
    figures: list[Figure] = []
    texts: list[Piece] = []
    left: list[str] = []
    room = limit * 1e6
    for file in files:
        name = file.relative_to(base).as_posix()
        if not file.is_file():
            left.append(f"{name} (missing)")
            continue
        data = file.read_bytes()
        if len(data) > room:
            left.append(f"{name} ({len(data) / 1e6:.1f} MB)")
            continue
        room -= len(data)
        if file.suffix == ".txt":
            texts.append(Fold(file.stem, [Code(data.decode("utf-8", "replace"))]))
            continue
        try:
            media_type(data)
        except RunError:
            left.append(f"{name} (damaged)")
            continue
        figures.append(Figure(data, name, name))
    pieces: list[Piece] = [Gallery(figures)] if figures else []
    pieces += texts
    if left:
        pieces.append(Note(f"Not shown here, but in {base.resolve().name}/: {', '.join(left)}."))
    return pieces


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that orders step_2 before step_10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", path.as_posix()) if p]
