"""Policies that know no reward until they are told one (zero-shot reinforcement learning).

A policy that is trained for all tasks z at once sees (observation, z). ``policy_for_reward`` finds the z of a reward on
states from data, without a gradient step, and gives the policy for it: it shares the weights, and is saved, judged and
compared like any other.

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
from denoiserl.data.codecs.action_chunk import ActionChunkCodec
from denoiserl.data.codecs.squash import TanhCodec
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses.successor import task_vector
from denoiserl.nn.forward_backward import ForwardBackward
from denoiserl.policy.policy import Policy

STATES = 10_000
"""states, at most, that a reward is evaluated on"""


@dataclass(frozen=True)
class TaskConditionedCodec:
    """The codec of a policy for any task: what it sees is (s, z), s in the units of ``inner`` and z [d].

    z = 0 is no task: such a policy is trained, and acts once it has been told what for.
    """

    inner: ActionChunkCodec | TanhCodec
    z: Tensor

    def encode(self, data: Tensor) -> Tensor:
        """Actions to model units."""
        return self.inner.encode(data)

    def decode(self, sample: Tensor) -> Tensor:
        """Model units to actions."""
        return self.inner.decode(sample)

    def condition(self, cond: Tensor) -> Tensor:
        """Observations to model units, and z."""
        if not bool(self.z.any()):
            raise InvalidInputError(
                "this policy has not been told what for: policy_for_reward(policy, data, reward) gives one that has"
            )
        seen = self.inner.condition(cond)
        return torch.cat([seen, self.z.to(seen).expand(len(seen), -1)], 1)

    def initial_state(self, cond: Tensor) -> None:
        """Decisions start from noise."""
        return None

    def unit(self, plan: Tensor) -> Tensor:
        """Plans in model units as actions in [−1, 1], which is what F is shown."""
        return torch.tanh(plan) if isinstance(self.inner, TanhCodec) else plan.clamp(-1, 1)


class InfersTask(Protocol):
    """A verifier of plans that knows what z a reward has."""

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """z [d], of rewards [N] at states [N, o] in model units."""
        ...


class SuccessorVerifier(nn.Module):
    """A verifier: Q(s, a, z) = min F(s, a, z)ᵀ z, for the task that the policy has been told.

    ``gamma``: the discount a tick that F was learned with.
    """

    def __init__(self, represent: ForwardBackward, gamma: float = 0.98) -> None:
        super().__init__()
        self.config = {"represent": represent, "gamma": gamma}
        self.represent, self.gamma = represent, gamma

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """z = √d E[r B] / ‖E[r B]‖."""
        return task_vector(reward, self.represent.backward_embedding(seen))

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Q of each plan, [N]; ``cond`` in data units, ``plan`` in model units."""
        codec = require_task_conditioned(policy)
        z = codec.z.to(plan).expand(len(plan), -1)
        return self.represent.value(codec.inner.condition(cond), codec.unit(plan), z).amin(0)


class GoalReachingVerifier(nn.Module):
    """A verifier for policies whose tasks are goals: z is the state with the highest reward; all plans are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}

    def task(self, seen: Tensor, reward: Tensor) -> Tensor:
        """The best state; of equals, that which is nearest to their mean."""
        best = seen[reward == reward.max()]
        return best[(best - best.mean(0)).square().sum(1).argmin()]

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Zeros, [N]."""
        return plan.new_zeros(len(plan))


def require_task_conditioned(policy: Policy, who: str = "this") -> TaskConditionedCodec:
    """The codec of a policy for any task; anything else is refused."""
    if not isinstance(policy.codec, TaskConditionedCodec):
        raise InvalidInputError(
            f"{who} needs a policy that sees a task vector beside the observation: give it the codec "
            f"TaskConditionedCodec(inner, torch.zeros(d)), not {type(policy.codec).__name__}"
        )
    return policy.codec


def states(data: Demonstrations | EpisodeDataset | Tensor, most: int = STATES) -> Tensor:
    """Observations [N, o] out of data, at most so many, evenly spread."""
    demos = data.demos if isinstance(data, EpisodeDataset) else data
    seen = demos.observations if isinstance(demos, Demonstrations) else demos
    if not isinstance(seen, Tensor) or seen.ndim != 2:
        raise InvalidInputError("rewards are told on flat observations [N, o]: concatenate the parts first")
    return seen[torch.linspace(0, len(seen) - 1, min(most, len(seen))).long()]


@torch.no_grad()
def policy_for_reward(
    policy: Policy,
    data: Demonstrations | EpisodeDataset | Tensor,
    reward: Callable[[Tensor], Tensor] | Tensor,
    most: int = STATES,
) -> Policy:
    """The policy for a reward: z = √d E_D[r(s) B(s)] / ‖·‖ (2103.07945), at once.

    ``data``: states like those of training, as demonstrations, a recording or observations [N, o]. ``reward``:
    observations [N, o] in data units to [N]; or, beside observations, its values [N] there. At most ``most`` states are
    looked at. Refused: a reward that is constant or not finite on them, and one that B sees nothing of.
    """
    codec, control = require_task_conditioned(policy, "answer"), policy.weights.control
    verifier = control.verifier if isinstance(control, BestOfN) else None
    if not hasattr(verifier, "task"):
        raise InvalidInputError(
            "this policy has no representation to tell it a reward: train it with breeze or fb first"
        )
    if isinstance(reward, Tensor):
        if not isinstance(data, Tensor) or reward.shape != data.shape[:1]:
            raise InvalidInputError(
                "rewards as numbers go with the observations [N, o] at which they were given: pass both"
            )
        seen, told = states(data, most), states(reward[:, None].float(), most)[:, 0]
    else:
        seen = states(data, most)
        told = reward(seen)
        if not isinstance(told, Tensor) or told.shape != seen.shape[:1]:
            raise InvalidInputError(f"a reward function gives one number a state, [{len(seen)}] for {list(seen.shape)}")
    z = cast(InfersTask, verifier).task(codec.inner.condition(seen.to(policy.device)), told.float().to(policy.device))
    return replace(policy, codec=replace(codec, z=z))
