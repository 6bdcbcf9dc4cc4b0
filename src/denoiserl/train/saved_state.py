"""The folder of a run: the saved state of its loop, which objects belong to it, and its saved policies."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.train.inputs import digest

RESERVED = ("state", "start", "best", "last", "tb")


def find_states(folder: Path | str) -> list[Path]:
    """Return the paths of the saved states of a run and of its stages; none if there is no folder.

    A subfolder with a ``run.json`` is a run of its own, and is left out.
    """
    folder = Path(folder)
    others = [p.parent for p in folder.rglob("run.json") if p.parent != folder]
    places = [folder, *(p for p in folder.rglob("*") if p.is_dir() and p.name not in RESERVED)]
    own = [p for p in places if not any(p.is_relative_to(other) for other in others)]
    return [p / "state" for p in own if store.exists(p / "state")]


def count_durable_rows(folder: Path | str) -> int:
    """Return the number of metric rows in the newest state of a run's folder; later rows will be computed again."""
    return max((store.read_structure(path)["rows"] for path in find_states(folder)), default=0)


def find_saved_policy(folder: Path | str, name: str = "best") -> Path:
    """Return the path of the policy ``name`` ("start", "best" or "last") of a run, else that of its newest stage."""
    folder = Path(folder)
    found = [p for p in (folder / name, *folder.rglob(name)) if p.is_dir()]
    if not found:
        raise RunError(
            f"{folder} holds no policy {name!r}: the run may have stopped before its first evaluation; resume it."
        )
    return found[0] if found[0] == folder / name else max(found, key=lambda p: p.stat().st_mtime)


def has_policy(folder: Path | str, name: str) -> bool:
    """Return whether a run or one of its stages has saved the policy ``name``."""
    return any(p.is_dir() for p in (Path(folder) / name, *Path(folder).rglob(name)))


def sort_objects(named: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return the objects to save, and those with ``on_checkpoint`` (an object may be both)."""
    kept, borders = {}, []
    for name, thing in named.items():
        saves = hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")
        if saves:
            kept[name] = thing
        if hasattr(thing, "on_checkpoint"):
            borders.append(thing)
        elif not saves and thing is not None:
            raise RunError(
                f"{name!r} ({type(thing).__name__}) cannot be saved: give it state_dict() and load_state_dict(state), "
                "or on_checkpoint(iteration) if it must restart."
            )
    return kept, borders


def digest_inputs(given: Any, kept: dict[str, Any]) -> dict[str, str]:
    """Return fingerprints of what a loop does not change: its data, and the codecs of its policies.

    Statistics of a codec are not included: the loop changes and restores them.
    """
    codecs = {f"codec of the {k}": v.codec for k, v in kept.items() if hasattr(v, "codec")}
    for name, codec in codecs.items():
        if is_dataclass(codec) and (state := getattr(codec, "state_dict", None)) is not None:
            learns = state()
            codecs[name] = {f.name: getattr(codec, f.name) for f in fields(codec) if f.name not in learns}
    return {name: digest(v) for name, v in {"data set": given, **codecs}.items() if v is not None}


def restore_objects(path: Path, kept: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """Read the state at ``path``, load it into the objects ``kept`` and return the whole of it.

    Raise RunError if the objects or the fingerprints of the ``inputs`` are others.
    """
    state = store.read(path)
    if not isinstance(state, dict) or "named" not in state or "iteration" not in state:
        raise RunError(f"{path} is not the state of a loop: pass the folder of a run.")
    unknown, missing = sorted(state["named"].keys() - kept.keys()), sorted(kept.keys() - state["named"].keys())
    if unknown or missing:
        raise RunError(
            f"{path} does not fit this loop. Only in the file: {', '.join(unknown) or 'nothing'}; only in the "
            f"loop: {', '.join(missing) or 'nothing'}. Pass the same objects to the loop, or use a new folder."
        )
    began = state.get("given", {})
    if changed := [name for name in inputs if name in began and inputs[name] != began[name]]:
        raise RunError(f"{path} began with another {' and '.join(changed)}: use the same, or a new folder.")
    for name, thing in kept.items():
        try:
            thing.load_state_dict(state["named"][name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path}: {name!r} does not fit ({error}). Use the same settings, or a new folder."
            ) from error
    return state
