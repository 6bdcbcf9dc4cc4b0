"""The interface of denoisers: estimate clean data from a noisy state, the time and a condition.

A ``Denoiser`` has three calls, so that a sampler computes each part once: ``embed_condition`` once per condition,
``embed_time`` once per time grid, ``forward`` once per step. Wrappers turn any raw network (a user's or an upstream
model) into a denoiser: ``GaussianDenoiser`` for eps-, v- and x0-prediction, ``TokenDenoiser`` for tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.tree import Tree


class Estimate(NamedTuple):
    """The output of a denoiser.

    ``mean`` is the posterior mean of the clean data E[x₀ | x_t] (Gaussian processes) or its posterior logits
    (token processes). Guidance mixes this part alone. ``extra`` holds the other outputs of the network: a learned
    std, order scores, values, auxiliary losses.
    """

    mean: Tree
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default is never mutated


class Denoiser(nn.Module):
    """The abstract denoiser: ``forward`` is to be implemented; ``embed_condition`` and ``embed_time`` have defaults."""

    def embed_condition(self, cond: Tree | None) -> Any:
        """Return the network's embedding of the condition, computed once per row and differentiable."""
        return cond

    def embed_time(self, t: Tensor) -> Any:
        """Return the network's embedding of times ``t`` (any shape): a tree of tensors that lead like ``t``."""
        return t

    def forward(self, x: Tree, clock: Any, context: Any) -> Estimate:
        """Return the estimate at state ``x`` [*batch, *event], given rows of ``embed_time`` and ``context``."""
        raise NotImplementedError


def require_network(net: Any) -> None:
    """Raise InvalidInputError unless ``net`` is a torch module."""
    if not isinstance(net, nn.Module):
        given = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise InvalidInputError(
            f"a denoiser wraps a network (torch.nn.Module), not {given}: give MLP(...), or your own"
        )
