"""Controllers that use critics: the best of n plans, or one of n sampled by its value.

``QVerifier`` is a verifier for ``control.best_of_n.BestOfN``; ``SoftmaxOfN`` samples instead of taking the best. Both
hold the critics, so they are saved with the policy, and every evaluation includes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoiserl.control.best_of_n import BestOfN, candidates
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.nn.critic import Critics
from denoiserl.policy.policy import Policy


class QVerifier(nn.Module):
    """A verifier: min Q(s, a) by critics of conditions and plans in model units."""

    def __init__(self, critics: Critics) -> None:
        super().__init__()
        self.config = {"critics": critics}
        self.critics = critics

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Return the value of each plan [N, *event] (model units, [−1, 1]) under its condition (data units), [N]."""
        return self.critics(policy.codec.condition(cond), plan.clamp(-1, 1)).amin(0)


class SoftmaxOfN(nn.Module):
    """One of n plans, drawn with probability ∝ exp(value / temperature): the choice of Diffusion-QL (2208.06193).

    ``verifier(policy, cond, plan)`` -> [N] scores plans. Temperature → 0 is ``BestOfN``, temperature → ∞ the policy
    itself.
    """

    def __init__(self, verifier: nn.Module, n: int, temperature: float) -> None:
        super().__init__()
        if n < 1 or not temperature > 0:
            raise InvalidInputError(
                f"n is at least 1 and the temperature positive; they are {n} and {temperature}. For the best plan use "
                "BestOfN"
            )
        self.config = {"verifier": verifier, "n": n, "temperature": temperature}
        self.verifier, self.n, self.temperature = verifier, n, temperature

    @torch.no_grad()
    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """Return the sampled plan of every row, [B, *event] in model units."""
        plans = candidates(policy, cond, self.n, rng, rows)
        many = None if cond is None else tree_map(lambda v: v.repeat_interleave(self.n, 0), cond)
        score = self.verifier(policy, many, plans.flatten(0, 1)).view(len(plans), self.n)
        share = (score / self.temperature).softmax(-1).cumsum(-1)
        at = torch.searchsorted(share, rng.uniform(len(plans), 1)).squeeze(-1).clamp_max(self.n - 1)
        return plans[torch.arange(len(plans), device=plans.device), at]


def make_q_controller(critics: Critics, n: int, temperature: float = 0.0) -> nn.Module | None:
    """Return the controller of n plans: None for one plan, ``BestOfN`` at temperature 0, ``SoftmaxOfN`` above."""
    if n == 1:
        return None
    return SoftmaxOfN(QVerifier(critics), n, temperature) if temperature else BestOfN(QVerifier(critics), n)
