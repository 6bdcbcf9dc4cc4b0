"""Exact answers against Monte Carlo, enumeration and simulation."""

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.oracles.prompted import make_prompted_world
from denoiserl.oracles.worlds import LQR, GaussianWorld, MixtureWorld, TableWorld, double_integrator
from denoiserl.processes.schedule import cosine, linear


def importance_mean(world, x_t, alpha, sigma, n=400_000):
    """E[x₀ | x_t] by weighting prior samples with the likelihood of x_t."""
    x0 = world.sample(n, Rng(1)).double()
    log_w = -0.5 * (x_t.double() - alpha * x0).square().sum(-1) / sigma**2
    return (log_w.softmax(0)[:, None] * x0).sum(0).float()


MIXTURE = MixtureWorld(torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]]), torch.tensor([0.5, 0.3, 0.2]), 0.4)


@pytest.mark.parametrize("world", [GaussianWorld(torch.tensor([2.0, -1.0]), 0.5), MIXTURE], ids=["gauss", "mixture"])
@pytest.mark.parametrize("schedule", [linear, cosine], ids=["linear", "cosine"])
def test_exact_denoiser_is_the_posterior_mean(world, schedule):
    x = torch.tensor([[0.4, -0.2], [1.0, 0.3]])
    t = torch.tensor([0.5, 0.6])
    exact = world.denoiser(schedule)
    answer = exact(x, exact.embed_time(t), None).mean
    alpha, sigma = schedule(t)
    for i in range(2):
        sampled = importance_mean(world, x[i], float(alpha[i]), float(sigma[i]))
        torch.testing.assert_close(answer[i], sampled, atol=0.02, rtol=0)


def test_gaussian_posterior_variance_is_that_of_the_regression():
    world, alpha, sigma = GaussianWorld(torch.zeros(1), 0.7), torch.tensor(0.8), torch.tensor(0.6)
    rng = Rng(0)
    x0 = world.sample(200_000, rng)
    x = alpha * x0 + sigma * rng.normal(*x0.shape)
    left = x0 - world.posterior_mean(x, alpha.expand(len(x)), sigma.expand(len(x)))
    assert float(left.var()) == pytest.approx(float(world.posterior_var(alpha, sigma)), rel=0.02)
    assert abs(float((left * x).mean())) < 0.01  # what is left is orthogonal to what was seen


def test_tilted_optimum_beats_every_shift():
    """E[r] - β KL of Gaussians N(μ + shift, s²) is largest at the tilted optimum."""
    world, slope, beta = GaussianWorld(torch.tensor([1.0]), 0.5), torch.tensor([2.0]), 0.8
    best = world.tilt(slope, beta)

    def gain(shift):
        q = GaussianWorld(world.mean + shift, world.std)
        return float(slope @ q.mean) - beta * q.kl(world)

    optimum = float(best.mean - world.mean)
    assert all(gain(optimum) >= gain(optimum + d) for d in (-0.3, -0.01, 0.01, 0.3))


def test_mixture_tilt_is_p_exp_r():
    slope, beta = torch.tensor([0.7, -0.4]), 0.5
    tilted = MIXTURE.tilt(slope, beta)
    x = Rng(2).normal(50, 2)
    constant = tilted.log_prob(x) - MIXTURE.log_prob(x) - x @ slope / beta
    torch.testing.assert_close(constant, constant[:1].expand(50), atol=1e-4, rtol=0)


def test_mixture_density_integrates_to_one():
    axis = torch.linspace(-5, 5, 401)
    at = torch.cartesian_prod(axis, axis)
    assert float(MIXTURE.log_prob(at).exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-3)


def test_table_posterior_is_conditioning():
    world = TableWorld.random(3, 3, Rng(0))
    every, p = world.sequences, world.table.flatten().exp()
    assert torch.equal(world.index(every), torch.arange(27))
    canvas = torch.tensor([[3, 1, 3], [3, 3, 3], [0, 3, 2]])
    posterior = world.posterior_logits(canvas).exp()
    torch.testing.assert_close(posterior.sum(-1), torch.ones(3, 3))
    agrees = every[:, 1] == 1
    for v in range(3):
        known = p[agrees & (every[:, 0] == v)].sum() / p[agrees].sum()
        assert float(posterior[0, 0, v]) == pytest.approx(float(known), abs=1e-6)
    torch.testing.assert_close(posterior[0, 1], torch.tensor([0.0, 1.0, 0.0]))


def test_table_chain_rule_gives_the_joint():
    """Revealing left to right multiplies up to p(x)."""
    world = TableWorld.random(4, 2, Rng(3))
    x = world.sequences
    total = torch.zeros(len(x))
    for i in range(4):
        canvas = torch.where(torch.arange(4) < i, x, 2)
        total += world.posterior_logits(canvas)[:, i].gather(-1, x[:, i : i + 1]).squeeze(-1)
    torch.testing.assert_close(total, world.log_prob(x), atol=1e-5, rtol=0)


def test_table_sampling_and_tilting():
    world = TableWorld.random(2, 3, Rng(4))
    count = torch.bincount(world.index(world.sample(100_000, Rng(5))), minlength=9) / 100_000
    torch.testing.assert_close(count, world.table.flatten().exp(), atol=0.006, rtol=0)
    reward = Rng(6).normal(9)
    tilted = world.tilt(reward, 0.5)
    gain = (tilted.table - world.table).flatten() - reward / 0.5
    torch.testing.assert_close(gain, gain[:1].expand(9), atol=1e-5, rtol=0)
    assert world.total_variation(world) == 0
    assert 0 < world.total_variation(tilted) < 1


def test_guidance_between_table_posteriors_is_finite():
    world = TableWorld.random(3, 2, Rng(0))
    a = world.posterior_logits(torch.tensor([[0, 2, 2]]))
    b = world.tilt(Rng(1).normal(8), 1.0).posterior_logits(torch.tensor([[0, 2, 2]]))
    assert bool((a + 3.0 * (b - a)).isfinite().all())


def test_impossible_tables_are_refused():
    with pytest.raises(InvalidInputError, match="possible"):
        TableWorld(torch.tensor([[0.0, -math.inf], [0.0, 0.0]]))


def simulate(world: LQR, x, K, explore, ticks=160, n=20_000):
    rng, total, weight = Rng(0), torch.zeros(n), 1.0
    x = x.expand(n, -1)
    for _ in range(ticks):
        x, reward = world.step(x, -x @ K.T + explore * rng.normal(n, K.shape[0]), rng)
        total, weight = total + weight * reward, weight * world.gamma
    return float(total.mean())


@pytest.mark.parametrize("explore", [0.0, 0.5])
def test_lqr_value_is_the_simulated_return(explore):
    world, x = double_integrator(), torch.tensor([1.0, -0.5])
    gain = torch.tensor([[1.0, 1.5]])
    assert simulate(world, x, gain, explore) == pytest.approx(float(world.value(x, gain, explore)), rel=0.01)


def test_riccati_is_the_best_gain():
    world, x = double_integrator(), torch.tensor([1.0, -0.5])
    P, K = world.riccati()
    torch.testing.assert_close(world.lyapunov(K), P, rtol=1e-4, atol=1e-4)
    for nudge in ([[0.2, 0.0]], [[0.0, -0.2]], [[-0.1, 0.1]]):
        assert float(world.value(x)) > float(world.value(x, K + torch.tensor(nudge)))
    with pytest.raises(InvalidInputError, match="stabilise"):
        world.lyapunov(torch.tensor([[-50.0, 0.0]]))


def test_prompted_true_modes_have_known_reward():
    world = make_prompted_world(0)
    n = 20_000
    rng = Rng(1)
    prompts = world.draw_prompts(n, rng)
    x = world.sample(prompts, rng)
    good = (world.weights * world.good).sum(-1).mean()
    reward, on, entropy = world.evaluate_samples(x, prompts)
    assert on == pytest.approx(0.976, abs=0.005)  # P(chi² with 8 degrees < 17.6)
    assert reward == pytest.approx(0.976 * float(good), abs=0.015)
    truth = torch.special.entr(world.weights).sum(-1).mean()
    assert entropy == pytest.approx(float(truth), abs=0.02)
    assert bool((world.good.sum(-1) == 2).all())
    torch.testing.assert_close(world.means.norm(dim=-1), torch.full((6,), 2.0))


def test_prompted_reward_knows_good_bad_and_off():
    world = make_prompted_world(3)
    for i, prompt in enumerate(world.prompts):
        every = prompt.expand(6, 6)
        torch.testing.assert_close(world.reward(world.means, every), world.good[i].float())
        off = world.means * (1 + 2.0)
        assert float(world.reward(off, every).sum()) == 0
    collapsed = world.means[:1].expand(60, -1)
    assert world.evaluate_samples(collapsed, world.prompts.repeat(10, 1)).entropy == 0


def test_prompted_denoiser_knows_the_prompt():
    world = make_prompted_world(0)
    prompt = world.prompts[2:3]
    x, t = 0.5 * world.means[:1] + 0.1, torch.tensor([0.5])
    answer = world.denoiser(linear)(x, t, prompt).mean[0]
    alone = MixtureWorld(world.means, world.weights[2], world.std)
    torch.testing.assert_close(answer, importance_mean(alone, x[0], 0.5, 0.5), atol=0.05, rtol=0)
