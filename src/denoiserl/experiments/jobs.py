"""Runs in parallel, each in its own process, with one progress bar for all.

A job is a program, its args and a folder. Jobs are processes, not threads: torch's small operations hold the
interpreter lock, and a job that crashes stops no other. Ctrl-C reaches all of them; each saves and stops, and the same
command resumes them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.progress import ProgressTask, show_progress
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import from_json, to_json
from denoiserl.experiments.runner import run

CODE = "import sys; from denoiserl.experiments.jobs import work; work(sys.argv[1])"


@dataclass(frozen=True)
class Job:
    """``module``: a module of this package with Args and train. ``label``: the job's name in the bar and in errors."""

    module: str
    args: Any
    folder: Path
    label: str

    @property
    def is_finished(self) -> bool:
        """True if the job's run has finished."""
        path = self.folder / "run.json"
        return path.exists() and bool(store.read_json(path).get("finished"))


def work(spec: str) -> None:
    """Read a job's file and run it; called in the job's process."""
    job = store.read_json(Path(spec))
    sys.path[:0] = [p for p in job["path"] if p not in sys.path]
    recipe = importlib.import_module(job["module"])
    args = from_json(recipe.Args, job["args"])
    run(recipe, args, job["folder"], device=job["device"], threads=1, progress=job["lines"], tensorboard=job["lines"])


def run_jobs(
    jobs: Sequence[Job],
    processes: int,
    device: str = "cpu",
    progress: bool = True,
    said: str = "",
    lines: bool = False,
) -> None:
    """Run all unfinished jobs, ``processes`` at a time; 0 runs them in this process, one after another.

    ``lines``: show the newest line of every running job, not one bar for all.
    After a job fails no other job starts and the running ones finish; then raise RunError with its last message.
    """
    todo = [job for job in jobs if not job.is_finished]
    if processes == 0:
        for job in todo:
            recipe = importlib.import_module(job.module)
            run(recipe, job.args, job.folder, device=device, threads=1, progress=False, tensorboard=False)
        return
    waiting, running, failed = list(todo), [], []
    shown = _Lines(progress) if lines else _Bar(jobs, said, progress)
    with shown as bar:
        try:
            while (waiting and not failed) or running:
                while waiting and not failed and len(running) < processes:
                    job = waiting.pop(0)
                    running.append((job, _spawn(job, device, lines)))
                time.sleep(0.2)
                for pair in [pair for pair in running if pair[1].poll() is not None]:
                    running.remove(pair)
                    if pair[1].returncode:
                        failed.append(pair[0])
                bar.show([job for job, _ in running])
        except KeyboardInterrupt as stop:
            for _, process in running:
                if getattr(stop, "number", signal.SIGINT) != signal.SIGINT:  # Ctrl-C reaches them by itself
                    process.terminate()
            for _, process in running:
                process.wait()
            print("Stopped: finished work is kept. Run the same command again to resume.", file=sys.stderr)
            raise
        finally:
            for _, process in running:
                if process.poll() is None:
                    process.terminate()
    if failed:
        log = _log(failed[0]).read_text(encoding="utf-8").strip()
        raise RunError(f"{failed[0].label} failed: {log.splitlines()[-1] if log else 'it left no message'}")


def _spawn(job: Job, device: str, lines: bool) -> subprocess.Popen[bytes]:
    spec, log = job.folder.parent / f"{job.folder.name}.job.json", _log(job)
    spec.parent.mkdir(parents=True, exist_ok=True)
    paths = [os.getcwd(), *(p for p in sys.path if p)]
    record = {
        "module": job.module,
        "args": to_json(job.args),
        "folder": str(job.folder),
        "device": device,
        "path": paths,
        "lines": lines,
    }
    store.write_json(spec, record)
    one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", CODE, str(spec)], stdout=out, stderr=out, env=one)


def _log(job: Job) -> Path:
    """Return the file of what a job's process writes."""
    return job.folder.parent / f"{job.folder.name}.log"


class _Lines:
    """The newest line of every running job: beside a bar each in a terminal, every few seconds elsewhere."""

    def __init__(self, on: bool) -> None:
        self.context = show_progress(on)
        self.tasks: dict[str, ProgressTask] = {}
        self.written = time.monotonic()

    def __enter__(self) -> _Lines:
        self.display = self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for task in self.tasks.values():
            self.display.end(task)
        self.context.__exit__(*error)

    def show(self, running: Sequence[Job]) -> None:
        """Show the running jobs, and end those that are over."""
        names = {job.label for job in running}
        for name in [name for name in self.tasks if name not in names]:
            self.display.end(self.tasks.pop(name), keep=True)
        due = time.monotonic() - self.written >= self.display.every
        for job in running:
            task = self.tasks.get(job.label) or self.tasks.setdefault(job.label, self.display.add(job.label))
            line = _newest_line(_log(job))
            if due and not self.display.terminal and line != task.newest:
                self.display.print(f"{job.label}: {line}")
                self.written = time.monotonic()
            self.display.update(task, newest=line)


def _newest_line(path: Path) -> str:
    """Return the last line of a log; of a file that does not exist yet, none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text.rstrip().rpartition("\n")[2]


class _Bar:
    """One bar: the share of all jobs' budgets that is spent, the time left, and the running jobs."""

    def __init__(self, jobs: Sequence[Job], said: str, on: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.jobs = jobs
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("[dim]{task.fields[now]}"), disable=not on)
        self.id = self.bar.add_task(said, total=float(len(jobs)), done="", now="")
        self.seen = 0.0

    def __enter__(self) -> _Bar:
        self.bar.__enter__()
        self.show([])
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def show(self, running: Sequence[Job]) -> None:
        if time.monotonic() - self.seen < 1.0 and running:
            return
        self.seen = time.monotonic()
        done = sum(job.is_finished for job in self.jobs)
        part = sum(_share(job) for job in running)
        now = ", ".join(job.label for job in running)
        self.bar.update(self.id, completed=done + part, done=f"{done}/{len(self.jobs)}", now=now)


def _share(job: Job) -> float:
    """Return the share of its budget that a running job has spent, by its last row."""
    path, unit, budget = job.folder / "metrics.jsonl", getattr(job.args, "unit", None), getattr(job.args, "budget", 0)
    if unit is None or not path.exists():
        return 0.0
    lines = path.read_bytes().splitlines()
    for line in reversed(lines[-3:]):
        try:
            return min(0.95, 0.95 * float(json.loads(line).get(unit, 0.0)) / budget)
        except ValueError:  # half a line
            continue
    return 0.0
