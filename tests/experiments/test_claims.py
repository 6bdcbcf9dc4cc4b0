"""Claims: written down before anything runs, judged by statistics alone, and recorded as they came out."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from denoiserl.claims.imitation.lbm import ALPHA, measure
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.experiments import Study
from denoiserl.experiments.claims import confirm, ledger, runner
from denoiserl.experiments.claims.claim import BUDGETS, Claim, Condition, Simulation

KEYS = {
    *("claim", "paper", "pass_condition", "arms", "budget", "unit", "seeds", "verdict", "why", "seconds"),
    *("versions", "commit", "date"),
}


@pytest.mark.parametrize("name", ledger.names())
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_claim_can_be_tried(name, budget):
    """Arms, settings, tasks and metrics exist: nothing is misspelt, without running anything."""
    made = ledger.load_claim(name)
    plan = made.make_plan(budget)
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", made.paper) and made.pass_condition and len(plan.seeds) >= 5
    metrics = plan.validate().metrics if isinstance(plan, Study) else plan.metrics
    for c in made.conditions:
        for _, metric in c.sides(next(iter(metrics))):
            assert metric in metrics


@pytest.mark.parametrize("name", [n for n in ledger.names() if ledger.record(n)])
def test_records_say_what_they_must(name):
    record = ledger.record(name)
    assert record is not None and KEYS <= set(record)
    assert record["verdict"] in ("holds", "does not hold", "inconclusive") and record["why"]
    assert len(record["seeds"]) >= 5
    for arm in record["arms"].values():
        assert set(arm) == {"mean", "low", "high", "per_seed"} and len(arm["per_seed"]) == len(record["seeds"])
        assert arm["low"] <= arm["mean"] <= arm["high"]
        assert sum(arm["per_seed"]) / len(arm["per_seed"]) == pytest.approx(arm["mean"], abs=1e-6)
    # the verdict is what its conditions say, and those are what their intervals say
    said = {c["verdict"] for c in record["conditions"]}
    whole = "holds" if said == {"holds"} else "does not hold" if "does not hold" in said else "inconclusive"
    assert record["verdict"] == whole
    for c in record["conditions"]:
        if c["verdict"] == "holds":
            assert c["difference"]["low"] > c["margin"]
        elif c["verdict"] == "does not hold":
            assert c["difference"]["high"] < c["margin"]
        else:
            assert c["difference"]["low"] <= c["margin"] and c["min_detectable_effect"] is not None
    made = ledger.load_claim(name)
    assert (record["claim"], record["pass_condition"]) == (made.claim, made.pass_condition)


def claimed(*conditions: Condition, gap: float = 0.0, noise: float = 0.02) -> Claim:
    """A claim about two simulated arms whose means differ by ``gap``, in single seeds by ``noise`` more or less."""

    def tried(seed: int):
        a, b = 0.5 + gap + (noise if seed % 2 else -noise), 0.5
        return {"score": {"a": torch.full((4,), a), "b": torch.full((4,), b)}}

    plan = Simulation(tried, tuple(range(6)), 4, "draws", {"score": ("a score", "")})
    return Claim("a is better", "arXiv 0000.00000", "a exceeds b", conditions, lambda budget: plan)


@pytest.mark.parametrize(
    ("gap", "noise", "verdict"),
    [(0.2, 0.02, "holds"), (-0.2, 0.02, "does not hold"), (0.1, 0.02, "inconclusive"), (0.2, 2.0, "inconclusive")],
)
def test_verdicts_come_from_the_intervals(monkeypatch, gap, noise, verdict):
    made = claimed(Condition("a", "b", 0.1), gap=gap, noise=noise)
    monkeypatch.setattr(ledger, "load_claim", lambda name: made)
    monkeypatch.setattr(ledger, "code_of_claim", lambda *x: "0" * 16)
    record = runner.check("lbm")
    assert record["verdict"] == verdict and KEYS <= set(record)
    assert ("is detected with probability 0.8" in record["why"]) == (verdict == "inconclusive")
    assert json.loads(json.dumps(record)) == record


def test_one_failing_condition_fails_a_claim_and_one_undecided_leaves_it_open(monkeypatch):
    good, bad, open_ = Condition("a", "b", 0.1), Condition("a", "b", 0.4), Condition("a", "b", 0.2)
    for conditions, verdict in (((good, bad), "does not hold"), ((good, open_), "inconclusive"), ((good,), "holds")):
        made = claimed(*conditions, gap=0.2)
        monkeypatch.setattr(ledger, "load_claim", lambda name, made=made: made)
        monkeypatch.setattr(ledger, "code_of_claim", lambda *x: "0" * 16)
        assert runner.check("lbm")["verdict"] == verdict


def test_an_arm_can_be_compared_with_a_number_and_across_metrics():
    values = {"x": {"a": torch.tensor([[0.5], [0.6], [0.55]])}, "y": {"a": torch.tensor([[0.1], [0.2], [0.15]])}}
    assert runner.evaluate_condition(Condition("a", 0.2, 0.0, "x"), values, "x", 1).verdict == "holds"
    assert runner.evaluate_condition(Condition(0.2, "a", 0.0, "x"), values, "x", 1).verdict == "does not hold"
    assert runner.evaluate_condition(Condition("a", "a", 0.3, "x", "y"), values, "x", 1).verdict == "holds"
    with pytest.raises(RunError, match="Did you mean 'x'"):
        runner.evaluate_condition(Condition("a", 0.2, 0.0, "xx"), values, "x", 1)
    assert Condition("a", "b", -0.02, "m", "n").as_sentence("m") == "m of a exceeds n of b less 0.02"


def test_the_simulated_claim_measures_what_it_says():
    told = measure(0, 400)
    assert told["type_1_error"]["anytime-pairs"] < ALPHA + 0.05 and told["type_1_error"]["peeked"] > 2 * ALPHA
    assert told["power"]["anytime-pairs"] > 0.95 and told["stop"]["anytime-pairs"] < 0.4


def test_the_command_lists_claims_and_refuses_others(capsys):
    assert main(["claim", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in told] == ledger.names() and all("verdict" in t and "stale" in t for t in told)
    assert main(["claim", "dpppo"]) == 2 and "Did you mean 'dppo'" in capsys.readouterr().err


def test_a_record_is_confirmed_where_one_seed_gives_the_same_numbers_and_only_there(monkeypatch, tmp_path, capsys):
    """Other code with the same numbers gets the fingerprint; other numbers leave the record as it was."""
    hashes = iter(["1" * 16] * 9)
    made = claimed(Condition("a", "b", 0.1), gap=0.2)
    monkeypatch.setattr(ledger, "load_claim", lambda name: made)
    monkeypatch.setattr(ledger, "code_of_claim", lambda *x: "0" * 16)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    with pytest.raises(RunError, match="no record to confirm"):
        confirm.confirm("lbm")
    record = runner.check("lbm")
    assert runner.write(record) == tmp_path / "imitation" / "lbm.json"
    monkeypatch.setattr(ledger, "code_of_claim", lambda *x: next(hashes))
    assert ledger.is_stale("lbm")
    told, different = confirm.confirm("lbm")
    assert not different and told["hash"] == "1" * 16 and told["confirmed"][0]["was"] == "0" * 16
    assert {k: v for k, v in told.items() if k not in ("hash", "confirmed")} == {
        k: v for k, v in record.items() if k != "hash"
    }
    changed = claimed(Condition("a", "b", 0.1), gap=0.2001)
    monkeypatch.setattr(ledger, "load_claim", lambda name: changed)
    told, different = confirm.confirm("lbm")
    assert told == record and different == [d for d in different if d.startswith("score of a")] and different
    assert main(["claim", "--confirm", "lbm"]) == 2
    out = capsys.readouterr().out
    assert "not confirmed" in out and "another processor" not in out
    monkeypatch.setattr(runner, "processor", lambda: "another one")
    assert main(["claim", "--confirm", "lbm"]) == 2 and "another processor" in capsys.readouterr().out
    clocked = replace(changed, plan=lambda size: replace(changed.plan(size), metrics={"score": ("", confirm.RATES)}))
    monkeypatch.setattr(ledger, "load_claim", lambda name: clocked)
    assert not confirm.confirm("lbm")[1], "what a clock measures is never the same twice"
    monkeypatch.setattr(ledger, "load_claim", lambda name: made)
    assert main(["claim", "--confirm", "lbm"]) == 0 and "confirmed, holds" in capsys.readouterr().out
    monkeypatch.setattr(ledger, "code_of_claim", lambda *x: "1" * 16)
    assert not ledger.is_stale("lbm") and main(["claim", "--confirm", "lbm"]) == 0
    assert "None of these" in capsys.readouterr().out


def test_confirming_takes_the_settings_that_tuning_chose():
    plan = ledger.load_claim("dppo").make_plan("laptop")
    assert isinstance(plan, Study)
    tuning = {"dppo": [{"settings": {"lr": 1.0}, "score": 0.1}, {"settings": {"lr": 2.0}, "score": 0.9}], "rwr": []}
    arms = confirm.tuned_arms(plan, tuning)
    assert arms["dppo"].settings == {"lr": 2.0} and arms["rwr"] == plan.arms["rwr"]
