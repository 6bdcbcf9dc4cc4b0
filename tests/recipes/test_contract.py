"""What every recipe keeps."""

from __future__ import annotations

from pathlib import Path

from denoiserl import recipes

HERE = Path(__file__).parent


def test_every_recipe_has_an_oracle_in_the_folder_of_its_family() -> None:
    found = {f"{f.parent.name}/{f.stem.removeprefix('test_')}" for f in HERE.glob("*/test_*.py")}
    known = {f"{path.parent.name}/{name}" for name, path in recipes.paths().items()}
    assert found == known, f"without an oracle: {sorted(known - found)}; oracles of no recipe: {sorted(found - known)}"


def test_every_recipe_that_makes_an_optimiser_asserts_that_it_holds_all_that_learns() -> None:
    for name in recipes.names():
        source = recipes.path(name).read_text(encoding="utf-8")
        assert ("adamw(" in source) == ("covers(" in source), name
