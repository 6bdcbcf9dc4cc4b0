"""The recorder of a running chain: the states around its recorded steps, and the log-probs of these steps.

The distribution of a step is as large as a state. Distributions are scored in groups, which is fast, and then freed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoiserl.core.tree import first, tree_map
from denoiserl.distributions import Gaussian
from denoiserl.distributions.gaussian import stack
from denoiserl.processes.base import StepTable

WAIT = 1 << 18
"""numbers of states that are scored and stacked together: many small steps then cost as much as one"""


class Recorder:
    """The record of the steps ``low`` ≤ k < ``high``. For each step: ``before``, then ``after``; at the end ``parts``.

    ``wait``: numbers of states to collect before they are scored and stacked together.
    """

    def __init__(self, steps: StepTable, low: int, high: int, wait: int = WAIT) -> None:
        self.steps, self.low, self.high, self.wait = steps, low, high, wait
        self.scored = frozenset(k for k in range(low, high) if steps.dense[k])
        self.most = 0  # steps to collect, computed at the first
        self.states: list[Any] = []
        self.laws: list[tuple[Any, Any]] = []
        self.stacked: list[Any] = []
        self.scores: list[Tensor] = []

    def before(self, k: int, x: Any) -> None:
        """Add the state before step k."""
        if self.low <= k <= self.high:
            self.most = self.most or self.wait // max(1, first(x).numel())
            self.states.append(_free(x))
            if len(self.states) > self.most:
                self._stack()

    def after(self, k: int, law: Any, x: Any) -> None:
        """Add the distribution of step k, and its sample."""
        if k not in self.scored:
            return
        if not isinstance(law, Gaussian):  # distributions of tokens are too large to collect
            self.scores.append(law.log_prob(_free(x)).detach()[:, None])
            return
        self.laws.append((law, _free(x)))
        if len(self.laws) > self.most:
            self._score()

    def parts(self, sample: Any, begin: int) -> dict[str, Any]:
        """Return the fields of the chain that began with step ``begin`` and ended in ``sample``."""
        if self.low < self.high == len(self.steps):
            self.before(self.high, sample)
        self._score()
        if self.states and not self.stacked:
            states = tree_map(lambda *v: torch.stack(v, 1), *self.states)
        elif self.stacked:
            self._stack()
            states = tree_map(lambda *v: torch.cat(v, 1), *self.stacked)
        else:
            states = tree_map(lambda v: v.detach()[:, None], sample)
        low = max(self.low, begin)
        kept = [k for k in range(low, self.high) if self.steps.dense[k]]
        device, count = first(sample).device, first(sample).shape[0]
        return {
            "states": states,
            "recorded": torch.tensor([k - low for k in kept], dtype=torch.int64, device=device),
            "step": torch.tensor(kept, dtype=torch.int64, device=device),
            "log_prob": torch.cat(self.scores, 1) if self.scores else torch.zeros(count, 0, device=device),
        }

    def _stack(self) -> None:
        if self.states:
            self.stacked.append(tree_map(lambda *v: torch.stack(v, 1), *self.states))
            self.states = []

    def _score(self) -> None:
        if self.laws:
            with torch.no_grad():
                law = stack([law for law, _ in self.laws])
                self.scores.append(law.log_prob(torch.stack([x for _, x in self.laws], 1)).detach())
            self.laws = []


def _free(x: Any) -> Any:
    """Return a state without its graph."""
    if isinstance(x, Tensor) and not x.requires_grad:  # a detached tensor is a new one: it costs as much as a sum
        return x
    return tree_map(Tensor.detach, x)
