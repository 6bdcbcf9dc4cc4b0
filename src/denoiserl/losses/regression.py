"""Regression losses: weighted likelihood, and the implicit reward to the actual one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoiserl.advantages.checks import require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError


def weighted_loss(loss: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight · loss``, ``[*b]``. ``loss`` is a denoising loss or −log π; weight 1 is supervised learning."""
    same_shape(loss=loss, weight=weight)
    require_no_grad(weight=weight)
    return weight * loss


def exp_weights(advantage: Tensor, temperature: float, cap: float = 100.0) -> Tensor:
    """Return ``min(exp(Â / temperature), cap)``, any shape: the weights of RWR (Â a reward) and AWR (an advantage).

    Weighted likelihood with them projects p_old exp(Â/temperature)/Z onto the policy class. The cap is applied to the
    exponent, so nothing overflows. Peters & Schaal 2007; Peng et al., arXiv 1910.00177.
    """
    if not (temperature > 0 and cap > 0):
        raise InvalidInputError(f"temperature and cap must be positive, got {temperature} and {cap}.")
    return (advantage / temperature).clamp(max=math.log(cap)).exp().clamp(max=cap)


def ess_fraction(weight: Tensor) -> Tensor:
    """Return (Σw)² / (n Σw²) of weights [n], a scalar: their effective sample size as a fraction of n."""
    return weight.sum().square() / (len(weight) * weight.square().sum())


def center_rewards(log_prob: Tensor, old: Tensor, reward: Tensor, beta: float, weight: Tensor | None = None) -> Tensor:
    """Return the loss of centred reward regression. All ``[*, P, G]``; returns ``[*, P, G]``.

        (β (ℓᵢ − ℓ̄) − (Rᵢ − R̄))²,   ℓ = log π − log π_old,  means over the group of one prompt

    The regularised optimum p* = p_old exp(R/β)/Z(c) has β ℓ = R − β log Z(c); subtracting the mean within the prompt
    removes Z. So the loss is zero exactly at p*, for samples from *any* distribution. ℓ̄ is detached. With uniform
    weights this does not change the gradient of the group's sum, since the residuals sum to 0.

    ``log_prob`` is a chain's joint (trajectory-balance kind) or an ELBO with noise shared with ``old`` (CRD, arXiv
    2603.14128; GDSD). ``weight`` (not negative, ``[*, P, G]``) centres with a weighted mean, for pools of good or bad
    samples. Raise InvalidInputError for a group of one: its centred reward is always 0.
    """
    same_shape(log_prob=log_prob, old=old, reward=reward)
    require_no_grad(old=old, reward=reward)
    if reward.ndim < 2 or reward.shape[-1] < 2:
        raise InvalidInputError(
            f"Centring needs a group axis with at least two samples, [prompts, group]; got {list(reward.shape)}."
        )
    if not beta > 0:
        raise InvalidInputError(f"beta must be positive, got {beta}.")
    if weight is None:
        weight = torch.ones_like(reward)
    same_shape(reward=reward, weight=weight)
    total = weight.sum(-1, keepdim=True)
    if not bool((weight >= 0).all() & (total > 0).all()):
        raise InvalidInputError("Centring weights must not be negative, and every prompt needs one that is positive.")
    share = weight / total
    implicit = beta * (log_prob - old)
    mean = (share * implicit.detach()).sum(-1, keepdim=True)
    return (implicit - mean - (reward - (share * reward).sum(-1, keepdim=True))).square()
