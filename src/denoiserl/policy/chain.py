"""Chains: the record of a run of a process, from which policies learn.

A ``Chain`` keeps the states around every recorded step with a density, and its log-probability.
``chain.steps_at(index)`` returns the steps of a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, NoDensityError
from denoiserl.core.tree import Tree, describe_shapes, tree_map
from denoiserl.distributions.base import NO_DENSITY_HELP
from denoiserl.processes.base import StepTable


def flatten(tree: Any, axes: int) -> Any:
    """Merge the leading ``axes`` axes of every leaf."""
    return tree_map(lambda v: v.flatten(0, axes - 1) if axes > 1 else v, tree)


def select(tree: Any, index: Tensor) -> Any:
    """Return the rows ``index`` of every leaf (index_select: its gradient is a fast scatter)."""
    return tree_map(lambda v: v.index_select(0, index), tree)


@dataclass(frozen=True)
class ChainSteps:
    """A minibatch of N steps from chains.

    ``x``, ``y`` [N, *event]: the states before and after the step. ``step`` [N]: its row in the table. ``log_prob``
    [N]: as recorded. ``cond`` [N, ...]. ``chain_index`` [N]: the chain of the step. ``mask`` [N, *event] or None.
    """

    steps: StepTable
    x: Tree
    y: Tree
    step: Tensor
    log_prob: Tensor
    cond: Tree
    chain_index: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        return f"ChainSteps({len(self)} steps, x {describe_shapes(self.x, 1)}, {self.step.device})"

    def select(self, index: Any) -> ChainSteps:
        """Return the rows ``index``."""
        pick = {k: tree_map(lambda v: v[index], getattr(self, k)) for k in ("x", "y", "cond", "mask")}
        return replace(
            self, **pick, step=self.step[index], log_prob=self.log_prob[index], chain_index=self.chain_index[index]
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """The record of a run of a process.

    ``states`` [*b, R + 1, *event]: the states around the R recorded steps. ``recorded`` [S]: the indices of those with
    a density. ``step`` [S]: their rows in the table ``steps``. ``log_prob`` [*b, S]: as drawn. ``sample``
    [*b, *event]: the final state. ``cond``: the raw condition, which ``rescore`` embeds again with gradients.
    ``mask`` [*b, *event]: factors that count (None: all). ``version``: version of the weights that drew it.
    """

    steps: StepTable
    states: Tree
    recorded: Tensor
    step: Tensor
    log_prob: Tensor
    sample: Tree
    cond: Tree
    mask: Tensor | None = None
    version: int = 0

    @property
    def batch(self) -> tuple[int, ...]:
        """Return the batch shape *b."""
        return tuple(self.log_prob.shape[:-1])

    @property
    def x(self) -> Tree:
        """Return the state before each recorded step with a density, [*b, S, *event]."""
        self._recorded()
        return tree_map(lambda v: v.index_select(len(self.batch), self.recorded), self.states)

    @property
    def y(self) -> Tree:
        """Return the state after each recorded step with a density, [*b, S, *event]."""
        self._recorded()
        return tree_map(lambda v: v.index_select(len(self.batch), self.recorded + 1), self.states)

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        event = describe_shapes(self.sample, len(self.batch))
        return (
            f"Chain(batch {list(self.batch)}, event {event}, {len(self)} of {len(self.steps)} steps recorded, "
            f"{self.log_prob.device})"
        )

    def _recorded(self) -> None:
        if len(self.step) == 0:
            raise NoDensityError(
                f"this chain recorded no step with a density: {NO_DENSITY_HELP}; record=RecordAll() keeps the states"
            )

    def steps_at(self, index: Tensor | None = None) -> ChainSteps:
        """Return the steps at a flat index into [*b, S], by default all, as rows of a minibatch."""
        self._recorded()
        axes, n = len(self.batch), len(self.step)
        total = self.log_prob.numel()
        index = torch.arange(total, device=self.log_prob.device) if index is None else index
        chain, j = index // n, index % n
        at = self.recorded[j]

        def pick(v: Tensor, shift: int) -> Tensor:
            return v.flatten(0, axes - 1)[chain, at + shift]

        return ChainSteps(
            self.steps,
            tree_map(lambda v: pick(v, 0), self.states),
            tree_map(lambda v: pick(v, 1), self.states),
            self.step[j],
            self.log_prob.reshape(-1)[index],
            select(flatten(self.cond, axes), chain),
            chain,
            None if self.mask is None else self.mask.flatten(0, axes - 1)[chain],
        )

    def with_condition(self, cond: Tree = None, mask: Tensor | None = None) -> Chain:
        """Return the chain with another condition (such as observations that are stored once), or another mask."""
        return replace(self, cond=self.cond if cond is None else cond, mask=self.mask if mask is None else mask)

    def take(self, index: Any) -> Chain:
        """Return the chains at an index into the leading batch axis.

        Raise InvalidInputError if no batch axis is left.
        """
        part = {k: tree_map(lambda v: v[index], getattr(self, k)) for k in ("states", "sample", "cond", "mask")}
        log_prob = self.log_prob[index]
        if log_prob.ndim < 2:
            raise InvalidInputError(
                "one chain alone has no batch axis: take it with a slice or a list, chain.take([i])"
            )
        return replace(self, **part, log_prob=log_prob)


def stack(chains: list[Chain]) -> Chain:
    """Stack chains of equal shape along a new leading axis (time).

    Raise InvalidInputError if they recorded other steps or have other versions.
    """
    head = chains[0]
    for c in chains[1:]:
        if len(c) != len(head) or not torch.equal(c.step, head.step) or c.version != head.version:
            raise InvalidInputError(
                "chains to stack must have recorded the same steps under one version of the weights"
            )
    joined = {}
    for name in ("states", "sample", "cond", "mask"):
        parts = [getattr(c, name) for c in chains]
        joined[name] = None if parts[0] is None else tree_map(lambda *v: torch.stack(v), parts[0], *parts[1:])
    return replace(head, **joined, log_prob=torch.stack([c.log_prob for c in chains]))
