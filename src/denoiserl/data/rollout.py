"""A rollout: collected experience [T, B, ...], which a collector returns and replay buffers take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from denoiserl.core.tree import Tree, describe_shapes
from denoiserl.policy.chain import Chain


class Fault(NamedTuple):
    """A fault of environment ``env`` (None if not known) at ``step`` of its episode; ``what``: a description."""

    env: int | None
    step: int
    what: str


@dataclass(frozen=True)
class Rollout:
    """Collected experience, all [T, B, ...]; an entry is one decision (an action, or a chunk of T_a).

    ``obs``, ``next_obs``: trees; ``next_obs`` is the true successor. ``reward``: Σ γ^i r_i over the executed steps.
    ``terminated``: a true end; ``done``: an end, time limits included. ``num_executed``: executed steps.
    ``executed_mask`` [T, B, T_a]: the executed actions; all False where an automatic reset took the step. ``action``:
    the policy's action. ``info``: ``return`` and ``length`` of the episode so far, and ``success`` so far if it is
    reported. ``faults``: faults that were repaired; a decision lost to one is not valid, but ``done``.
    """

    obs: Tree
    next_obs: Tree
    action: Tensor
    reward: Tensor
    terminated: Tensor
    done: Tensor
    num_executed: Tensor
    executed_mask: Tensor
    chain: Chain | None = None
    info: dict[str, Tensor] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def __repr__(self) -> str:
        steps, num_envs = self.reward.shape
        return (
            f"Rollout({steps} steps of {num_envs} environments, observation {describe_shapes(self.obs, 2)}, action "
            f"{list(self.action.shape[2:])}, {int((self.done & self.valid).sum())} episodes ended)"
        )

    @property
    def valid(self) -> Tensor:
        """[T, B] bool: the decision happened; learn from valid decisions only"""
        return self.executed_mask.any(-1)

    def discount(self, gamma: float) -> Tensor:
        """Return γ to the length of the decision, 0 where the episode truly ended: [T, B]."""
        return gamma ** self.num_executed.float() * ~self.terminated

    def summary(self) -> dict[str, float]:
        """Return means over the finished episodes: ``num_episodes``, ``return``, ``length``, and ``success`` if
        reported.

        Without a finished episode there is only ``num_episodes``: 0. ``num_faults`` is the number of faults, if there
        are any.
        """
        over = self.done & self.valid
        count = int(over.sum())
        means = {k: float(v[over].float().mean()) for k, v in self.info.items()} if count else {}
        wrong = {"num_faults": float(len(self.faults))} if self.faults else {}
        return {"num_episodes": float(count), **means, **wrong}
