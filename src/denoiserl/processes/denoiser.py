"""What a network must answer: the clean data, given a noisy state, the time and a condition.

A ``Denoiser`` has three calls, so that a sampler does each piece of work once: ``encode`` once a condition,
``embed_time`` once a time grid, ``forward`` once a step. Wrappers turn any raw network (a user's own, an upstream
model) into one: ``GaussianDenoiser`` for eps-, v- and x0-prediction, ``TokenDenoiser`` for tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from denoiserl.core.tree import Tree


class Estimate(NamedTuple):
    """What a denoiser answers.

    ``mean`` is the posterior mean of the clean data E[x₀ | x_t] (Gaussian processes) or its posterior logits
    (token processes): the only part that guidance mixes. ``extra`` holds whatever else the network says: a learned
    std, order scores, values, auxiliary losses.
    """

    mean: Tree
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default is never mutated


class Denoiser(nn.Module):
    """The abstract denoiser. ``embed_condition`` and ``embed_time`` have defaults; ``forward`` is what a wrapper
    writes."""

    def embed_condition(self, cond: Tree | None) -> Any:
        """What the network needs of the condition, once a row and differentiable."""
        return cond

    def embed_time(self, t: Tensor) -> Any:
        """What the network needs of the times ``t`` (any shape), once a grid: a tree of tensors leading like ``t``."""
        return t

    def forward(self, x: Tree, clock: Any, context: Any) -> Estimate:
        """The estimate at state ``x`` [*batch, *event], given rows of ``embed_time`` and ``context``."""
        raise NotImplementedError
