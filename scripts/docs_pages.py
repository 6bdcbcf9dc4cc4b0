"""The pages that are made from source and ledger, as a hook of mkdocs: recipes, map, claims, cost, API.

Recipes are parsed, not imported. Claims are asked whether the code that they rest on has changed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docs_claims
import docs_map
import docs_recipes
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from denoiserl import recipes
from denoiserl.core.errors import DenoiseRLError
from denoiserl.experiments.claims import ledger

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "denoiserl"
APART = {"__init__", "__main__", "recipes", "demo", "cli", "claims"}  # other pages describe these


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


def pages() -> Mapping[str, str]:
    """{path: Markdown} of all of them."""
    cards = [recipes.describe(name) for name in recipes.names()]
    told = {name: ledger.record(name) for name in ledger.names()}
    records = [
        {**docs_claims.checked(r, f"the ledger's {name}.json"), "comment": ledger.comment(name)}
        for name, r in told.items()
        if r is not None
    ]
    stale = {r["name"]: bool(ledger.stale(r["name"])) for r in records}
    return {
        "recipes.md": docs_recipes.index(cards),
        "tasks.md": docs_recipes.task_page(cards),
        **{f"recipes/{card.module}.md": docs_recipes.page(card, records, stale) for card in cards},
        "map.md": docs_map.page(cards),
        "claims.md": docs_claims.claims(records, stale, [name for name, r in told.items() if r is None]),
        "cost.md": docs_claims.cost(records, recipes.names()),
        **{f"api/{name}.md": api(name) for name in modules()},
    }


def on_config(config: Any) -> Any:
    """Put every recipe's page under Recipes and every module's under API."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] += [{name: f"api/{name}.md"} for name in modules()]
        if "Recipes" in entry:
            entry["Recipes"] += [{name: f"recipes/{name}.md"} for name in recipes.names()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to the site."""
    try:
        made = pages()
    except DenoiseRLError as error:
        raise PluginError(str(error)) from None
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files
