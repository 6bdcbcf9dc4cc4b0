"""Losses: pure functions of log-probs, advantages and a reference. One loss per element; the recipe reduces.

They accept log-probs of chains (``rescore``) and ELBO terms (``elbo``) alike.

| training signal | function |
|---|---|
| advantages | ``reinforce``, ``ppo_clip`` (with ``denoise_clip``) |
| weights | ``weighted_loss`` (with ``exp_weights``) |
| pairs | ``dpo`` (``margin``) |
| rewards within a prompt | ``center_rewards`` |
| a reference | ``k1``, ``k2``, ``k3`` |
| returns | ``half_squared_error``, ``clipped_value``, ``huber``, ``expectile`` |
| a critic of decisions | ``normalized_q_loss`` |

``clip_fraction``, ``clip_sides``, ``approx_kl``, ``ess_fraction`` are metrics of an update; ``masked_mean`` and
``masked_sum`` reduce.
"""

from denoiserl.losses.divergence import k1, k2, k3
from denoiserl.losses.policy import approx_kl, clip_fraction, clip_sides, denoise_clip, ppo_clip, reinforce
from denoiserl.losses.preference import dpo, margin
from denoiserl.losses.reduction import masked_mean, masked_sum
from denoiserl.losses.regression import center_rewards, ess_fraction, exp_weights, weighted_loss
from denoiserl.losses.value import clipped_value, expectile, half_squared_error, huber, normalized_q_loss

__all__ = [
    "approx_kl",
    "center_rewards",
    "clip_fraction",
    "clip_sides",
    "clipped_value",
    "denoise_clip",
    "dpo",
    "ess_fraction",
    "exp_weights",
    "expectile",
    "half_squared_error",
    "huber",
    "k1",
    "k2",
    "k3",
    "margin",
    "masked_mean",
    "masked_sum",
    "normalized_q_loss",
    "ppo_clip",
    "reinforce",
    "weighted_loss",
]
