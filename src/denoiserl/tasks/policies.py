"""Untrained starting policies over action chunks: diffusion, flow and Gaussian.

They differ only in the distribution of a chunk. Observations are as in the demonstrations: numbers, or an image and a
"state" of numbers. Without demonstrations they are the environment's numbers with running standardisation.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.data import ActionChunkCodec, Demonstrations, DiscreteActionCodec, RunningNormCodec
from denoiserl.data.codecs.action_chunk import refusal
from denoiserl.data.codecs.squash import box_centre_and_half
from denoiserl.envs import Collector
from denoiserl.envs.spaces import BOXED
from denoiserl.nn import MLP, Actor, TwoTimeNet
from denoiserl.nn.vision import ImageConditionedNet, in_bytes
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    CategoricalHead,
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    MeanFlow,
    MeanVelocityDenoiser,
    OneStep,
    cosine,
    ddim,
    linear,
    time_grid,
    with_min_std,
)

POINTS = 32
"""spatial-softmax points of a policy with images"""


class Sizes(Protocol):
    """Settings of a task that set the size of its policies."""

    @property
    def action_horizon(self) -> int: ...
    @property
    def sampling_steps(self) -> int: ...
    @property
    def min_denoising_std(self) -> float: ...
    @property
    def policy_width(self) -> int: ...


class PolicySpec(NamedTuple):
    """A policy's codec, observation dimension, side of its images in pixels (0: none), and action dimension."""

    codec: Any
    obs_dim: int
    image_size: int
    action_dim: int


def probe_env(env: Any) -> Collector:
    """Make one environment, close it, and return its collector, to read its observation and action spaces."""
    found = Collector(env, 1)
    found.close()
    return found


def policy_spec(source: Demonstrations | Collector) -> PolicySpec:
    """Return the spec for demonstrations, or for an environment alone, whose actions must have bounds.

    Raise InvalidInputError for observations that no network here supports, and for unknown action bounds.
    """
    if isinstance(source, Demonstrations):
        obs, actions = source.observations, source.actions.shape[-1]
        if not isinstance(obs, dict):
            if obs.ndim != 2:
                raise InvalidInputError(
                    f"each observation is an array {list(obs.shape[1:])}: give numbers as [o], and images as the "
                    "'image' of a dict, [S, S, 3] in bytes, with a 'state' [o] of numbers beside it"
                )
            return PolicySpec(ActionChunkCodec.fit(source), obs.shape[-1], 0, actions)
        for name, value in obs.items():
            if isinstance(value, dict):
                raise InvalidInputError(
                    f"the observation {name!r} of {source.name or 'the demonstrations'} is a dict: give arrays"
                )
        if set(obs) != {"image", "state"}:
            raise InvalidInputError(refusal(source))
        shapes = {k: list(v.shape[1:]) for k, v in obs.items()}
        if len(shapes["state"]) != 1:
            raise InvalidInputError(
                f"the 'state' beside the images is an array {shapes['state']}: flatten it to numbers [o]"
            )
        high = shapes["image"][0] if shapes["image"] else 0
        if high < 8 or shapes["image"] != [high, high, 3]:
            raise InvalidInputError(
                f"the images are {shapes['image']}: these networks need square colour images, [S, S, 3] with S of 8 "
                "or more, so crop or resize them, here and in the environment"
            )
        in_bytes(obs["image"])
        return PolicySpec(ActionChunkCodec.fit(source), shapes["state"][0], high, actions)
    require_flat_actions(source)
    found = source.spec
    if isinstance(found.obs, dict) or len(found.obs) != 1:
        raise InvalidInputError(
            f"{source.name} observes {found.obs}: an untrained policy needs one array of numbers [o], which "
            "gymnasium.wrappers.FlattenObservation makes of others; policies with images start from demonstrations"
        )
    centre, half = box_centre_and_half(found.low, found.high)
    return PolicySpec(
        RunningNormCodec.without_statistics(source.obs_dim, half, centre=centre), source.obs_dim, 0, source.action_dim
    )


def require_flat_actions(env: Collector) -> None:
    """Raise InvalidInputError if the actions of an environment are not flat numbers."""
    found = env.spec
    if found.choices is not None or len(found.action) != 1:
        discrete = f"one of {found.choices} choices (Discrete)"
        what = f"an array {list(found.action)}" if found.choices is None else discrete
        remedy = "run ppo, which learns discrete actions, or " if found.choices is not None else ""
        raise InvalidInputError(
            f"{env.name} takes {what} as an action, and these policies output numbers [d]: {remedy}{BOXED}"
        )


def network(base: Sizes, known: PolicySpec, **more: Any) -> nn.Module:
    """Return an MLP over a chunk, with an image encoder if there are images."""
    event, points = (base.action_horizon, known.action_dim), 2 * POINTS if known.image_size else 0
    net = MLP(event, cond=known.obs_dim + points, width=base.policy_width, layer_norm=True, **more)
    return ImageConditionedNet(net, known.image_size, POINTS) if known.image_size else net


def diffusion(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a diffusion policy: its train steps are the posterior with a minimum std, its eval steps the posterior."""
    torch.manual_seed(seed)
    known = policy_spec(source)
    process = Diffusion(cosine, with_min_std(ddim(1.0), base.min_denoising_std), clip=1.0)
    times = time_grid(base.sampling_steps)
    serve = process.steps(times, ddim(1.0))
    made = GaussianDenoiser(network(base, known), cosine, "v").to(device)
    return Policy.of(process, made, (base.action_horizon, known.action_dim), process.steps(times), serve, known.codec)


def flow(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a flow policy: its train steps are the ODE with a fixed noise, its eval steps the ODE."""
    torch.manual_seed(seed)
    known = policy_spec(source)
    process, times = (
        Diffusion(linear, with_min_std(ddim(0.0), base.min_denoising_std), clip=1.0),
        time_grid(base.sampling_steps),
    )
    serve = process.steps(times, ddim(0.0))
    made = GaussianDenoiser(network(base, known), linear, "v").to(device)
    return Policy.of(process, made, (base.action_horizon, known.action_dim), process.steps(times), serve, known.codec)


def gaussian(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a Gaussian policy: it trains with its learned std, and evaluates with its mean.

    For an environment with discrete actions it is a categorical policy.
    """
    if isinstance(source, Collector) and source.spec.choices is not None:
        return categorical(base, source, seed, device)
    torch.manual_seed(seed)
    known = policy_spec(source)
    process, fresh = OneStep(), isinstance(source, Collector)
    head = GaussianHead(
        network(base, known, time=0, zero=fresh), known.action_dim, 0.6 if fresh else 0.5, base.min_denoising_std
    )
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, head.to(device), (base.action_horizon, known.action_dim), steps, serve, known.codec)


def categorical(base: Sizes, source: Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a categorical policy of one discrete action: it trains with its samples, evaluates with the likeliest."""
    torch.manual_seed(seed)
    choices = source.spec.choices
    assert choices is not None
    size, event = source.obs_dim, (1, 1)
    codec = DiscreteActionCodec.for_choices(size, int(source.spec.low))
    net = MLP(event, cond=size, width=base.policy_width, layer_norm=True, time=0, out=(1, choices), zero=True)
    process = OneStep("categorical")
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, CategoricalHead(net).to(device), event, steps, serve, codec)


def squashed_gaussian(event: tuple[int, int], seen: int, width: int, depth: int, codec: Any, seed: int) -> Policy:
    """Return a tanh-Gaussian policy for ``seen`` observed numbers; its eval steps use the mean."""
    torch.manual_seed(seed)
    net = MLP(event, seen, width, depth, 0, False, activation="relu", out=(event[0], 2 * event[1]))
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, Actor(net), event, steps, serve, codec)


def meanflow(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a one-step mean flow, with a fixed noise in training. A tenth of its loss is on that step (ends = 0.1)."""
    torch.manual_seed(seed)
    known, process = policy_spec(source), MeanFlow(ends=0.1)
    made = MeanVelocityDenoiser(TwoTimeNet(network(base, known, time=0))).to(device)
    steps, serve = process.steps(time_grid(1), base.min_denoising_std), process.steps(time_grid(1))
    return Policy.of(process, made, (base.action_horizon, known.action_dim), steps, serve, known.codec)


def one_step_flow(
    base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu"
) -> Policy:
    """Return a one-step flow policy, for example a distillation target, with a fixed noise in training."""
    torch.manual_seed(seed)
    known, process = policy_spec(source), Diffusion(linear, with_min_std(ddim(0.0), base.min_denoising_std))
    made, times = GaussianDenoiser(network(base, known), linear, "v").to(device), time_grid(1)
    serve = process.steps(times, ddim(0.0))
    return Policy.of(process, made, (base.action_horizon, known.action_dim), process.steps(times), serve, known.codec)
