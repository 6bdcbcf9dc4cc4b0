"""TACO: what it chooses, what it reduces to, what it leaves alone, what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from denoiserl import Policy, Rng, time_grid
from denoiserl.control.best_of_n import BestOfN
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import Demonstrations
from denoiserl.recipes.test_time import taco
from denoiserl.train import Run
from tests.recipes.reach import policy, same, weights, wide

gymnasium = pytest.importorskip("gymnasium")


def bandit(share: float = 0.9) -> Demonstrations:
    """One decision an episode: near 0.5 in a ``share`` of 200, near −0.5 in the others; a state that says nothing."""
    g = torch.Generator().manual_seed(0)
    where = torch.where(torch.arange(200) < 200 * share, 0.5, -0.5)
    parts = [(torch.randn(2, 2, generator=g), w + 0.03 * torch.randn(2, 1, generator=g)) for w in where]
    return Demonstrations.of(parts)


TACO = taco.Args(num_updates=120, num_candidates=16, num_noise_candidates=8, features="plan", counter_width=64, lr=5e-3)


def test_taco_chooses_what_the_demonstrations_did_most() -> None:
    made = wide()
    before = weights(made)
    own = made.generate(torch.zeros(400, 2), Rng(3)).mean((1, 2))
    assert list(taco.improve(made, bandit(), TACO, Rng(1)))
    assert same(before, weights(made))
    chosen = made.generate(torch.zeros(400, 2), Rng(3)).mean((1, 2))
    assert float((own > 0).float().mean()) < 0.6
    assert float((chosen > 0).float().mean()) > 0.68  # 0.92 ± 0.07 over nine seeds
    assert float((chosen - 0.5).abs().median()) < 0.8 * float((own - 0.5).abs().median())  # 0.48 ± 0.10


def test_the_most_familiar_of_one_plan_is_the_policys_plan_bit_for_bit() -> None:
    made, cond = policy(), torch.randn(20, 2)
    own = made.generate(cond, Rng(3))
    list(taco.improve(made, bandit(), dataclasses.replace(TACO, num_candidates=1, num_updates=3), Rng(1)))
    assert torch.equal(made.generate(cond, Rng(3)), own)
    assert isinstance(made.weights.control, BestOfN)


def test_taco_is_the_same_run_twice_and_ends_where_a_resumed_one_ends(tmp_path) -> None:
    def run(made: Policy, keep: Run, rows: int | None = None) -> list[dict]:
        torch.manual_seed(1)
        told = taco.improve(made, bandit(), dataclasses.replace(TACO, num_updates=20), Rng(1), keep)
        return [row for _, row in zip(range(rows or 1000), told, strict=False)]

    whole, again = wide(), wide()
    assert run(whole, Run()) == run(again, Run())
    half = wide()
    run(half, Run(tmp_path / "half", every=5), 12)
    resumed = wide()
    run(resumed, Run(tmp_path / "half", every=5))
    cond = torch.randn(30, 2)
    assert torch.equal(resumed.generate(cond, Rng(0)), whole.generate(cond, Rng(0)))


def test_taco_refuses_what_it_cannot_choose_by() -> None:
    with pytest.raises(InvalidInputError, match="two episodes or more"):
        list(taco.improve(wide(), bandit().take(torch.tensor([0])), TACO, Rng(0)))
    made = wide()
    still = dataclasses.replace(made, eval_steps=made.process.steps(time_grid(1), std_scale=0.0))  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="same plan whatever the noise"):
        list(taco.improve(still, bandit(), TACO, Rng(0)))
