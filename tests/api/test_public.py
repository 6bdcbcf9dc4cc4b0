"""The promises of the package as a whole: its public names, its floors, what importing it costs, what it never does."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
PACKAGE = "denoiserl"
FILES = sorted((SRC / PACKAGE).rglob("*.py"))

KERNEL = {
    *("Rng", "Gaussian", "Categorical", "Unmasking", "Delta", "Product"),
    *("Diffusion", "Masked", "OneStep", "Autoregressive"),
    *("grid", "sampler", "replay", "renoise", "elbo"),
    *("Chain", "Estimate", "Weights", "Policy"),
}
HEAVY = ("gymnasium", "mujoco", "metaworld", "diffusers", "transformers", "peft", "matplotlib", "imageio", "sklearn")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """``src/denoiserl/law/gaussian.py`` -> ``denoiserl.law.gaussian``; a package is its ``__init__``."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Public names


def test_the_kernel_is_importable_from_the_package():
    package = importlib.import_module(PACKAGE)
    public = package.__all__
    assert sorted(set(public)) == sorted(public), "a name is exported twice"
    assert not KERNEL - set(public), f"missing from __all__: {sorted(KERNEL - set(public))}"
    missing = [name for name in public if not hasattr(package, name)]
    assert not missing, f"in __all__ but not in the package: {missing}"


def test_nothing_public_is_left_out_of_all():
    package = importlib.import_module(PACKAGE)
    visible = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert visible <= set(package.__all__), f"visible but not in __all__: {sorted(visible - set(package.__all__))}"


def test_every_public_name_says_what_it_is():
    package = importlib.import_module(PACKAGE)
    silent = []
    for name in package.__all__:
        if name.startswith("__"):
            continue
        value = getattr(package, name)
        doc = vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
        # Dataclasses and named tuples without a docstring are given their signature for one.
        if not doc or not doc.strip() or doc.startswith(f"{name}("):
            silent.append(name)
    assert not silent, f"without a docstring: {silent}"


# Floors


def floors() -> dict[str, int]:
    """The floor table of docs/architecture.md: ``{"errors": 0, ..., "law": 1, ...}``."""
    found: dict[str, int] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\|\s*(\d+)\s*\|([^|]*)\|", line):
            for name in re.findall(r"`([\w/]+)`", row[2]):
                found[name.rstrip("/")] = int(row[1])
    return found


def known_modules() -> set[str]:
    return {module_name(path) for path in FILES}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything of the package that a file imports, wherever in the file it does so.

    ``from denoiserl import chain`` is ``denoiserl.chain`` where that is a module; a name of the public surface is
    ``denoiserl`` itself.
    """
    modules = known_modules()
    name = module_name(path)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] == PACKAGE:
                for alias in node.names:
                    full = f"{source}.{alias.name}"
                    yield node.lineno, full if full in modules else source


def room(name: str) -> str | None:
    """``denoiserl.law.gaussian`` -> ``law``, the entry of the table; the package itself -> None."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def surface(table: dict[str, int]) -> int:
    """The floor of the public surface: the highest that ``denoiserl/__init__.py`` imports."""
    names = [room(name) for _, name in imported(SRC / PACKAGE / "__init__.py")]
    return max(table[name] for name in names if name and name in table)


def test_the_table_and_the_source_name_the_same_rooms():
    table = floors()
    assert table.get("errors") == 0 and len(set(table.values())) >= 10, "the table of docs/architecture.md is not found"
    rooms = {name for path in FILES if (name := room(module_name(path)))} - {"__main__"}
    assert not rooms - set(table), f"on no floor of docs/architecture.md: {sorted(rooms - set(table))}"
    assert not set(table) - rooms, f"in docs/architecture.md but not in src: {sorted(set(table) - rooms)}"


def test_every_module_imports_only_from_its_own_floor_or_below():
    table = floors()
    table["__main__"] = max(table.values())
    top = surface(table)
    wrong = []
    for path in FILES:
        here = table.get(room(module_name(path)) or "", table["__main__"])  # the package imports what it likes
        for line, name in imported(path):
            there = room(name)
            floor = top if there is None else table.get(there, 0)  # a room without a floor fails the test above
            if floor > here:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: floor {here} imports {name} of floor {floor}")
    assert not wrong, "\n".join(wrong)


# What importing costs


def test_the_kernel_imports_where_nothing_optional_is_installed():
    """Optional packages refuse to be imported: the package and its floors 0 to 5 do not try, or they manage without."""
    rooms = [name for name, floor in floors().items() if floor <= 5]
    modules = [PACKAGE, *sorted(name for name in known_modules() if room(name) in rooms)]
    code = f"""
import importlib, sys

sys.modules.update(dict.fromkeys({HEAVY!r}))  # None: "not installed"
for name in {modules!r}:
    importlib.import_module(name)
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


def test_importing_the_package_leaves_optional_packages_alone():
    run = python(f"import sys, denoiserl; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]", f"import denoiserl also imports {run.stdout}"


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


# What the source never does

PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pickletools"}


def unpickling(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that reads or writes pickles: foreign files must not be able to run code."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            allowed = not (isinstance(node.value, ast.Constant) and node.value.value is False)
            names = ["allow_pickle"] if allowed else []
        else:
            continue
        for name in names:
            torch_file = re.fullmatch(r"torch(\.serialization)?\.(load|save)", name)
            if name.split(".")[0] in PICKLERS or name in {"allow_pickle", "read_pickle"} or torch_file:
                yield node.lineno, name


def test_nothing_is_pickled():
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in FILES for line, what in unpickling(tree(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import pickle", True),
        ("from cloudpickle import dumps", True),
        ("import torch\nx = torch.load('a')", True),
        ("from torch import load", True),
        ("from torch.serialization import save", True),
        ("np.load('a', allow_pickle=True)", True),
        ("np.load('a', allow_pickle=False)", False),
        ("net.load_state_dict(load_file('a'))", False),
    ],
)
def test_the_check_for_pickles_sees_them(source: str, caught: bool):
    assert bool(list(unpickling(ast.parse(source)))) is caught


def test_every_module_begins_with_a_docstring():
    silent = [str(path.relative_to(ROOT)) for path in FILES if not ast.get_docstring(tree(path))]
    assert not silent, f"without a docstring: {silent}"


def test_a_module_is_a_chapter():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := path.read_text().count("\n")) > 400}
    assert not long, f"more than 400 lines: {long}"


# One version


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.M)
    assert importlib.import_module(PACKAGE).__version__ == version
    assert changelog and changelog[1] == version
    assert citation and citation[1] == version
