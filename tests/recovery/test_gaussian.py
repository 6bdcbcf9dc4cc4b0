"""Policy gradients find the KL-regularised optimum of a Gaussian world: the one inside the policy class.

Path-KL fine-tuning tilts the path measure, p*(path) ∝ p(path) exp(r(x_K)/β), and cannot touch the initial noise. For
r = x and a linear-Gaussian chain the optimum shifts the mean by Var(x_K | x_0)/β: the variance *of the chain*, not of
the data. (Naively one would expect N(2, 0.25) to move to 2 + 0.25/0.5 = 2.5.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Denoiser, Diffusion, Estimate, Rng, make_sampler, rescore, time_grid
from denoiserl.advantages import kl_to_go
from denoiserl.losses import ppo_clip
from denoiserl.oracles.worlds import GaussianWorld
from denoiserl.processes import ddim, flow_sde, linear

WORLD, BETA, N = GaussianWorld(torch.tensor([2.0]), 0.5), 0.5, 16


class Tuned(Denoiser):
    """The exact denoiser plus a learned shift at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.shift = WORLD.denoiser(linear), nn.Parameter(torch.zeros(N))

    def forward(self, x: Any, clock: Tensor, context: Any) -> Estimate:
        mean = self.exact(x, clock, context).mean
        assert isinstance(mean, Tensor)
        return Estimate(mean + self.shift[((1 - clock) * N).round().long(), None])


def recursion(process: Diffusion, shift: Tensor) -> tuple[float, float]:
    """(mean of x_K, Var(x_K | x_0)) of the chain, from its coefficients."""
    steps = process.steps(time_grid(N))
    a, s = linear(steps.times[:-1])
    gain = a * WORLD.std**2 / (a**2 * WORLD.std**2 + s**2)
    slope = steps.table["c_0"] * gain + steps.table["c_x"]
    mean, var = 0.0, 0.0
    for k in range(N):
        c_0 = float(steps.table["c_0"][k])
        mean = c_0 * (2 * float(1 - gain[k] * a[k]) + float(shift[k])) + float(slope[k]) * mean
        var = float(slope[k]) ** 2 * var + float(steps.table["std"][k]) ** 2
    return mean, var


THEORY = {"ddim 1": (ddim(1.0), 2.3528), "ddim .5": (ddim(0.5), 2.3120), "flow": (flow_sde(0.7), 2.4535)}
"""rules, and what their recursion gives for 16 steps"""


def learn(rule: Any) -> tuple[float, float]:
    """The mean that is learned, and the theory's."""
    process = Diffusion(linear, rule)
    steps, model, base = process.steps(time_grid(N)), Tuned(), Tuned()
    before, var = recursion(process, torch.zeros(N))
    draw, rng, rate, iters = make_sampler(process, model, steps, (1,)), Rng(0), 0.1, 60
    opt = torch.optim.Adam(model.parameters(), rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, iters)
    for _ in range(iters):
        chain = draw(None, rng, rows=1000)
        assert isinstance(chain.sample, Tensor)
        reward = chain.sample[:, :1] - chain.sample.mean()
        law, y = rescore(process, model, chain)
        with torch.no_grad():
            ref, _ = rescore(process, base, chain)
        kl = law.kl(ref)
        credit = reward + kl_to_go(kl.detach(), BETA)
        loss = ppo_clip(law.log_prob(y), chain.log_prob, credit, 0.2) + BETA * kl
        opt.zero_grad()
        loss.sum(-1).mean().backward()
        opt.step()
        scheduler.step()
    return recursion(process, model.shift.detach())[0], before + var / BETA


@pytest.mark.parametrize("name", THEORY)
def test_the_optimum_inside_the_class_is_found(name: str) -> None:
    rule, expected = THEORY[name]
    found, theory = learn(rule)
    assert abs(theory - expected) < 1e-3, theory
    assert abs(found - theory) < 0.04, (found, theory)  # and 2.5 is far


def test_an_ode_cannot_move() -> None:
    _, var = recursion(Diffusion(linear, ddim(0.0)), torch.zeros(N))
    assert var == 0
