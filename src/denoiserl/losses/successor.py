"""Factorised successor measures: the future states of a policy, learned without a reward (FB, 2103.07945).

    M^π(s, a, ds') = Σ_k γ^k P(s_{k+1} ∈ ds' | s, a, π) ≈ F(s, a)ᵀ B(s') ρ(ds')

with ρ the distribution of successors in the data. For any reward r, Q^π(s, a) = F(s, a)ᵀ z with z = E_ρ[r B], without
further training. One loss per row; the recipe reduces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoiserl.advantages.checks import require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError


def successor_density(forward: Tensor, backward: Tensor) -> Tensor:
    """Return ``F(s_i, a_i)ᵀ B(s'_j)``, the density of the successor measure: [*c, n, d] and [m, d] to [*c, n, m]."""
    if forward.shape[-1] != backward.shape[-1]:
        raise InvalidInputError(
            f"F has {forward.shape[-1]} dimensions and B {backward.shape[-1]}: their product needs equal ones"
        )
    return forward @ backward.mT


def forward_backward(measured: Tensor, target: Tensor, discount: Tensor) -> Tensor:
    """Return the squared Bellman error of the successor measure up to a constant: [*c, n, n] to [*c, n].

        −m_ii + ½ mean_{j≠i} (m_ij − γ_i m̄_ij)²

    Column i of ``measured`` is the successor of row i: the diagonal holds actual successors, all else independent
    draws from ρ. ``target`` [n, n]: the measure from (s'_i, a'_i), detached; a minimum over several F is taken before.
    ``discount`` [n]: γ, 0 where the episode terminated. The mean loss over data is minimal at
    m = (the transition's density) + γ m̄. 2103.07945, 2209.14935.
    """
    same_shape(measured=measured[(0,) * (measured.ndim - 2)], target=target)
    require_no_grad(target=target)
    _several(len(target))
    off = 0.5 * (measured - discount[:, None] * target).square()
    return _others(off) - measured.diagonal(dim1=-2, dim2=-1)


def orthonormal(backward: Tensor) -> Tensor:
    """Return ``−2 ‖b_i‖² + mean_{j≠i} (b_iᵀ b_j)²``, [n, d] to [n].

    Its mean over data is ‖E[B Bᵀ] − I‖² − d (2103.07945).
    """
    _several(len(backward))
    gram = backward @ backward.mT
    return _others(gram.square()) - 2 * gram.diagonal()


def implied_reward(backward: Tensor, z: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return the reward that z represents, r_z(s') = B(s')ᵀ E[B Bᵀ]⁻¹ z, per row: [n, d] and [n, d] to [n].

    If z = E[r B], it is r, or its least-squares projection on the span of B. The covariance is that of the rows.
    ``ridge`` times its mean eigenvalue is added, for batches in which B does not have full rank.
    BREEZE, 2510.15382.
    """
    same_shape(backward=backward, z=z)
    cov = backward.mT @ backward / len(backward)
    eye = torch.eye(len(cov), device=cov.device, dtype=cov.dtype)
    return (backward * torch.linalg.solve(cov + ridge * cov.diagonal().mean() * eye, z.mT).mT).sum(-1)


def task_vector(reward: Tensor, backward: Tensor) -> Tensor:
    """Return the task vector of a reward, z = √d E[r B] / ‖E[r B]‖ [d], from r [n] and B [n, d] at the same states.

    It is normalised after the mean, as z is in training. Raise InvalidInputError if the reward is constant, not finite,
    or orthogonal to B.
    """
    if reward.shape != backward.shape[:1] or len(reward) == 0:
        raise InvalidInputError(
            f"a reward is one number per state; got {list(reward.shape)} for {len(backward)} states"
        )
    if not bool(reward.isfinite().all()):
        raise InvalidInputError(
            f"the reward is not finite at {int((~reward.isfinite()).sum())} of {len(reward)} states"
        )
    low, high = float(reward.min()), float(reward.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise InvalidInputError(
            f"reward carries no information on this data: it is {low:g} at all of its {len(reward)} states, so all "
            "policies are equally good; give data that reach rewarded states"
        )
    mean = (reward[:, None].to(backward) * backward).mean(0)
    size = mean.norm()
    if float(size) <= 1e-6 * max(abs(low), abs(high)) * math.sqrt(backward.shape[1]):
        raise InvalidInputError("B does not represent this reward (E[r B] = 0): train longer, or with more dimensions")
    return math.sqrt(backward.shape[1]) * mean / size


def _several(n: int) -> None:
    if n < 2:
        raise InvalidInputError("a batch of one has no second state to compare with: take at least two rows")


def _others(pairs: Tensor) -> Tensor:
    """Return the mean over j ≠ i: [*c, n, n] to [*c, n]."""
    return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / (pairs.shape[-1] - 1)
