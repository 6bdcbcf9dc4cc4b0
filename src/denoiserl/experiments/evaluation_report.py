"""Results of an evaluation, in the terminal, as JSON, and as files with plots and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.experiments.compare_report import note_lines
from denoiserl.experiments.evaluate_policies import EvaluationResult, PoliciesToEvaluate
from denoiserl.report.standings import print_standings
from denoiserl.report.style import LIGHT
from denoiserl.report.violins import violins
from denoiserl.stats import ComparisonRow, ComparisonTable, Interval, Trials, auto_interval
from denoiserl.stats.trial import write as write_trials
from denoiserl.tasks.base import Task

RECORD, PLOT = "eval.json", "plot.png"
OWN = (RECORD, PLOT, "trials.jsonl")
"""files of every evaluation"""


def intervals(found: EvaluationResult) -> dict[str, tuple[Interval, bool]]:
    """Return {metric: (interval, is it in percent)} of a single policy, over the trials that have the metric.

    A metric that fewer than two trials have is left out.
    """
    each = {m: _interval(next(iter(values.values()))) for m, values in found.values.items()}
    return {m: (one, found.words[m][1] == "%") for m, one in each.items() if one is not None}


def _interval(values: Tensor) -> Interval | None:
    """Return the interval over the trials that have a number; None if there are too few for one."""
    have = values[~values.isnan()]
    rate = bool(((have == 0) | (have == 1)).all())
    return auto_interval(have)[0] if len(have) > 1 or (rate and len(have)) else None


def print_tables(found: EvaluationResult, metrics: Sequence[str] = ()) -> None:
    """Print the tables of several policies in the terminal."""
    console = Console()
    for name in (m for m in metrics or found.tables if m in found.tables):
        print_standings(found.tables[name], console)
        console.print()
    if found.stopped:
        console.print(found.stopped)
    for line in note_lines(found.notes):
        console.print(line, markup=False, highlight=False)


def as_dict(found: EvaluationResult, metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Return {metric: interval} of one policy, {metric: table} of several."""
    if found.tables:
        return {m: found.tables[m].as_dict() for m in metrics or found.tables if m in found.tables}
    return {m: each.as_dict() for m, (each, _) in intervals(found).items() if not metrics or m in metrics}


def require_free_folder(folder: Path) -> list[str]:
    """Return the files that an earlier evaluation left in ``folder``. Raise RunError if it holds anything else."""
    if file := next((p for p in (folder, *folder.parents) if p.is_file()), None):
        raise RunError(f"{file} is a file: give the name of a folder")
    found = sorted(p.name for p in folder.glob("*") if not p.name.startswith(".")) if folder.exists() else []
    record = store.read_json(folder / RECORD) if RECORD in found else {}
    own = {*OWN, *(record.get("files", ()) if isinstance(record, dict) else ())}
    if others := [name for name in found if name not in own]:
        raise RunError(f"{folder} holds other files ({', '.join(others[:3])}): give a new folder")
    return found


def load_record(folder: Path, trials: int) -> dict[str, Any] | None:
    """Return the record of a run's last evaluation, if it had so many trials; else None."""
    file = folder / RECORD
    record = store.read_json(file) if file.is_file() else None
    return record if isinstance(record, dict) and record.get("trials") == trials else None


def make_record(found: EvaluationResult) -> dict[str, Any]:
    """Return the numbers of an evaluation for ``eval.json``."""
    each = {m: {k: _interval(v) for k, v in values.items()} for m, values in found.values.items()}
    saved = {m: {k: None if i is None else i.as_dict() for k, i in of.items()} for m, of in each.items()}
    return {
        "task": found.task,
        "seed": found.seed,
        "trials": found.trials,
        "metrics": {
            m: {"what": found.words[m][0], "unit": found.words[m][1], "policies": saved[m]} for m in found.values
        },
        "standings": next(iter(found.tables.values())).as_dict() if found.tables else None,
        "tables": {m: table.as_dict() for m, table in found.tables.items()},
        "stopped": found.stopped,
        "notes": {name: list(sentences) for name, sentences in found.notes.items()},
    }


def write(
    found: EvaluationResult,
    task: Task,
    policies: PoliciesToEvaluate,
    paths: Mapping[str, str],
    folder: Path,
    media: bool = True,
) -> None:
    """Write ``eval.json``, ``trials.jsonl``, the plot of the main metric and pictures of every policy.

    They replace those of an earlier evaluation. Raise RunError if ``folder`` holds other files.
    """
    for name in require_free_folder(folder):
        (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    main = next(iter(found.values))
    rows = []
    for m, values in found.values.items():
        rubric = found.words[m][0]
        starts = tuple(range(found.seed * 1_000_000, found.seed * 1_000_000 + found.trials))
        for name, v in values.items():
            known = [(s, x) for s, x in zip(starts, v.tolist(), strict=True) if x == x]  # NaN: the trial has no number
            if known:
                tried, gave = zip(*known, strict=True)
                rows.append(Trials(found.prints[name], found.task, m, tried, gave, None, rubric))
    write_trials(folder / "trials.jsonl", rows)
    table = found.tables.get(main) or single_table(found, main)
    (folder / PLOT).write_bytes(violins(table, LIGHT))
    pictures: dict[str, bytes] = {}
    if media and task.render is not None:
        for name, (policy, place) in policies.items():
            with place.activate():
                drawn = task.render(policy, found.seed, 16)
            for file, data in drawn.items():
                kept = file if len(policies) == 1 else f"{name} {file}"
                pictures[kept] = data if isinstance(data, bytes) else data.encode()
    record = make_record(found) | {
        "policies": {k: {"fingerprint": found.prints[k], "path": paths[k]} for k in policies},
        "files": [PLOT, *pictures],
        "draws": task.render is not None,
    }
    store.write_json(
        folder / RECORD, record
    )  # before the pictures, so that an interrupted write leaves no unknown files
    for name, data in pictures.items():
        (folder / name).write_bytes(data)


def single_table(found: EvaluationResult, metric: str) -> ComparisonTable:
    """Return the table of one policy."""
    ((name, values),) = found.values[metric].items()
    each = auto_interval(values)[0]
    what, unit = found.words[metric]
    row = ComparisonRow(name, each, (each.mean,), "")
    return ComparisonTable(metric, what, unit, "higher", found.level, (row,), (), "trials")
