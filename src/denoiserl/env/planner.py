"""A policy at work in a ``Stream``: it plans chunks of actions, executes the first ones, and is judged by a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from denoiserl.chain import Chain, Sample, sampler
from denoiserl.credit import gae
from denoiserl.env.scale import RewardScale
from denoiserl.env.stream import Episode, Stream
from denoiserl.errors import BadSignal
from denoiserl.policy import Policy
from denoiserl.rng import Rng
from denoiserl.tree import Tree, tree_map


def actor(policy: Policy, tuned: int, execute: int | None = None) -> Any:
    """Acts for a ``Stream``: a frozen copy runs the first denoising steps, the policy the last ``tuned`` ones."""
    total = len(policy.train)
    if not 1 <= tuned <= total:
        raise BadSignal(f"tuned is between 1 and the {total} denoising steps of the policy, not {tuned}")
    execute = chunked(policy, execute)
    last = policy.train.part(total - tuned, total)
    if not all(last.dense):
        raise BadSignal("a learned step has no noise: train under floored(transition, std), so that each has a density")
    draw = sampler(policy.process, policy.denoiser, last, policy.event)
    frozen = None
    if tuned < total:
        first = policy.train.part(0, total - tuned)
        frozen = sampler(policy.process, policy.weights.keep("base"), first, policy.event, record=Sample())

    def act(obs: Tree, rng: Rng) -> tuple[Tensor, Chain]:
        cond = policy.codec.condition(placed(obs, policy))
        start = None if frozen is None else (frozen(cond, rng).sample, 0)
        chain = draw(cond, rng, start=start)
        return policy.codec.decode(chain.sample)[:, :execute], chain

    return act


def placed(obs: Tree, policy: Policy) -> Tree:
    """Observations where the policy computes."""
    return tree_map(lambda v: v.to(policy.device), obs)


def serving(policy: Policy, execute: int | None = None) -> Callable[[Any, Rng], Tensor]:
    """Acts as users run a policy: its serving steps, and the first ``execute`` actions of a chunk (None: all of it)."""

    def act(obs: Any, rng: Rng) -> Tensor:
        sample = policy.draw(placed(obs, policy), rng)
        return sample if execute is None else sample[:, :execute]

    return act


def chunked(policy: Policy, execute: int | None) -> int:
    """How many actions of a chunk are executed (None: all that the codec decodes). Refuses policies whose event is no
    chunk [H, d] of actions, and more executed actions than it has."""
    if len(policy.event) != 2:
        raise BadSignal(f"the policy decides {list(policy.event)}, not a chunk of actions [H, d]: one action is [1, d]")
    execute = int(getattr(policy.codec, "execute", policy.event[0])) if execute is None else execute
    if not 1 <= execute <= policy.event[0]:
        raise BadSignal(f"execute is between 1 and the chunk's {policy.event[0]} actions, not {execute}")
    return execute


def executed(chain: Chain, execute: int | None) -> Chain:
    """Only the executed actions of a chunk count in its probability."""
    horizon = chain.sample.shape[-2]
    if execute is None or execute == horizon:
        return chain
    live = (torch.arange(horizon, device=chain.log_prob.device) < execute)[:, None]
    return chain.given(live=live.expand(chain.sample.shape))


def sight(policy: Policy, env: Stream) -> tuple[Callable[[Tree], Tensor], int]:
    """What critics of this policy see of observations [B, ...], and how many numbers that is: see(obs) -> [B, o].

    Conditions that are flat, as they are. Of pictures, what the policy's network makes of them (its ``features``), held
    as it was before it learned: a critic cannot follow eyes that change.
    """
    frozen: list[Any] = []

    @torch.no_grad()
    def see(obs: Tree) -> Tensor:
        cond = policy.codec.condition(placed(obs, policy))
        if isinstance(cond, Tensor):
            return cond
        if not frozen:
            net = getattr(policy.weights.keep("base"), "net", None)
            if not hasattr(net, "features"):
                raise BadSignal(
                    "this policy sees more than flat numbers, and its network does not say what it makes of them: give "
                    "it features(cond) -> [B, o], as net.eyes.Sighted has it"
                )
            frozen.append(net)
        return frozen[0].features(cond).float()

    return see, see(_blank(env.spec.obs)).shape[-1]


def _blank(shapes: Any) -> Tree:
    """One observation of zeros."""
    return {k: _blank(v) for k, v in shapes.items()} if isinstance(shapes, dict) else torch.zeros(1, *shapes)


class Judged(NamedTuple):
    """Experience as a critic sees it: ``seen`` [T·B, o] its input, ``value`` and ``credit`` [T, B] (Â, not normalised),
    ``goal`` [T·B] what its values should have been."""

    seen: Tensor
    value: Tensor
    credit: Tensor
    goal: Tensor


def judged(
    ep: Episode,
    value: nn.Module,
    see: Callable[[Tree], Tensor],
    scale: RewardScale,
    gamma: float,
    lam: float,
) -> Judged:
    """GAE over the decisions of an episode, from scaled rewards; ``gamma`` is the discount a tick.

    ``see`` says what the critic sees (``sight``). A chunk of n ticks is discounted by γⁿ. The target of the critic is
    Â + v. A time limit stops the sum and bootstraps from the value of the true successor; a true end does not.
    """
    device = next(value.parameters()).device
    seen, after = (see(tree_map(lambda v: v.flatten(0, 1), o)) for o in (ep.obs, ep.next_obs))
    with torch.no_grad():
        v, after_v = (value(o).unflatten(0, ep.reward.shape) for o in (seen, after))
    reward = scale(ep.reward, gamma ** ep.length.float(), ep.done).to(device)
    credit = gae(reward, ep.discount(gamma).to(device), v, after_v, ep.done.to(device), lam)
    return Judged(seen, v, credit, (credit + v).flatten())


def told(ep: Episode, judgement: Judged | None = None) -> dict[str, float]:
    """What an iteration tells of its experience: finished episodes, the mean reward, and the critic's squared error."""
    row = {k if k in ("episodes", "faults") else f"episode {k}": x for k, x in ep.summary().items()}
    row["reward"] = float(ep.reward[ep.alive].mean())
    if judgement is not None:
        row["value error"] = float((judgement.goal - judgement.value.flatten()).square().mean())
    return row
