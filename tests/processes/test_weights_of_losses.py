"""Losses by their published definitions, and rows of which nothing counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Autoregressive, Diffusion, GaussianDenoiser, OneStep, Rng, TokenDenoiser
from denoiserl.nn import MLP, TwoTimeNet
from denoiserl.processes import GaussianHead, MeanFlow, MeanVelocityDenoiser, Schedule, betas_linear, cosine, linear, vp
from denoiserl.processes.edm_training import EDMTraining


class Net(nn.Module):
    """A network with some answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.layer(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], -1))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
@pytest.mark.parametrize("schedule", [cosine, vp, betas_linear()], ids=["cosine", "vp", "table"])
def test_min_snr_is_the_published_weight_of_every_prediction(schedule: Schedule, predicts: str, gamma: float) -> None:
    """2303.09556: min(SNR, γ)/SNR for the squared error of eps, min(SNR, γ)/(SNR + 1) for v's, min(SNR, γ) for x0's."""
    torch.manual_seed(0)
    t = 0.02 + 0.96 * torch.rand(60)
    x0, net = torch.randn(60, 3), Net()
    noised = Diffusion(schedule).noise(x0, t, Rng(0))
    assert isinstance(noised.noise, Tensor)
    a, s = (v[:, None] for v in schedule(t))
    target = {"eps": noised.noise, "v": a * noised.noise - s * x0, "x0": x0}[predicts]
    said = net(noised.x, t, None)
    snr = (a / s)[:, 0] ** 2
    least = torch.minimum(snr, torch.full_like(snr, gamma))
    weight = least / {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[predicts]
    wanted = weight * (said - target).square().mean(-1)
    found = Diffusion(schedule, weight="min_snr", gamma=gamma).loss(
        GaussianDenoiser(net, schedule, predicts), noised, None
    )
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)


def test_min_snr_is_zero_where_there_is_no_signal_and_bounded_where_there_is_no_noise() -> None:
    process, denoise = Diffusion(linear, weight="min_snr", gamma=2.0), GaussianDenoiser(Net(), linear, "v")
    x0 = torch.randn(2, 3)
    noised = process.noise(x0, torch.tensor([1.0, 1e-6]), Rng(0))
    loss = process.loss(denoise, noised, None).detach()
    assert float(loss[0]) == 0 and bool(loss.isfinite().all())
    with pytest.raises(ValueError, match="gamma"):
        Diffusion(gamma=0.0)


def gaussian() -> list[tuple[str, Any, Any]]:
    torch.manual_seed(0)
    head = GaussianHead(MLP((3,), cond=0, time=0, width=8), 3)
    found: list[tuple[str, Any, Any]] = [
        (weight, Diffusion(linear, weight=weight), GaussianDenoiser(Net(), linear, "v"))
        for weight in ("velocity", "noise", "data", "min_snr")
    ]
    found.append(("elucidated", EDMTraining(), GaussianDenoiser(Net(), EDMTraining().schedule, "edm")))
    found.append(("mean flow", MeanFlow(), MeanVelocityDenoiser(TwoTimeNet(MLP((3,), width=8)))))
    return [*found, ("one step", OneStep(), head)]


@pytest.mark.parametrize(("name", "process", "denoise"), gaussian(), ids=[v[0] for v in gaussian()])
def test_a_row_of_which_nothing_counts_has_no_loss_and_harms_no_other(name: str, process: Any, denoise: Any) -> None:
    """Such as an episode that had ended before its chunk began: 0 with a finite gradient."""
    x0, live = torch.rand(6, 3), torch.ones(6, 3, dtype=torch.bool)
    live[2] = False
    live[4, 1:] = False
    noised = process.noise(x0, torch.rand(6).clamp(0.1, 0.9), Rng(0), live)
    loss = process.loss(denoise, noised, None)
    loss.mean().backward()
    loss = loss.detach()
    assert float(loss[2]) == 0 and bool(loss.isfinite().all()) and float(loss.abs().sum()) > 0
    assert all(bool(p.grad.isfinite().all()) for p in denoise.parameters() if p.grad is not None)


def test_a_sequence_of_which_nothing_counts_has_no_loss() -> None:
    class Uniform(nn.Module):
        def forward(self, x: Tensor, t: Any, cond: Any) -> Tensor:
            return torch.zeros(*x.shape, 4)

    process = Autoregressive(3)
    live = torch.tensor([[True, True], [False, False]])
    noised = process.noise(torch.zeros(2, 2, dtype=torch.int64), torch.ones(2), Rng(0), live)
    loss = process.loss(TokenDenoiser(Uniform(), start=3), noised, None)
    assert float(loss[1]) == 0 and float(loss[0]) > 0
