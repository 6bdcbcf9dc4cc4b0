"""A hook of mkdocs that makes pages from source and ledger: recipes, map, claims, cost, API. Recipes are parsed."""

from __future__ import annotations

import ast
import re
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
LINKED = ("which.md", "offline.md", "robots.md")
APART = {"__init__", "__main__", "recipes", "demo", "cli", "claims"}  # other pages describe these


def modules() -> list[str]:
    """Return the modules and packages directly under the package."""
    found = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    return sorted(found - APART)


def api(module: str) -> str:
    """Return the page of one module: the names of its ``__all__``, else all public names in it and below it."""
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
    """Return {path: Markdown} of all pages that are made."""
    cards = [recipes.describe(name) for name in recipes.names()]
    tested = {name: ledger.record(name) for name in ledger.names()}
    records = [
        {
            **docs_claims.checked(r, f"the ledger's {name}.json"),
            "comment": ledger.comment(name),
            "family": ledger.paths()[name].parent.name,
        }
        for name, r in tested.items()
        if r is not None
    ]
    stale = {r["name"]: bool(ledger.is_stale(r["name"])) for r in records}
    return {
        "recipes/index.md": docs_recipes.index(cards),
        "tasks.md": docs_recipes.task_page(cards),
        **{f"recipes/{k}/index.md": docs_recipes.family_page(k, v) for k, v in docs_recipes.families(cards).items()},
        **{docs_claims.page_of(card.module): docs_recipes.page(card, records, stale) for card in cards},
        "map.md": docs_map.page(cards),
        "claims.md": docs_claims.claims(records, stale, [name for name, r in tested.items() if r is None]),
        "cost.md": docs_claims.cost(records, recipes.names()),
        **{f"api/{name}.md": api(name) for name in modules()},
    }


def on_config(config: Any) -> Any:
    """Put the recipes' pages by family under Recipes, and every module's under API."""
    cards = [recipes.describe(name) for name in recipes.names()]
    for entry in config.nav:
        if "API" in entry:
            entry["API"] += [{name: f"api/{name}.md"} for name in modules()]
        if "Recipes" in entry:
            entry["Recipes"] += [
                {
                    docs_claims.family_title(recipes.HERE / family)[0]: [
                        f"recipes/{family}/index.md",
                        *({c.module: docs_claims.page_of(c.module)} for c in found),
                    ]
                }
                for family, found in docs_recipes.families(cards).items()
            ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to the site. Raise PluginError if a recipe or a record is incomplete."""
    try:
        made = pages()
    except DenoiseRLError as error:
        raise PluginError(str(error)) from None
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link every recipe that a page of ``LINKED`` names in code to its page."""
    if page.file.src_uri not in LINKED:
        return markdown
    names = "|".join(recipes.names())
    return re.sub(rf"(?<!\[)`({names})`(?!\])", lambda found: docs_claims.recipe_link(found[1]), markdown)
