"""The demo's report and summary, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from denoiserl.core.errors import RunError
from denoiserl.core.quick import NOTE
from denoiserl.core.serialization import store
from denoiserl.demo import act
from denoiserl.report.html import (
    Figure,
    Fold,
    Gallery,
    Note,
    Piece,
    Prose,
    Section,
    Settings,
    comparison_section,
    comparison_table,
    write_page,
)
from denoiserl.report.metrics import DRAWN, group_by_stage, read_metrics
from denoiserl.report.run_report import curve_sections
from denoiserl.report.table import console_table, print_comparisons
from denoiserl.stats import Comparison
from denoiserl.tasks.base import Task

WORDS = {"before": "after imitation", "imitation": "after more imitation", "after": "after learning from reward"}
LEAD = (
    "A robot policy, an image generator and a language model. Each learned from flawed data until more imitation "
    "hardly helped, then from reward. The control spent the same time on more imitation. Intervals are 95 %, over "
    "held-out trials."
)


def write(folder: Path, a: Any) -> Path:
    """Write ``summary.json`` and ``report.html``, print the three rows of every act, and return the report's path."""
    record = store.read_json(folder / "run.json")
    names = a.act
    tasks = {name: act.TASKS[name](getattr(a, f"{name}_task")) for name in names}
    found = {name: act.results(name, tasks[name], folder / name) for name in names}
    main = [comparisons[0] for comparisons in found.values()]
    seconds = sum(c.seconds or 0.0 for c in main) + sum(act.evaluation_seconds(folder / name) for name in names)
    summary = {
        "acts": [c.as_dict() for c in main],
        "also": {name: [c.as_dict() for c in comparisons[1:]] for name, comparisons in found.items()},
        "seconds": seconds,
        "seed": record["seed"],
        "versions": record["versions"],
    }
    store.write_json(folder / "summary.json", summary)
    first = comparison_section(main, "Before, more imitation, after")
    sections = [Section(first.title, [Note(NOTE), *first.pieces]) if a.quick else first]
    for name, comparisons in found.items():
        sections.append(_act(name, tasks[name], comparisons, folder / name))
    sections.append(Section("Settings", [Settings("Options", record.pop("args")), Settings("Run", record)]))
    path = write_page(
        folder / "report.html", "DenoiseRL demo", sections, LEAD, f"{seconds:.0f} s of learning and trials"
    )
    console = Console()
    if a.quick:
        console.print(NOTE)
    print_comparisons(main, console, "Main metrics")
    if also := [c for comparisons in found.values() for c in comparisons[1:]]:
        console.print(console_table(also, "Other metrics"))
    console.print(f"\nThe report: {path}", soft_wrap=True)
    return path


def _act(name: str, task: Task, comparisons: list[Comparison], folder: Path) -> Section:
    recipe = act.RECIPES[name]
    doc = (recipe.__doc__ or "").splitlines()[0]
    verdict = f"{comparisons[0].metric.capitalize()}: {comparisons[0].verdict()}."
    pieces: list[Piece] = [Prose(f"{doc}\n\n{verdict}\n\n{task.caption}")]
    figures, texts = [], dict[str, None]()
    for when in WORDS:
        for file in sorted((folder / "media").glob(f"{when} *")):
            if file.suffix == ".txt":
                texts[file.read_text(encoding="utf-8")] = None
            else:
                figures.append(Figure(file.read_bytes(), WORDS[when], f"{name}, {WORDS[when]}"))
    if not figures and not texts:
        raise RunError(f"{folder / 'media'} holds no pictures: run the same command again to draw what is missing")
    if figures:
        pieces.append(Gallery(figures))
        pieces += [Fold("Prompts", [Prose(text)]) for text in texts]
    else:
        pieces += [Note(text) for text in texts]
    if comparisons[1:]:
        pieces.append(comparison_table(comparisons[1:]))
    file = folder / "metrics.jsonl"
    mine = read_metrics(file, DRAWN) if file.exists() else []
    curves: list[Piece] = []
    for section in curve_sections(mine) if group_by_stage(mine) else []:
        curves += [Prose(section.title), *section.pieces]
    if curves:
        pieces.append(Fold("Learning curves", curves))
    return Section(name.capitalize(), pieces)
