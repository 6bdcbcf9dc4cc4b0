"""A law of several batch axes is the law of one, whatever its kind: what it draws, scores and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Categorical, Gaussian, Rng, Unmasking
from denoiserl.distributions import Squashed

N, L, V = 6, 4, 3
RNG = Rng(0)
LIVE = RNG.uniform(N, L) < 0.7
OPEN = RNG.uniform(N, L) < 0.8
LOGITS, OTHERS = RNG.normal(N, L, V), RNG.normal(N, L, V)
TOKENS = torch.where(OPEN, V, RNG.integers(0, V, N * L).view(N, L))
COUNT, RATE = torch.tensor([0, 1, 2, 1, 3, 2]), RNG.uniform(N) * 0.8 + 0.1
MEAN, STD = RNG.normal(N, L), RNG.uniform(N, L) + 0.5


def unmask(order: Any, **more: Any) -> Callable[..., Unmasking]:
    def make(shape: tuple[int, ...], logits: Tensor = LOGITS) -> Unmasking:
        logits, x, opened, live = (v.view(*shape, *v.shape[1:]) for v in (logits, TOKENS, OPEN, LIVE))
        count, rate = COUNT.view(shape), RATE.view(shape)
        given = {"rate": rate} if order == "independent" else {"count": count}
        return Unmasking(logits, x, opened, V, order, **given, mask=live | ~opened, **more)

    return make


def categorical(shape: tuple[int, ...], logits: Tensor = LOGITS) -> Categorical:
    return Categorical(logits.view(*shape, L, V), 1, LIVE.view(*shape, L))


def gaussian(shape: tuple[int, ...], logits: Tensor = LOGITS) -> Gaussian:
    mean, std = MEAN + logits[..., 0], STD
    return Gaussian(mean.view(*shape, L), std.view(*shape, L), 1, True, LIVE.view(*shape, L))


def squashed(shape: tuple[int, ...], logits: Tensor = LOGITS) -> Squashed:
    return Squashed(gaussian(shape, logits), 1.5)


LAWS: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "gaussian": (gaussian, RNG.normal(N, L)),
    "squashed": (squashed, RNG.normal(N, L)),
    "categorical": (categorical, RNG.uniform(N, L)),
    **{
        order: (unmask(order), RNG.uniform(N, L, 2))
        for order in ("independent", "confidence", "random", "left", "margin", "entropy")
    },
    "threshold": (unmask("confidence", threshold=0.4), RNG.uniform(N, L, 2)),
}


@pytest.mark.parametrize("name", LAWS)
def test_several_batch_axes_are_one(name: str) -> None:
    make, noise = LAWS[name]
    flat, deep = make((N,)), make((2, 3))
    drawn = flat.sample(noise)
    other = drawn.roll(1, 0)  # most of these are impossible for a law of positions
    assert torch.equal(deep.sample(noise.view(2, 3, *noise.shape[1:])), drawn.view(2, 3, L))
    for x in (drawn, other):
        assert torch.equal(deep.log_prob(x.view(2, 3, L)).flatten(), flat.log_prob(x))
        assert torch.equal(deep.log_prob(x.view(2, 3, L), factors=True).flatten(0, 1), flat.log_prob(x, factors=True))
    assert torch.equal(deep.num_factors.flatten(), flat.num_factors)
    if name in ("independent", "random", "left") or not isinstance(flat, Unmasking):
        found = deep.kl(make((2, 3), OTHERS)).flatten()
        assert torch.equal(found, flat.kl(make((N,), OTHERS))) and bool((found >= 0).all())
    if hasattr(flat, "entropy"):
        assert torch.equal(deep.entropy().flatten(), flat.entropy())


@pytest.mark.parametrize("name", LAWS)
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    make, noise = LAWS[name]
    whole = make((N,))
    drawn = whole.sample(noise)
    for i in range(N):
        one, some = row(whole, i), slice(i, i + 1)
        assert torch.equal(one.sample(noise[some]), drawn[some])
        assert torch.allclose(one.log_prob(drawn[some]), whole.log_prob(drawn)[some], atol=1e-6)


def row(law: Any, i: int) -> Any:
    """Row i of a law, all tensors of which lead with the rows."""
    if isinstance(law, Squashed):
        return replace(law, base=row(law.base, i))
    return replace(law, **{k: v[i : i + 1] for k, v in vars(law).items() if isinstance(v, Tensor)})
