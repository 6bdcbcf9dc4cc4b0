"""A fingerprint of the code that a module rests on: source is parsed, nothing is imported.

    reachable_modules(["denoiserl.recipes.policy_gradient.dppo"])  {module: hash of its source}
    fingerprint(["denoiserl.recipes.policy_gradient.dppo"])        one hash of them all

A module rests on every module that it imports, anywhere in its file, and on what those import, within the package.
A module or file of a user's rests on what lies beside it as well. The hash is over syntax trees: comments, docstrings
and positions do not count. Not seen are ``import_module`` and other packages, whose versions belong beside the hash.

A module counts as a whole. So a verdict may be called stale too early: a change of a function that it never calls
counts, if that function stands in a module that it rests on. ``denoiserl claim --confirm`` is the cure.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from denoiserl.core.errors import RunError


def fingerprint(roots: Iterable[str], package: str = "denoiserl") -> str:
    """Return one hash of ``reachable_modules``, 16 hexadecimal digits: the same as long as none of them changes."""
    return _digest(repr(reachable_modules(roots, package)))


def reachable_modules(roots: Iterable[str], package: str = "denoiserl") -> dict[str, str]:
    """Return {module: hash of its source} of ``roots`` and of all modules that they rest on, sorted.

    A root is a module or the path of a file. Raise RunError for a root that does not exist, and for source that is not
    Python.
    """
    places = [Path(__file__).resolve().parents[2], *(Path(p or ".") for p in sys.path)]
    homes = {package: _folder(package, places)}
    todo: list[str] = []
    for root in [roots] if isinstance(roots, str) else roots:
        name, around = (Path(root).stem, [Path(root).resolve().parent]) if root.endswith(".py") else (root, places)
        folder = _folder(name, around)
        if "site-packages" not in folder.parts:
            homes = {p.stem: folder for p in folder.iterdir() if p.suffix in ("", ".py")} | homes
        homes.setdefault(name.split(".")[0], folder)
        todo.append(name)
    done: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name not in done and (path := _find(name, homes)):
            done[name], imported = _read(path, path.stat().st_mtime_ns, name)
            todo += [next((n for n in names if _find(n, homes)), "") for names in imported]
    return dict(sorted(done.items()))


def _folder(module: str, places: Iterable[Path]) -> Path:
    """The first of ``places`` that holds a module."""
    for place in places:
        if _find(module, {module.split(".")[0]: place}):
            return place
    raise RunError(
        f"There is no module or file {module!r} to start from: check its name, or put its folder on sys.path."
    )


def _find(module: str, homes: Mapping[str, Path]) -> Path | None:
    """The file of a module, where its top package is at home."""
    *above, last = module.split(".")
    if (home := homes.get(module.split(".")[0])) is None:
        return None
    found = (home.joinpath(*above, last, "__init__.py"), home.joinpath(*above, f"{last}.py"))
    return next((path for path in found if path.is_file()), None)


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, module: str) -> tuple[str, list[tuple[str, ...]]]:
    """The hash of a file, and its imports as the names that each may have: ``from a import b`` is of a.b or of a."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise RunError(f"{path}: line {error.lineno} is not Python ({error.msg}).") from None
    above = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    imported: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*above[: len(above) + 1 - node.level]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            imported += [(f"{name}.{alias.name}".lstrip("."), name) for alias in node.names]
    return _digest(_plain(tree)), imported


def _plain(value: object) -> str:
    """A syntax tree in words, the same on every Python: without positions, docstrings and what is empty."""
    if isinstance(value, list):
        return f"[{','.join(_plain(v) for v in value if not _is_text(v))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = {k: v for k, v in ast.iter_fields(value) if k not in ("ctx", "kind", "type_comment")}
    return f"{type(value).__name__}({','.join(f'{k}={_plain(v)}' for k, v in fields.items() if v not in (None, []))})"


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
