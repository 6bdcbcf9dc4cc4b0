"""Frozen policies as functions of their noise: make them deterministic, steer them, measure the effect of the noise.

a = G(s, z) is ``decode_noise``, which DSRL and GoRL share. DSRL's base never changes, so its decision is a step of the
policy's own chain (``steer``), which is run, scored and saved as one. GoRL retrains its base between stages and may
begin without one. Its policy therefore stays the base's own, and z is the action of another policy: through
``control.best_of_n.LatentActionEnv`` during PPO, and ``control.best_of_n.LatentController`` at evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.distributions import Gaussian, Squashed
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.processes import Diffusion, MeanFlow, OneStep, ddim, time_grid
from denoiserl.processes.steered import BlackBox, Map, Steered, Steering, noise_basis, require_deterministic


def as_deterministic(policy: Policy) -> Policy:
    """Return the same diffusion or flow policy with its ODE (DDIM without noise) on its grid of evaluation steps.

    For a mean flow, exploration noise is removed. Raise InvalidInputError for other processes.
    """
    if isinstance(policy.process, MeanFlow):
        return replace(policy, eval_steps=policy.process.steps(policy.eval_steps.times))
    if not isinstance(policy.process, Diffusion):
        raise InvalidInputError(
            f"a {type(policy.process).__name__} has no ODE: only diffusion and flow policies are steered"
        )
    return replace(policy, eval_steps=policy.process.steps(policy.eval_steps.times, ddim(0.0)))


def black_box(answer: Callable[[Any, Tensor], Tensor], chunk: int, dim: int) -> Policy:
    """Wrap ``answer(obs, noise [B, H, d]) -> actions [B, H, d]``, in the environment's units, as a policy."""
    process = OneStep(std=1.0)
    steps = process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, BlackBox(answer), (chunk, dim), steps)


def steer(
    policy: Policy,
    obs: int,
    width: int = 128,
    depth: int = 3,
    bound: float | None = 1.5,
    noise_map: Map = "full",
    rank: int = 1,
    eval_std_scale: float = 0.0,
    min_std: float = 0.05,
) -> Policy:
    """Return a policy that decides the noise of a frozen one: an MLP over ``obs`` numbers, initially w = b tanh ε.

    ``eval_std_scale``: the share of the decision's std at evaluation. 0 takes the mean; an untrained policy with 1 is
    the *narrow noise* baseline. ``noise_map``, ``rank``: see ``processes.steered.noise_basis``. Raise InvalidInputError
    for a base that draws noise in between.
    """
    if len(policy.event_shape) != 2 or isinstance(policy.process, Steered):
        raise InvalidInputError(
            f"only an unsteered policy over chunks [H, d] can be steered; this one decides {list(policy.event_shape)}"
        )
    horizon, dim = policy.event_shape
    rows = noise_basis(noise_map, horizon, rank).shape[1]
    net = MLP((rows, dim), obs, width, depth, 0, False, True, out=(rows, 2 * dim), zero=True)
    process = Steered(policy.process, bound)
    made = Steering(policy.denoiser, Actor(net, min_std, 1 / min_std), horizon, noise_map, rank).to(policy.device)
    train, serve = process.make_steps(policy.eval_steps), process.make_steps(policy.eval_steps, eval_std_scale)
    steered = Policy.of(process, made, policy.event_shape, train, serve, policy.codec)
    steered.weights.execute = policy.weights.execute
    return steered


def require_steered(policy: Policy, using: str | None = None) -> Steering:
    """Return the denoiser of a steered policy. Raise InvalidInputError for any other policy."""
    made = policy.weights.using(using or policy.active_weights)
    if not isinstance(made, Steering):
        raise InvalidInputError(
            "this policy is not steered: steer it with control.noise_steering.steer(policy, obs=...)"
        )
    return made


def noise_distribution(policy: Policy, cond: Tensor) -> Squashed | Gaussian:
    """Return the distribution of the decision [B, r, d] for conditions in model units; differentiable.

    The decision is in units of the bound.
    """
    made = require_steered(policy)
    x = torch.zeros(len(cond), made.rows, policy.event_shape[1], device=cond.device)
    clock = made.latent.embed_time(torch.ones(1, device=cond.device))
    estimate = made.latent(x, clock, made.latent.embed_condition(cond))
    law = Gaussian(estimate.mean, estimate.extra["std"], 2, True)
    return law if bound(policy) is None else Squashed(law)


def bound(policy: Policy) -> float | None:
    """Return the bound b of a steered policy."""
    assert isinstance(policy.process, Steered)
    return policy.process.bound


def decode_noise(policy: Policy, obs: Tree, z: Tensor) -> Tensor:
    """Return a = G(s, z) of a deterministic sampler: [B, H, d] in model units; ``obs`` in data units.

    z is the noise [B, H, d]; of a steered policy it is a decision [B, r, d] in units of the bound, whose noise is M b
    z. No gradient passes. Raise InvalidInputError if the policy is sampled with noise: its plans depend on more than z.
    """
    z, first = z.detach(), 0
    if isinstance(policy.process, Steered):
        z = torch.nn.functional.pad(z * (bound(policy) or 1.0), [0, 0, 0, policy.event_shape[0] - z.shape[1]])
        first = 1  # skip the decision
    else:
        require_deterministic(policy.eval_steps)
    seen = tree_map(lambda v: v.to(policy.device), obs)
    unused = Rng(0, z.device)  # a deterministic base multiplies this noise by 0
    return policy.sample_chain(seen, unused, record=RecordSample(), use_eval_steps=True, start=(z, first)).sample


def decode_noise_to_action(policy: Policy, obs: Tree, z: Tensor) -> Tensor:
    """Return G(s, z) in data units (see ``decode_noise``)."""
    return policy.codec.decode(decode_noise(policy, obs, z))


def noise_effect(policy: Policy, obs: Tensor, rng: Rng | int, n: int = 32) -> tuple[float, float]:
    """Measure the effect of noise on a steered policy's base, as means over dimensions and rows of ``obs`` [B, o].

    Return the std of actions over n noises, and the change of one noise's actions between two calls. The second must be
    0, the first must not.
    """
    rng = as_rng(rng, policy.device)
    many = obs.repeat_interleave(n, 0)
    z = rng.normal(len(many), require_steered(policy).rows, policy.event_shape[1]) / (bound(policy) or 1.0)
    one, two = decode_noise_to_action(policy, many, z), decode_noise_to_action(policy, many, z)
    spread = one.unflatten(0, (len(obs), n)).std(1).mean()
    return float(spread), float((one - two).abs().mean())


def check_noise_effect(policy: Policy, obs: Tensor, rng: Rng | int) -> float:
    """Return the std of the base's actions over its noise (see ``noise_effect``).

    Raise InvalidInputError if the base is not a function of its noise, or ignores it: steering cannot work.
    """
    spread, change = noise_effect(policy, obs, rng)
    if change > 1e-3 * max(spread, 1e-6):
        raise InvalidInputError(
            f"the same noise gives other actions when it is given twice (they differ by {change:.2g}): steering needs "
            "a deterministic policy; fix its seed, or sample it by its ODE"
        )
    if spread < 1e-4:
        raise InvalidInputError(
            f"the policy's actions hardly depend on its noise (their std is {spread:.2g}): it has collapsed, or is a "
            "regression: steer a policy that depends on its noise"
        )
    return spread
