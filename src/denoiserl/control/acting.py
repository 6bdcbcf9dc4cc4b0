"""Act with a policy in a ``Collector``: plan chunks of actions, execute the first ones, and estimate advantages."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.advantages import normalise
from denoiserl.core.errors import DenoiseRLError, InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.core.serialization.config import foreign_network, to_config
from denoiserl.core.tree import Tree, tree_map
from denoiserl.data import RunningNormCodec
from denoiserl.data.rollout import Rollout
from denoiserl.envs.collector import Collector
from denoiserl.envs.remarks import remark
from denoiserl.envs.units import unit_remarks
from denoiserl.policy.chain import Chain
from denoiserl.policy.codec import check_execution_horizon
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.policy.weights import AdapterOff
from denoiserl.processes import MeanFlow, Relay
from denoiserl.processes.denoiser import Denoiser


def training_actor(policy: Policy, num_finetuned: int, execute: int | None = None) -> Any:
    """Return an actor for a ``Collector`` that records the last ``num_finetuned`` denoising steps, those that learn.

    If that is fewer than all steps, the policy becomes a ``Relay`` first (see ``freeze_early_steps``). A codec with
    running statistics is updated with the observations. Raise InvalidInputError if a learned step has no noise.
    """
    freeze_early_steps(policy, num_finetuned)
    total, execute = len(policy.train_steps), resolve_execute_horizon(policy, execute)
    last = policy.train_steps.slice_steps(total - num_finetuned, total)
    if not all(last.dense):
        raise InvalidInputError(
            "a learned step has no noise: train with with_min_std(transition, std), so that each has a density"
        )
    draw, frozen = make_sampler(policy.process, learner(policy), last, policy.event_shape), None
    if num_finetuned < total:
        first, made = policy.train_steps.slice_steps(0, total - num_finetuned), policy.denoiser
        assert isinstance(made, Relay)
        frozen = make_sampler(policy.process, made.first, first, policy.event_shape, record=RecordSample())

    def act(obs: Tree, rng: Rng) -> tuple[Tensor, Chain]:
        cond = policy.codec.condition(observe(policy, obs))
        start = None if frozen is None else (frozen(cond, rng).sample, 0)
        chain = draw(cond, rng, start=start)
        return policy.codec.decode(chain.sample)[:, :execute], chain

    return act


def freeze_early_steps(policy: Policy, num_finetuned: int | None) -> int:
    """Freeze all but the last ``num_finetuned`` denoising steps, in place; return the number of steps that learn.

    None: all steps that are not frozen already. The frozen weights become part of the policy's denoiser, a ``Relay``.
    It runs them at the times of the first steps, wherever the policy is used, saved or loaded. Raise InvalidInputError
    if steps are to learn that are frozen.
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
    """Return the denoiser that learns: the last one of a ``Relay``."""
    made = policy.denoiser
    return made.last if isinstance(made, Relay) else made


def require_single_network(policy: Policy, why: str) -> None:
    """Raise InvalidInputError if frozen weights run some of the policy's denoising steps. ``why``: the reason, as it
    begins the message."""
    if isinstance(policy.denoiser, Relay):
        raise InvalidInputError(
            f"{why}, and frozen weights run the first denoising steps of this policy (it was trained with "
            "finetune_denoising_steps=...): give a policy with one network for all steps"
        )


def require_rebuildable_network(policy: Policy, why: str) -> None:
    """Raise InvalidInputError if the policy's network is of another package and cannot be built again. ``why``: the
    reason, as it begins the message."""
    if (other := foreign_network(to_config(policy.denoiser))) is not None:
        raise InvalidInputError(
            f"{why}, and this policy's network is a {other}, which cannot be built again here: give a policy whose "
            "network is one of denoiserl.nn"
        )


def observe(policy: Policy, obs: Tree) -> Tree:
    """Return observations on the policy's device; update a codec that keeps running statistics."""
    if isinstance(policy.codec, RunningNormCodec):
        policy.codec.update(obs)
    return to_device(obs, policy)


def statistics(policy: Policy) -> RunningNormCodec | None:
    """Return the codec if it keeps running statistics, to be named in ``run.loop``; else None."""
    return policy.codec if isinstance(policy.codec, RunningNormCodec) else None


def to_device(obs: Tree, policy: Policy) -> Tree:
    """Return observations on the policy's device."""
    return tree_map(lambda v: v.to(policy.device), obs)


@dataclass(frozen=True)
class EvalActor:
    """Act with a ``policy`` as it is deployed; ``evaluate`` reads its units."""

    policy: Policy
    execute: int | None

    def __call__(self, obs: Any, rng: Rng | int) -> Tensor:
        sample = self.policy.generate(to_device(obs, self.policy), rng)
        return sample if self.execute is None else sample[:, : self.execute]


def eval_actor(policy: Policy, execute: int | None = None) -> EvalActor:
    """Return an actor with the policy's evaluation steps, which executes the first ``execute`` actions of a chunk.

    None: as many as the policy carries, or all.
    """
    if execute is None:
        execute = policy.weights.execute
    return EvalActor(policy, None if execute is None else resolve_execute_horizon(policy, execute))


def resolve_execute_horizon(policy: Policy, execute: int | None = None) -> int:
    """Return how many actions of a chunk are executed (None: as many as the policy carries, or all that it decodes).

    Raise InvalidInputError if the policy's event is no chunk [H, d] of actions, or ``execute`` is more than it decodes.
    """
    if len(policy.event_shape) != 2:
        raise InvalidInputError(
            f"the policy decides {list(policy.event_shape)}, not a chunk of actions [H, d]: one action is [1, d]"
        )
    execute = policy.weights.execute if execute is None else execute
    found = check_execution_horizon(execute, policy.event_shape, policy.codec)
    return int(getattr(policy.codec, "execute", policy.event_shape[0])) if found is None else found


def set_execution_horizon(policy: Policy, execute: int | None = None) -> int:
    """Store in the policy how many actions of a chunk are executed, in place, and return the number.

    ``eval_actor`` executes that many too, also after loading. A controller is removed (see ``remove_controller``).
    """
    remove_controller(policy)
    policy.weights.execute = resolve_execute_horizon(policy, execute)
    return policy.weights.execute


def remove_controller(policy: Policy, name: str = "the policy") -> None:
    """Remove the policy's controller, in place, with a warning.

    It does not learn with the policy, and would continue to choose or replace its plans.
    """
    if (control := policy.weights.control) is not None:
        warnings.warn(
            f"{name} has a controller ({type(control).__name__}), which is not trained further: the policy goes on "
            "without it",
            stacklevel=3,
        )
        policy.weights.control = None


def mask_unexecuted(chain: Chain, executed: int | Tensor | None) -> Chain:
    """Return the chain with a mask of the executed actions: only these count in its probability.

    ``executed``: [*b, T_a] bool, as ``Rollout.executed_mask``; an episode that ends inside a chunk masks the rest of
    it. A number: the first so many actions of each chunk.
    """
    horizon, device = chain.sample.shape[-2], chain.log_prob.device
    if executed is None:
        return chain
    if isinstance(executed, int):
        executed = (torch.arange(horizon) < executed).expand(*chain.batch, horizon)
    missing = horizon - executed.shape[-1]
    if missing == 0 and bool(executed.all()):
        return chain
    mask = torch.nn.functional.pad(executed.to(device), (0, missing))
    return chain.with_condition(mask=mask[..., None].expand(chain.sample.shape))


def mean_log_prob(law: Any, y: Tree) -> Tensor:
    """Return log π of a decision divided by its number of unmasked factors, the log of a geometric mean: [*batch].

    It is 0 where all factors are masked.
    """
    return law.log_prob(y) / law.num_factors.clamp_min(1)


def on_policy(law: Any, y: Tree, chain: Chain) -> None:
    """Raise OffPolicyError if rescoring the whole chain, executed or not, differs from its log-probabilities (per
    factor)."""
    law = replace(law, mask=None)
    assert_on_policy(mean_log_prob(law, y), chain.log_prob / law.num_factors)


def normalise_minibatch(advantages: Tensor) -> Tensor:
    """Return normalised advantages of a minibatch; a single one unchanged, as it has no std."""
    return normalise(advantages) if advantages.numel() > 1 else advantages


def zero_observation(shapes: Any) -> Tree:
    """Return one observation of zeros of these shapes; images in bytes."""
    if isinstance(shapes, dict):
        return {k: zero_observation(v) for k, v in shapes.items()}
    return torch.zeros(1, *shapes, dtype=torch.uint8 if len(shapes) == 3 else torch.float32)


class AdvantageEstimate(NamedTuple):
    """The critic's view of a rollout: ``features`` [T·B, o] its input, ``values`` and ``advantages`` [T, B] (not
    normalised), ``returns`` [T·B] its regression targets."""

    features: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def rollout_metrics(ep: Rollout, estimate: AdvantageEstimate | None = None) -> dict[str, float]:
    """Return the metrics of a rollout: finished episodes, the mean reward, and the critic's squared error."""
    row = {f"rollout/{k}": x for k, x in ep.summary().items()}
    row["rollout/reward"] = float(ep.reward[ep.valid].mean())
    if estimate is not None:
        error = (estimate.returns - estimate.values.flatten()).square()
        row["loss/value"] = float(error[ep.valid.flatten().to(error.device)].mean())
    return row


def check_policy_fits(policy: Policy, env: Collector, word: str) -> None:
    """Raise RunError if the policy at ``word`` takes other observations than ``env`` gives, or has another action size.

    Warn (``Remark``) of other units (``units.unit_remarks``).
    """
    try:
        plan = policy.generate(to_device(zero_observation(env.spec.obs), policy), Rng(0, policy.device))
    except (DenoiseRLError, ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
        raise RunError(
            f"{word} does not take the observations of {env.name}, {env.spec.obs} ({error}): give a policy that was "
            "made for it, or pass --obs-horizon if the policy takes several observations"
        ) from error
    if tuple(env.spec.action) not in (tuple(plan.shape[2:]), tuple(plan.shape[1:])):
        raise RunError(
            f"{word} decides actions {list(plan.shape[2:])}, {env.name} takes {list(env.spec.action)}: give a policy "
            "that was made for it"
        )
    remark(unit_remarks(policy.codec, env.owner, env.spec, word))
