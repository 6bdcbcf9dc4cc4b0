"""Two denoisers in turn: who answers at which time, of which condition, and who learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Denoiser, Diffusion, Estimate, Rng, make_sampler, time_grid
from denoiserl.processes import Relay, ddim, linear


class Says(Denoiser):
    """x̂₀ = scale · (x + 10 t + 100 c) from a clock of 10 t and a context of 100 c, both times ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.scale = nn.Parameter(torch.tensor(scale))  # type: ignore[assignment]
        self.asked = 0

    def embed_condition(self, cond: Any) -> Any:
        return 100 * cond * self.net.scale

    def embed_time(self, t: Tensor) -> Any:
        return 10 * t * self.net.scale

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        self.asked += 1
        mean = self.net.scale * x + (clock + context)[:, None]
        return Estimate(mean, {"std": mean.abs(), "value": mean[:, 0]})


FIRST, LAST = 1.0, -3.0


def relay(until: float = 0.4) -> Relay:
    return Relay(Says(FIRST), Says(LAST), until)


def answer(scale: float, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    return scale * (x + (10 * t + 100 * cond)[:, None])


def test_the_first_answers_above_the_border_and_the_last_from_there_on() -> None:
    t = torch.tensor([1.0, 0.4001, 0.4, 0.3999, 0.01, 0.7])
    x, cond, made = torch.randn(6, 2), torch.rand(6), relay()
    found = made(x, made.embed_time(t), made.embed_condition(cond))
    late = torch.tensor([False, False, True, True, True, False])
    wanted = torch.where(late[:, None], answer(LAST, x, t, cond), answer(FIRST, x, t, cond))
    torch.testing.assert_close(found.mean, wanted)
    torch.testing.assert_close(found.extra["std"], wanted.abs())
    torch.testing.assert_close(found.extra["value"], wanted[:, 0])


@pytest.mark.parametrize(("time", "scale"), [(0.9, FIRST), (0.4, LAST), (0.1, LAST)])
def test_rows_at_one_side_ask_one_denoiser(time: float, scale: float) -> None:
    x, cond, made = torch.randn(4, 2), torch.rand(4), relay()
    t = torch.full((4,), time)
    found = made(x, made.embed_time(t), made.embed_condition(cond))
    torch.testing.assert_close(found.mean, answer(scale, x, t, cond))
    torch.testing.assert_close(found.extra["std"], answer(scale, x, t, cond).abs())
    assert (made.first.asked, made.last.asked) == ((1, 0) if scale == FIRST else (0, 1))


def test_a_chain_changes_hands_at_the_border() -> None:
    """The ODE of the two, walked by hand with Python floats; whose the step is, its first time says."""
    process, made = Diffusion(linear, ddim(0.0)), relay(0.5)
    times, cond = time_grid(4), torch.tensor([0.02])
    chain = make_sampler(process, made, process.steps(times), (1,))(cond, Rng(0), start=(torch.tensor([[0.3]]), 0))
    x = 0.3
    for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        guess = (FIRST if t > 0.5 else LAST) * (x + 10 * t + 100 * 0.02)
        x = s / t * x + (1 - s / t) * guess
    assert float(chain.sample) == pytest.approx(x, rel=1e-5)
    assert (made.first.asked, made.last.asked) == (2, 2)


def test_only_the_last_learns_whatever_is_shared() -> None:
    shared = Says(2.0)
    made = Relay(shared, shared, 0.4)
    assert made.last is shared and made.first is not shared
    x, cond, t = torch.randn(4, 2), torch.rand(4), torch.tensor([0.9, 0.1, 0.8, 0.2])
    made(x, made.embed_time(t), made.embed_condition(cond)).mean.sum().backward()
    assert made.first.net.scale.grad is None and not made.first.net.scale.requires_grad
    assert float(shared.net.scale.grad) == pytest.approx(float(answer(1.0, x, t, cond)[[1, 3]].sum()), rel=1e-5)
    with torch.no_grad():
        shared.net.scale.fill_(7.0)
    assert float(made.first.net.scale) == 2.0 and made.net is shared.net
    own = Says(1.0)
    apart = Relay(own, Says(2.0), 0.4)
    assert apart.first is own and not own.net.scale.requires_grad and apart.last.net.scale.requires_grad


def test_what_is_frozen_stays_in_eval_mode() -> None:
    made = relay()
    for mode in (True, False, True):
        made.train(mode)
        assert made.last.training is mode and not made.first.training


def test_a_border_outside_the_chain_is_refused() -> None:
    for until in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match=r"in \(0, 1\)"):
            relay(until)
