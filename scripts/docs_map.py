"""Make the map: every recipe on the axes of the field, as matrices."""

from __future__ import annotations

from collections.abc import Sequence

from docs_claims import recipe_link, table
from docs_recipes import lacking, parts

from denoiserl.core.errors import RunError
from denoiserl.recipes import FACETS, SIGNALS, Card

Matrix = dict[tuple[str, str, str], list[tuple[Card, bool]]]


def matrix(cards: Sequence[Card]) -> Matrix:
    """Return {(side, base, stage): [(recipe, is this its primary cell)]}, for every combination of a recipe's words.

    Raise RunError for a recipe without all facets.
    """
    found: Matrix = {}
    for card in cards:
        if missing := lacking(card):
            words = ", ".join(FACETS[missing[0]])
            raise RunError(f"{card.module}: its docstring has no line '{missing[0]}: ...', one or more of: {words}.")
        sides, bases, stages = (card.facets[axis] for axis in ("side", "base", "stage"))
        for at in ((s, b, g) for s in sides for b in bases for g in stages):
            found.setdefault(at, []).append((card, at == (sides[0], bases[0], stages[0])))
    return found


def page(cards: Sequence[Card]) -> str:
    """Return the page of the map."""
    cells = matrix(cards)
    out = [
        "# Map",
        "",
        "The recipes on the axes of a survey: sides, base models, tasks and stages are those of the survey of "
        "foundation models and reinforcement learning in robotics, "
        "[arXiv 2410.16411](https://arxiv.org/abs/2410.16411) (October 2024). Added here: masked and graph diffusion, "
        "energies, imitation, test time, acceleration, evaluation. A recipe that fits several cells is in each of "
        "them, in brackets in all but one.",
        "",
    ]
    for side, meaning in FACETS["side"].items():
        out += [f"## Side {side}: {meaning}", ""]
        bases = [b for b in FACETS["base"] if any((side, b, stage) in cells for stage in FACETS["stage"])]
        if bases:
            head = ("base model", *FACETS["stage"])
            out += table(head, ([b, *(_cell(cells, side, b, stage) for stage in FACETS["stage"])] for b in bases))
        if empty := [b for b in FACETS["base"] if b not in bases]:
            out += [f"No recipe here yet for: {', '.join(empty)}." if bases else "No recipe here yet.", ""]
    out += [
        "## Components",
        "",
    ]
    axes, packages = ("task", "output", "process", "likelihood"), ("advantages", "losses")
    rows = (
        (
            recipe_link(c.module),
            SIGNALS[c.signal],
            *(", ".join(c.facets[axis]) for axis in axes),
        )
        for c in cards
    )
    out += table(("recipe", "learns from", *axes), rows)
    out += [
        "The functions of [advantages](api/advantages.md) and [losses](api/losses.md) that the source of `improve` "
        "composes:",
        "",
    ]
    rows = (
        (
            recipe_link(c.module),
            *(", ".join(f"`{part}`" for part in parts(c.module, package)) or "none" for package in packages),
        )
        for c in cards
    )
    out += table(("recipe", *packages), rows)
    out += ["## Vocabulary", ""]
    for axis, words in FACETS.items():
        out += table((f"{axis}", "meaning"), words.items())
    return "\n".join(out)


def _cell(cells: Matrix, side: str, base: str, stage: str) -> str:
    links = [(recipe_link(c.module), first) for c, first in cells.get((side, base, stage), [])]
    return " ".join(link if first else f"({link})" for link, first in links)
