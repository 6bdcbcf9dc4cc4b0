"""Advantages over the time of an environment: the time axis leads, the other axes are independent environments.

``discount`` is γ to the length of the step (a chunk of n actions: γⁿ) and 0 where the episode terminated. ``done``
also marks time limits: the episode stops there without termination, so the successor's value counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.advantages.checks import boolean, finite, same_shape
from denoiserl.core.errors import InvalidInputError


def gae(reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, done: Tensor, lam: float) -> Tensor:
    """Return the generalised advantage estimates. All ``[T, *b]``; returns ``[T, *b]``.

        δₜ = rₜ + dₜ v(s'ₜ) − v(sₜ)
        Âₜ = δₜ + dₜ λ (1 − doneₜ) Âₜ₊₁

    ``next_value`` is the value of the true successor, not of the state after a reset. ``done`` stops the sum, not the
    bootstrap; only ``discount = 0`` stops the bootstrap. λ=1 and v=0: the discounted return; λ=0: the TD error. The
    target of the critic is ``gae(...) + value``. Raise InvalidInputError if shapes differ, values are not finite, or λ
    or a discount is outside [0, 1]. Schulman et al., arXiv 1506.02438.
    """
    same_shape(reward=reward, discount=discount, value=value, next_value=next_value, done=done)
    boolean(done=done)
    finite(reward=reward, value=value, next_value=next_value)
    _unit(discount)
    if not 0 <= lam <= 1:
        raise InvalidInputError(f"lam must be in [0, 1], got {lam}.")
    delta = reward + discount * next_value - value
    return _backward(delta, discount * lam * ~done)


def returns(reward: Tensor, discount: Tensor, done: Tensor, next_value: Tensor | None = None) -> Tensor:
    """Return the discounted returns. All ``[T, *b]``; returns ``[T, *b]``.

        Gₜ = rₜ + dₜ (Gₜ₊₁  inside an episode,  v(s'ₜ)  at its end and in the last row)

    Without ``next_value`` the value beyond the end is 0.
    """
    same_shape(reward=reward, discount=discount, done=done)
    boolean(done=done)
    finite(reward=reward)
    _unit(discount)
    if next_value is None:
        return _backward(reward, discount * ~done)
    same_shape(reward=reward, next_value=next_value)
    finite(next_value=next_value)
    end = done.clone()
    end[-1:] = True
    return _backward(reward + discount * end * next_value, discount * ~end)


def _backward(x: Tensor, keep: Tensor) -> Tensor:
    """Return yₜ = xₜ + keepₜ yₜ₊₁, with y = 0 beyond the last row."""
    y, out = torch.zeros_like(x[0]), []
    for now, gate in zip(reversed(x.unbind(0)), reversed(keep.unbind(0)), strict=True):
        y = now + gate * y
        out.append(y)
    return torch.stack(out[::-1])


def _unit(discount: Tensor) -> None:
    if discount.ndim == 0 or len(discount) == 0:
        raise InvalidInputError(
            f"Time is the leading axis and must hold at least one step, got shape {list(discount.shape)}."
        )
    if not bool(((discount >= 0) & (discount <= 1)).all()):
        raise InvalidInputError(
            "discount must be in [0, 1] everywhere: γ to the length of the step, 0 where the episode terminated."
        )
