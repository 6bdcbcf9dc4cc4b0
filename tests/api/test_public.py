"""The promises of the package as a whole: its public names, its layers, what importing it costs, what it never does."""

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
    *("time_grid", "make_sampler", "rescore", "renoise", "elbo"),
    *("Chain", "Estimate", "Weights", "Policy"),
}
HEAVY = ("gymnasium", "mujoco", "metaworld", "diffusers", "transformers", "peft", "matplotlib", "imageio", "sklearn")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """``src/denoiserl/nn/mlp.py`` -> ``denoiserl.nn.mlp``; a package is its ``__init__``."""
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


# Layers


def layers() -> list[set[str]]:
    """The layers of packages of ``pyproject.toml``, which import-linter checks, the highest first."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return [set(layer.split(" | ")) for layer in tool["contracts"][0]["layers"]]


def known_modules() -> set[str]:
    return {module_name(path) for path in FILES}


def test_the_architecture_page_shows_the_layers_that_are_checked():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = [set(re.findall(r"`(\w+)/?`", row[1])) for row in re.finditer(r"^\|\s*\d+\s*\|([^|]*)\|", page, re.M)]
    assert shown == layers()[::-1]


# What importing costs


def test_the_kernel_imports_where_nothing_optional_is_installed():
    """Optional packages refuse to be imported: the package and what lies below its data do not try, or do without."""
    low = set().union(*layers()[next(i for i, layer in enumerate(layers()) if "data" in layer) + 1 :])
    modules = [PACKAGE, *sorted(name for name in known_modules() if name.split(".")[1:2] and name.split(".")[1] in low)]
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


def test_modules_are_reached_by_name_without_what_they_need():
    code = """
import sys, denoiserl
border = denoiserl.integrations.diffusers
assert callable(border.from_pipeline) and "diffusers" not in sys.modules, "the border imports the library"
assert {"dppo", "td3_bc"} <= set(dir(denoiserl.recipes)), "recipes are not listed"
assert "denoiserl.recipes.policy_gradient.dppo" not in sys.modules, "listing recipes imports them"
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


def test_importing_the_package_alone_imports_no_torch():
    run = python("import sys, denoiserl; assert denoiserl.DenoiseRLError; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False", run.stderr


def test_the_errors_of_the_package_are_at_the_top():
    errors = importlib.import_module(f"{PACKAGE}.core.errors")
    known = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert known <= set(importlib.import_module(PACKAGE).__all__)


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
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := path.read_text().count("\n")) > 300}
    assert not long, f"more than 300 lines: {long}"


# One version


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.M)
    assert importlib.import_module(PACKAGE).__version__ == version
    assert changelog and changelog[1] == version
    assert citation and citation[1] == version
