"""Fingerprints of a run's inputs: data, environment files, a starting policy.

A resumed run must have the same inputs: other data under the same name would change its numbers silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WHOLE, PIECES = 1 << 28, 16
"""bytes up to which content is read whole; of larger content, this many pieces of every file or tensor are read"""
MADE = ("metrics.jsonl", "clock.jsonl", "run.json", "tb", "eval", "verdict", "__pycache__")
"""files and folders that change while a run uses a folder"""


def fingerprints(args: Any, folder: Path) -> dict[str, str]:
    """Return {place in ``args``: fingerprint} of every file or folder that a value of ``args`` names.

    A value is a path, or ``file.py:name``. Folders that hold ``folder``, the run's own, do not count. Files that a file
    imports are not read.
    """
    found = {}
    for at, word in _words(args, ""):
        file = word.rpartition(":")[0] if ".py:" in word else word
        path = Path(file)
        try:
            known = bool(file) and path.exists() and path.resolve() not in folder.resolve().parents
        except (OSError, ValueError):  # longer than a name may be, or no name at all
            known = False
        if known and path.resolve() != folder.resolve():
            found[at] = _content(path)
    return found


def digest(given: Any) -> str:
    """Return the fingerprint of a tree of tensors, numbers, strings and dataclasses of them.

    Other objects count by their class alone.
    """
    sha = hashlib.sha256()
    _add(given, sha)
    return sha.hexdigest()


def _words(value: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield the strings and paths in a recipe's ``Args``, with their places."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _words(getattr(value, field.name), f"{at}.{field.name}".strip("."))
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from _words(v, f"{at}.{i}")
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _words(v, f"{at}.{k}".strip("."))
    elif isinstance(value, str | Path):
        yield at, str(value)


def _content(path: Path) -> str:
    """Return the fingerprint of a file, or of a folder's files with their names; of a run folder, that of its
    policies.
    """
    sha, files = hashlib.sha256(), [path]
    if path.is_dir():
        kept = [p for name in ("best", "last") for p in sorted(path.rglob(name)) if p.is_dir()]
        roots = kept if (path / "run.json").is_file() else [path]
        inner = [file for root in roots for file in sorted(root.rglob("*")) if file.is_file()]
        files = [f for f in inner if not any(part in MADE or part[0] == "." for part in f.relative_to(path).parts)]
    sizes = [file.stat().st_size for file in files]
    part = WHOLE // (PIECES * max(len(files), 1))
    for file, size in zip(files, sizes, strict=True):
        sha.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as stream:
            for at, n in _pieces(size, part, whole=sum(sizes) <= WHOLE):
                stream.seek(at)
                sha.update(stream.read(n))
    return sha.hexdigest()


def _pieces(size: int, part: int, whole: bool) -> list[tuple[int, int]]:
    """Return (offset, length) of the parts of ``size`` to read: all of it, or evenly spread parts with first
    and last.
    """
    if whole or size <= PIECES * part:
        return [(0, size)]
    return [((size - part) * k // (PIECES - 1), part) for k in range(PIECES)]


def _add(node: Any, sha: Any) -> None:
    if isinstance(node, Tensor):
        sha.update(f"{node.dtype}{tuple(node.shape)}".encode())
        flat, size = node.detach().reshape(-1), node.element_size()
        part = WHOLE // (PIECES * size)
        for at, n in _pieces(flat.numel(), part, whole=flat.numel() * size <= WHOLE):
            sha.update(flat[at : at + n].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(node, dict):
        for k in sorted(node, key=str):
            sha.update(f"{k}=".encode())
            _add(node[k], sha)
    elif isinstance(node, list | tuple):
        sha.update(f"[{len(node)}".encode())
        for v in node:
            _add(v, sha)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        _add({f.name: getattr(node, f.name) for f in dataclasses.fields(node)}, sha)
    elif node is None or isinstance(node, bool | int | float | str):
        sha.update(repr(node).encode())
    else:
        sha.update(type(node).__qualname__.encode())
