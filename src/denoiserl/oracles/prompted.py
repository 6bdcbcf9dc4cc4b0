"""PM, the prompted mixture: a small generator that can improve, exploit its reward, and collapse.

Data live in 8 dimensions around 6 modes that all prompts share (|μ| = 2, s = 0.3). A prompt (one-hot) sets the
probability of each mode, and two modes per prompt are *good*. The reward is 1 if the nearest mode is good and the
sample is on the manifold. So it penalises samples off the data, but not collapse onto one good mode. Three numbers
describe a run: reward, on-manifold rate, mode entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.oracles.worlds import Exact, Schedule, mixture_mean


class Triple(NamedTuple):
    """Metrics of a prompted generator. Entropy is in nats, averaged over prompts; at most log 6 = 1.79."""

    reward: float
    on_manifold: float
    entropy: float


@dataclass(frozen=True)
class Prompted:
    """A prompted mixture: p(x | prompt i) = Σ_k weights[i, k] N(x; means[k], std² I)."""

    means: Tensor
    weights: Tensor
    good: Tensor
    std: float = 0.3
    tolerance: float = 2.2
    """a sample is on the manifold if its squared distance to a mode is below tolerance · std² · dimension"""

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def prompts(self) -> Tensor:
        """All prompts, one-hot: [prompts, prompts]."""
        return torch.eye(len(self.weights))

    def draw_prompts(self, n: int, rng: Rng | int) -> Tensor:
        """Draw ``n`` uniform prompts, one-hot [n, prompts]."""
        rng = as_rng(rng)
        return self.prompts[rng.integers(0, len(self.weights), n)]

    def sample(self, prompts: Tensor, rng: Rng | int) -> Tensor:
        """Draw data for one-hot ``prompts`` [*batch, prompts]: [*batch, dim]."""
        rng = as_rng(rng)
        cumulative = (prompts @ self.weights).cumsum(-1)
        mode = (rng.uniform(*prompts.shape[:-1], 1) > cumulative).sum(-1).clamp_max(len(self.means) - 1)
        return self.means[mode] + self.std * rng.normal(*prompts.shape[:-1], self.dim)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Any = None) -> Tensor:
        """Return E[x₀ | x_t, prompt] for states [*batch, dim] and one-hot prompts ``context`` [*batch, prompts]."""
        return mixture_mean(x, alpha, sigma, self.means, self.std, (context @ self.weights).log())

    def denoiser(self, schedule: Schedule) -> Exact:
        """Return the exact denoiser under ``schedule``; its condition is the one-hot prompt."""
        return Exact(self, schedule)

    def distance(self, x: Tensor) -> Tensor:
        """Return the squared distance to every mode, [*batch, modes]."""
        return (x[..., None, :] - self.means).square().sum(-1)

    def mode(self, x: Tensor) -> Tensor:
        """Return the nearest mode, [*batch] int64."""
        return self.distance(x).argmin(-1)

    def on_manifold(self, x: Tensor) -> Tensor:
        """Return whether a sample is near its nearest mode, [*batch] bool. True for 97.6 % of the data."""
        return self.distance(x).amin(-1) < self.tolerance * self.std**2 * self.dim

    def reward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """Return 1 if the nearest mode is good for the prompt and the sample is on the manifold, else 0: [*batch]."""
        if x.shape[-1] != self.dim or prompts.shape[-1] != len(self.weights):
            raise InvalidInputError(
                f"samples end in {self.dim} and prompts in {len(self.weights)}; "
                f"got {x.shape[-1]} and {prompts.shape[-1]}"
            )
        good = (prompts @ self.good.float()).gather(-1, self.mode(x)[..., None]).squeeze(-1)
        return good * self.on_manifold(x)

    def entropy(self, x: Tensor, prompts: Tensor) -> Tensor:
        """Return the entropy of the nearest mode per prompt, averaged over the prompts that occur: a scalar."""
        which, mode = prompts.reshape(-1, prompts.shape[-1]).argmax(-1), self.mode(x).flatten()
        count = torch.zeros(len(self.weights), len(self.means)).index_put_(
            (which, mode), torch.ones(len(mode)), accumulate=True
        )
        count = count[count.sum(-1) > 0]
        return torch.special.entr(count / count.sum(-1, keepdim=True)).sum(-1).mean()

    def evaluate_samples(self, x: Tensor, prompts: Tensor) -> Triple:
        """Return reward, on-manifold rate and mode entropy of a set of samples."""
        return Triple(
            float(self.reward(x, prompts).mean()),
            float(self.on_manifold(x).float().mean()),
            float(self.entropy(x, prompts)),
        )


def make_prompted_world(seed: int = 0, dim: int = 8, prompts: int = 6, modes: int = 6, good: int = 2) -> Prompted:
    """Make the world of ``seed``: modes of length 2 in random directions, weights softmax(0.7 N(0, 1)), random good
    sets.
    """
    rng = Rng(seed)
    direction = rng.normal(modes, dim)
    means = 2.0 * direction / direction.norm(dim=-1, keepdim=True)
    weights = (0.7 * rng.normal(prompts, modes)).softmax(-1)
    rank = rng.uniform(prompts, modes).argsort(-1).argsort(-1)
    return Prompted(means, weights, rank < good)
