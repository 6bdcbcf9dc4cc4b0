"""The report of several runs: seeds of a method as one curve with a band, methods and settings compared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.report.formatting import count, duration
from denoiserl.report.html import Fold, Note, Piece, Prose, Section, Settings, Table, make_figure, render_page
from denoiserl.report.improvement import only_after
from denoiserl.report.learning_curves import panels
from denoiserl.report.metrics import AXES, Curve, Row, curve, group_by_stage, join_curves, numeric, progress_key
from denoiserl.report.provenance import Run, method_sections, reproduction_section
from denoiserl.report.sections import (
    evaluation_files,
    evaluation_tables,
    gallery,
    held_out,
    media_sections,
    quick_note,
    trial_files,
)
from denoiserl.report.standings import standings_section
from denoiserl.stats.interval import t_interval
from denoiserl.stats.standing import ComparisonRow, ComparisonTable

MOST = 12
"""panels per figure; further metrics are folded"""


def runs_page(runs: Sequence[Run], limit: float = 30.0) -> str:
    """Return the HTML page of several runs. Runs that differ only in their seed are one arm."""
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise RunError("A run is given twice: give every folder once.")
    arms = group_by_arm(runs)
    methods = list(dict.fromkeys(run.description.name for run in runs))
    sections = [
        overview(arms),
        *results(arms),
        *[section for name, part in by_method(arms).items() for section in curves(part, name, len(methods) > 1)],
        *pictures(runs, limit),
        differences_section(runs),
        reproduction_section(runs),
    ]
    seeds = len({run.seed for run in runs})
    title = f"{_listed(methods)}: {len(runs)} runs"
    text = f"{len(arms)} arm{'s' * (len(arms) > 1)}, {seeds} seed{'s' * (seeds > 1)}: {_listed(list(arms))}."
    return render_page(title, sections, text)


def group_by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by arm: the recipe and, if it has runs with several settings, the options that differ."""
    families: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        family = families.setdefault(str(run.about.get("name", run.name)), {})
        family.setdefault(json.dumps(_settings(run), sort_keys=True, default=str), []).append(run)
    found: dict[str, list[Run]] = {}
    for family in families.values():
        heads = [_settings(each[0]) for each in family.values()]
        apart = [k for k in dict.fromkeys(k for h in heads for k in h) if len({str(h.get(k)) for h in heads}) > 1]
        for head, each in zip(heads, family.values(), strict=True):
            own = ", ".join(f"{k.rpartition('.')[2]} {_short(head.get(k))}" for k in apart)
            name = f"{each[0].method} ({own})" if own else each[0].method
            if len(name) > 60 or name in found:
                name = f"{each[0].method} ({each[0].name})"
            found[name] = each
    return found


def by_method(arms: Mapping[str, list[Run]]) -> dict[str, dict[str, list[Run]]]:
    """Group arms by recipe; arms of one recipe have the same metrics."""
    found: dict[str, dict[str, list[Run]]] = {}
    for name, each in arms.items():
        found.setdefault(each[0].description.name, {})[name] = each
    return found


def overview(arms: Mapping[str, list[Run]]) -> Section:
    """Return a section with each method in a sentence and each run in a row."""
    pieces: list[Piece] = []
    for part in by_method(arms).values():
        pieces += method_sections(next(iter(part.values()))[0])
    rows = [
        (
            run.name,
            arm,
            "–" if run.seed is None else str(run.seed),
            str(run.count),
            duration(run.seconds),
            run.finish_time or "not finished",
        )
        for arm, each in arms.items()
        for run in each
    ]
    pieces.append(Table(("run", "arm", "seed", "rows", "wall time", "finished (UTC)"), rows, numbers=(2, 3, 4)))
    return Section("What was run", [*quick_note(run for each in arms.values() for run in each), *pieces])


def results(arms: Mapping[str, list[Run]]) -> list[Section]:
    """Return the evaluations: over seeds if every arm has several, else over trials; or else the last metrics."""
    found: dict[tuple[str, str], dict[str, list[ComparisonTable]]] = {}
    missing: list[str] = []
    for arm, each in arms.items():
        for run in each:
            file = next((f for f in evaluation_files(run.folder) if f.exists()), None)
            if file is None:
                missing.append(run.name)
                continue
            record = store.read_json(file)
            main = only_after(evaluation_tables(record)[0])
            found.setdefault((str(record["task"]), main.metric), {}).setdefault(arm, []).append(
                _renamed(main, run.name)
            )
    sections = [_together(task, tables) for (task, _), tables in found.items()]
    if found and missing:
        note = Note(f"Not in this table, because they have no evaluation: {', '.join(missing)}.")
        sections[-1] = Section(sections[-1].title, [*sections[-1].pieces, note])
    return sections or _last(arms)


def _together(task: str, tables: Mapping[str, list[ComparisonTable]]) -> Section:
    main = next(iter(tables.values()))[0]
    alone = all(len(table.rows) == 1 for each in tables.values() for table in each)
    rows: list[ComparisonRow] = []
    if alone and all(len(each) > 1 for each in tables.values()):
        basis = "seeds"
        bounds = (0.0, 1.0) if main.unit == "%" else None
        for arm, each in tables.items():
            means = tuple(table.rows[0].interval.mean for table in each)
            rows.append(ComparisonRow(arm, t_interval(means, 1 - main.level, bounds), means, ""))
    else:
        basis = "trials"
        rows = [
            ComparisonRow(r.name, r.interval, r.per_seed, "") for each in tables.values() for t in each for r in t.rows
        ]
    rows.sort(key=lambda row: -main.sign * row.interval.mean)
    found = ComparisonTable(main.metric, main.what, main.unit, main.better, main.level, tuple(rows), (), basis)
    section = standings_section(found, f"Result: {task}")
    if len(rows) < 2:
        return section
    note = Note(
        "No test has compared these rows. Overlapping intervals do not show that two rows are equal, and intervals of "
        "single policies do not show which method is better: for that, train both on the same seeds and budget."
    )
    return Section(section.title, [*section.pieces, note])


def _renamed(given: ComparisonTable, run: str) -> ComparisonTable:
    rows = tuple(
        ComparisonRow(run if len(given.rows) == 1 else f"{run}, {r.name}", r.interval, r.per_seed, "")
        for r in given.rows
    )
    return ComparisonTable(given.metric, given.what, given.unit, given.better, given.level, rows, (), "trials")


def _last(arms: Mapping[str, list[Run]]) -> list[Section]:
    """Return the runs' own last metrics: mean and range over seeds."""
    rows = []
    for arm, each in arms.items():
        keys = held_out(dict.fromkeys(k for run in each for row in run.rows for k in row if numeric(row, k)))
        for key in keys:
            last = [
                next((float(r[key]) for r in reversed(run.rows) if numeric(r, key) and math.isfinite(r[key])), None)
                for run in each
            ]
            values = [v for v in last if v is not None]
            if values and not key.endswith(("_low", "_high")):
                rows.append((arm, key, sum(values) / len(values), min(values), max(values), len(values)))
    if not rows:
        return []
    note = Note("The runs' own last measurements, without intervals: `denoiserl eval` of each run adds trials.")
    return [Section("Result", [Table(("arm", "metric", "mean", "minimum", "maximum", "runs"), rows), note])]


def curves(arms: Mapping[str, list[Run]], name: str, several: bool) -> list[Section]:
    """Return one section per stage of a method: a panel per metric, a curve per arm, a band for the range of seeds."""
    parts = {arm: [group_by_stage(run.rows) for run in each] for arm, each in arms.items()}
    found = []
    for stage in dict.fromkeys(s for each in parts.values() for part in each for s in part):
        rows = {arm: [part[stage] for part in each if stage in part] for arm, each in parts.items()}
        rows = {arm: each for arm, each in rows.items() if each}
        title = f"Stage {stage}" if stage else "Metrics outside of stages"
        found.append(Section(f"{name}: {title[:1].lower()}{title[1:]}" if several else title, _stage(rows)))
    return found


def _stage(arms: Mapping[str, list[list[Row]]]) -> list[Piece]:
    every = [row for each in arms.values() for rows in each for row in rows]
    keys = list(dict.fromkeys(k for row in every for k in row if numeric(row, k) and k not in AXES))
    ends = {f"{k}{end}" for k in keys for end in ("_low", "_high")}
    first = [k for k in held_out(keys) if k not in ends]
    keys = [*first, *(k for k in keys if k not in ends and k not in first)]
    drawn: dict[str, list[Curve]] = {}
    once: list[str] = []
    for key in keys:
        by_arm = {arm: [_finite(rows, key) for rows in each] for arm, each in arms.items()}
        by_arm = {arm: [c for c in each if c] for arm, each in by_arm.items()}
        if all(len(c.y) == 1 for each in by_arm.values() for c in each):
            once.append(key)
            continue
        shared = [c for arm, each in by_arm.items() if each and (c := _shared(each, arm))]
        if shared:
            drawn[key] = shared
    pieces: list[Piece] = []
    x, names, seeds = progress_key(every) or "row", list(drawn), max(len(each) for each in arms.values())
    caption = f"Lines are means over {seeds} seeds, bands are their range." if seeds > 1 else ""
    if names:
        pieces.append(_figure({k: drawn[k] for k in names[:MOST]}, list(arms), x, caption, seeds))
    if names[MOST:]:
        more = _figure({k: drawn[k] for k in names[MOST:]}, list(arms), x, "", seeds)
        pieces.append(Fold(f"{len(names) - MOST} more metrics", [more]))
    if table := _written_once(arms, once):
        pieces.append(table)
    return pieces or [Note(f"No numbers to draw in {len(every)} rows.")]


def _finite(rows: Sequence[Row], key: str) -> Curve | None:
    """Return the run's curve if it has a finite value, else None."""
    found = curve(rows, key) if any(numeric(row, key) for row in rows) else None
    return found if found and any(map(math.isfinite, found.y)) else None


def _figure(drawn: Mapping[str, list[Curve]], arms: list[str], x: str, caption: str, seeds: int) -> Any:
    def draw(theme: Any) -> bytes:
        smooth = 3.0 if seeds == 1 else None
        return panels(drawn, x, half_life=smooth, theme=theme, colours=theme.palette(arms))

    return make_figure(draw, caption, f"Curves of {', '.join(drawn)}")


def _shared(curves: Sequence[Curve], arm: str) -> Curve | None:
    """Return the seeds of an arm as one curve; None if they have no x in common."""
    try:
        return join_curves(curves, arm, "range")
    except RunError:
        return None


def _written_once(arms: Mapping[str, list[list[Row]]], keys: Sequence[str]) -> Table | None:
    """Return a table of metrics that are written once per run: mean and range over the runs."""
    table = []
    for key in keys:
        for arm, each in arms.items():
            values = [c.y[0] for rows in each if (c := _finite(rows, key))]
            if values:
                table.append((key, arm, sum(values) / len(values), min(values), max(values), len(values)))
    return Table(("written once", "arm", "mean", "minimum", "maximum", "runs"), table) if table else None


def pictures(runs: Sequence[Run], limit: float) -> list[Section]:
    """Return a section with the pictures of every run, all together within ``limit`` MB."""
    pieces: list[Piece] = []
    for run in runs:
        share, place = limit / len(runs), run.folder / "eval"
        found = [p for section in media_sections(run.folder, ("media", "samples"), share) for p in section.pieces]
        if (place / "eval.json").exists():
            found = gallery(trial_files(place, store.read_json(place / "eval.json")), place, share) + found
        if found:
            pieces.append(Fold(run.name, found))
    return [Section("Pictures", pieces)] if pieces else []


def differences_section(runs: Sequence[Run]) -> Section:
    """Return a section with the options in which runs of one method differ, except the seed; all settings folded."""
    pieces: list[Piece] = []
    for method in dict.fromkeys(run.description.name for run in runs):
        own = [run for run in runs if run.description.name == method]
        given = [_settings(run) | {"device": run.record.get("device")} for run in own]
        keys = [k for k in dict.fromkeys(k for o in given for k in o) if len({str(o.get(k)) for o in given}) > 1]
        if keys:
            rows = [(run.name, *(_short(o.get(k)) for k in keys)) for run, o in zip(own, given, strict=True)]
            pieces += [Prose(f"Options in which the runs of {method} differ:"), Table(("run", *keys), rows)]
        elif len(own) > 1:
            pieces.append(Prose(f"The runs of {method} have the same options except for their seeds."))
    pieces.append(Fold("All settings of every run", [Settings(run.name, run.record) for run in runs]))
    return Section("Settings", pieces)


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings that define a run's arm: its options without the seed, its precision, its budget."""
    own = {k: v for k, v in run.options.items() if k != "seed"}
    return own | {k: run.record.get(k) for k in ("precision", "budget")}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{v:g} {k}" if isinstance(v, int | float) else f"{k} {v}" for k, v in value.items())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return count(value) if abs(value) >= 10_000 else f"{value:g}"
    return "–" if value is None else str(value)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
