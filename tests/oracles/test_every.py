"""Every recipe has an oracle."""

from __future__ import annotations

from pathlib import Path

from denoiserl import recipes

HERE = Path(__file__).parent
AWAITED = {"diffu_grpo", "iql", "tracerl"}
"""recipes whose oracle is not written yet"""


def test_every_recipe_has_an_oracle() -> None:
    found = {file.stem.removeprefix("test_") for file in HERE.glob("test_*.py")} - {"every"}
    known = set(recipes.names())
    assert found <= known, f"oracles of no recipe: {sorted(found - known)}"
    assert found | AWAITED == known and not found & AWAITED, f"without an oracle: {sorted(known - found - AWAITED)}"
