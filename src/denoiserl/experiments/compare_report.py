"""Results of a study, in the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from denoiserl.core.quick import NOTE, SCALE
from denoiserl.experiments import resolve as find
from denoiserl.experiments.compare import ComparisonResult
from denoiserl.experiments.study import Study
from denoiserl.report.html import Code, Fold, Note, Piece, Section, Settings, Table, make_figure, write_page
from denoiserl.report.learning_curves import learning_curves
from denoiserl.report.metrics import DRAWN, read_metrics
from denoiserl.report.standings import print_standings, standings_section


def print_tables(found: ComparisonResult, console: Console | None = None) -> None:
    """Print the table of the main metric with its verdicts, and the tables of the other metrics."""
    console = console or Console()
    for table in found.standings.values():
        print_standings(table, console)
        console.print()
    for line in note_lines(found.notes):
        console.print(line, markup=False, highlight=False)


def note_lines(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the sentences about trials; a sentence that all policies share appears once, without a name."""
    shared = [n for n in dict.fromkeys(n for v in notes.values() for n in v) if all(n in v for v in notes.values())]
    return [*shared, *(f"{name}: {n}" for name, some in notes.items() for n in some if n not in shared)]


def write(found: ComparisonResult, folder: Path, out: Path | None = None) -> Path:
    """Write the HTML page, by default ``folder/report.html``, and return its path."""
    study = found.study
    (main, table), *others = found.standings.items()
    first = standings_section(table)
    sections = [Section(first.title, [Note(NOTE), *first.pieces]) if study.quick else first]
    if curves := _curves(study, main, table.unit, folder):
        sections.append(curves)
    sections += [standings_section(other) for _, other in others]
    sections.append(_cost(found))
    if any(found.tuning.values()):
        sections.append(_tuning(found.tuning))
    settings = {k: v for k, v in asdict(study).items() if k != "arms"}
    arms = {name: " ".join([a.method, *(f"{k}={v}" for k, v in a.settings.items())]) for name, a in study.arms.items()}
    pieces: list[Piece] = [Settings("Arms", arms), Settings("Study", settings), Code(command(study))]
    sections.append(Section("Settings and command", pieces))
    many = f"{len(study.seeds)} training seeds" if len(study.seeds) > 1 else "one training seed"
    lead = (
        f"{len(study.arms)} arms on {study.task}, {study.budget:g} {study.unit} each, {many}, {study.trials} held-out "
        "trials per policy. Arms share seeds, starting policies of a kind, and trials; nothing is selected on the "
        "trials."
    )
    return write_page(out or folder / "report.html", f"{' and '.join(study.arms)} on {study.task}", sections, lead)


def command(study: Study) -> str:
    """Return the command line of a study."""
    methods = ",".join(f"{name}={a.method}" + (f"@{a.kind}" if a.kind else "") for name, a in study.arms.items())
    scale = SCALE if study.quick else 1  # --quick divides by it
    words = [
        f"denoiserl compare --task {study.task} --methods {methods} --budget {scale * study.budget:g}",
        f"--unit {study.unit.replace(' ', '-')} --seeds {' '.join(map(str, study.seeds))}",
        f"--trials {scale * study.trials} --tuning-runs {study.tune}",
    ]
    words += ["--quick"] if study.quick else []
    settings = [f"{name}.{k}={v}" for name, a in study.arms.items() for k, v in a.settings.items()]
    words += [f"--set {' '.join(settings)}"] if settings else []
    words += [f"--task.{k.replace('_', '-')} {v}" for k, v in study.base.items()]
    return " ".join(words)


def _curves(study: Study, metric: str, unit: str, folder: Path) -> Section | None:
    key, arms, levels = f"eval/{metric}", {}, {}
    for name, arm in study.arms.items():
        runs = [read_metrics(folder / "arms" / name / str(seed) / "metrics.jsonl", DRAWN) for seed in study.seeds]
        if arm.method == find.NONE:
            levels[name] = sum(rows[-1][f"final/{metric}"] for rows in runs) / len(runs)
        elif all(sum(key in row for row in rows) > 1 for rows in runs):
            arms[name] = [[row for row in rows if key in row] for rows in runs]
    if not arms:
        return None
    figure = make_figure(
        lambda theme: learning_curves(arms, key, study.unit, unit=unit, marks=levels, theme=theme),
        f"Held-out {metric} during learning: means over seeds with 95 % intervals, on trials other than the table's.",
        f"Learning curves of {', '.join(arms)}",
    )
    return Section("Learning curves", [figure])


def _cost(found: ComparisonResult) -> Section:
    head = (
        "arm",
        "seconds",
        "CPU seconds",
        "memory MB",
        *(u for u in next(iter(found.spent.values())) if u != "seconds"),
    )
    rows = [
        (name, spent["seconds"], found.cpu[name], found.memory[name], *(v for u, v in spent.items() if u != "seconds"))
        for name, spent in found.spent.items()
    ]
    note = Note("Means over seeds; seconds count training only, memory is the largest of the whole process.")
    return Section("Cost", [Table(head, rows), note])


def _tuning(tuning: Mapping[str, list[dict[str, Any]]]) -> Section:
    rows = []
    for name, tried in tuning.items():
        best = max((t["score"] for t in tried), default=0.0)
        for t in tried:
            rows.append(
                (name, ", ".join(f"{k}={v:g}" for k, v in t["settings"].items()), t["score"], t["score"] == best)
            )
    table = [(arm, settings, score, "used" if best else "") for arm, settings, score, best in rows]
    return Section("Tuning", [Fold("Every candidate", [Table(("arm", "settings", "score", ""), table)])])
