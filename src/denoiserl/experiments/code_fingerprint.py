"""A fingerprint of the code that a module depends on: source is parsed, nothing is imported.

    reachable_modules(["denoiserl.recipes.policy_gradient.dppo"])  {module: hash of its source}
    fingerprint(["denoiserl.recipes.policy_gradient.dppo"])        one hash of them all

A module depends on every module that it imports, anywhere in its file, and on their imports, within the package. A
user's module or file depends on the modules in its folder as well. The hash is over syntax trees: comments, docstrings
and positions do not count. ``import_module`` and other packages are not seen; record versions of packages beside the
hash.

Modules count as a whole. So a verdict may become stale too early: a change of any function in a module counts, even if
the claim never calls it. ``denoiserl claim --confirm`` re-validates such a verdict.
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
    """Return one hash of ``reachable_modules``, 16 hexadecimal digits, which changes if any of them changes."""
    return _digest(repr(reachable_modules(roots, package)))


def reachable_modules(roots: Iterable[str], package: str = "denoiserl") -> dict[str, str]:
    """Return {module: hash of its source} of ``roots`` and of all modules that they depend on, sorted.

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
    """Return the first of ``places`` that holds a module. Raise RunError if none does."""
    for place in places:
        if _find(module, {module.split(".")[0]: place}):
            return place
    raise RunError(f"There is no module or file {module!r}: check its name, or put its folder on sys.path.")


def _find(module: str, homes: Mapping[str, Path]) -> Path | None:
    """Return the file of a module, in the folder of its top package, or None."""
    *above, last = module.split(".")
    if (home := homes.get(module.split(".")[0])) is None:
        return None
    found = (home.joinpath(*above, last, "__init__.py"), home.joinpath(*above, f"{last}.py"))
    return next((path for path in found if path.is_file()), None)


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, module: str) -> tuple[str, list[tuple[str, ...]]]:
    """Return the hash of a file, and its imports as possible names: ``from a import b`` is a.b or a."""
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
    """Return a syntax tree as text that is the same on every Python: without positions, docstrings and empty fields."""
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
