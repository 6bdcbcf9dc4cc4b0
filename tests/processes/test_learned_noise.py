"""Learned exploration noise beside a denoiser: who is asked what, and who learns from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl.nn import MLP
from denoiserl.processes import GaussianDenoiser, NoiseInjectedDenoiser, linear
from denoiserl.processes.denoiser import Denoiser, Estimate

LEAST, MOST = 0.1, 0.4


class Looks(nn.Module):
    """A network [B, 3] that sees {"image", "state"}: ``features`` are one learned number of the image and the state."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.inner = nn.Linear(4, 1), MLP(3, 3, width=8)

    def features(self, cond: Any) -> Tensor:
        return torch.cat([self.eye(cond["image"]), cond["state"]], 1)

    def embed_condition(self, cond: Any) -> Any:
        return self.inner.embed_condition(self.features(cond))

    def embed_time(self, t: Tensor) -> Any:
        return self.inner.embed_time(t)

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.inner(x, clock, context)


class Sum(nn.Module):
    """f(x, t, c) = x + 2 (3 t) − 5 c / 7 from a clock of 3 t and a context of c / 7: each has a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def embed_condition(self, cond: Tensor) -> Tensor:
        return cond.sum(1) / 7

    def embed_time(self, t: Tensor) -> Tensor:
        return 3 * t

    def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Tensor:
        return self.scale * (x + (2 * clock - 5 * context)[:, None])


def test_noise_of_pictures_does_not_train_the_encoder() -> None:
    looks, noise = Looks(), Sum()
    made = NoiseInjectedDenoiser(GaussianDenoiser(looks, linear, "v"), noise, LEAST, MOST)
    x, t, cond = torch.randn(5, 3), torch.rand(5), {"image": torch.randn(5, 4), "state": torch.randn(5, 2)}
    std = made(x, made.embed_time(t), made.embed_condition(cond)).extra["std"]
    std.sum().backward()
    assert noise.scale.grad is not None and float(noise.scale.grad.abs()) > 0
    assert all(p.grad is None for p in looks.parameters())

    mean = made(x, made.embed_time(t), made.embed_condition(cond)).mean
    mean.square().sum().backward()
    assert float(looks.eye.weight.grad.abs().max()) > 0, "the denoiser itself trains it"


def test_noise_is_asked_with_its_own_clock_and_context() -> None:
    """log σ = log least + ½ (1 + tanh f(x, t, c)) (log most − log least), of pictures by their features."""
    looks = Looks()
    x, t, state = 0.3 * torch.randn(6, 3), torch.rand(6), torch.randn(6, 2)
    pictured = {"image": torch.randn(6, 4), "state": state}
    flat = GaussianDenoiser(MLP(3, 2, width=8), linear, "v")
    for denoiser, cond, seen in (
        (GaussianDenoiser(looks, linear, "v"), pictured, looks.features(pictured)),
        (flat, state, state),
    ):
        made = NoiseInjectedDenoiser(denoiser, Sum(), LEAST, MOST)
        std = made(x, made.embed_time(t), made.embed_condition(cond)).extra["std"]
        f = (x + 6 * t[:, None] - 5 * seen.sum(1, keepdim=True) / 7).double()
        share = f.exp() / (f.exp() + (-f).exp())  # ½ (1 + tanh f)
        wanted = torch.exp((1 - share) * torch.tensor(LEAST).log() + share * torch.tensor(MOST).log())
        torch.testing.assert_close(std.double(), wanted, atol=1e-5, rtol=1e-5)


class Answering(Denoiser):
    """A denoiser that says something beside its answer."""

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        return Estimate(2 * x, {"value": x[:, 0], "std": torch.full_like(x, 9.0)})


def test_the_answer_stays_and_the_std_beside_it_runs_from_the_least_to_the_most() -> None:
    """f = 0 is the geometric middle, ±∞ the ends; what else the denoiser says goes on, its own std does not."""
    noise = Sum()
    x, t, cond = torch.tensor([[0.0], [60.0], [-60.0]]), torch.zeros(3), torch.zeros(3, 1)
    for least, most in ((0.1, 0.4), (0.25, 0.25)):
        made = NoiseInjectedDenoiser(Answering(), noise, least, most)
        told = made(x, made.embed_time(t), made.embed_condition(cond))
        middle = (least * most) ** 0.5
        assert told.extra["std"].flatten().tolist() == pytest.approx([middle, most, least], rel=1e-5)
        assert torch.equal(told.mean, 2 * x) and torch.equal(told.extra["value"], x[:, 0])
    for least, most in ((0.0, 0.4), (0.4, 0.1)):
        with pytest.raises(ValueError, match="min_std"):
            NoiseInjectedDenoiser(Answering(), noise, least, most)
