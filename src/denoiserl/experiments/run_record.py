"""The record of a run, ``run.json``: what identifies the run, and whether its folder may be resumed."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.core.serialization.args_json import diff_settings, flat, from_json, to_json
from denoiserl.experiments.versions import provenance, utc_time

FIXED = ("program", "args", "device", "precision", "threads", "save_every", "env_restart_every")
"""settings that must not change within a run; the budget may grow"""


def make_record(
    folder: Path, settings: dict[str, Any], given: dict[str, str], seed: int | None, program: Any, args: Any
) -> dict[str, Any]:
    """Return the content of run.json: a new one, or the folder's own if it is of the same run.

    ``finished`` is None if there is something to compute. Raise RunError if the folder holds something else.
    """
    path = folder / "run.json"
    fresh = {
        **settings,
        "given": given,
        "seed": seed,
        "about": describe_program(program, args),
        **provenance(),
        "place": None,
        "resumed": [],
        "finished": None,
    }
    if not path.exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if foreign:
            raise RunError(f"{folder} holds {', '.join(foreign[:3])} and no run.json: give a new folder.")
    if not path.exists() or is_unborn(folder):
        return fresh
    old = store.read_json(path)
    old["args"] = _with_defaults(program, old.get("args", {}))
    found = diff_settings({k: old.get(k) for k in FIXED}, {k: settings[k] for k in FIXED})
    was, more = (_iters(args) for args in (old["args"], settings["args"]))
    longer = _is_longer(old, settings)
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
    budget_ended = old.get("unfinished") and old.get("budget") != settings["budget"]
    if old.get("finished") and "unfinished" in old and not found and not budget_ended:
        return old
    again = {"time": utc_time(), "commit": fresh["commit"], "versions": fresh["versions"], "budget": settings["budget"]}
    again |= {"iterations": [was, more]} if found else {}
    resumed = [*old.get("resumed", []), again]
    renewed = {
        "args": settings["args"],
        "about": fresh["about"],
        "budget": settings["budget"],
        "given": given,
        "resumed": resumed,
        "finished": None,
    }
    return {**fresh, **old, **renewed}


ITERS = ("args", "args.args")
"""where a program's args may hold ``iterations``: directly, or in those of their recipe"""


def _is_longer(old: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Return whether the settings differ from those of a record by more iterations alone."""
    found = diff_settings({k: old.get(k) for k in FIXED}, {k: settings[k] for k in FIXED})
    was, more = (_iters(args) for args in (old.get("args", {}), settings["args"]))
    steps = [diff_settings({"iterations": was}, {"iterations": more}, at) for at in ITERS]
    return was is not None and more is not None and was < more and found in steps


def free_folder(folder: Path, settings: dict[str, Any], program: Any) -> Path:
    """Return ``folder``, or folder-2, folder-3 ...: the first that holds this run, or none."""
    number = 1
    while True:
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not place.exists() or (place.is_dir() and _is_open_to(place, settings, program)):
            return place
        number += 1


def _is_open_to(folder: Path, settings: dict[str, Any], program: Any) -> bool:
    """Return whether a run with these settings may begin or go on in a folder."""
    if is_unborn(folder):
        return True
    with contextlib.suppress(RunError):  # a damaged record is another run's
        old = store.read_json(folder / "run.json")
        old["args"] = _with_defaults(program, old.get("args", {}))
        found = diff_settings({k: old.get(k) for k in FIXED}, {k: settings[k] for k in FIXED})
        extends = _is_longer(old, settings) and getattr(program, "may_extend", lambda _: False)(settings["args"])
        return not found or extends
    return False


def _with_defaults(program: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return recorded args with the defaults of fields that did not exist when they were recorded."""
    try:
        return to_json(from_json(program.Args, args))
    except (RunError, TypeError, AttributeError):  # they do not fit: the comparison of settings says how they differ
        return args


def _iters(args: dict[str, Any]) -> int | None:
    """Return the number of iterations in a program's args as JSON."""
    inner = args.get("args")
    return args.get("iterations", inner.get("iterations") if isinstance(inner, dict) else None)


def is_unborn(folder: Path) -> bool:
    """Return whether a folder holds only the settings and the start of a run that stopped before its first row."""
    files = [p for p in folder.iterdir() if p.name not in (".lock", "run.json", "tb", "start")]
    return all(p.is_file() and p.stat().st_size == 0 for p in files)


def describe_program(program: Any, args: Any) -> dict[str, Any]:
    """Return the description of a run: from the program's ``run_description``, or from its module and its ``Args``."""
    if hasattr(program, "run_description"):
        return to_json(program.run_description(args))
    name, defaults = program_name(program), {}
    with contextlib.suppress(TypeError, RunError):  # args without a default have none
        defaults = {"defaults": flat(to_json(program.Args()))}
    short = name.removeprefix("denoiserl.")
    doc = program.__doc__ or ""
    return {"name": Path(name).name.removesuffix(".py").rpartition(".")[2], "run": short, "doc": doc} | {
        "options": flat(to_json(args)),
        **defaults,
    }


def program_name(program: Any) -> str:
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
