"""Trees on disk: a folder with ``tensors.safetensors`` and ``tree.json``, without pickle, written whole or not at all.

A tree is nested dicts, lists and tuples of ``None``, bool, int, float, str and tensors, as in every ``state_dict``.
Tensors go to safetensors (any other tool can open them), everything else to JSON with a size and a checksum of both.
``read`` refuses a truncated copy.

A write makes the new folder beside the old one and forces it to disk. Then it renames it into place, while the old one
still exists under another name. If the process is killed at any time, ``read`` finds the old tree or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from denoiserl.core.errors import RunError
from denoiserl.core.serialization.tree_json import decode, encode

FORMAT, VERSION = "denoiserl-tree", 1
TENSORS, TREE = "tensors.safetensors", "tree.json"
MARK = b'{"format":"denoiserl-tree",'
"""the first bytes of every tree.json that ``write`` makes"""


def write(path: Path | str, tree: Any) -> Path:
    """Write ``tree`` as the folder ``path``, whole or not at all, and return the path.

    ``read`` returns integer keys, tuples, bf16, 0-dim and empty tensors unchanged. A tensor that occurs twice is stored
    once and read as one tensor; overlapping views are read as separate ones. Tensors lose their device and their graph.
    Numpy scalars become Python numbers. Raise RunError with the position of any other value, and for a folder that
    holds other files, because the whole folder is replaced.
    """
    path = Path(path)
    new, old = _beside(path)
    _replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content, tensors = encode(tree)
    if not path.exists() and old.exists():  # a writer was killed between the two renames below
        old.rename(path)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    _save_tensors(tensors, new / TENSORS)
    size, digest = _digest(new / TENSORS)
    text = _dumps(content)
    head = {"format": FORMAT, "version": VERSION, "bytes": size, "sha256": digest, "check": _hash(text)}
    (new / TREE).write_text(f'{_dumps(head)[:-1]},"tree":{text}}}', encoding="utf-8")
    for written in (new / TENSORS, new / TREE, new):
        _sync(written)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    return path


def read(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """Read the tree that ``write`` stored at ``path``. Raise RunError with the file's name if it is not valid."""
    path = Path(path)
    return _settled(path, lambda folder: _read(folder, device))


def read_structure(path: Path | str) -> Any:
    """Read the tree at ``path`` without loading its tensors (each is replaced by its name in the file)."""
    return _settled(Path(path), lambda folder: decode(_header(folder)["tree"], None))


def exists(path: Path | str) -> bool:
    """Return whether ``path`` holds a tree to ``read``."""
    path = Path(path)
    return path.exists() or _beside(path)[1].exists()


def remove_partial_writes(folder: Path | str) -> None:
    """Remove the remains of killed writers from ``folder``. Only the process that writes there may call this."""
    for left in (*Path(folder).glob(".*.old"), *Path(folder).glob(".*.new")):
        whole, old = left.with_name(left.name[1:-4]), left.suffix == ".old"
        if old and _marked(left) and not whole.exists():
            left.rename(whole)
        elif left.is_dir() and not _others(left) and (_marked(left) or not old):
            shutil.rmtree(left, ignore_errors=True)
        elif left.is_file() and left.name.endswith(".json.new"):
            left.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> Path:
    """Write a JSON value to the file ``path``, whole or not at all."""
    path = Path(path)
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path}: this cannot be written as JSON ({error}): give strings, numbers, lists, dicts."
        ) from error
    return write_text(path, text + "\n")


def write_text(path: Path | str, text: str) -> Path:
    """Write a text to the file ``path``, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    _sync(new)
    os.replace(new, path)
    _sync(path.parent)
    return path


def read_json(path: Path | str) -> Any:
    """Read the JSON value in the file ``path``. Raise RunError with the file's name if it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: check the path.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error}): restore it from a copy.") from error


def _settled(path: Path, reader: Any) -> Any:
    """Read ``path``. If a writer is between its two renames, or was killed there, read the old folder."""
    for _ in range(3):
        if path.is_dir():
            before = path.stat().st_ino
            try:
                return reader(path)
            except FileNotFoundError:
                pass
            except RunError:  # two halves of different writes, if a writer was at work
                if path.exists() and path.stat().st_ino == before:
                    raise
        old = _beside(path)[1]
        if old.exists():
            with contextlib.suppress(FileNotFoundError):
                return reader(old)
    for name in (TREE, TENSORS) if path.is_dir() else ():
        if not (path / name).exists():
            raise _damaged(path / name, "is missing")
    if path.exists():
        raise RunError(f"{path} is not a folder that denoiserl wrote: give that of a saved policy, run or data set.")
    raise RunError(f"{path} does not exist: check the path, or run the command that makes it.")


def _read(path: Path, device: torch.device | str) -> Any:
    header = _header(path)
    file = path / TENSORS
    size = file.stat().st_size
    if size != header["bytes"]:
        raise _damaged(file, f"has {size} bytes instead of {header['bytes']}")
    if _digest(file)[1] != header["sha256"]:
        raise _damaged(file, "does not match its checksum")
    try:
        mapped = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, f"cannot be read ({error})") from error
    # Copy: the file may be replaced, and kernels may round by memory alignment, which must not differ between runs.
    tensors = {name: value.to(device, copy=True) for name, value in mapped.items()}
    try:
        return decode(header["tree"], tensors)
    except KeyError as error:
        raise _damaged(file, f"lacks the tensor {error}") from error


def _header(path: Path) -> dict[str, Any]:
    file = path / TREE
    try:
        header = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(file, f"is truncated or not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"{file} was not written by denoiserl: give the folder of a saved policy, run or data set.")
    if header.get("version") != VERSION:
        raise RunError(
            f"{file} has format version {header.get('version')}, this denoiserl reads {VERSION}: upgrade it."
        )
    if _hash(_dumps(header.get("tree"))) != header.get("check"):
        raise _damaged(file, "does not match its checksum")
    return header


def _replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file: give the name of a folder.")
    foreign = _others(path) or ([] if _marked(path) else sorted(p.name for p in path.iterdir()))
    if foreign:
        raise RunError(
            f"{path} holds other files ({', '.join(foreign[:3])}), which a save would delete: give a new folder."
        )


def _others(folder: Path) -> list[str]:
    """Return the names of the files in a folder that ``write`` does not make."""
    return sorted(p.name for p in folder.iterdir() if p.name not in (TENSORS, TREE))


def _marked(folder: Path) -> bool:
    """Return whether ``write`` made the folder's tree, whole or not."""
    try:
        with (folder / TREE).open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def _beside(path: Path) -> tuple[Path, Path]:
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def _damaged(file: Path, what: str) -> RunError:
    """Return the error for a damaged file. Advise deletion only of a folder that ``write`` certainly made."""
    folder = file.parent
    if _marked(folder) and not _others(folder):
        return RunError(f"{file} {what}: restore the folder from a copy, or delete {folder} and run again.")
    return RunError(
        f"{folder} is not a folder that denoiserl wrote, or not the whole of one ({file.name} {what}): give the folder "
        "of a saved policy, run or data set."
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors. Raise OSError if the system refuses, of which safetensors has only a text."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _digest(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        return file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
