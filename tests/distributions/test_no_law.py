"""Logits that are no law are refused by name, whoever draws from them; what is not drawn may be anything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Categorical, Masked, OneStep, Policy, Rng, TokenDenoiser, Unmasking, time_grid
from denoiserl.core.errors import InvalidInputError
from denoiserl.policy.codec import InfillCodec
from denoiserl.processes.denoiser import Denoiser, Estimate

BROKEN = {"nan": math.nan, "plus infinity": math.inf, "all ruled out": -math.inf}


@pytest.mark.parametrize("name", BROKEN)
def test_tokens_without_a_law_are_refused_with_their_place(name: str) -> None:
    logits = torch.zeros(2, 3, 4)
    logits[1, 2] = BROKEN[name]
    with pytest.raises(InvalidInputError, match=r"1 of 6 tokens .* first is at \[1, 2\].*weights"):
        Categorical(logits, 1).sample(Rng(0).uniform(2, 3))
    live = torch.ones(2, 3, dtype=torch.bool)
    live[1, 2] = False
    drawn = Categorical(logits, 1, live).sample(Rng(0).uniform(2, 3))
    assert bool(((drawn >= 0) & (drawn < 4)).all())


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("order", ["confidence", "random", "left", "margin", "entropy"])
def test_only_open_positions_need_a_law(order: Any, name: str) -> None:
    logits, x = torch.zeros(1, 3, 4), torch.tensor([[4, 1, 4]])
    logits[0, 1] = BROKEN[name]
    law = Unmasking(logits, x, x == 4, 4, order, torch.tensor([2]))
    y = law.sample(Rng(0).uniform(1, 3, 2))
    assert y[0, 1] == 1 and bool((y < 4).all()) and bool(law.log_prob(y).isfinite().all())
    logits[0, 2] = BROKEN[name]
    with pytest.raises(InvalidInputError, match="have no distribution"):
        Unmasking(logits, x, x == 4, 4, order, torch.tensor([2])).sample(Rng(0).uniform(1, 3, 2))


class Broken(nn.Module):
    """A network that diverged."""

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return torch.full((*x.shape, 4), math.nan)


class Decision(Denoiser):
    """A categorical policy that diverged."""

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        return Estimate(torch.full((len(x), 4), math.nan))


def test_every_policy_of_tokens_says_so() -> None:
    masked, causal, once = Masked(4, "confidence", tokens=2), Autoregressive(4), OneStep("categorical")
    for process, event, n in ((masked, (2,), 1), (causal, (2,), 2)):
        policy = Policy.of(process, TokenDenoiser(Broken()), event, process.steps(time_grid(n)), codec=InfillCodec())
        with pytest.raises(InvalidInputError, match="network's weights"):
            policy.generate(torch.full((3, 2), 4), Rng(0))
    with pytest.raises(InvalidInputError, match="network's weights"):
        Policy.of(once, Decision(), (), once.steps(time_grid(1))).generate(torch.zeros(3, 1), Rng(0))
