"""Read the options of this package's recipes and tasks from their source.

Help and usage errors come at once: a module that defines ``Args`` imports torch, and its source does not.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType

import denoiserl

LIGHT = ("__future__", "dataclasses", "typing", "denoiserl.core.settings")
"""modules that are imported as they are"""
CONSTANTS = ("DEFAULT_TASK", "DEFAULT_TASK_ARGS", "DEMO")


def read_args(name: str) -> ModuleType:
    """Return a part of this package's module ``name``: its docstring, ``Args`` and default task."""
    return _execute_definitions(name, ("Args", *CONSTANTS))


def _execute_definitions(name: str, wanted: tuple[str, ...]) -> ModuleType:
    """Return a module with the definitions ``wanted`` of the module ``name`` and those that they need, executed."""
    file = _source_file(name)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module = ModuleType(f"{__name__}.{name}", ast.get_docstring(tree))
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    definitions = {key: node for node in tree.body for key in _names_defined_by(node)}
    kept, open_names = [], [key for key in wanted if key in definitions]
    while open_names:
        node = definitions.pop(key := open_names.pop(), None)
        if isinstance(node, ast.ImportFrom):
            setattr(module, key, _imported(node, key))
        elif node is not None:
            kept.append(node)
            parts = [part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.FunctionDef)]
            names = [n for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)]
            open_names += [n.id for n in names if isinstance(n.ctx, ast.Load)]
    flags = __import__("__future__").annotations.compiler_flag
    body = sorted(kept, key=lambda node: node.lineno)
    exec(compile(ast.Module(body, []), str(file), "exec", flags), vars(module))
    return module


def _source_file(name: str) -> Path:
    path = Path(denoiserl.__file__).parent.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _names_defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.ClassDef) else []


def _imported(node: ast.ImportFrom, key: str) -> object:
    """Return the object that ``from MODULE import NAME`` binds to ``key``; for a module: see ``read_args``."""
    name = next(alias.name for alias in node.names if key == (alias.asname or alias.name))
    source = str(node.module)
    if source in LIGHT:
        return getattr(importlib.import_module(source), name)
    if _source_file(f"{source}.{name}").is_file():
        return read_args(f"{source}.{name}")
    return getattr(_execute_definitions(source, (name,)), name)
