"""The pages that are made from the source, as a hook of mkdocs: the recipes, and the API of every module.

A recipe's docstring begins with ``NAME: title``; lines ``key: value`` follow, then prose in Markdown. The source is
parsed, not imported, so building the documentation needs none of what the source needs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "denoiserl"
RECIPES = PACKAGE / "recipes"
APART = {"__init__", "__main__", "recipes", "demo", "cli"}  # other pages describe these
KEYS = ("paper", "signal", "family")
SIGNALS = {
    "env": "an environment",
    "reward": "a reward function",
    "pairs": "preferences",
    "data": "demonstrations",
}


@dataclass(frozen=True)
class Recipe:
    """What a recipe's docstring says. ``module`` is its name on the command line."""

    module: str
    name: str
    title: str
    paper: str
    signal: str
    family: str
    body: str


def read(path: Path) -> Recipe:
    """The docstring of one recipe, or an error that says what is missing."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    lines = (doc or "").splitlines()
    head = re.fullmatch(r"([^:]+): (.+)", lines[0]) if lines else None
    if not head:
        raise PluginError(f"{path}: the docstring must begin with 'NAME: one-line title'")
    fields: dict[str, str] = {}
    rest = lines[1:]
    while rest and (not rest[0].strip() or re.fullmatch(r"[a-z]+: .+", rest[0])):
        key, _, value = rest.pop(0).partition(": ")
        if value:
            fields[key] = value.strip()
    if missing := [key for key in KEYS if key not in fields]:
        raise PluginError(f"{path}: the docstring has no line '{missing[0]}: ...'")
    if fields["signal"] not in SIGNALS:
        raise PluginError(f"{path}: signal is {fields['signal']!r}, not one of {', '.join(SIGNALS)}")
    body = "\n".join(rest).strip()
    return Recipe(
        path.stem, head[1].strip(), head[2].strip(), fields["paper"], fields["signal"], fields["family"], body
    )


def linked(paper: str) -> str:
    """``arXiv 2409.00588`` as a link, wherever it stands."""
    return re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def page(recipes: list[Recipe]) -> str:
    """The page in Markdown: a table, then a section for each recipe."""
    out = [
        "# Recipes",
        "",
        "One published system a file. Each has the method, `improve(policy, signal, ...)`, which runs on your policy "
        "and your signal, and the experiment, `train(args)`, which builds both and calls it. `denoiserl list` prints "
        "this table, `denoiserl run NAME` runs the experiment, `denoiserl run NAME --help` shows its options.",
        "",
        "| recipe | what it is | paper | learns from | family |",
        "|---|---|---|---|---|",
    ]
    out += [
        f"| [`{r.module}`](#{r.module}) | {r.name}: {r.title} | {linked(r.paper)} | {SIGNALS[r.signal]} | {r.family} |"
        for r in recipes
    ]
    for r in recipes:
        out += [
            "",
            f"## {r.name}: {r.title} {{#{r.module}}}",
            "",
            f"`denoiserl run {r.module}`, {linked(r.paper)}.",
            "",
        ]
        out += [r.body]
    return "\n".join(out) + "\n"


def modules() -> list[str]:
    """The modules and packages directly under the package."""
    found = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    return sorted(found - APART)


def api(module: str) -> str:
    """The page of one module: what its ``__all__`` names, else everything public in it and below it."""
    init = PACKAGE / module / "__init__.py"
    chosen = not init.exists() or any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for node in ast.parse(init.read_text(encoding="utf-8")).body
    )
    return f"# denoiserl.{module}\n\n::: denoiserl.{module}\n    options:\n" + "".join(
        f"      {option}\n"
        for option in ("show_root_heading: false", "show_root_toc_entry: false", f"show_submodules: {not chosen}")
    )


def on_config(config: Any) -> Any:
    """Put every module's page under API."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] += [{name: f"api/{name}.md"} for name in modules()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to the site."""
    recipes = [read(path) for path in sorted(RECIPES.glob("*.py")) if not path.stem.startswith("_")]
    files.append(File.generated(config, "recipes.md", content=page(recipes)))
    for name in modules():
        files.append(File.generated(config, f"api/{name}.md", content=api(name)))
    return files
