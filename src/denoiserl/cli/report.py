"""``report``: one run, several runs or a comparison as one HTML page."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.options import help_hint, parse
from denoiserl.cli.run_folders import add_recipe_dir_to_path, find_run_folder
from denoiserl.core.errors import DenoiseRLError, RunError
from denoiserl.core.progress import say


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``report``."""

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
    ]
    """the folders of runs, all on one page; or the folder of a comparison"""
    out: Annotated[Path | None, help_hint("(default: in the folder; of several, runs/report.html)")] = None
    """the page to write"""


def report(argv: list[str]) -> None:
    """Run ``denoiserl report RUN ...``."""
    args = parse(ReportOptions, "report", "Write runs as one HTML page.", argv)
    if not args.runs:
        raise Misuse("Name a run: denoiserl report RUN.")
    study = "study.json"
    paths = [find_run_folder(word, *([study] if len(args.runs) == 1 else [])) for word in args.runs]
    if (paths[0] / study).is_file() and len(paths) == 1:
        from denoiserl.experiments import compare_report, load_results

        print(compare_report.write(load_results(paths[0]), paths[0], args.out))
        return
    for path in paths:
        _require_run_record(path)
    if len(paths) == 1 and args.out is None and (finish := _finish_of(paths[0])) is not None:
        finish(paths[0])
        return
    say("Drawing ...")
    from denoiserl.core.serialization.store import write_text
    from denoiserl.report.run_report import run_report

    out = args.out or (paths[0] if len(paths) == 1 else Path("runs")) / "report.html"
    print(write_text(out, run_report(paths if len(paths) > 1 else paths[0])))


def _require_run_record(path: Path) -> None:
    """Raise RunError if the run.json in a folder is another program's: nothing is written beside it."""
    from denoiserl.core.serialization import store

    record = store.read_json(path / "run.json")
    if not isinstance(record, dict) or "program" not in record:
        raise RunError(f"{path} is not the folder of a run: its run.json names no program")


def _finish_of(path: Path) -> Any:
    """Return ``finish`` of a finished run's program, which writes a report of its own (the demo); or None."""
    from denoiserl.core.imports import load_module
    from denoiserl.core.serialization import store

    record = store.read_json(path / "run.json")
    with contextlib.suppress(DenoiseRLError):  # what a run wrote can be shown where its recipe cannot be imported
        if isinstance(record, dict) and record.get("finished"):
            add_recipe_dir_to_path(path)
            return getattr(load_module(record["program"]), "finish", None)
    return None
