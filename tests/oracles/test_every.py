"""Every recipe has an oracle."""

from __future__ import annotations

from pathlib import Path

from denoiserl import recipes

HERE = Path(__file__).parent


def test_every_recipe_has_an_oracle() -> None:
    found = {file.stem.removeprefix("test_") for file in HERE.glob("test_*.py")} - {"every"}
    known = set(recipes.names())
    assert found == known, f"without an oracle: {sorted(known - found)}; oracles of no recipe: {sorted(found - known)}"


def test_every_recipe_that_makes_an_optimiser_asserts_that_it_holds_all_that_learns() -> None:
    folder = Path(recipes.__file__).parent
    for name in recipes.names():
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert ("adamw(" in source) == ("covers(" in source), name
