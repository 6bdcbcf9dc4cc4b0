"""The report of a run: what was run, results with intervals, curves, pictures, settings, and how to repeat it.

A run's folder holds ``run.json`` and ``metrics.jsonl``; ``summary.json`` and ``media/`` if the recipe writes them;
``eval/`` after an evaluation. Every part of the page is a function of one of these, for use on other pages too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.report.formatting import count, duration, values
from denoiserl.report.html import (
    Fold,
    Note,
    Piece,
    Prose,
    Section,
    Settings,
    Table,
    comparison_section,
    make_figure,
    render_page,
)
from denoiserl.report.improvement import compares_improvement, improvement_sentences, improvement_table
from denoiserl.report.learning_curves import panels
from denoiserl.report.metrics import Curve, Row, group_by_stage, groups, numeric, progress_key
from denoiserl.report.provenance import Run, load_run, method_sections, reproduction_section
from denoiserl.report.sections import (
    VERDICT,
    evaluation_tables,
    gallery,
    held_out,
    media_sections,
    quick_note,
    trial_files,
)
from denoiserl.report.standings import standings_section
from denoiserl.stats.comparison import Comparison
from denoiserl.stats.standing import ComparisonTable


def run_report(folders: Sequence[Path | str] | Path | str, limit: float = 30.0) -> str:
    """Return the HTML page of a run, or of several runs (``denoiserl.report.runs_report``).

    Pictures of a section beyond ``limit`` MB are listed by name, not embedded. Raise RunError for a folder without
    ``run.json``.
    """
    several = [folders] if isinstance(folders, Path | str) else list(folders)
    if not several:
        raise RunError("There is nothing to report: give the folder of at least one run.")
    runs = [load_run(folder) for folder in several]
    if len(runs) > 1:
        from denoiserl.report.runs_report import runs_page

        return runs_page(runs, limit)
    run = runs[0]
    sections = [
        Section("What was run", [*quick_note([run]), *method_sections(run), *cost(run)]),
        *result_sections(run, limit),
        *curve_sections(run.rows),
        *media_sections(run.folder, ("media", "samples"), limit),
        settings_section(run),
        reproduction_section(runs),
    ]
    return render_page(f"{run.description.name}: {run.name}", sections, summary_line(run))


def summary_line(run: Run) -> str:
    """Return one line: recipe, seed, number of rows, duration, and finish time."""
    parts = [f"Recipe `{run.method}`" if run.about else "A run"]
    if run.seed is not None:
        parts.append(f"seed {run.seed}")
    parts.append(f"{run.count} rows of metrics" if run.rows else "no metrics yet")
    if run.seconds:
        parts.append(duration(run.seconds))
    when = f" Finished {run.finish_time} UTC." if run.finish_time else ""
    return ", ".join(parts) + "." + (when or (" It has not finished." if "finished" in run.record else ""))


def cost(run: Run) -> list[Piece]:
    """Return a table of the usage of each stage, in every unit that is not zero."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(run.folder.glob("**/state")):
        if store.exists(path):
            state = store.read_structure(path)
            if isinstance(state, dict) and "spent" in state:
                stage = path.parent.relative_to(run.folder).as_posix()
                found["run" if stage == "." else stage] = {"seconds": state.get("seconds", 0.0), **state["spent"]}
    order = dict.fromkeys(str(row.get("stage") or "run") for row in run.rows)
    found = {name: found[name] for name in [*(n for n in order if n in found), *(n for n in found if n not in order)]}
    units = [unit for unit in dict.fromkeys(u for spent in found.values() for u in spent if u != "seconds")]
    units = [unit for unit in units if any(spent.get(unit) for spent in found.values())]
    rows = [
        (name, duration(spent["seconds"]), *(count(spent.get(unit, 0)) for unit in units))
        for name, spent in found.items()
    ]
    numbers = tuple(range(1, len(units) + 2))
    return [Table(("stage", "time in loops", *units), rows, numbers=numbers)] if rows else []


def result_sections(run: Run, limit: float = 30.0) -> list[Section]:
    """Return the results: held-out trials (``verdict/``, ``eval/``) and ``summary.json``, or else the last metrics."""
    of_run = eval_sections(run.folder / VERDICT / "eval.json", "Result", limit)
    later = eval_sections(run.folder / "eval" / "eval.json", "Evaluation" if of_run else "Result", limit)
    found = [*of_run, *later, *_summary(run.folder)]
    return found or _last(run)


def eval_sections(file: Path, title: str = "Result", limit: float = 30.0) -> list[Section]:
    """Return the results of an ``eval.json``: the main metric as a plot, the others as a table, and trial media."""
    if not file.exists():
        return []
    record = store.read_json(file)
    if not isinstance(record, dict) or not record.get("metrics"):
        raise RunError(f"{file} holds no metrics: evaluate the run again.")
    tables = evaluation_tables(record)
    main = tables[0]
    section = standings_section(main, title)
    stopped = [Prose(str(record["stopped"]))] if record.get("stopped") else []
    names = ", ".join(f"`{name}`" for name in record.get("policies", {}))
    pieces: list[Piece] = [
        Prose(
            f"Evaluated on {record['trials']} held-out trials of {record['task']} (seed {record['seed']})"
            f"{f': {names}' if names else ''}."
        ),
        *stopped,
        *section.pieces,
    ]
    if compares_improvement(tables):
        head, cells = improvement_table(tables)
        pieces = [
            pieces[0],
            Prose("\n\n".join(improvement_sentences(main))),
            Table(head, cells, numbers=tuple(range(1, len(head)))),
            section.pieces[0],
        ]
    elif tables[1:]:
        pieces.append(Fold("Other metrics", [interval_table(tables[1:])]))
    pieces += gallery(trial_files(file.parent, record), file.parent, limit)
    prints = [(name, str(each.get("fingerprint", "–"))) for name, each in record.get("policies", {}).items()]
    if prints:
        pieces.append(Fold("Fingerprints of the policies", [Table(("policy", "fingerprint of its weights"), prints)]))
    return [Section(section.title, pieces)]


def interval_table(tables: Iterable[ComparisonTable]) -> Table:
    """Return several metrics in one table."""
    rows = []
    for given in tables:
        text = values(given)
        unit = f" ({given.unit})" if given.unit not in ("", "%") else ""
        for row in given.rows:
            i = row.interval
            rows.append(
                (given.what or given.metric, row.name, text(i.mean) + unit, f"{text(i.low)} – {text(i.high)}", i.n)
            )
    return Table(("metric", "policy", "mean", "95 % interval", "n"), rows, numbers=(2, 3))


def _last(run: Run) -> list[Section]:
    """Return the run's own first and last metrics, without intervals, for a run without an evaluation."""
    keys = held_out(k for row in run.rows for k in dict.fromkeys(row) if numeric(row, k))
    found = []
    for key in dict.fromkeys(keys):
        values = [float(row[key]) for row in run.rows if numeric(row, key) and math.isfinite(row[key])]
        if values and not key.endswith(("_low", "_high")):
            found.append((key, values[0], values[-1], max(values), len(values)))
    if not found:
        return []
    note = Note(f"These are the run's own measurements, without intervals: `denoiserl eval {run.name}` adds trials.")
    return [Section("Result", [Table(("metric", "first", "last", "maximum", "measured"), found), note])]


def curve_sections(rows: Sequence[Row]) -> list[Section]:
    """Return the metrics of a run, one section per stage; or a section with a note if there are none."""
    found = []
    for stage, part in group_by_stage(rows).items():
        drawn = {k: [c for c in v if any(map(math.isfinite, c.y))] for k, v in groups(part).items()}
        once = {k if len(v) == 1 else f"{k}/{c.label}": c for k, v in drawn.items() for c in v if len(c.y) == 1}
        drawn = {k: kept for k, v in drawn.items() if (kept := [c for c in v if len(c.y) > 1])}
        pieces: list[Piece] = []
        if drawn:
            draw = partial(panels, drawn, progress_key(part) or "row", half_life=3.0)
            figure = make_figure(lambda theme, draw=draw: draw(theme=theme), alt=f"Curves of {', '.join(drawn)}")
            pieces.append(figure)
        if once:
            pieces.append(_once(once, part))
        if drawn:
            pieces.append(Fold("Numbers", [_numbers(part)]))
        if not drawn and not once:
            pieces.append(Note(f"No numbers to draw in {len(part)} rows."))
        pieces += [Note(text) for text in _absent(part)]
        title = f"Stage {stage}" if stage else "Metrics outside of stages"
        found.append(Section(title, pieces))
    return found or [Section("Curves", [Note("No metrics: the run wrote no rows, or stopped before its first one.")])]


def _once(given: Mapping[str, Curve], rows: Sequence[Row]) -> Table:
    """Return a table of metrics that a stage wrote once, with their intervals if they have them."""
    x = progress_key(rows) if len(rows) > 1 else None
    columns: dict[str, list[object]] = {"metric": list(given), "value": [c.y[0] for c in given.values()]}
    ends = [f"{c.low[0]:.4g} – {c.high[0]:.4g}" if c.low and c.high else "" for c in given.values()]
    if any(ends):
        columns["interval"] = list(ends)
    if x:
        columns[x] = [f"{c.x[0]:g}" for c in given.values()]
    return Table(list(columns), list(zip(*columns.values(), strict=True)), "Written once." if x else "")


def _numbers(rows: Sequence[Row]) -> Table:
    x = progress_key(rows)
    keys = dict.fromkeys(k for row in rows for k in row if numeric(row, k) and k != x)
    table = []
    for key in keys:
        values = [float(row[key]) for row in rows if numeric(row, key) and math.isfinite(row[key])]
        if values:
            table.append((key, values[0], values[-1], min(values), max(values), len(values)))
    return Table(("metric", "first", "last", "minimum", "maximum", "rows"), table)


def _absent(rows: Sequence[Row]) -> list[str]:
    """Return notes on what the curves do not show: values that are not finite, and keys without numbers."""
    bad: dict[str, int] = {}
    other: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if numeric(row, key):
                bad[key] = bad.get(key, 0) + (not math.isfinite(value))
            elif key != "stage" and value is not None:
                other[key] = None
    notes = [f"`{key}` is not finite in {n} of {len(rows)} rows." for key, n in bad.items() if n]
    return notes + ([f"Not drawn, because they are not numbers: {', '.join(other)}."] if other else [])


def _summary(folder: Path) -> list[Section]:
    file = folder / "summary.json"
    if not file.exists():
        return []
    acts = store.read_json(file).get("acts", [])
    return [comparison_section([Comparison.from_dict(act) for act in acts])] if acts else []


def settings_section(run: Run) -> Section:
    """Return the options that differ from their default; all options and the rest of ``run.json`` are folded."""
    record, pieces = run.record, list[Piece]()
    if run.defaults is None and run.options:
        pieces.append(Note("The recipe's defaults are unknown: all options are shown."))
    elif run.defaults is not None:
        changed = [(k, _text(v), _text(run.defaults.get(k, "–"))) for k, v in run.changed_options.items()]
        usual = Prose("Every option has its default.")
        pieces.append(Table(("option", "here", "default"), changed, numbers=(1, 2)) if changed else usual)
    pieces += [
        Settings(title, record[key])
        for key, title in (("args", "All options"), ("versions", "Versions"))
        if key in record
    ]
    if rest := {k: v for k, v in record.items() if k not in ("args", "about", "versions", "program")}:
        pieces.append(Settings("The run", rest))
    if missing := [key for key in ("program", "args", "versions") if key not in record]:
        pieces.append(Note(f"run.json has no {' and no '.join(missing)}."))
    return Section("Settings", pieces or [Prose("None were recorded.")])


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
