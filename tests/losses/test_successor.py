"""Successor measures on a ring whose every answer is known, and what their losses are least at."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.losses.successor import forward_backward, implied_reward, orthonormal, successor_density, task_vector

S, A, GAMMA = 20, 3, 0.9
"""states of a ring, moves (back, stay, on), discount"""


def ring(slip: float = 0.2) -> torch.Tensor:
    """P(s' | s, a), [S, A, S]: a move happens, or with ``slip`` nothing does."""
    p = torch.zeros(S, A, S)
    for s, a in product(range(S), range(A)):
        p[s, a, (s + a - 1) % S] += 1 - slip
        p[s, a, s] += slip
    return p


def exact(p: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """M^π(s, a, s') = Σ_k γ^k P(s_{k+1} = s'), [S, A, S], of policy [S, A], by dynamic programming."""
    along = torch.einsum("sa,sat->st", policy, p)
    return p @ torch.linalg.inv(torch.eye(S) - GAMMA * along)


def random_policy(seed: int = 0) -> torch.Tensor:
    return torch.rand(S, A, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def expected(f: torch.Tensor, target: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The loss of every transition beside each state once, weighted by how often it happens if (s, a) are drawn evenly.

    ``f`` [S A, S] is F with a one-hot B, ``target`` [S A, S] what F̄ is on average where (s, a) leads.
    """
    chance, total = p.reshape(S * A, S) / (S * A), torch.zeros(())
    for x, s in chance.nonzero().tolist():
        back = torch.cat([torch.eye(S)[s : s + 1], torch.eye(S)])
        m, bar = (successor_density(v[x].expand(S + 1, -1), back) for v in (f, target))
        total = total + chance[x, s] * forward_backward(m, bar, torch.full((S + 1,), GAMMA))[0]
    return total


def test_every_row_has_its_own_discount() -> None:
    """−m_ii + ½ mean_{j≠i} (m_ij − γ_i m̄_ij)² in loops, with discounts that differ and one true end."""
    g = torch.Generator().manual_seed(3)
    m, bar = torch.randn(4, 4, generator=g), torch.randn(4, 4, generator=g)
    discount = torch.tensor([0.9, 0.0, 0.5, 0.7])
    wanted = [
        -m[i, i] + sum(0.5 * (m[i, j] - discount[i] * bar[i, j]) ** 2 for j in range(4) if j != i) / 3 for i in range(4)
    ]
    assert torch.allclose(forward_backward(m, bar, discount), torch.stack(wanted))


def test_the_exact_successor_measure_is_where_the_loss_is_least() -> None:
    """At F = M/ρ with a one-hot B the gradient of the enumerated mean loss vanishes, and anywhere else it does not."""
    p, policy = ring(), random_policy()
    m = exact(p, policy)
    f = (S * m).reshape(S * A, S).requires_grad_()
    after = torch.einsum("xs,sa,sat->xt", p.reshape(S * A, S), policy, S * m)  # E[F̄(s', a')]
    # the loss is quadratic in the target too: its mean over s' shifts the value, not the gradient
    (gradient,) = torch.autograd.grad(expected(f, after, p), f)
    assert float(gradient.abs().max()) < 1e-4 * float(f.detach().abs().max())
    off = (f.detach() + 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(expected(off, after, p), off)
    assert float(gradient.abs().min()) > 1e-5


def test_f_converges_to_the_successor_measure_and_answers_rewards_like_dynamic_programming() -> None:
    """A table for F, a one-hot B and nothing but transitions: F ρ is M^π within 0.05, and F z is Q^π.

    Fifteen of every transition are in the batch, so that the noise of sampling is not what is tested. To leave a row's
    own successor out of the others makes it 2 % rarer there than it is: the most by which the answer may be off.
    """
    p, policy, gamma = ring(0.0), random_policy(), 0.75
    s, a = (v.flatten() for v in torch.meshgrid(torch.arange(S), torch.arange(A).repeat(15), indexing="ij"))
    after, back = p[s, a].argmax(-1), torch.eye(S)
    f, slow = torch.zeros(S, A, S, requires_grad=True), torch.zeros(S, A, S)
    for _ in range(18):
        target = successor_density((policy[after][..., None] * slow[after]).sum(1), back[after])
        loss = forward_backward(successor_density(f[s, a], back[after]), target, torch.full((len(s),), gamma)).mean()
        (gradient,) = torch.autograd.grad(loss, f)
        f.data -= S * A * S * gradient  # one over the curvature: ρ(s, a) ρ(s')
        slow.copy_(f.detach())
    along = torch.einsum("sa,sat->st", policy, p)
    m = p @ torch.linalg.inv(torch.eye(S) - gamma * along)
    found = f.detach() / S
    assert float(m.max()) > 1.5
    assert float((found - m).abs().max()) < 0.05, f"off by {float((found - m).abs().max()):.3f}"
    reward = torch.randn(S, generator=torch.Generator().manual_seed(7))
    z, q = (reward[:, None] * back).mean(0), m @ reward
    assert float((f.detach() @ z - q).abs().max()) < 0.03 * float(q.abs().max())


def test_the_greedy_policy_of_f_is_the_optimal_one() -> None:
    """With next moves that are best by F(s', ·, z)ᵀ z, F z is Q* of value iteration: FB is policy iteration in one."""
    p = ring(0.0)
    reward = torch.zeros(S)
    reward[5] = 1.0
    z = reward / S
    f = torch.zeros(S, A, S)
    for _ in range(200):  # exact fixed-point steps of the loss: F = S P + γ E[F̄(s', a*)]
        then = (f @ z).argmax(-1)
        f = S * p + GAMMA * p @ f[torch.arange(S), then]
    q = torch.zeros(S, A)
    for _ in range(500):
        q = p @ (reward + GAMMA * q.amax(-1))
    assert torch.allclose(f @ z, q, atol=1e-4)
    # and these steps are the loss's: at F its enumerated gradient is zero
    table = f.reshape(S * A, S).clone().requires_grad_()
    after = (p @ f[torch.arange(S), (f @ z).argmax(-1)]).reshape(S * A, S)
    (gradient,) = torch.autograd.grad(expected(table, after, p), table)
    assert float(gradient.abs().max()) < 1e-4 * float(f.abs().max())


def test_orthonormality_is_the_distance_of_the_covariance_from_the_identity() -> None:
    """The mean over all batches of two of a population is ‖E[B Bᵀ] − I‖² − d, to rounding."""
    back = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = torch.stack([orthonormal(back[[i, j]]).mean() for i, j in product(range(7), repeat=2)]).mean()
    cov = back.T @ back / 7
    assert torch.allclose(mean, (cov - torch.eye(3)).square().sum() - 3)


def test_a_reward_in_the_span_of_b_is_implied_by_its_own_moment() -> None:
    """r = B w gives z = E[r B], and r_z is r again; of another reward it is the least-squares projection."""
    g = torch.Generator().manual_seed(2)
    back = torch.randn(400, 6, dtype=torch.float64, generator=g)
    inside = back @ torch.randn(6, dtype=torch.float64, generator=g)
    outside = inside + back[:, 0] ** 2
    for reward in (inside, outside):
        z = (reward[:, None] * back).mean(0)
        fitted = back @ torch.linalg.lstsq(back, reward).solution
        assert torch.allclose(implied_reward(back, z.expand(400, -1), 0.0), fitted)
    flat = back * torch.tensor([1.0, 1, 1, 0, 0, 0])  # B of half the rank: the ridge keeps the answer finite
    assert bool(implied_reward(flat, z.expand(400, -1)).isfinite().all())


def test_a_task_has_the_norm_of_training_and_the_direction_of_the_moment() -> None:
    g = torch.Generator().manual_seed(3)
    back, reward = torch.randn(100, 9, generator=g), torch.rand(100, generator=g)
    z = task_vector(reward, back)
    assert torch.allclose(z.norm(), torch.tensor(3.0))
    assert torch.allclose(torch.cosine_similarity(z, reward @ back, 0), torch.tensor(1.0))
    assert torch.allclose(task_vector(7 * reward, back), z, atol=1e-6)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (torch.zeros(8), "carries no information on this data"),
        (torch.full((8,), 3.0), "carries no information on this data"),
        (torch.tensor([1.0] * 7 + [float("nan")]), "not finite at 1 of 8"),
        (torch.ones(7), "one number per state"),
    ],
)
def test_rewards_that_tell_nothing_are_refused(reward: torch.Tensor, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        task_vector(reward, torch.ones(8, 2))


def test_a_reward_that_b_cannot_see_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="does not represent"):
        task_vector(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))


def test_a_batch_of_one_and_targets_with_gradients_are_refused() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(InvalidInputError, match="at least two rows"):
        forward_backward(one, one, torch.ones(1))
    with pytest.raises(InvalidInputError, match="at least two rows"):
        orthonormal(torch.ones(1, 4))
    m = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(InvalidInputError, match="constant"):
        forward_backward(m, m, torch.ones(2))


@pytest.mark.parametrize(("given", "ridge"), [({}, 1e-3), ({"ridge": 0.5}, 0.5)], ids=["default", "half"])
def test_a_ridge_shrinks_what_b_sees_little_of_by_its_share_of_the_mean_eigenvalue(given: dict, ridge: float) -> None:
    """Of uncorrelated features whose second moments λ are 1, 4 and 16, so 7 in the mean, a reward that is feature i is
    implied λᵢ/(λᵢ + 7 ρ) times; in any unit of B."""
    moments = torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64)
    noise = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    back = torch.linalg.qr(noise).Q * (50 * moments).sqrt()
    for unit in (1.0, 100.0):
        for i, moment in enumerate(moments):
            z = (back[:, i : i + 1] * unit * back).mean(0)
            found = implied_reward(unit * back, z.expand(50, -1), **given)
            torch.testing.assert_close(found, back[:, i] * moment / (moment + 7 * ridge))
