"""The pages that are made from the source, as a hook of mkdocs: the recipes, and the API of every module.

The source is parsed, not imported, so building the documentation needs none of what recipes and networks need.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from denoiserl.errors import BadRun
from denoiserl.recipes import SIGNALS, Card, describe, names

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "denoiserl"
APART = {"__init__", "__main__", "recipes", "demo", "cli"}  # other pages describe these


def linked(paper: str) -> str:
    """``arXiv 2409.00588`` as a link, wherever it stands."""
    return re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def page(recipes: list[Card]) -> str:
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
    try:
        recipes = [describe(name) for name in names()]
    except BadRun as error:
        raise PluginError(str(error)) from None
    files.append(File.generated(config, "recipes.md", content=page(recipes)))
    for name in modules():
        files.append(File.generated(config, f"api/{name}.md", content=api(name)))
    return files
