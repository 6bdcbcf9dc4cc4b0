"""``sample`` and ``report``: what came out of a run, to look at."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from denoiserl.cli import Misuse
from denoiserl.cli.listing import hint
from denoiserl.cli.opening import load_policy
from denoiserl.cli.run_folders import add_recipe_dir_to_path, find_run_folder
from denoiserl.core.errors import DenoiseRLError, RunError

Word = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class SampleOptions:
    """Options of ``sample``."""

    run: Word
    """the folder of a run"""
    n: int = 16
    """samples, episodes or answers"""
    seed: int = 0
    """of the draws"""
    which: Literal["best", "last"] = "best"
    """the best policy of the run, or its last one"""
    out: Annotated[Path | None, hint("(default: RUN/samples)")] = None
    """where to save"""
    device: Annotated[str | None, hint("(default: where the run did)")] = None
    """where to compute"""


@dataclass(frozen=True)
class Report:
    """Options of ``report``."""

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
    ]
    """the folders of runs, all on one page; or of a study"""
    out: Annotated[Path | None, hint("(default: in the folder; of several, runs/report.html)")] = None
    """the page"""


def sample(given: list[str]) -> None:
    """``denoiserl sample RUN``."""
    a = tyro.cli(
        SampleOptions, prog="denoiserl sample", description="Draw with a run's policy, save, look.", args=given
    )
    if a.n < 1:
        raise Misuse(f"--n {a.n}: at least one is needed.")
    made = load_policy(a.run, a.which, a.device)
    if made.program is None:
        raise Misuse(f"{a.run} is a policy without a run, which says what it is about: name the folder of its run.")
    task = made.task()
    if task.look is None:
        raise RunError(f"task {task.name!r} does not say how its policy is shown: give it look(policy, seed, n)")
    policy = made.load(task)
    with made.place.activate():
        files = task.look(policy, a.seed, a.n)
    out = a.out or find_run_folder(a.run) / "samples"
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if Path(name).name != name:
            raise RunError(f"look of task {task.name!r} names a file {name!r}: names have no folders.")
        path = out / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            path.write_text(data, encoding="utf-8")
            if path.suffix == ".txt":
                print(data.rstrip("\n"))
        print(path)


def report(given: list[str]) -> None:
    """``denoiserl report RUN ...``."""
    a = tyro.cli(Report, prog="denoiserl report", description="Runs as one HTML page.", args=given)
    if not a.runs:
        raise Misuse("Name a run: denoiserl report RUN.")
    from denoiserl.core.serialization.store import write_text
    from denoiserl.report.run_report import run_report

    if len(a.runs) == 1:
        path = find_run_folder(a.runs[0], "study.json")
        if (path / "study.json").is_file():
            from denoiserl.experiments import compare_report as page
            from denoiserl.experiments import load_results

            print(page.write(load_results(path), path, a.out))
            return
        _ours(path)
        if (finish := _finish(path)) is not None and a.out is None:
            finish(path)
            return
        print(write_text(a.out or path / "report.html", run_report(path)))
        return
    paths = [find_run_folder(word) for word in a.runs]
    for path in paths:
        _ours(path)
    print(write_text(a.out or Path("runs") / "report.html", run_report(paths)))


def _ours(path: Path) -> None:
    """Raise RunError if the run.json in a folder is another program's: nothing is written beside it."""
    from denoiserl.core.serialization import store

    record = store.read_json(path / "run.json")
    if not isinstance(record, dict) or "program" not in record:
        raise RunError(f"{path} is not the folder of a run: its run.json names no program")


def _finish(path: Path) -> Any:
    """What the recipe of a finished run makes of it itself (the demo), or None."""
    from denoiserl.core.imports import load_module
    from denoiserl.core.serialization import store

    record = store.read_json(path / "run.json")
    with contextlib.suppress(DenoiseRLError):  # what a run wrote can be shown where its recipe cannot be imported
        if isinstance(record, dict) and record.get("finished"):
            add_recipe_dir_to_path(path)
            return getattr(load_module(record["program"]), "finish", None)
    return None
