"""Successor measures in factors: what a policy will see, learned without a reward (FB, 2103.07945).

    M^π(s, a, ds') = Σ_k γ^k P(s_{k+1} ∈ ds' | s, a, π) ≈ F(s, a)ᵀ B(s') ρ(ds')

with ρ the distribution of successors in the data. A reward r is then answered by one product, Q^π(s, a) = F(s, a)ᵀ z
with z = E_ρ[r B]: nothing is learned from it. One loss a row; the recipe reduces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoiserl.advantages.shapes import require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError


def successor_density(ahead: Tensor, back: Tensor) -> Tensor:
    """``F(s_i, a_i)ᵀ B(s'_j)``: [*c, n, d] and [m, d] to [*c, n, m], the density of the successor measure."""
    if ahead.shape[-1] != back.shape[-1]:
        raise InvalidInputError(
            f"F has {ahead.shape[-1]} dimensions and B {back.shape[-1]}: their product needs equal ones"
        )
    return ahead @ back.mT


def forward_backward(measured: Tensor, target: Tensor, discount: Tensor) -> Tensor:
    """The squared Bellman error of the successor measure up to a constant: [*c, n, n] to [*c, n].

        −m_ii + ½ mean_{j≠i} (m_ij − γ_i m̄_ij)²

    Column i of ``measured`` is the successor of row i: the diagonal has seen what came next, all else are independent
    draws from ρ. ``target`` [n, n]: the measure from (s'_i, a'_i), a constant; the minimum over several F is the
    caller's. ``discount`` [n]: γ, 0 where the episode truly ended. Of all m the mean loss over data is least at
    m = (the transition's density) + γ m̄. 2103.07945, 2209.14935.
    """
    same_shape(measured=measured[(0,) * (measured.ndim - 2)], target=target)
    require_no_grad(target=target)
    _several(len(target))
    off = 0.5 * (measured - discount[:, None] * target).square()
    return _others(off) - measured.diagonal(dim1=-2, dim2=-1)


def orthonormal(back: Tensor) -> Tensor:
    """``−2 ‖b_i‖² + mean_{j≠i} (b_iᵀ b_j)²``, [n, d] to [n]: its mean over data is ‖E[B Bᵀ] − I‖² − d (2103.07945)."""
    _several(len(back))
    gram = back @ back.mT
    return _others(gram.square()) - 2 * gram.diagonal()


def implied_reward(back: Tensor, z: Tensor, ridge: float = 1e-3) -> Tensor:
    """The reward that z speaks of, r_z(s') = B(s')ᵀ E[B Bᵀ]⁻¹ z, at every row: [n, d] and [n, d] to [n].

    z = E[r B] of a reward within the span of B implies that reward; of any other its least-squares projection. The
    covariance is that of the rows; ``ridge`` of its mean eigenvalue is added, for batches in which B has no full rank.
    BREEZE, 2510.15382.
    """
    same_shape(back=back, z=z)
    cov = back.mT @ back / len(back)
    eye = torch.eye(len(cov), device=cov.device, dtype=cov.dtype)
    return (back * torch.linalg.solve(cov + ridge * cov.diagonal().mean() * eye, z.mT).mT).sum(-1)


def task_vector(reward: Tensor, back: Tensor) -> Tensor:
    """What a reward is to F: z = √d E[r B] / ‖E[r B]‖, from r [n] and B [n, d] at the same states: [d].

    Normalised after the mean, as z was in training. A constant reward, one that is not finite, and one that B sees
    nothing of are refused.
    """
    if reward.shape != back.shape[:1] or len(reward) == 0:
        raise InvalidInputError(f"a reward is one number a state; got {list(reward.shape)} for {len(back)} states")
    if not bool(reward.isfinite().all()):
        raise InvalidInputError(
            f"the reward is not finite at {int((~reward.isfinite()).sum())} of {len(reward)} states"
        )
    low, high = float(reward.min()), float(reward.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise InvalidInputError(
            f"reward carries no information on this data: it is {low:g} at all of its {len(reward)} states, so every "
            "policy is as good as any; give data that reach what is rewarded"
        )
    mean = (reward[:, None].to(back) * back).mean(0)
    size = mean.norm()
    if float(size) <= 1e-6 * max(abs(low), abs(high)) * math.sqrt(back.shape[1]):
        raise InvalidInputError("B sees nothing of this reward (E[r B] = 0): train longer, or with more dimensions")
    return math.sqrt(back.shape[1]) * mean / size


def _several(n: int) -> None:
    if n < 2:
        raise InvalidInputError("a batch of one has no second state to compare with: take at least two rows")


def _others(pairs: Tensor) -> Tensor:
    """The mean over j ≠ i of [*c, n, n]: [*c, n]."""
    return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / (pairs.shape[-1] - 1)
