"""Every recipe has an oracle."""

from __future__ import annotations

from pathlib import Path

from denoiserl import recipes

HERE = Path(__file__).parent


def test_every_recipe_has_an_oracle() -> None:
    found = {file.stem.removeprefix("test_") for file in HERE.glob("test_*.py")} - {"every"}
    known = set(recipes.names())
    assert found == known, f"without an oracle: {sorted(known - found)}; oracles of no recipe: {sorted(found - known)}"
