"""Fidelity: what the statistics are where they are known, and which frauds they find."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from denoiserl.core.rng import Rng
from denoiserl.data.fidelity import correlations, fidelity, marginals, memorization, names, nearest_distances
from denoiserl.data.synthetic import add_gaussian_noise, select
from denoiserl.data.transitions import Transitions

A, B = torch.tensor([[0.9, 0.2], [-0.2, 0.9]]), torch.tensor([[0.1], [0.5]])


def system(n: int, seed: int, noise: float = 0.05) -> Transitions:
    """Rows of a linear system s' = A s + B a + ε with normal states and actions, and reward −‖s‖²."""
    rng = Rng(seed)
    s, a = rng.normal(n, 2), rng.normal(n, 1)
    after = s @ A.T + a @ B.T + noise * rng.normal(n, 2)
    over, one = s[:, 0] > 1.5, torch.ones(n, dtype=torch.int64)
    wide = torch.full((1,), torch.inf)
    return Transitions(s, a[:, None], -s.square().sum(1), 0.9 * ~over, after, over, one, -wide, wide, 0.9, "linear")


def test_the_distance_of_two_normals_is_the_known_one() -> None:
    """N(0, 1) and N(m, 1): max |Φ(x) − Φ(x − m)| = 2Φ(m/2) − 1, at x = m/2."""
    rng = Rng(0)
    real = rng.normal(20_000, 2)
    made = rng.normal(20_000, 2) + torch.tensor([0.0, 0.5])
    ks = marginals(real, made)
    assert float(ks[0]) < 0.03
    assert float(ks[1]) == pytest.approx(math.erf(0.25 / math.sqrt(2)), abs=0.02)


def test_a_lost_correlation_is_found_and_constants_do_not_count() -> None:
    rng = Rng(1)
    x, y, z = (rng.normal(50_000, 1) for _ in range(3))
    flat = torch.ones(50_000, 1)
    real, made = torch.cat([x, 0.8 * x + 0.6 * y, flat], 1), torch.cat([x, z, flat], 1)
    gaps = correlations(real, made)
    assert len(gaps) == 1 and float(gaps[0]) == pytest.approx(0.8, abs=0.02)


def test_nearest_distances_are_those_of_brute_force() -> None:
    known, rows = Rng(2).normal(300, 3), Rng(3).normal(40, 3)
    spread = known.std(0)
    slow = torch.stack([((row - known) / spread).norm(dim=1).min() for row in rows])
    torch.testing.assert_close(nearest_distances(rows, known), slow)


def test_copies_are_told_from_new_rows() -> None:
    rng = Rng(4)
    train, new, other = (rng.normal(2000, 4) for _ in range(3))
    assert memorization(other, new, train) == pytest.approx(1.0, abs=0.1)
    assert memorization(train[:500] + 0.001 * rng.normal(500, 4), new, train) > 50
    assert memorization(train[:500], new, train) == 1000


def test_a_true_sample_passes_and_each_fraud_is_named() -> None:
    train, held_out, true = system(1500, 0), system(600, 1), system(1500, 2)
    good = fidelity(true, train, held_out, Rng(0), 120)
    assert max(good.ks) < 0.08 and good.correlation < 0.05 and 0.9 < good.memorised < 1.1 and good.copies < 0.02
    assert good.dynamics_error[0] == pytest.approx(good.dynamics_error[1], rel=0.15) and not good.warnings()
    assert names(true) == ("obs 0", "obs 1", "action 0", "reward", "next obs 0", "next obs 1", "terminated")

    copied = fidelity(add_gaussian_noise(train, 1500, 0.0003, Rng(5)), train, held_out, Rng(0), 120)
    assert copied.memorised > 20 and copied.copies > 0.5 and "memorises" in " ".join(copied.warnings())

    blurred = fidelity(add_gaussian_noise(train, 1500, 0.3, Rng(5)), train, held_out, Rng(0), 120)
    assert blurred.memorised < 0.5 and "blurs" in " ".join(blurred.warnings())

    swapped = replace(true, next_obs=true.next_obs[Rng(6).permutation(1500)])
    wrong = fidelity(swapped, train, held_out, Rng(0), 120)
    assert max(wrong.ks) < 0.08, "its marginals are perfect"
    assert wrong.dynamics_error[0] > 5 * wrong.dynamics_error[1] and "dynamics" in " ".join(wrong.warnings())

    shifted = fidelity(replace(true, reward=true.reward - 1), train, held_out, Rng(0), 120)
    assert "reward" in " ".join(shifted.warnings()) and "obs 0" not in " ".join(shifted.warnings())

    few = fidelity(true, select(train, slice(0, 500)), held_out, Rng(0), 100)
    assert "500 rows" in " ".join(few.warnings())
