"""The ring bandit's optimum, against its own variational principle, its limits and samples."""

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.envs import Collector
from denoiserl.envs.toy.ring import BEHAVIOUR, CENTRES, RingBandit, demonstrations, nearest_mode, optimum, reward


def area(log_density, n=301, half=1.2):
    """∫ over [-1.2, 1.2]², by a fine sum, of exp(log_density)."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return float(log_density(points).double().exp().sum() * (axis[1] - axis[0]) ** 2), points


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_the_optimum_is_a_density_and_its_numbers_are_its_own(beta):
    best = optimum(beta)
    total, points = area(best.log_prob)
    assert total == pytest.approx(1, abs=1e-3) and float(best.masses.sum()) == pytest.approx(1, abs=1e-6)
    p = best.log_prob(points).double().exp() * (2.4 / 300) ** 2
    assert float((p * reward(points)).sum()) == pytest.approx(best.reward, abs=1e-3)
    assert float((p * (best.log_prob(points) - BEHAVIOUR.log_prob(points))).sum()) == pytest.approx(best.kl, abs=1e-3)
    assert best.reward - beta * best.kl == pytest.approx(best.value, abs=1e-6)
    tried = (reward(BEHAVIOUR.sample(200_000, Rng(0))).double() / beta).exp()  # Z without quadrature
    assert math.log(float(tried.mean())) == pytest.approx(best.log_z, abs=5 * float(tried.std() / tried.mean()) / 447)


def test_nothing_is_better_than_the_optimum():
    """E_q[r] - β KL(q ‖ p) of other tilts stays below, and touches at the optimum's own temperature."""
    beta = 0.5
    best = optimum(beta)
    others = {b: (o := optimum(b)).reward - beta * o.kl for b in (0.1, 0.25, 0.5, 1.0, 4.0)}
    assert max(others, key=lambda b: others[b]) == beta and others[beta] == pytest.approx(best.value, abs=1e-9)
    assert sorted(others.values())[-2] < best.value - 1e-3


def test_limits():
    indifferent, greedy = optimum(1e3), optimum(0.02)
    torch.testing.assert_close(indifferent.masses, torch.full((8,), 1 / 8), atol=1e-3, rtol=0)
    assert indifferent.kl < 1e-4 and float(greedy.masses[0]) > 0.999 and 1.9 < greedy.reward <= 2.001
    assert optimum(0.02).log_prob(torch.zeros(2)) < -100
    with pytest.raises(InvalidInputError, match="positive temperature"):
        optimum(0.0)


def test_samples_are_of_the_optimum():
    best, n = optimum(0.3), 20_000
    sample = best.sample(n, Rng(1))
    shares = torch.bincount(nearest_mode(sample, 1.0), minlength=8) / n
    assert float((shares - best.masses).abs().max()) < 4 * 0.5 / n**0.5
    assert float(reward(sample).mean()) == pytest.approx(best.reward, abs=5 * float(reward(sample).std()) / n**0.5)
    # the tilt draws samples nearer to the centres than behaviour is, most of all at the high place
    spread = (sample[nearest_mode(sample) == 0] - CENTRES[0]).square().mean().sqrt()
    assert float(spread) < 0.04


def test_behaviour_is_uniform_over_places_and_streams_are_one_decision_long():
    demos = demonstrations(8000, Rng(0))
    shares = torch.bincount(nearest_mode(demos.actions, 1.0), minlength=8) / 8000
    assert float((shares - 1 / 8).abs().max()) < 0.015 and int(demos.lengths.max()) == 1
    ep = Collector(RingBandit(8)).collect(lambda o, r: (CENTRES, None), 2, Rng(0))
    torch.testing.assert_close(ep.reward[0], torch.tensor([2.0] + [1.0] * 7), atol=1e-5, rtol=0)
    assert bool(ep.terminated.all()) and ep.info["success"][0].tolist() == [True] + [False] * 7
    assert int(nearest_mode(torch.zeros(2))) == -1
