"""The runner: a program, its args and a folder become a run that is recorded, shown, interrupted and resumed.

A program is a module with a dataclass ``Args`` and ``train(args, run)``, which yields rows of metrics. It is an
experiment (a recipe on a task), an arm of a comparison, the demo, or a user's file.

folder/run.json        program, args, seed, device, versions, commit, fingerprints of the inputs
folder/metrics.jsonl   its metrics (``train.metrics_log``); wall times are in clock.jsonl and events in tb/
folder/<stage>/state   the state of its loops (``train.Run``)
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from filelock import FileLock, Timeout

from denoiserl.core.device import resolve_device
from denoiserl.core.errors import RunError
from denoiserl.core.imports import load_module
from denoiserl.core.progress import ProgressDisplay, show_progress
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import from_json, to_json
from denoiserl.core.settings import Count, check_value
from denoiserl.core.signals import signals_as_exceptions
from denoiserl.experiments.run_record import free_folder, is_unborn, make_record, program_name
from denoiserl.experiments.versions import utc_time
from denoiserl.train.device import DeviceConfig
from denoiserl.train.inputs import fingerprints
from denoiserl.train.metrics_log import MetricsLog
from denoiserl.train.progress import LoopProgress
from denoiserl.train.run_state import Run, Stopped
from denoiserl.train.saved_state import count_durable_rows, find_states


def run(
    program: ModuleType | Any,
    args: Any,
    folder: Path | str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    save_every: int | None = None,
    env_restart_every: int | None = None,
    budget: Mapping[str, float] | None = None,
    progress: bool = True,
    tensorboard: bool = True,
    numbered: bool = False,
) -> dict[str, Any]:
    """Run ``program.train(args, run)`` in ``folder``, or resume the run that the folder holds.

    Return ``{"folder", "rows", "last", "spent", "place", "unfinished", "repeated", "quick"}``. ``last`` is the
    newest row. ``unfinished`` is {stage: (iterations made, planned)} of the loops that the budget ended.
    ``repeated``: the run had finished before, and nothing was computed. ``numbered``: if ``folder`` holds another
    run, use folder-2, folder-3 or the next one that is free. Raise RunError, before anything is written, for a
    setting out of its range or an unknown device. Raise RunError if the folder holds a run of other settings, or if
    a file or folder that they name has changed (data, a module with an environment, a starting policy). More
    ``iterations`` are allowed if the recipe's ``EXTENDABLE`` says so; environments then restart where the run had
    ended. Ctrl-C lets the iteration finish, saves, prints how to resume, and raises SystemExit(130) (143 for
    SIGTERM). A second Ctrl-C stops at once, and the run resumes from its last save. A folder made here goes again
    if the run is refused before its first row.
    """
    device = resolve_device(device)
    settings = {
        "program": program_name(program),
        "args": to_json(args),
        "device": device,
        "precision": precision,
        "threads": threads,
        "save_every": save_every,
        "env_restart_every": env_restart_every,
        "budget": dict(budget) if budget else None,
    }
    for name, value in (("save_every", save_every), ("env_restart_every", env_restart_every)):
        check_value(Count | None, value, name)
    settings = json.loads(json.dumps(settings))
    folder = free_folder(Path(folder), settings, program) if numbered else Path(folder)
    keep, place = Run(folder, device, save_every, budget, env_restart_every), DeviceConfig(device, precision, threads)
    with _removed_if_refused(folder), _alone(folder):
        store.remove_partial_writes(folder)
        given = fingerprints(getattr(program, "inputs", lambda of: of)(args), folder)
        record = make_record(folder, settings, given, getattr(args, "seed", None), program, args)
        if record["finished"] is not None:
            return _result(folder, record, _last_row(folder), count_durable_rows(folder), True)
        with place.activate() as record["place"], show_progress(progress) as display, signals_as_exceptions():
            store.write_json(folder / "run.json", record)
            last, rows = _consume(program, args, keep, record["seed"], display, tensorboard)
        record |= {"finished": utc_time(), "unfinished": keep.cut, "spent": keep.usage()}
        store.write_json(folder / "run.json", record)
    return _result(folder, record, last, rows, False)


def _result(
    folder: Path, record: Mapping[str, Any], last: dict[str, Any] | None, rows: int, repeated: bool
) -> dict[str, Any]:
    """Return the result of a finished run, as ``run`` describes it."""
    kept = {name: record[name] for name in ("spent", "place", "unfinished")}
    quick = bool(record["args"].get("quick"))
    return {"folder": str(folder), "rows": rows, "last": last, **kept, "repeated": repeated, "quick": quick}


def _last_row(folder: Path) -> dict[str, Any] | None:
    """Return the newest row of metrics of a run, or None."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else None


def rerun(folder: Path | str, **settings: Any) -> dict[str, Any]:
    """Resume the run in ``folder`` from its ``run.json``. ``settings``: progress, tensorboard, budget."""
    program, args, record = load_run(folder)
    known = {k: record.get(k) for k in ("device", "precision", "threads", "save_every", "env_restart_every", "budget")}
    return run(program, args, folder, **{**known, **settings})


def load_run(folder: Path | str) -> tuple[ModuleType, Any, dict[str, Any]]:
    """Return the program's module, its args, and the record of the run in ``folder``."""
    record = store.read_json(Path(folder) / "run.json")
    if isinstance(record, dict) and "recipe" in record and "program" not in record:
        raise RunError(
            f"{folder} was written by an older version of denoiserl, whose runs this one cannot read: load its policy "
            "with Policy.load, or run it again."
        )
    if not isinstance(record, dict) or "program" not in record:
        raise RunError(f"{folder} is not the folder of a run: its run.json names no program.")
    program = load_module(record["program"], "program")
    return program, from_json(program.Args, record["args"]), record


def _consume(
    program: Any, args: Any, run: Run, seed: int | None, display: ProgressDisplay, tensorboard: bool
) -> tuple[dict[str, Any] | None, int]:
    assert run.folder is not None
    done = count_durable_rows(run.folder)
    journal, shown, last = MetricsLog(run.folder, done, tensorboard), LoopProgress(display), None
    run.mark, run.watch = journal.mark, shown.update
    begin = f"Resuming {run.folder} after {done} rows." if done else f"Writing to {run.folder}."
    curves = f" Curves: tensorboard --logdir {run.folder}" if journal.boards is not None else ""
    place = "" if run.device.type == "cpu" else f" Device: {run.device}."
    display.print(f"{begin}{place} Ctrl-C saves; the same command goes on.{curves}")
    if seed is not None:  # networks are initialised from the global generators
        torch.manual_seed(seed)
        numpy.random.seed(seed % 2**32)
        random.seed(seed)
    began = time.perf_counter()
    try:
        with run.meter.open(), contextlib.closing(program.train(args, run)) as rows:
            for row in rows:
                last = journal.write(row, run.current_loop(), time.perf_counter() - began)
                shown.row(last)
    except KeyboardInterrupt as stop:
        message, again = "Stopped before the first save: nothing is kept.", "start again"
        if find_states(run.folder) or any(run.folder.glob("*/run.json")):  # of its own, or of the runs inside it
            message, again = "Stopped at once: the last save is kept.", "resume"
        message = str(stop) if isinstance(stop, Stopped) else message
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{message} Run the same command again to {again} ({run.folder}).", file=sys.stderr, flush=True)
        raise SystemExit(128 + getattr(stop, "number", 2)) from None
    finally:
        shown.close()
        journal.close()
    if last is None and done:  # it had finished before
        last = _last_row(run.folder)
    return last, journal.rows


@contextmanager
def _removed_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder after an error if it is new and holds no row and no save."""
    new = [place for place in (folder, folder.parent) if not place.exists()]
    try:
        yield
    except Exception:
        if folder in new and folder.is_dir() and is_unborn(folder):
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # others have put something into it
                folder.parent.rmdir() if folder.parent in new else None
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this run. Raise RunError if another run holds it; the lock dies with its process."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise RunError(f"Another process runs in {folder}: wait for it, or give another folder.") from None
    with held:
        yield
