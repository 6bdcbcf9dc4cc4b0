"""Policies that are trained without a reward and get one afterwards (zero-shot RL).

A policy that is trained for all tasks z at once observes (observation, z). ``policy_for_reward`` computes the z of a
reward on states from data, without a gradient step, and returns the policy for it. That policy shares the weights, and
is saved, evaluated and compared like any other.

    policy = policy_for_reward(pretrained, data, lambda obs: (obs[:, 0] < 2).float())
    policy.save("stay-left")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from denoiserl.control.best_of_n import BestOfN
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import require_tensor
from denoiserl.data.codecs.action_chunk import ActionChunkCodec
from denoiserl.data.codecs.squash import TanhCodec
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses.successor import task_vector
from denoiserl.nn.forward_backward import ForwardBackward
from denoiserl.policy.policy import Policy

STATES = 10_000
"""states, at most, on which a reward is evaluated"""


@dataclass(frozen=True)
class TaskConditionedCodec:
    """The codec of a task-conditioned policy: its condition is (s, z), s in the units of ``inner`` and z [d].

    z = 0 is no task: such a policy can be trained, and cannot act before ``policy_for_reward`` sets one.
    """

    inner: ActionChunkCodec | TanhCodec
    z: Tensor

    def encode(self, data: Tensor) -> Tensor:
        """Convert actions to model units."""
        return self.inner.encode(data)

    def decode(self, sample: Tensor) -> Tensor:
        """Convert model units to actions."""
        return self.inner.decode(sample)

    def condition(self, cond: Tensor) -> Tensor:
        """Convert observations to model units, and append z. Raise InvalidInputError without a task."""
        if not bool(self.z.any()):
            raise InvalidInputError(
                "this zero-shot policy has no task yet: call policy_for_reward(policy, data, reward) first and use the "
                "policy that it returns"
            )
        seen = require_tensor(self.inner.condition(cond), "[B, o]")
        return torch.cat([seen, self.z.to(seen).expand(len(seen), -1)], 1)

    def initial_state(self, cond: Tensor) -> None:
        """Return None: decisions start from noise."""
        return None

    def unit(self, plan: Tensor) -> Tensor:
        """Convert plans in model units to actions in [−1, 1], the input of F."""
        return torch.tanh(plan) if isinstance(self.inner, TanhCodec) else plan.clamp(-1, 1)


class InfersTask(Protocol):
    """A verifier of plans that infers the task of a reward."""

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """Return z [d], of rewards [N] at states [N, o] in model units."""
        ...


class SuccessorVerifier(nn.Module):
    """A verifier: Q(s, a, z) = min F(s, a, z)ᵀ z, for the policy's task.

    ``gamma``: discount per environment step with which F was learned.
    """

    def __init__(self, represent: ForwardBackward, gamma: float = 0.98) -> None:
        super().__init__()
        self.config = {"represent": represent, "gamma": gamma}
        self.represent, self.gamma = represent, gamma

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """Return z = √d E[r B] / ‖E[r B]‖."""
        return task_vector(reward, self.represent.backward_embedding(seen))

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Return Q of each plan, [N]; ``cond`` in data units, ``plan`` in model units."""
        codec = require_task_conditioned(policy)
        z = codec.z.to(plan).expand(len(plan), -1)
        return self.represent.value(codec.inner.condition(cond), codec.unit(plan), z).amin(0)


class GoalReachingVerifier(nn.Module):
    """A verifier for policies whose tasks are goals: z is the state with the highest reward; all plans are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """Return the state with the highest reward; among equals, the one nearest to their mean."""
        best = seen[reward == reward.max()]
        return best[(best - best.mean(0)).square().sum(1).argmin()]

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Return zeros, [N]."""
        return plan.new_zeros(len(plan))


def require_task_conditioned(policy: Policy, who: str = "this") -> TaskConditionedCodec:
    """Return the codec of a task-conditioned policy. Raise InvalidInputError for any other policy."""
    if not isinstance(policy.codec, TaskConditionedCodec):
        raise InvalidInputError(
            f"{who} needs a task-conditioned policy: give it the codec "
            f"TaskConditionedCodec(inner, torch.zeros(d)), not {type(policy.codec).__name__}"
        )
    return policy.codec


def states(data: Demonstrations | EpisodeDataset | Tensor, max_states: int = STATES) -> Tensor:
    """Return observations [N, o] of the data, at most ``max_states``, evenly spread."""
    demos = data.demos if isinstance(data, EpisodeDataset) else data
    seen = demos.observations if isinstance(demos, Demonstrations) else demos
    if not isinstance(seen, Tensor) or seen.ndim != 2:
        raise InvalidInputError("rewards are evaluated on flat observations [N, o]: concatenate the parts first")
    return seen[torch.linspace(0, len(seen) - 1, min(max_states, len(seen))).long()]


@torch.no_grad()
def policy_for_reward(
    policy: Policy,
    data: Demonstrations | EpisodeDataset | Tensor,
    reward: Callable[[Tensor], Tensor] | Tensor,
    max_states: int = STATES,
) -> Policy:
    """Return the policy for a reward: z = √d E_D[r(s) B(s)] / ‖·‖ (2103.07945), at once.

    ``data``: states like those of training, as demonstrations, an episode data set or observations [N, o]. ``reward``:
    a function of observations [N, o] in data units to [N]; or, with observations as data, its values [N]. At most
    ``max_states`` states are used. Raise InvalidInputError if the reward is constant or not finite on them, or
    orthogonal to B.
    """
    codec, control = require_task_conditioned(policy, "policy_for_reward"), policy.weights.control
    verifier = control.verifier if isinstance(control, BestOfN) else None
    if not hasattr(verifier, "task"):
        raise InvalidInputError("this policy cannot infer a task from a reward: train it with breeze or fb first")
    if isinstance(reward, Tensor):
        if not isinstance(data, Tensor) or reward.shape != data.shape[:1]:
            raise InvalidInputError("rewards as numbers need their observations [N, o] as data: pass both")
        seen, rewards = states(data, max_states), states(reward[:, None].float(), max_states)[:, 0]
    else:
        seen = states(data, max_states)
        rewards = reward(seen)
        if not isinstance(rewards, Tensor) or rewards.shape != seen.shape[:1]:
            raise InvalidInputError(
                f"a reward function returns one number per state, [{len(seen)}] for {list(seen.shape)}"
            )
    z = cast(InfersTask, verifier).task(
        codec.inner.condition(seen.to(policy.device)), rewards.float().to(policy.device)
    )
    return replace(policy, codec=replace(codec, z=z))
