"""A chain is a path measure: its KL is the sum of its steps' KLs, and one step of it is an ordinary policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import (
    Denoiser,
    Diffusion,
    Estimate,
    GaussianDenoiser,
    Masked,
    OneStep,
    Rng,
    TokenDenoiser,
    make_sampler,
    rescore,
    time_grid,
)
from denoiserl.nn import DiT, Transformer, UNet1D
from denoiserl.oracles.worlds import GaussianWorld
from denoiserl.processes import ddim, flow_sde, linear, window, with_min_std
from denoiserl.processes.base import StepTable


def joint(steps: StepTable, world: GaussianWorld) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of (x_0, ..., x_K) of the linear-Gaussian chain of a one-dimensional exact denoiser."""
    a, s = linear(steps.times[:-1])
    gain = a * world.std**2 / (a**2 * world.std**2 + s**2)
    slope = steps.table["c_0"] * gain + steps.table["c_x"]
    shift = steps.table["c_0"] * (1 - gain * a) * float(world.mean)
    n = len(steps)
    mean, path = torch.zeros(n + 1).double(), torch.eye(n + 1).double()  # x = mean + path · noise
    for k in range(n):
        mean[k + 1] = shift[k] + slope[k] * mean[k]
        path[k + 1] += slope[k] * path[k]
    noise = torch.cat([torch.ones(1).double(), steps.table["std"] ** 2])
    return mean, path @ noise.diag() @ path.T, noise


@pytest.mark.parametrize("rule", [with_min_std(ddim(1.0), 0.1), flow_sde(0.7)], ids=str)
def test_path_kl_is_the_sum_of_step_kls(rule: Any) -> None:
    process = Diffusion(linear, rule)
    steps = process.steps(time_grid(6))
    p, q = GaussianWorld(torch.tensor([0.3]), 0.5), GaussianWorld(torch.tensor([-0.1]), 0.6)
    (mean, cov, _), (other, wide, _) = joint(steps, p), joint(steps, q)
    gap, precision = other - mean, torch.linalg.inv(wide)
    whole = 0.5 * ((precision @ cov).trace() - 7 + gap @ precision @ gap + torch.logdet(wide) - torch.logdet(cov))
    n = 40_000
    chain = make_sampler(process, p.denoiser(linear), steps, (1,))(None, Rng(0), rows=n)
    (a, y), (b, _) = rescore(process, p.denoiser(linear), chain), rescore(process, q.denoiser(linear), chain)
    kl, ratio = a.kl(b).double().sum(-1), (a.log_prob(y) - b.log_prob(y)).double().sum(-1)
    assert abs(float(kl.mean() - whole)) < 5 * float(kl.std()) / math.sqrt(n)
    assert abs(float(ratio.mean() - whole)) < 5 * float(ratio.std()) / math.sqrt(n)
    assert float(kl.std()) < float(ratio.std())
    assert isinstance(chain.states, Tensor)
    states = chain.states[..., 0].double()
    exact = torch.distributions.MultivariateNormal(mean, cov).log_prob(states)
    begin = torch.distributions.Normal(0.0, 1.0).log_prob(states[:, 0])
    assert torch.allclose(exact - begin, chain.log_prob.double().sum(-1), atol=2e-4)


def test_masked_path_kl_is_the_sum_of_step_kls_by_enumeration() -> None:
    torch.manual_seed(0)
    p, q = (TokenDenoiser(Transformer(2, 3, width=8, depth=1, heads=1)) for _ in range(2))
    process = Masked(2, order="left", tokens=1)
    chain = make_sampler(process, p, process.steps(time_grid(3)), (3,))(None, Rng(0), rows=20_000)
    (a, y), (b, _) = rescore(process, p, chain, 20_000), rescore(process, q, chain, 20_000)
    total = a.log_prob(y).sum(-1)
    key = (chain.sample * torch.tensor([4, 2, 1])).sum(-1)  # type: ignore[operator]
    first = torch.stack([(key == v).nonzero()[0, 0] for v in range(8)])
    logp, logq = total[first], b.log_prob(y).sum(-1)[first]
    assert abs(float(logp.exp().sum().detach()) - 1) < 1e-5
    whole = float((logp.exp() * (logp - logq)).sum().detach())
    kl = a.kl(b).sum(-1).detach()
    exact = float((logp.exp() * torch.stack([kl[key == v].mean() for v in range(8)])).sum().detach())
    assert abs(whole - exact) < 1e-5


class Mean(Denoiser):
    """Knows the condition only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        return Estimate(self.net(context))


def test_one_denoising_step_is_an_ordinary_policy() -> None:
    model, obs = Mean(), torch.randn(7, 4)
    short, plain = Diffusion(linear, with_min_std(ddim(1.0), 0.3)), OneStep(std=0.3)
    chain = make_sampler(short, model, short.steps(time_grid(1)), (2,))(obs, Rng(0))
    same = make_sampler(plain, model, plain.steps(time_grid(1)), (2,))(obs, Rng(1))
    assert chain.log_prob.shape == same.log_prob.shape == (7, 1)
    gradients = []
    for process, record in ((short, chain), (plain, same)):
        law, y = rescore(process, model, record)
        wanted = torch.distributions.Normal(model.net(obs), 0.3).log_prob(record.sample).sum(-1)  # type: ignore[arg-type]
        assert torch.allclose(law.log_prob(y)[:, 0], wanted, atol=1e-4)
        (ours,) = torch.autograd.grad(law.log_prob(y).sum(), model.net.weight)
        (theirs,) = torch.autograd.grad(wanted.sum(), model.net.weight)
        gradients.append((ours, theirs))
    for ours, theirs in gradients:
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_two_ways_to_sum_a_path() -> None:
    """Σ over steps of the joint is the joint of the steps: the event's axes and the step's never mix."""
    process = Diffusion(linear, window(ddim(1.0), 0, 3))
    model = GaussianDenoiser(UNet1D((8, 2), cond=3, channels=(8, 16), groups=4, hidden=16), linear, "v")
    steps = process.steps(time_grid(4))
    chain = make_sampler(process, model, steps, (8, 2))(torch.randn(3, 3), Rng(0))
    law, y = rescore(process, model, chain, micro_batch_size=3)
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob)
    assert torch.allclose(law.log_prob(y, factors=True).sum((-1, -2)), law.log_prob(y), atol=1e-4)
    assert law.num_factors.tolist() == [[16.0] * 3] * 3


def test_image_networks_replay_bit_by_bit() -> None:
    process = Diffusion(linear, flow_sde(0.7))
    model = GaussianDenoiser(DiT((1, 8, 8), cond=3, width=16, depth=1, heads=2), linear, "v")
    for n in (1, 5):
        chain = make_sampler(process, model, process.steps(time_grid(4)), (1, 8, 8))(torch.randn(n, 3), Rng(0))
        law, y = rescore(process, model, chain, micro_batch_size=n)
        assert torch.equal(law.log_prob(y).detach(), chain.log_prob)
