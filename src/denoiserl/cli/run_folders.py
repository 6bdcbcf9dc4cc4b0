"""Find the folder of a run, and let its recipe find the modules that lie beside it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from denoiserl.cli import Misuse
from denoiserl.core.errors import unknown_name_message


def find_run_folder(word: str, *also: str) -> Path:
    """Return the folder of a run, by its path or its name in ``runs/``. ``also``: files that mark other folders."""
    for path in (Path(word), Path("runs") / word):
        if any((path / name).is_file() for name in ("run.json", *also)):
            return path
    if Path(word).is_dir():
        raise Misuse(f"{word} is not the folder of a run: it has no run.json.")
    known = sorted(str(p.parent) for p in Path("runs").glob("*/run.json"))
    raise Misuse(unknown_name_message(word, known, "run"))


def add_recipe_dir_to_path(path: Path) -> None:
    """Put the folder of a run's recipe or program on the import path, as it was when the run began."""
    from denoiserl.core.serialization import store

    record = store.read_json(path / "run.json")
    record = record if isinstance(record, dict) else {}
    for file in (record.get("program"), (record.get("args") or {}).get("recipe")):
        add_to_import_path(Path(str(file)).parent if str(file).endswith(".py") else Path.cwd())


def add_to_import_path(folder: Path) -> None:
    """Append a folder to the import path, once."""
    with contextlib.suppress(OSError):
        folder = folder.resolve()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
