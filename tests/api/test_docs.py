"""The generated documentation: every recipe stands on the map, and the ledger's pages say what the ledger says."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from denoiserl import recipes
from denoiserl.core.errors import RunError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
try:
    import docs_claims
    import docs_map
    import docs_recipes
finally:
    sys.path.remove(str(SCRIPTS))

CARDS = [recipes.describe(name) for name in recipes.names()]
RECORD: dict[str, Any] = {
    "name": "dppo_beats_imitation",
    "claim": "DPPO improves a cloned policy | by its own success.",
    "paper": "arXiv 2409.00588",
    "pass_condition": "Success of dppo exceeds that of more imitation by more than 0.1.",
    "metric": "success",
    "arms": {
        "dppo": {"mean": 0.934, "low": 0.9, "high": 0.96, "per_seed": [0.92, 0.94]},
        "dppo, finetune_denoising_steps=3": {"mean": 0.8, "low": 0.7, "high": 0.9, "per_seed": [0.8, 0.8]},
        "imitation": {"mean": 0.65, "low": 0.6, "high": 0.7, "per_seed": [0.64, 0.66]},
    },
    "budget": 110000,
    "unit": "env_steps",
    "seeds": [3, 4, 5],
    "verdict": "holds",
    "why": "All conditions hold.",
    "seconds": 600,
    "versions": {"torch": "2.13"},
    "commit": "0123456789abcdef",
    "date": "2026-01-31",
    "family": "policy_gradient",
    "recipes": ["dppo"],
    "hash": "0" * 16,
    "conditions": [
        {
            "said": "success of dppo exceeds success of imitation by more than 0.1",
            "difference": {"mean": 0.28, "low": 0.2, "high": 0.36},
            "margin": 0.1,
            "verdict": "holds",
            "min_detectable_effect": 0.05,
        }
    ],
    "cost": {
        "dppo": {"seconds": 90.0, "memory_mb": 412.4, "spent": {"seconds": 90.0, "env_steps": 110000}},
        "dppo, finetune_denoising_steps=3": {"seconds": 60.0, "memory_mb": None, "spent": {}},
        "dppo2": {"seconds": 1.0, "memory_mb": 1, "spent": {}},
    },
}


def rows(page: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.splitlines() if line[:1] == "|"]


# Facets and the map


def test_every_recipe_says_all_facets():
    lacking = {card.module: docs_recipes.lacking(card) for card in CARDS}
    assert not any(lacking.values()), lacking


def test_no_recipe_is_left_out_of_the_matrix():
    page = docs_map.page(CARDS)
    matrices = page[: page.index("## Components")]
    for card in CARDS:
        link = docs_claims.recipe_link(card.module)
        cells = [c for row in rows(matrices) for c in row if link in c]
        assert len(cells) == len(card.facets["side"]) * len(card.facets["base"]) * len(card.facets["stage"])
        assert sum(f"({link})" not in c for c in cells) == 1, "a recipe has one primary cell"


def test_every_cell_that_is_not_empty_has_a_method_that_runs():
    for cell, found in docs_map.matrix(CARDS).items():
        runs = [card.module for card, _ in found if docs_recipes.runnable(card.module)]
        assert runs, f"nobody in {cell} has improve and a task"
        module = importlib.import_module(recipes.module_name(runs[0]))
        assert callable(module.improve) and module.DEFAULT_TASK


def test_a_recipe_without_a_facet_stops_the_build_with_the_allowed_words():
    short = dataclasses.replace(CARDS[0], facets={k: v for k, v in CARDS[0].facets.items() if k != "stage"})
    with pytest.raises(RunError, match=r"no line 'stage: \.\.\.'.*imitation, from scratch, fine-tuning"):
        docs_map.page([short, *CARDS[1:]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("base: difusion", "no base 'difusion'. Did you mean 'diffusion'.*world model"),
        ("stage: imitation, tuning", "no stage 'tuning'.*Known:"),
        ("stag: imitation", "no line of a recipe 'stag'. Did you mean 'stage'"),
        ("side: A\nside: B", "two lines 'side: ...'"),
    ],
)
def test_words_that_are_not_in_the_vocabulary_are_refused(tmp_path, line, message):
    (tmp_path / "mine.py").write_text(f'"""A: b\n\npaper: x\nsignal: env\nfamily: y\n{line}\n"""\n')
    with pytest.raises(RunError, match=message):
        recipes.read(tmp_path / "mine.py")


def test_the_sample_of_the_contributing_page_is_a_card(tmp_path):
    page = (Path(recipes.HERE).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sample = page.split("```text\n")[1].split("```")[0]
    (tmp_path / "dppo.py").write_text(f'"""{sample}"""\n')
    card = recipes.read(tmp_path / "dppo.py")
    assert card.name == "DPPO" and set(card.facets) == set(recipes.FACETS)
    assert card.facets == recipes.describe("dppo").facets


def test_what_a_recipe_is_made_of_is_read_from_its_source():
    assert {"gae", "over_denoising"} <= set(docs_recipes.parts("dppo", "advantages"))
    assert "group_relative" not in docs_recipes.parts("dppo", "advantages")
    assert "ppo_clip" in docs_recipes.parts("flow_grpo", "losses") and not docs_recipes.parts("mdlm", "losses")


# Recipes


@pytest.mark.parametrize("name", recipes.names())
def test_the_options_are_those_of_args(name):
    """Parsed from source: names, order of nesting and defaults agree with the dataclass itself."""

    def fields(record: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for f in dataclasses.fields(record):
            value = getattr(record, f.name)
            inner = dataclasses.is_dataclass(value)
            found |= fields(value, f"{prefix}{f.name}.") if inner else {f"{prefix}{f.name}": value}
        return found

    module = recipes.load(name)
    told = {o.name: o.default for o in docs_recipes.options(docs_recipes.recipe(name))}
    assert {k: eval(v, vars(module).copy()) for k, v in told.items()} == fields(module.Args())


def test_an_option_is_described_by_its_kind_default_and_words(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "_world.py").write_text(
        "@dataclass\nclass Base:\n    size: int = 3\n    '''how\n    large'''\n"
    )
    (tmp_path / "package" / "old.py").write_text("@dataclass\nclass Args:\n    seed: int = 0\n    lr: float = 0.1\n")
    (tmp_path / "package" / "new.py").write_text(
        "from package import _world, old\n@dataclass\nclass Args(old.Args):\n    lr: float = 0.2\n"
        "    kind: Literal['a', 'b'] | None = None\n    base: _world.Base = _world.Base(size=5)\n"
    )
    new = docs_recipes.source(tmp_path / "package" / "new.py")
    assert docs_recipes.options(new, root=tmp_path) == [
        docs_recipes.Option("seed", "int", "0", ""),
        docs_recipes.Option("lr", "float", "0.2", ""),
        docs_recipes.Option("kind", "a or b or None", "None", ""),
        docs_recipes.Option("base.size", "int", "5", "how large"),
    ]


def test_the_page_of_a_recipe_has_its_verdicts_and_its_cost():
    card = recipes.describe("dppo")
    page = docs_recipes.page(card, [RECORD], {"dppo_beats_imitation": True})
    assert page.startswith("# DPPO: PPO on a diffusion policy") and "(https://arxiv.org/abs/2409.00588)" in page
    assert "dppo.improve(policy, env, dppo.Args(), Rng(0))" in page
    claim = "[dppo_beats_imitation](../../claims.md#dppo_beats_imitation)"
    tables = rows(page)
    words = "DPPO improves a cloned policy \\| by its own success."
    assert [claim, words, "**holds** (stale)", "2026-01-31"] in tables
    assert [claim, "dppo", "1.5", "412 MB", "110,000 env_steps"] in tables
    assert [claim, "dppo, finetune_denoising_steps=3", "1.0", "not measured", "nothing else"] in tables
    assert "dppo2" not in page  # another method's arm
    other = docs_recipes.page(recipes.describe("mdlm"), [RECORD], {})
    assert "None is tested yet." in other and "Not measured." in other


# The ledger


def test_the_claims_page_says_what_the_ledger_says():
    page = docs_claims.claims([RECORD], {}, ["later"])
    tables = rows(page)
    name = "dppo_beats_imitation"
    assert [
        *(f"[`{name}`](#{name})", "[arXiv 2409.00588](https://arxiv.org/abs/2409.00588)", "**holds**", "no"),
        *("110,000 env_steps, 3 seeds", "2026-01-31"),
    ] in tables
    assert ["dppo", "0.934 [0.9, 0.96]", "0.92, 0.94"] in tables
    assert [RECORD["conditions"][0]["said"], "0.28 [0.2, 0.36]", "0.1", "holds", "0.05"] in tables
    assert "## Policy gradients {#policy_gradient}" in page and f"### {name} {{#{name}}}" in page
    assert "Stale: the code" not in page
    assert "Holds if success of dppo exceeds" in page and "seeds 3 to 5" in page and "not yet tested: `later`" in page


def test_a_stale_claim_is_marked_in_the_table_and_in_its_section():
    page = docs_claims.claims([RECORD], {"dppo_beats_imitation": True})
    assert [row[3] for row in rows(page) if row[0].startswith("[`dppo_beats")] == ["stale"]
    assert "Stale: the code behind this verdict has changed" in page


def test_a_claim_that_does_not_hold_is_told_like_any_other():
    record = copy.deepcopy(RECORD) | {"verdict": "does not hold", "why": "The gain is 0.01."}
    page = docs_claims.claims([record], {})
    assert "**It does not hold.** The gain is 0.01." in page and "| **does not hold** |" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [({"verdict": "true"}, "'true' is no verdict: one of holds"), ({"arms": None}, "no 'arms': test the claim again")],
)
def test_a_record_that_the_page_could_not_tell_is_refused(change, message):
    record = {k: v for k, v in (RECORD | change).items() if v is not None}
    with pytest.raises(RunError, match=message):
        docs_claims.checked(record, "x.json")


def test_the_cost_page_has_every_recipe_and_invents_nothing():
    found = {row[0]: row for row in reversed(rows(docs_claims.cost([RECORD], recipes.names())))}
    for name in recipes.names():
        row = found[docs_claims.recipe_link(name)]
        assert row[3:5] == (["1.5", "412 MB"] if name == "dppo" else ["not measured", "not measured"])
