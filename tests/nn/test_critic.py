"""Critics against values that are known, and what rides on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.distributions import Gaussian, Squashed
from denoiserl.losses import half_squared_error
from denoiserl.nn import MLP, Actor, Critics, Temperature, frozen, polyak_update, target_copy
from denoiserl.oracles.worlds import double_integrator
from denoiserl.train import adamw, optimizer_step


@pytest.mark.parametrize("layer_norm", [False, True])
def test_stacked_critics_are_separate_critics(layer_norm: bool) -> None:
    """Each answers as it would alone, and its parameters learn from its own loss only."""
    both = Critics(3, (2, 2), 3, 16, 2, "gelu", layer_norm)
    one = Critics(3, (2, 2), 1, 16, 2, "gelu", layer_norm)
    for p in both.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    one.load_state_dict({k: v[1:2] for k, v in both.state_dict().items()})
    cond, action = torch.randn(5, 3), torch.randn(5, 2, 2)
    assert torch.allclose(both(cond, action)[1:2], one(cond, action), atol=1e-6)
    both(cond, action)[1].sum().backward()
    for p in both.parameters():
        assert not bool(p.grad[[0, 2]].any())
    again = Critics(**both.config)
    again.load_state_dict(both.state_dict())
    assert torch.equal(again(cond, action), both(cond, action))


def test_critics_start_as_linear_layers_of_torch_do() -> None:
    """Weights and biases are uniform within ±1/√fan-in, of every layer."""
    critic = Critics(3, (1,), 2, 256, 2)
    for weight, bias, fan in zip(critic.weights, critic.biases, (4, 256, 256), strict=True):
        edge = fan**-0.5
        for part in (weight, bias):
            assert float(part.detach().abs().max()) <= edge
            assert part.numel() < 100 or float(part.detach().std()) == pytest.approx(edge / 3**0.5, rel=0.1)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_row_is_valued_without_the_others(layer_norm: bool) -> None:
    critic = Critics(3, (2,), 2, 16, 2, layer_norm=layer_norm)
    for p in critic.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    cond, action = torch.randn(6, 3), torch.randn(6, 2)
    whole = critic(cond, action)
    alone = torch.cat([critic(c[None], a[None]) for c, a in zip(cond, action, strict=True)], 1)
    assert torch.allclose(whole, alone, atol=1e-5)


def test_a_critic_finds_the_value_of_linear_control() -> None:
    """Temporal differences with a slow target: Q(x, u) = r + γ E V(x') of the policy u = −K x + noise, by Lyapunov.

    The mean of the critics is taken: their minimum is pessimistic by as much as they differ.
    """
    world, rng, explore = double_integrator(noise=0.05, gamma=0.8), Rng(0), 0.2
    K = 0.7 * world.riccati()[1]
    critic = Critics(2, 1, 2, 64, 2, "gelu")
    slow, opt = target_copy(critic), adamw(critic.parameters(), 3e-3)

    def act(x: torch.Tensor) -> torch.Tensor:
        return -x @ K.T + explore * rng.normal(len(x), 1)

    for i in range(600):
        for group in opt.param_groups:
            group["lr"] = 3e-3 * (1 - i / 600) + 1e-5
        x, u = 2.6 * rng.uniform(256, 2) - 1.3, 2 * rng.uniform(256, 1) - 1
        after, reward = world.step(x, u, rng)
        with torch.no_grad():
            y = reward + world.gamma * slow(after, act(after)).mean(0)
        optimizer_step(opt, half_squared_error(critic(x, u), y.expand(2, -1)).sum(0).mean())
        polyak_update(slow, critic, 0.03)
    x, u = 1.4 * rng.uniform(2000, 2) - 0.7, 1.4 * rng.uniform(2000, 1) - 0.7
    mean = x @ world.A.T + u @ world.B.T
    P = world.lyapunov(K)
    reward = -((x @ world.Q) * x).sum(-1) - ((u @ world.R) * u).sum(-1)
    truth = reward + world.gamma * (world.value(mean, K, explore) - world.noise**2 * P.trace())
    gap = (critic(x, u).detach().mean(0) - truth).square().mean().sqrt()
    assert float(gap) < 0.1 * float(truth.std()), (gap, truth.std())


def test_the_temperature_settles_the_entropy_at_its_target() -> None:
    """A Gaussian with the loss α log π alone spreads; α falls until its entropy is the target, and no further."""
    heat, goal = Temperature(1.0), 0.3
    net = torch.nn.Parameter(torch.tensor([0.0, -3.0]))
    opt, warm, rng = adamw([net], 0.03), adamw(heat.parameters(), 0.03), Rng(0)
    found = []
    for _ in range(1200):
        law = Squashed(Gaussian(net[:1].expand(256, 1), net[1:].exp(), 1, True))
        x, logp = law.sample_with_log_prob(rng.normal(256, 1))
        optimizer_step(opt, (heat.alpha * logp + x[:, 0].square()).mean())
        optimizer_step(warm, heat.loss(logp.detach(), goal).mean())
        found.append(-float(logp.detach().mean()))
    assert sum(found[-200:]) / 200 == pytest.approx(goal, abs=0.03)
    low = Temperature(0.5, 0.2)
    low.log.data.fill_(-50.0)
    assert float(low.alpha) == pytest.approx(0.2)


def test_targets_follow_and_gradients_pass_through_what_is_held() -> None:
    net = Critics(2, 1, 2, 8)
    slow = target_copy(net)
    assert not any(p.requires_grad for p in slow.parameters())
    before = [p.clone() for p in slow.parameters()]
    for p in net.parameters():
        p.data.add_(1.0)
    polyak_update(slow, net, 0.25)
    assert all(torch.allclose(p, q + 0.25) for p, q in zip(slow.parameters(), before, strict=True))
    action = torch.zeros(3, 1, requires_grad=True)
    with frozen(net):
        net(torch.zeros(3, 2), action).sum().backward()
    assert bool(action.grad.any()) and all(p.grad is None and p.requires_grad for p in net.parameters())


def test_an_actor_keeps_its_std_within_bounds() -> None:
    actor = Actor(MLP((1, 2), 3, 16, 2, 0, out=(1, 4)), 0.1, 2.0)
    x, context = torch.zeros(64, 1, 2), actor.embed_condition(100 * torch.randn(64, 3))
    made = actor(x, actor.embed_time(torch.ones(1)), context)
    std = made.extra["std"].detach()
    assert std.shape == made.mean.shape == (64, 1, 2)
    assert float(std.min()) >= 0.1 - 1e-6 and float(std.max()) <= 2.0 + 1e-6 and float(std.std()) > 0.1


@pytest.mark.parametrize(("bounds", "start"), [((7e-3, 7.0), 1.0), ((0.05, 20.0), 1.0), ((0.1, 0.4), 0.2)])
def test_an_actor_that_answers_nothing_has_the_std_that_it_starts_with(bounds: Any, start: float) -> None:
    net = MLP((1, 2), 3, 16, 2, 0, out=(1, 4), zero=True)
    for actor, wanted in ((Actor(net, *bounds), start), (Actor(net, *bounds, start=0.3), 0.3)):
        again = Actor(**actor.config)
        for each in (actor, again):
            std = each(
                torch.zeros(5, 1, 2), each.embed_time(torch.ones(1)), each.embed_condition(torch.randn(5, 3))
            ).extra["std"]
            assert torch.allclose(std, torch.full_like(std, wanted), rtol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RunError, match="starts above its floor"):
        Temperature(0.1, 0.2)
    with pytest.raises(InvalidInputError, match="detach"):
        Temperature().loss(torch.zeros(3, requires_grad=True), 0.0)
    with pytest.raises(RunError, match=r"rate = 1\.5 is outside"):
        polyak_update(Critics(2, 1), Critics(2, 1), 1.5)
    with pytest.raises(RunError, match="bounds of a std"):
        Actor(MLP(1, 1), 2.0, 1.0)
    with pytest.raises(RunError, match="between its bounds"):
        Actor(MLP(1, 1), 0.1, 1.0, 2.0)
    with pytest.raises(InvalidInputError, match="mean and std need a last axis of 4"):
        Actor(MLP((1, 2), 3, 8, time=0))(torch.zeros(1, 1, 2), torch.zeros(1, 8), torch.zeros(1, 8))
    with pytest.raises(InvalidInputError, match=r"events of shape \[1, 2\]"):
        Critics(3, (1, 2))(torch.zeros(4, 3), torch.zeros(4, 2))
