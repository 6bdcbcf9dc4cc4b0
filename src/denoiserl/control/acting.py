"""A policy at work in a ``Collector``: it plans chunks of actions, executes the first ones, and is judged by a
critic."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from denoiserl.advantages import gae, normalise
from denoiserl.core.errors import DenoiseRLError, InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.core.serialization.config import foreign, to_config
from denoiserl.core.tree import Tree, tree_map
from denoiserl.data import RunningNormCodec
from denoiserl.data.rollout import Rollout
from denoiserl.envs.collector import Collector
from denoiserl.envs.remarks import remark
from denoiserl.envs.reward_scale import RewardScale
from denoiserl.envs.units import unfit
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.policy.weights import AdapterOff
from denoiserl.processes import MeanFlow, Relay
from denoiserl.processes.denoiser import Denoiser


def training_actor(policy: Policy, num_finetuned: int, execute: int | None = None) -> Any:
    """Return what acts for a ``Collector`` and records the last ``num_finetuned`` denoising steps, those that learn.

    ``num_finetuned`` below the number of steps makes the policy a ``Relay`` first (see ``relay``). Observations are
    taken in by a codec that keeps statistics of them.
    """
    relay(policy, num_finetuned)
    total, execute = len(policy.train_steps), resolve_execute_horizon(policy, execute)
    last = policy.train_steps.part(total - num_finetuned, total)
    if not all(last.dense):
        raise InvalidInputError(
            "a learned step has no noise: train under with_min_std(transition, std), so that each has a density"
        )
    draw, frozen = make_sampler(policy.process, learner(policy), last, policy.event_shape), None
    if num_finetuned < total:
        first, made = policy.train_steps.part(0, total - num_finetuned), policy.denoiser
        assert isinstance(made, Relay)
        frozen = make_sampler(policy.process, made.first, first, policy.event_shape, record=RecordSample())

    def act(obs: Tree, rng: Rng) -> tuple[Tensor, Chain]:
        cond = policy.codec.condition(observe(policy, obs))
        start = None if frozen is None else (frozen(cond, rng).sample, 0)
        chain = draw(cond, rng, start=start)
        return policy.codec.decode(chain.sample)[:, :execute], chain

    return act


def relay(policy: Policy, num_finetuned: int | None) -> int:
    """Freeze all but the last ``num_finetuned`` steps of training, in place, and return how many learn (None: all that
    may).

    The frozen weights become part of the policy's denoiser, a ``Relay``: whatever draws, scores, serves, saves or loads
    the policy runs them at the times of the first steps. Raises InvalidInputError if steps are to learn that are
    frozen.
    """
    total, module = len(policy.train_steps), policy.weights.module
    own = int((policy.train_steps.times[:-1] <= module.until).sum()) if isinstance(module, Relay) else total
    num_finetuned = own if num_finetuned is None else num_finetuned
    if not 1 <= num_finetuned <= total:
        raise InvalidInputError(
            f"finetune_denoising_steps is between 1 and the {total} denoising steps of the policy, not {num_finetuned}"
        )
    if num_finetuned > own:
        raise InvalidInputError(
            f"the first {total - own} of the policy's {total} denoising steps are run by frozen weights: "
            f"finetune_denoising_steps is at most {own}, not {num_finetuned}"
        )
    if num_finetuned < own:
        if isinstance(policy.process, MeanFlow):
            raise InvalidInputError(
                "a mean flow learns all of its steps, each an average up to its own end: leave "
                f"finetune_denoising_steps={num_finetuned} out"
            )
        first, times = policy.weights.snapshot("base"), policy.train_steps.times
        until, last = float(times[total - num_finetuned - 1] + times[total - num_finetuned]) / 2, learner(policy)
        policy.weights.module = Relay(first, last, until)
        kept = policy.weights.sets
        for name in [k for k, v in kept.items() if k != "base" and not isinstance(v, AdapterOff)]:
            made = kept[name]
            kept[name] = Relay(first, made.last if isinstance(made, Relay) else made, until)
        del kept["base"]
        policy.weights.snapshot("base")
    return num_finetuned


def learner(policy: Policy) -> Denoiser:
    """Return the denoiser that learns: of a ``Relay`` the last one."""
    made = policy.denoiser
    return made.last if isinstance(made, Relay) else made


def whole(policy: Policy, why: str) -> None:
    """Raise InvalidInputError if some of the policy's denoising steps are run by frozen weights; ``why`` that cannot
    be."""
    if isinstance(policy.denoiser, Relay):
        raise InvalidInputError(
            f"{why}, and the first denoising steps of this policy are run by frozen weights (it learned with "
            "finetune_denoising_steps=...): give a policy whose steps are all of one network"
        )


def renewable(policy: Policy, why: str) -> None:
    """Raise InvalidInputError if the policy's network cannot be made anew, for its class is of another package; ``why``
    that has to be."""
    if (other := foreign(to_config(policy.denoiser))) is not None:
        raise InvalidInputError(
            f"{why}, and this policy's network is a {other}, which cannot be made anew here: give a policy whose "
            "network is one of denoiserl.nn"
        )


def observe(policy: Policy, obs: Tree) -> Tree:
    """Return observations where the policy computes, taken in by a codec that keeps statistics of them."""
    if isinstance(policy.codec, RunningNormCodec):
        policy.codec.update(obs)
    return to_device(obs, policy)


def statistics(policy: Policy) -> RunningNormCodec | None:
    """Return the codec that keeps statistics of observations, to be named in ``run.loop``; None: it keeps none."""
    return policy.codec if isinstance(policy.codec, RunningNormCodec) else None


def to_device(obs: Tree, policy: Policy) -> Tree:
    """Observations where the policy computes."""
    return tree_map(lambda v: v.to(policy.device), obs)


@dataclass(frozen=True)
class EvalActor:
    """Act as users run a ``policy``, which ``evaluate`` looks at to tell of its units."""

    policy: Policy
    execute: int | None

    def __call__(self, obs: Any, rng: Rng) -> Tensor:
        sample = self.policy.generate(to_device(obs, self.policy), rng)
        return sample if self.execute is None else sample[:, : self.execute]


def eval_actor(policy: Policy, execute: int | None = None) -> EvalActor:
    """Return what acts as users run a policy: its serving steps, and the first ``execute`` actions of a chunk (None: as
    many as the policy carries, or all)."""
    if execute is None:
        execute = policy.weights.execute
    return EvalActor(policy, None if execute is None else resolve_execute_horizon(policy, execute))


def resolve_execute_horizon(policy: Policy, execute: int | None = None) -> int:
    """Return how many actions of a chunk are executed (None: as many as the policy carries, or all that it decodes).

    Raises InvalidInputError if the policy's event is no chunk [H, d] of actions, or ``execute`` is more than it
    decodes."""
    if len(policy.event_shape) != 2:
        raise InvalidInputError(
            f"the policy decides {list(policy.event_shape)}, not a chunk of actions [H, d]: one action is [1, d]"
        )
    most = int(getattr(policy.codec, "execute", policy.event_shape[0]))
    execute = (policy.weights.execute or most) if execute is None else execute
    if not 1 <= execute <= most:
        raise InvalidInputError(f"execute is between 1 and the chunk's {most} actions, not {execute}")
    return execute


def carry(policy: Policy, execute: int | None = None) -> int:
    """Let the policy carry how many actions of a chunk are executed (see ``chunked``), in place, and return it.

    What it learns with is what ``eval_actor`` executes, here and wherever it is loaded: so it learns ``alone``.
    """
    alone(policy)
    policy.weights.execute = resolve_execute_horizon(policy, execute)
    return policy.weights.execute


def alone(policy: Policy, name: str = "the policy") -> None:
    """Take the policy's control away, in place, with a warning: it does not learn with the policy, and would go on to
    choose, or to replace what the policy decides."""
    if (control := policy.weights.control) is not None:
        warnings.warn(
            f"{name} is served through a control ({type(control).__name__}), which does not learn on: the policy alone "
            "goes on from here",
            stacklevel=3,
        )
        policy.weights.control = None


def mask_unexecuted(chain: Chain, live: int | Tensor | None) -> Chain:
    """Return the chain with a mask of what was executed: only those actions count in its probability.

    ``live`` [*b, T_a] bool, as ``Rollout.executed_mask`` tells it: an episode that ends inside a chunk leaves the rest
    of it out. A number: the first so many of each chunk.
    """
    horizon, device = chain.sample.shape[-2], chain.log_prob.device
    if live is None:
        return chain
    if isinstance(live, int):
        live = (torch.arange(horizon) < live).expand(*chain.batch, horizon)
    missing = horizon - live.shape[-1]
    if missing == 0 and bool(live.all()):
        return chain
    mask = torch.nn.functional.pad(live.to(device), (0, missing))
    return chain.with_condition(mask=mask[..., None].expand(chain.sample.shape))


def mean_log_prob(law: Any, y: Tree) -> Tensor:
    """Return log π of a decision over the number of its live factors, the log of a geometric mean: [*batch]; 0 where
    no factor is live."""
    return law.log_prob(y) / law.num_factors.clamp_min(1)


def on_policy(law: Any, y: Tree, chain: Chain) -> None:
    """Raise OffPolicy if the whole chain, executed or not, is scored otherwise than it was drawn (a factor's mean)."""
    law = replace(law, mask=None)
    assert_on_policy(mean_log_prob(law, y), chain.log_prob / law.num_factors)


def standard(credit: Tensor) -> Tensor:
    """Return the advantages of a minibatch, normalised; of a single decision as it is, for it has no std."""
    return normalise(credit) if credit.numel() > 1 else credit


def critic_features(policy: Policy, env: Collector) -> tuple[Callable[[Tree], Tensor], int]:
    """What critics of this policy see of observations [B, ...], and how many numbers that is: see(obs) -> [B, o].

    Conditions that are flat, as they are. Of pictures, what the policy's network makes of them (its ``features``), held
    as it was before it learned: a critic cannot follow eyes that change.
    """
    frozen: list[Any] = []

    @torch.no_grad()
    def see(obs: Tree) -> Tensor:
        cond = policy.codec.condition(to_device(obs, policy))
        if isinstance(cond, Tensor):
            return cond
        if not frozen:
            net = getattr(policy.weights.snapshot("base"), "net", None)
            if not hasattr(net, "features"):
                raise InvalidInputError(
                    "this policy sees more than flat numbers, and its network does not say what it makes of them: give "
                    "it features(cond) -> [B, o], as nn.vision.Sighted has it"
                )
            frozen.append(net)
        return frozen[0].features(cond).float()

    return see, see(blank(env.spec.obs)).shape[-1]


def blank(shapes: Any) -> Tree:
    """Return one observation of zeros, of these shapes; pictures in bytes."""
    if isinstance(shapes, dict):
        return {k: blank(v) for k, v in shapes.items()}
    return torch.zeros(1, *shapes, dtype=torch.uint8 if len(shapes) == 3 else torch.float32)


class AdvantageEstimate(NamedTuple):
    """Experience as a critic sees it: ``seen`` [T·B, o] its input, ``value`` and ``credit`` [T, B] (Â, not normalised),
    ``goal`` [T·B] what its values should have been."""

    features: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def estimate_advantages(
    ep: Rollout,
    value: nn.Module,
    features_fn: Callable[[Tree], Tensor],
    scale: RewardScale,
    gamma: float,
    lam: float,
) -> AdvantageEstimate:
    """GAE over the decisions of an episode, from scaled rewards; ``gamma`` is the discount a tick.

    ``see`` says what the critic sees (``sight``). A chunk of n ticks is discounted by γⁿ. The target of the critic is
    Â + v. A time limit stops the sum and bootstraps from the value of the true successor; a true end does not.
    """
    device = next(value.parameters()).device
    seen, after = (features_fn(tree_map(lambda v: v.flatten(0, 1), o)) for o in (ep.obs, ep.next_obs))
    with torch.no_grad():
        v, after_v = (value(o).unflatten(0, ep.reward.shape) for o in (seen, after))
    reward = scale(ep.reward, gamma ** ep.num_executed.float(), ep.done, ep.valid).to(device)
    credit = gae(reward, ep.discount(gamma).to(device), v, after_v, ep.done.to(device), lam)
    return AdvantageEstimate(seen, v, credit, (credit + v).flatten())


def rollout_metrics(ep: Rollout, judgement: AdvantageEstimate | None = None) -> dict[str, float]:
    """What an iteration tells of its experience: finished episodes, the mean reward, and the critic's squared error."""
    row = {f"rollout/{k}": x for k, x in ep.summary().items()}
    row["rollout/reward"] = float(ep.reward[ep.valid].mean())
    if judgement is not None:
        error = (judgement.returns - judgement.values.flatten()).square()
        row["loss/value"] = float(error[ep.valid.flatten().to(error.device)].mean())
    return row


def suits(policy: Policy, env: Collector, word: str) -> None:
    """Raise RunError if the policy at ``word`` does not observe what ``env`` shows or decides actions of another size.

    Warns (``Remark``) of other units (``units.unfit``)."""
    try:
        plan = policy.generate(to_device(blank(env.spec.obs), policy), Rng(0, policy.device))
    except (DenoiseRLError, ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
        raise RunError(
            f"{word} does not observe what {env.name} shows, {env.spec.obs} ({error}): give a policy that was made for "
            "it, or say --obs-horizon where the policy sees several observations"
        ) from error
    if tuple(env.spec.action) not in (tuple(plan.shape[2:]), tuple(plan.shape[1:])):
        raise RunError(
            f"{word} decides actions {list(plan.shape[2:])}, {env.name} takes {list(env.spec.action)}: give a policy "
            "that was made for it"
        )
    remark(unfit(policy.codec, env.owner, env.spec, word))
