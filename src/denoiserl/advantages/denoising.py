"""Advantages of the steps of a denoising chain. The step axis is last and runs from noise to data."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.advantages.checks import as_float, finite
from denoiserl.core.errors import InvalidInputError


def over_denoising(advantage: Tensor, steps: int, decay: float = 1.0) -> Tensor:
    """Assign an advantage to the denoising steps of its sample. ``[*b]`` -> ``[*b, steps]``.

        Âₖ = decay^(S−1−k) Â,   k = 0 the noisiest recorded step, k = S−1 the cleanest (weight 1)

    ``decay=1`` copies the terminal reward to every step (DDPO, Flow-GRPO); below 1 it is DPPO's γ_denoise, and with
    0 only the last step gets an advantage. If only the last K' steps are trained, ``steps`` is K'. DPPO, arXiv
    2409.00588.
    """
    if steps < 1:
        raise InvalidInputError(f"A chain has at least one step, got {steps}.")
    if not 0 <= decay <= 1:
        raise InvalidInputError(
            f"decay must be in [0, 1], got {decay}: noisier steps never weigh more than the cleanest."
        )
    advantage = as_float(advantage)
    weight = [float(decay) ** k for k in reversed(range(steps))]
    return advantage.unsqueeze(-1) * torch.tensor(weight, dtype=advantage.dtype, device=advantage.device)


def kl_to_go(step_kl: Tensor, beta: float) -> Tensor:
    """Return the advantage that a policy gradient needs beside a closed-form step KL. ``[*b, S]`` -> ``[*b, S]``.

        Âₖ = −β Σ_{j>k} KLⱼ,   KLⱼ(xⱼ) = KL(πⱼ(·|xⱼ) ‖ refⱼ(·|xⱼ));   the last step gets exactly 0

    Why. The path KL is KL(π‖ref) = E_π[Σⱼ KLⱼ(xⱼ)], and θ enters twice. It is in each KLⱼ at its own state. It is also
    in the probability of reaching that state, p(xⱼ) = p(x₀) Πₖ<ⱼ πₖ(xₖ₊₁|xₖ). By the product rule

        ∇ E[Σⱼ KLⱼ] = E[Σⱼ ∇KLⱼ + Σⱼ KLⱼ Σ_{k<j} ∇log πₖ] = E[Σₖ (∇KLₖ + (Σ_{j>k} KLⱼ) ∇log πₖ)].

    The sum is strict: the state xₖ precedes decision k, so KLₖ(xₖ) does not depend on it and would only add variance.
    A loss with the first term alone ignores that a step changes the KL of later steps, and converges elsewhere. The
    complete gradient is

        reinforce(log_prob, advantage + kl_to_go(kl.detach(), β)) + β * kl

    summed over steps and averaged over chains (``ppo_clip`` in place of ``reinforce`` near the old policy). Its optimum
    is p* ∝ ref exp(R/β) if the policy class holds it.
    """
    finite(step_kl=step_kl)
    later = _suffix(step_kl)[..., 1:]
    return -beta * torch.cat([later, torch.zeros_like(step_kl[..., :1])], -1)


def log_ratio_to_go(log_ratio: Tensor, beta: float) -> Tensor:
    """Return the advantage for the same gradient from sampled log-ratios. ``[*b, S]`` -> ``[*b, S]``.

        Âₖ = −β Σ_{j≥k} ℓⱼ,   ℓⱼ = log πⱼ(xⱼ₊₁|xⱼ) − log refⱼ(xⱼ₊₁|xⱼ)

    It is for steps without a closed-form KL. The sum includes step k, because ℓₖ depends on its decision, and the loss
    needs no further term: E[∇ℓⱼ] = 0. The variance is larger than that of ``kl_to_go``. It is the "KL in the reward"
    of language-model PPO.
    """
    finite(log_ratio=log_ratio)
    return -beta * _suffix(log_ratio)


def _suffix(x: Tensor) -> Tensor:
    """Return Σ_{j≥k} xⱼ along the last axis."""
    return x.flip(-1).cumsum(-1).flip(-1)
