"""Credit over denoising steps: the path KL of a small chain, enumerated in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from denoiserl.advantages import kl_to_go, log_ratio_to_go, over_denoising
from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import reinforce


class Chain:
    """All paths x₀ → … → x_S of S tabular decisions over N states; x₀ is uniform."""

    def __init__(self, seed: int, steps: int, states: int):
        g = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(steps, states, states, generator=g, dtype=torch.float64, requires_grad=True)
        self.ref = torch.randn(steps, states, states, generator=g, dtype=torch.float64).log_softmax(-1)
        self.reward_at = torch.randn(states, generator=g, dtype=torch.float64)
        self.paths = torch.tensor(list(itertools.product(range(states), repeat=steps + 1)))  # [n, S + 1]
        self.steps, self.states = steps, states

    def along(self, table: Tensor) -> Tensor:
        """table[k, xₖ, xₖ₊₁] for every path and step: [n, S]."""
        return table[torch.arange(self.steps), self.paths[:, :-1], self.paths[:, 1:]]

    def terms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(probability of the path [n], log π [n, S], log-ratio [n, S], closed-form step KL [n, S])."""
        log_pi = self.theta.log_softmax(-1)
        log_prob = self.along(log_pi)
        kl = (log_pi.exp() * (log_pi - self.ref)).sum(-1)[torch.arange(self.steps), self.paths[:, :-1]]
        return log_prob.sum(-1).exp() / self.states, log_prob, log_prob - self.along(self.ref), kl

    def path_kl(self) -> Tensor:
        """Σ over paths of p log p/ref: no step in sight."""
        p, log_prob, _, _ = self.terms()
        return (p * (log_prob.sum(-1) - self.along(self.ref).sum(-1))).sum()

    def grad(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.theta)[0]


@pytest.mark.parametrize(("steps", "states"), [(1, 3), (2, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_step_kl_with_kl_to_go_has_the_gradient_of_the_path_kl(seed, steps, states):
    chain, beta = Chain(seed, steps, states), 0.7
    exact = chain.grad(beta * chain.path_kl())
    p, log_prob, _, kl = chain.terms()
    credit = kl_to_go(kl.detach(), beta)
    loss = (p.detach() * (reinforce(log_prob, credit) + beta * kl).sum(-1)).sum()
    assert (chain.grad(loss) - exact).abs().max() < 1e-14
    assert torch.equal(credit[:, -1], torch.zeros(len(credit)).double())

    p, _, _, kl = chain.terms()
    plain = chain.grad(beta * (p.detach() * kl.sum(-1)).sum())
    if steps == 1:
        assert (plain - exact).abs().max() < 1e-14
    else:
        assert (plain - exact).abs().max() > 1e-3  # the step KL alone is another objective


@pytest.mark.parametrize("seed", range(3))
def test_log_ratio_to_go_has_the_gradient_of_the_path_kl(seed):
    chain, beta = Chain(seed, 3, 3), 0.7
    p, log_prob, log_ratio, _ = chain.terms()
    loss = (p.detach() * reinforce(log_prob, log_ratio_to_go(log_ratio.detach(), beta)).sum(-1)).sum()
    assert (chain.grad(loss) - chain.grad(beta * chain.path_kl())).abs().max() < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_the_regularised_gradient_vanishes_at_the_tilted_reference_and_only_with_kl_to_go(seed):
    chain, beta = Chain(seed, 3, 3), 0.5
    # p* ∝ ref exp(R/β): πₖ*(y|x) ∝ refₖ(y|x) h(y), with h propagated backwards from exp(R/β).
    log_h, best = chain.reward_at / beta, []
    for k in reversed(range(chain.steps)):
        joint = chain.ref[k] + log_h
        log_h = joint.logsumexp(-1)
        best.insert(0, joint - log_h[:, None])
    with torch.no_grad():
        chain.theta.copy_(torch.stack(best))
    p, log_prob, _, kl = chain.terms()
    reward = over_denoising(chain.reward_at[chain.paths[:, -1]], chain.steps)

    def loss(advantage: Tensor) -> Tensor:
        return (p.detach() * (reinforce(log_prob, advantage) + beta * kl).sum(-1)).sum()

    full = torch.autograd.grad(loss(reward + kl_to_go(kl.detach(), beta)), chain.theta, retain_graph=True)[0]
    plain = torch.autograd.grad(loss(reward), chain.theta)[0]
    assert full.abs().max() < 1e-14
    assert plain.abs().max() > 1e-5


def test_to_go_counts_later_steps_and_log_ratios_their_own_too():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    assert torch.equal(kl_to_go(x, 0.5), torch.tensor([[-3.0, -2.0, 0.0]]))
    assert torch.equal(log_ratio_to_go(x, 0.5), torch.tensor([[-3.5, -3.0, -2.0]]))


def test_over_denoising_runs_from_noise_to_data():
    advantage = torch.tensor([2.0, -1.0])
    assert torch.equal(over_denoising(advantage, 3, 0.5), torch.tensor([[0.5, 1.0, 2.0], [-0.25, -0.5, -1.0]]))
    assert torch.equal(over_denoising(advantage, 3, 0.0), torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -1.0]]))
    assert torch.equal(over_denoising(advantage, 1, 0.5), advantage[:, None])
    batch = torch.randn(2, 5, dtype=torch.float64)
    whole = over_denoising(batch, 4)
    assert all(torch.equal(whole[..., k], batch) for k in range(4))


def test_decay_one_step_further_from_the_data_is_one_factor():
    credit = over_denoising(torch.randn(7, dtype=torch.float64), 6, 0.9)
    torch.testing.assert_close(credit[:, :-1], 0.9 * credit[:, 1:], rtol=1e-14, atol=0)


def test_refusals():
    with pytest.raises(InvalidInputError, match="at least one step"):
        over_denoising(torch.ones(2), 0)
    with pytest.raises(InvalidInputError, match="decay must be"):
        over_denoising(torch.ones(2), 3, 1.01)
    with pytest.raises(InvalidInputError, match=r"step_kl\[0, 1\] = nan"):
        kl_to_go(torch.tensor([[0.0, torch.nan]]), 1.0)
