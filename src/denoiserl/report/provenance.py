"""The provenance of a run: its record, its recipe's description, changed options, and the command to repeat it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.report.html import Code, Fold, Note, Piece, Prose, Section, Table
from denoiserl.report.metrics import DRAWN, each_row, read_metrics

RUNNING = {"device": "cpu", "precision": "float32", "threads": 1, "save_every": None, "env_restart_every": None}
"""defaults of the run's own options"""


@dataclass(frozen=True)
class Description:
    """The parts of a recipe's docstring: a name, a sentence, fields (``paper``, ``signal``) and paragraphs."""

    name: str
    title: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass(frozen=True)
class Run:
    """A run's folder, ``run.json`` in it, and the rows of ``metrics.jsonl``."""

    folder: Path
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def about(self) -> dict[str, Any]:
        """The program's description in the record: name, docstring, options and their defaults."""
        return self.record.get("about") or {}

    @property
    def method(self) -> str:
        """The recipe's name on the command line."""
        return str(self.about.get("name", "run"))

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @cached_property
    def description(self) -> Description:
        return parse_description(str(self.about.get("doc", "")), self.method)

    @property
    def options(self) -> dict[str, Any]:
        """All options by their name on the command line, such as ``task.env``."""
        return self.about.get("options") or {}

    @property
    def defaults(self) -> dict[str, Any] | None:
        """The defaults of the options, or None if they are unknown."""
        return self.about.get("defaults")

    @cached_property
    def changed_options(self) -> dict[str, Any]:
        """The options that differ from their default; all options if the defaults are unknown."""
        known = self.defaults
        if known is None:
            return dict(self.options)
        return {k: v for k, v in self.options.items() if k not in known or known[k] != v}

    @property
    def finish_time(self) -> str:
        """The time at which the run finished, "" if it has not."""
        return str(self.record.get("finished") or "").replace("T", " ").removesuffix("Z")

    @cached_property
    def count(self) -> int:
        """Number of rows in the file; ``rows`` holds of each kind only as many as a plot shows."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return 0
        with file.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)

    @cached_property
    def seconds(self) -> float | None:
        """Wall time until the last row, in seconds."""
        clock = self.folder / "clock.jsonl"
        rows = each_row(clock) if clock.exists() else []
        # A resumed run starts its clock again: the parts add up where time jumps back.
        times = (float(row["seconds"]) for row in rows if "seconds" in row)
        parts = [a for a, b in pairwise(chain(times, [-1.0])) if b < a]
        return sum(parts) if parts else None


def load_run(folder: Path | str) -> Run:
    """Load the run in ``folder``. Raise RunError for a folder without a valid ``run.json``."""
    folder = Path(folder)
    record = store.read_json(folder / "run.json")
    if not isinstance(record, dict):
        raise RunError(f"{folder / 'run.json'} is a {type(record).__name__}, not an object: give the folder of a run.")
    file = folder / "metrics.jsonl"
    return Run(folder, record, read_metrics(file, DRAWN) if file.exists() else [])


def parse_description(doc: str, name: str) -> Description:
    """Split a docstring that begins with ``NAME: title`` and lines ``key: value``; any other is all body."""
    lines = "\n".join([*doc.strip().splitlines()[:1], *_dedented(doc.strip().splitlines()[1:])]).splitlines()
    head = re.fullmatch(r"([^:]+): (.+)", lines[0]) if lines else None
    if not head:
        return Description(name, body="\n".join(lines))
    fields: dict[str, str] = {}
    rest = lines[1:]
    while rest and (not rest[0].strip() or re.fullmatch(r"[a-z]+: .+", rest[0])):
        key, _, value = rest.pop(0).partition(": ")
        if value:
            fields[key] = value.strip()
    return Description(head[1].strip(), head[2].strip(), fields, "\n".join(rest).strip())


def paragraphs(text: str) -> list[Piece]:
    """Split text into paragraphs; indented ones, such as equations, keep their line breaks."""
    found: list[Piece] = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = part.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            found.append(Code("\n".join(_dedented(lines))))
        elif lines:
            found.append(Prose(" ".join(line.strip() for line in lines)))
    return found


def command(run: Run) -> str:
    """Return the command that repeats the run, with its changed options: ``denoiserl run RECIPE --option value``."""
    recipe = str(run.about.get("run", "RECIPE"))
    parts = ["denoiserl", "demo"] if recipe == "demo" else ["denoiserl", "run"]
    if parts[-1] == "run":
        parts.append(Path(recipe).name if recipe.endswith(".py") else recipe)
    for name, value in run.changed_options.items():
        parts += as_flags(name, value)
    for name, usual in RUNNING.items():
        if name in run.record and run.record[name] != usual:
            parts += as_flags(name, run.record[name])
    if run.record.get("budget"):
        parts += ["--budget", *(f"{k.replace(' ', '-')}={v:g}" for k, v in run.record["budget"].items())]
    usual = "demo" if parts[1] == "demo" else run.method if run.seed is None else f"{run.method}-{run.seed}"
    usual = str(run.about.get("folder", usual))
    if not re.fullmatch(rf"{re.escape(usual)}(-\d+)?", run.name):  # a number follows where the name was taken
        parts += ["--out", f"runs/{run.name}"]
    return shlex.join(parts)


def as_flags(name: str, value: Any) -> list[str]:
    """Return an option and its value as command-line arguments."""
    head, _, tail = name.replace("_", "-").rpartition(".")
    at = f"{head}." if head else ""
    if isinstance(value, bool):
        return [f"--{at}{tail}" if value else f"--{at}no-{tail}"]
    if isinstance(value, list):
        return [f"--{at}{tail}", *map(str, value)]
    return [f"--{at}{tail}", str(value)]


def method_sections(run: Run) -> list[Piece]:
    """Return the method in a sentence, and its recipe's docstring, folded."""
    recipe = run.description
    paper = recipe.fields.get("paper", "")
    learned = {
        "env": "from an environment",
        "reward": "from a reward function",
        "pairs": "from preferences",
        "data": "from data",
    }.get(recipe.fields.get("signal", ""))
    text = f"{recipe.name}: {recipe.title}" if recipe.title else f"Recipe `{run.method}`."
    text += "" if text.endswith(".") else "."
    text += f" It learns {learned}{f' ({paper})' if paper else ''}." if learned else ""
    pieces: list[Piece] = [Prose(text)]
    if recipe.title and recipe.body:
        pieces.append(Fold("The method and what to expect of it", paragraphs(recipe.body)))
    return pieces


def reproduction_section(runs: Sequence[Run]) -> Section:
    """Return a section with the commands that repeat the runs, and their versions, commits and devices."""
    keys = {"commit": "commit", "device": "device", "precision": "precision", "threads": "threads"}
    rows: list[dict[str, str]] = []
    for run in runs:
        versions = {k: str(v) for k, v in (run.record.get("versions") or {}).items()}
        rows.append(versions | {label: _plain(run.record[key]) for key, label in keys.items() if run.record.get(key)})
    names = list(dict.fromkeys(name for row in rows for name in row))
    same = [name for name in names if len({row.get(name, "–") for row in rows}) == 1]
    pieces: list[Piece] = [Code("\n".join(command(run) for run in runs))]
    if same:
        pieces.append(Prose("With " + ", ".join(f"{name} {rows[0][name]}" for name in same) + "."))
    if other := [name for name in names if name not in same]:
        cells = [(run.name, *(row.get(name, "–") for name in other)) for run, row in zip(runs, rows, strict=True)]
        pieces.append(Table(("run", *other), cells))
    if any(str(run.record.get("commit") or "").endswith("+") for run in runs):
        pieces.append(Note("A + at the end of a commit marks uncommitted changes."))
    if any(str(run.about.get("run", "")).endswith(".py") for run in runs):
        pieces.append(Note("Run the command in the folder of the recipe's file."))
    return Section("How to reproduce", pieces)


def _plain(value: Any) -> str:
    text = str(value)
    return text[:10] + "+" * text.endswith("+") if re.fullmatch(r"[0-9a-f]{40}\+?", text) else text


def _dedented(lines: Sequence[str]) -> list[str]:
    cut = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[cut:] for line in lines]
