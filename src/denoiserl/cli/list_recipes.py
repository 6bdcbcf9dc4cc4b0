"""``list``: the recipes of this package."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from denoiserl import recipes
from denoiserl.cli.options import JsonOption, parse, print_table


@dataclass(frozen=True)
class ListOptions:
    """Options of ``list``."""

    json: JsonOption = False


def list_recipes(argv: list[str]) -> None:
    """Run ``denoiserl list [--json]``."""
    args = parse(ListOptions, "list", "List the recipes.", argv)
    cards = [recipes.describe(name) for name in recipes.names()]
    if args.json:
        rows = [{k: v for k, v in dataclasses.asdict(card).items() if k not in ("body", "facets")} for card in cards]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    rows = [(c.module, f"{c.name}: {c.title}", c.paper, recipes.SIGNALS[c.signal], c.family) for c in cards]
    print_table(("recipe", "what it is", "paper", "learns from", "family"), rows)
    print("\ndenoiserl run RECIPE runs one, denoiserl run RECIPE --help lists its options.")
