"""Collected experience [T, B, ...]: what a collector returns and replay buffers take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from denoiserl.core.tree import Tree, describe_shapes
from denoiserl.policy.chain import Chain


class Fault(NamedTuple):
    """What went wrong: with ``copy`` (None where nobody can say which), at ``tick`` of its episode, and ``what``."""

    copy: int | None
    tick: int
    what: str


@dataclass(frozen=True)
class Rollout:
    """Collected experience, all [T, B, ...]; a step is one decision (an action, or a chunk of T_a).

    ``obs``, ``next_obs``: trees; ``next_obs`` is the true successor. ``reward``: Σ γ^i r_i over the executed ticks.
    ``terminated``: truly over; ``done``: over, time limits too. ``num_executed``: ticks. ``executed_mask`` [T, B, T_a]:
    the executed actions; all False where an automatic reset swallowed the step. ``action``: what the policy asked for.
    ``info``: ``return`` and ``ticks`` of the episode so far, and ``success`` (so far) where it is reported. ``faults``:
    what went wrong on the way and was mended; a decision that was lost to it is not valid, but ``done``.
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
        steps, copies = self.reward.shape
        return (
            f"Rollout({steps} steps of {copies} copies, observation {describe_shapes(self.obs, 2)}, action "
            f"{list(self.action.shape[2:])}, {int((self.done & self.valid).sum())} episodes ended)"
        )

    @property
    def valid(self) -> Tensor:
        """[T, B] bool: the step happened. What is not valid must not be learned from."""
        return self.executed_mask.any(-1)

    def discount(self, gamma: float) -> Tensor:
        """γ to the length of the step, 0 where the episode truly ended: [T, B]."""
        return gamma ** self.num_executed.float() * ~self.terminated

    def summary(self) -> dict[str, float]:
        """Means over the episodes that finished here: ``num_episodes``, ``return``, ``length`` and
        ``success`` if reported.

        Without a finished episode there is only ``num_episodes``: 0. ``num_faults`` counts what went wrong, where
        anything did.
        """
        over = self.done & self.valid
        count = int(over.sum())
        means = {k: float(v[over].float().mean()) for k, v in self.info.items()} if count else {}
        wrong = {"num_faults": float(len(self.faults))} if self.faults else {}
        return {"num_episodes": float(count), **means, **wrong}
