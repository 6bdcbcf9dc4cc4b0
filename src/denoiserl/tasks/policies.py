"""The kinds of policies that experiments start from, untrained: diffusion, flow and Gaussian, over chunks of actions.

They differ in nothing but how a chunk is decided. What observes is what the demonstrations hold: numbers, or pictures
beside a "state" of numbers; without demonstrations, the numbers of the environment, standardised as they come.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.data import ActionChunkCodec, Demonstrations, RunningNormCodec
from denoiserl.data.codecs.action_chunk import refusal
from denoiserl.data.codecs.squash import box_centre_and_half
from denoiserl.envs import Collector
from denoiserl.envs.spaces import BOXED
from denoiserl.nn import MLP, Actor, TwoTimeNet
from denoiserl.nn.vision import ImageConditionedNet, in_bytes
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
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
"""points that a policy with pictures attends to"""


class Sizes(Protocol):
    """What a base says of its policies."""

    @property
    def action_horizon(self) -> int: ...
    @property
    def sampling_steps(self) -> int: ...
    @property
    def min_denoising_std(self) -> float: ...
    @property
    def policy_width(self) -> int: ...


class PolicySpec(NamedTuple):
    """What a policy is made for: its codec, numbers observed, pixels of a picture's side (0: none), numbers decided."""

    codec: Any
    seen: int
    picture: int
    actions: int


def probe_env(env: Any) -> Collector:
    """One copy of what streams take, closed again: for what it observes and how it acts."""
    found = Collector(env, 1)
    found.close()
    return found


def policy_spec(source: Demonstrations | Collector) -> PolicySpec:
    """Return those of demonstrations; or of an environment alone, whose actions must have bounds.

    Raises InvalidInputError if no network here can see the observations, or the bounds of an action are unknown.
    """
    if isinstance(source, Demonstrations):
        seen, actions = source.observations, source.actions.shape[-1]
        if not isinstance(seen, dict):
            if seen.ndim != 2:
                raise InvalidInputError(
                    f"each observation is an array {list(seen.shape[1:])}: numbers are learned from as [o], and "
                    "pictures as the 'image' of a dict, [S, S, 3] in bytes, with a 'state' [o] of numbers beside it"
                )
            return PolicySpec(ActionChunkCodec.fit(source), seen.shape[-1], 0, actions)
        for name, value in seen.items():
            if isinstance(value, dict):
                raise InvalidInputError(
                    f"the {name!r} that {source.name or 'the demonstrations'} observe is a dict: give arrays"
                )
        if set(seen) != {"image", "state"}:
            raise InvalidInputError(refusal(source))
        told = {k: list(v.shape[1:]) for k, v in seen.items()}
        if len(told["state"]) != 1:
            raise InvalidInputError(
                f"the 'state' beside the pictures is an array {told['state']}: flatten it to numbers [o]"
            )
        high = told["image"][0] if told["image"] else 0
        if high < 8 or told["image"] != [high, high, 3]:
            raise InvalidInputError(
                f"the pictures are {told['image']}: these networks look at square ones of three colours, [S, S, 3] "
                "with S of 8 or more, so crop or resize them, here and in the environment"
            )
        in_bytes(seen["image"])
        return PolicySpec(ActionChunkCodec.fit(source), told["state"][0], high, actions)
    require_flat_actions(source)
    found = source.spec
    if isinstance(found.obs, dict) or len(found.obs) != 1:
        raise InvalidInputError(
            f"{source.name} observes {found.obs}: a policy that knows nothing sees one array of numbers [o], which "
            "gymnasium.wrappers.FlattenObservation makes of others; policies that see pictures start from "
            "demonstrations"
        )
    centre, half = box_centre_and_half(found.low, found.high)
    return PolicySpec(RunningNormCodec.fresh(source.obs_dim, half, centre=centre), source.obs_dim, 0, source.action_dim)


def require_flat_actions(env: Collector) -> None:
    """Raise InvalidInputError if the actions of an environment are no flat numbers."""
    found = env.spec
    if found.choices is not None or len(found.action) != 1:
        discrete = f"one of {found.choices} choices (Discrete)"
        what = f"an array {list(found.action)}" if found.choices is None else discrete
        raise InvalidInputError(f"{env.name} takes {what} as an action: these policies decide numbers [d], so {BOXED}")


def network(base: Sizes, known: PolicySpec, **more: Any) -> nn.Module:
    """A perceptron over a chunk, with eyes where there are pictures."""
    event, points = (base.action_horizon, known.actions), 2 * POINTS if known.picture else 0
    net = MLP(event, cond=known.seen + points, width=base.policy_width, layer_norm=True, **more)
    return ImageConditionedNet(net, known.picture, POINTS) if known.picture else net


def diffusion(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A diffusion policy: explored under a floored posterior, served under the posterior itself."""
    torch.manual_seed(seed)
    known = policy_spec(source)
    process = Diffusion(cosine, with_min_std(ddim(1.0), base.min_denoising_std), clip=1.0)
    times = time_grid(base.sampling_steps)
    serve = process.steps(times, ddim(1.0))
    made = GaussianDenoiser(network(base, known), cosine, "v").to(device)
    return Policy.of(process, made, (base.action_horizon, known.actions), process.steps(times), serve, known.codec)


def flow(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A flow policy: explored with a fixed noise on its steps, served by its ODE."""
    torch.manual_seed(seed)
    known = policy_spec(source)
    process, times = (
        Diffusion(linear, with_min_std(ddim(0.0), base.min_denoising_std), clip=1.0),
        time_grid(base.sampling_steps),
    )
    serve = process.steps(times, ddim(0.0))
    made = GaussianDenoiser(network(base, known), linear, "v").to(device)
    return Policy.of(process, made, (base.action_horizon, known.actions), process.steps(times), serve, known.codec)


def gaussian(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A Gaussian policy: explored with its learned std, served by its mean."""
    torch.manual_seed(seed)
    known = policy_spec(source)
    process, fresh = OneStep(), isinstance(source, Collector)
    head = GaussianHead(
        network(base, known, time=0, zero=fresh), known.actions, 0.6 if fresh else 0.5, base.min_denoising_std
    )
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), spread=0.0)
    return Policy.of(process, head.to(device), (base.action_horizon, known.actions), steps, serve, known.codec)


def squashed_gaussian(event: tuple[int, int], seen: int, width: int, depth: int, codec: Any, seed: int) -> Policy:
    """A Gaussian policy pressed into the box of the actions: mean and std are the network's; served by its mean."""
    torch.manual_seed(seed)
    net = MLP(event, seen, width, depth, 0, False, activation="relu", out=(event[0], 2 * event[1]))
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), spread=0.0)
    return Policy.of(process, Actor(net), event, steps, serve, codec)


def meanflow(base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A mean flow: one step decides; explored with a fixed noise on it. A tenth of what it learns is that step."""
    torch.manual_seed(seed)
    known, process = policy_spec(source), MeanFlow(ends=0.1)
    made = MeanVelocityDenoiser(TwoTimeNet(network(base, known, time=0))).to(device)
    steps, serve = process.steps(time_grid(1), base.min_denoising_std), process.steps(time_grid(1))
    return Policy.of(process, made, (base.action_horizon, known.actions), steps, serve, known.codec)


def one_step_flow(
    base: Sizes, source: Demonstrations | Collector, seed: int, device: str | torch.device = "cpu"
) -> Policy:
    """A flow policy of one step, into which another one may be distilled; explored with a fixed noise on it."""
    torch.manual_seed(seed)
    known, process = policy_spec(source), Diffusion(linear, with_min_std(ddim(0.0), base.min_denoising_std))
    made, times = GaussianDenoiser(network(base, known), linear, "v").to(device), time_grid(1)
    serve = process.steps(times, ddim(0.0))
    return Policy.of(process, made, (base.action_horizon, known.actions), process.steps(times), serve, known.codec)
