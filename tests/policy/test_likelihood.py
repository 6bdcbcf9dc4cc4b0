"""Noisings of clean data: each draw is scored under the condition of its own row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import Denoiser, Diffusion, Estimate, Rng, elbo, renoise
from denoiserl.policy.likelihood import denoising_losses
from denoiserl.processes import linear

ORACLES: dict[str, tuple[Callable[..., Tensor], bool]] = {"elbo": (elbo, False), "losses": (denoising_losses, True)}
DATA = torch.tensor([[1.0, -2.0], [30.0, 5.0], [-400.0, 7.0]])


class Told(Denoiser):
    """x̂₀ is the condition."""

    def embed_condition(self, cond: Any) -> Any:
        return cond

    def embed_time(self, t: Tensor) -> Any:
        return t

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        return Estimate(context["data"].expand(x.shape))


def terms(name: str, data: Tensor, n: int = 4) -> Tensor:
    score, uniform = ORACLES[name]
    process = Diffusion(linear)
    return score(process, Told(), renoise(process, DATA, n, Rng(0), uniform=uniform), {"data": data})


@pytest.mark.parametrize("name", ORACLES)
def test_a_denoiser_that_is_told_the_clean_data_of_its_row_has_no_error_in_any_draw(name: str) -> None:
    assert torch.equal(terms(name, DATA), torch.zeros(3, 4))
    assert bool((terms(name, DATA.roll(1, 0)) != 0).all()), "of another row it has"


@pytest.mark.parametrize("name", ORACLES)
def test_one_condition_for_all_rows_is_the_condition_of_every_draw(name: str) -> None:
    found = terms(name, DATA[1:2])
    assert torch.equal(found[1], torch.zeros(4)) and bool((found[[0, 2]] != 0).all())
    assert torch.equal(found, terms(name, DATA[1:2].expand(3, -1)))
