"""The runner: a program, its args and a folder become a run that is recorded, shown, interrupted and resumed.

A program is a module with a dataclass ``Args`` and ``train(args, run)``, which yields rows of metrics. It is an
experiment (a recipe on a task), an arm of a comparison, the demo, or a user's file.

folder/run.json        program, args, seed, device, versions, commit, fingerprints of the inputs
folder/metrics.jsonl   its metrics (``train.metrics_log``); wall times are in clock.jsonl and events in tb/
folder/<stage>/state   the state of its loops (``train.Run``)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
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

from denoiserl.core.errors import DenoiseRLError, RunError
from denoiserl.core.imports import load_module
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import diff_settings, flat, from_json, to_json
from denoiserl.core.settings import Count, check_value
from denoiserl.experiments.versions import provenance, utc_time
from denoiserl.train.device import DeviceConfig
from denoiserl.train.inputs import fingerprints
from denoiserl.train.metrics_log import MetricsLog
from denoiserl.train.progress import Progress
from denoiserl.train.run_state import Run, Stopped
from denoiserl.train.saved_state import count_durable_rows, find_states

FIXED = ("program", "args", "device", "precision", "threads", "save_every", "env_restart_every")
"""settings that must not change within a run; the budget may grow"""


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
) -> dict[str, Any]:
    """Run ``program.train(args, run)`` in ``folder``, or resume the run that the folder holds.

    Return ``{"folder", "rows", "last", "spent", "place"}``: ``last`` is the newest row. Raise RunError, before anything
    is written, for a setting out of its range or an unknown device. Raise RunError if the folder holds a run of other
    settings, or if a file or folder that they name has changed (data, a module with an environment, a starting policy).
    More ``iterations`` are allowed if the recipe's ``EXTENDABLE`` says so; environments then restart where the run had
    ended. Ctrl-C lets the iteration finish, saves, prints how to resume, and raises SystemExit(130) (143 for SIGTERM).
    A second Ctrl-C stops at once, and the run resumes from its last save. A folder made here goes again if the run is
    refused before its first row.
    """
    folder = Path(folder)
    settings = {
        "program": _name(program),
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
    keep, place = Run(folder, device, save_every, budget, env_restart_every), DeviceConfig(device, precision, threads)
    with _removed_if_refused(folder), _alone(folder):
        store.remove_partial_writes(folder)
        given = fingerprints(getattr(program, "inputs", lambda of: of)(args), folder)
        record = _record(folder, json.loads(json.dumps(settings)), given, getattr(args, "seed", None), program, args)
        with place.activate() as record["place"]:
            store.write_json(folder / "run.json", record)
            last, rows = _consume(program, args, keep, record["seed"], progress, tensorboard)
        record["finished"] = utc_time()
        store.write_json(folder / "run.json", record)
    return {"folder": str(folder), "rows": rows, "last": last, "spent": keep.usage(), "place": record["place"]}


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
    program: Any, args: Any, run: Run, seed: int | None, progress: bool, tensorboard: bool
) -> tuple[dict[str, Any] | None, int]:
    assert run.folder is not None
    done = count_durable_rows(run.folder)
    journal, shown, last = MetricsLog(run.folder, done, tensorboard), Progress(progress), None
    run.mark, run.watch = journal.mark, shown.update
    if done:
        shown.print(f"Resuming {run.folder} after {done} rows.")
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
        shown.close()
        message, again = "Stopped before the first save: nothing is kept.", "start again"
        if find_states(run.folder):
            message, again = "Stopped at once: the last save is kept.", "resume"
        message = str(stop) if isinstance(stop, Stopped) else message
        print(f"{message} Run the same command again to {again} ({run.folder}).", file=sys.stderr, flush=True)
        number = stop.number if isinstance(stop, Stopped) else 2
        raise SystemExit(128 + number) from None
    finally:
        shown.close()
        journal.close()
    if last is None and done:  # it had finished before
        last = json.loads((run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return last, journal.rows


def _record(
    folder: Path, settings: dict[str, Any], given: dict[str, str], seed: int | None, program: Any, args: Any
) -> dict[str, Any]:
    """Return the content of run.json: a new one, or the folder's own if it is of the same run."""
    path = folder / "run.json"
    fresh = {
        **settings,
        "given": given,
        "seed": seed,
        "about": _about(program, args),
        **provenance(),
        "place": None,
        "resumed": [],
        "finished": None,
    }
    if not path.exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if foreign:
            raise RunError(f"{folder} holds {', '.join(foreign[:3])} and no run.json: give a new folder.")
    if not path.exists() or _unborn(folder):
        return fresh
    old = store.read_json(path)
    known = {k: old.get(k) for k in FIXED}
    found = diff_settings(known, {k: settings[k] for k in FIXED})
    was, more = (_iters(args) for args in (old.get("args", {}), settings["args"]))
    longer = was is not None and more is not None and was < more
    longer = longer and found in (diff_settings({"iterations": was}, {"iterations": more}, at) for at in ITERS)
    if found and not (longer and getattr(program, "may_extend", lambda _: False)(settings["args"])):
        how = " Its schedules depend on their number: to improve its policy further, begin another run with it,"
        raise RunError(
            f"{folder} holds a run of other settings ({'; '.join(found)}): use them, or give a new folder."
            + (f"{how} such as --start {folder} --out NEW." if longer else "")
        )
    before = old.get("given")  # runs of earlier versions have none
    changed = [at for at in {**(before or {}), **given} if before is not None and before.get(at) != given.get(at)]
    if lost := [at for at in changed if at not in given]:
        raise RunError(
            f"the files that {', '.join(lost)} of {folder} names do not exist here: paths without a leading / are "
            "relative to the current folder. Run the command in the folder where the run began, or put them back."
        )
    if changed:
        raise RunError(
            f"{folder} began with other contents of {', '.join(changed)} (the data, file or policy that it names was "
            "changed or removed): put them back, or give a new folder."
        )
    again = {"time": utc_time(), "commit": fresh["commit"], "versions": fresh["versions"], "budget": settings["budget"]}
    again |= {"iterations": [was, more]} if found else {}
    resumed = [*old.get("resumed", []), again]
    renewed = {
        "args": settings["args"],
        "about": fresh["about"],
        "budget": settings["budget"],
        "given": given,
        "resumed": resumed,
    }
    return {**fresh, **old, **renewed}


@contextmanager
def _removed_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder after an error of ours if it is new and holds no row and no save."""
    new = [place for place in (folder, folder.parent) if not place.exists()]
    try:
        yield
    except DenoiseRLError:
        if folder in new and folder.is_dir() and _unborn(folder):
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # others have put something into it
                folder.parent.rmdir() if folder.parent in new else None
        raise


def _unborn(folder: Path) -> bool:
    """Return whether a folder holds only the settings of a run that stopped before its first row and first save."""
    files = [p for p in folder.iterdir() if p.name not in (".lock", "run.json", "tb")]
    return all(p.is_file() and p.stat().st_size == 0 for p in files)


ITERS = ("args", "args.args")
"""where a program's args may hold ``iterations``: directly, or in those of their recipe"""


def _iters(args: dict[str, Any]) -> int | None:
    """Return the number of iterations in a program's args as JSON."""
    inner = args.get("args")
    return args.get("iterations", inner.get("iterations") if isinstance(inner, dict) else None)


def _about(program: Any, args: Any) -> dict[str, Any]:
    """Return the description of a run: from the program's ``run_description``, or from its module and its ``Args``."""
    if hasattr(program, "run_description"):
        return to_json(program.run_description(args))
    name, defaults = _name(program), {}
    with contextlib.suppress(TypeError, RunError):  # args without a default have none
        defaults = {"defaults": flat(to_json(program.Args()))}
    short = name.removeprefix("denoiserl.")
    doc = program.__doc__ or ""
    return {"name": Path(name).name.removesuffix(".py").rpartition(".")[2], "run": short, "doc": doc} | {
        "options": flat(to_json(args)),
        **defaults,
    }


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


def _name(program: Any) -> str:
    """Return the name that finds the program again: its module, or its file."""
    if hasattr(program, "__recipe__"):
        return program.__recipe__
    spec, file = getattr(program, "__spec__", None), getattr(program, "__file__", None)
    name = spec.name if spec is not None else program.__name__
    with contextlib.suppress(ImportError, ValueError):
        if name != "__main__" and importlib.util.find_spec(name) is not None:
            return name
    if file is None:
        raise RunError(f"The program {name!r} is neither an importable module nor a file: save it as one.")
    return str(Path(file).resolve())
