"""The demo's report and summary, from what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from denoiserl import store
from denoiserl.demo import act
from denoiserl.errors import BadRun
from denoiserl.evidence import Comparison
from denoiserl.recipes import dppo, flow_grpo, tracerl
from denoiserl.show.metrics import read_metrics, stages
from denoiserl.show.report import Figure, Fold, Gallery, Piece, Prose, Section, Settings, comparison_section
from denoiserl.show.report import write as write_page
from denoiserl.show.run import curve_sections
from denoiserl.show.table import print_comparisons

RECIPES = {"robot": dppo, "image": flow_grpo, "language": tracerl}
WORDS = {"before": "after imitation", "imitation": "after more imitation", "after": "after learning from reward"}
LEAD = (
    "A robot policy, an image generator and a language model. Each learned from data until more data did not help, and "
    "then from reward. The control spent the same time on more imitation. Intervals are 95 %, over held-out trials."
)


def write(folder: Path) -> Path:
    """``summary.json`` and ``report.html``; returns the report's path and prints the three rows of every act."""
    record = store.read_json(folder / "run.json")
    names = record["args"]["acts"]
    found = {name: act.results(name, RECIPES[name], folder / name) for name in names}
    main = [comparisons[0] for comparisons in found.values()]
    seconds = sum(c.seconds or 0.0 for c in main)
    summary = {
        "acts": [c.as_dict() for c in main],
        "also": {name: [c.as_dict() for c in comparisons[1:]] for name, comparisons in found.items()},
        "seconds": seconds,
        "seed": record["seed"],
        "versions": record["versions"],
    }
    store.write_json(folder / "summary.json", summary)
    rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    sections = [comparison_section(main, "Before, more imitation, after")]
    for name, comparisons in found.items():
        sections.append(_act(name, comparisons, folder / name, rows))
    sections.append(Section("Settings", [Settings("Options", record["args"]), Settings("Run", _rest(record))]))
    path = write_page(folder / "report.html", "DenoiseRL demo", sections, LEAD, f"{seconds:.0f} s of learning and trials")
    print_comparisons([c for comparisons in found.values() for c in comparisons])
    print(f"\n{path}")
    return path


def _rest(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "args"}


def _act(name: str, comparisons: list[Comparison], folder: Path, rows: list[Any]) -> Section:
    doc = (RECIPES[name].__doc__ or "").splitlines()[0]
    pieces: list[Piece] = [Prose(f"{name.capitalize()}. {doc} {comparisons[0].verdict().capitalize()}.")]
    figures = []
    for when in WORDS:
        for file in sorted((folder / "media").glob(f"{when} *")):
            text = file.suffix in (".svg", ".txt")
            data: bytes | str = file.read_text(encoding="utf-8") if text else file.read_bytes()
            figures.append(Figure(data, f"{WORDS[when]}", f"{name}, {WORDS[when]}"))
    if not figures:
        raise BadRun(f"{folder / 'media'} holds no pictures: run the same command again, it draws what is missing")
    pieces.append(Gallery(figures))
    if comparisons[1:]:
        pieces += comparison_section(comparisons[1:]).pieces
    mine = [row for row in rows if str(row.get("stage", "")).startswith(name)]
    curves: list[Piece] = []
    for section in curve_sections(mine) if stages(mine) else []:
        curves += [Prose(section.title), *section.pieces]
    if curves:
        pieces.append(Fold("Learning curves", curves))
    return Section(name.capitalize(), pieces)
