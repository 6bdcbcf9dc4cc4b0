"""Equal to diffusers' schedulers, step by step and whole chains, with (t, s) pairs taken from their schedule.

Two of their faults are stepped around, not copied: DDIM's guess of the previous timestep agrees with the schedule for
``leading`` spacing only, and FlowMatchEuler applies its shift twice unless it is given sigmas.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Rng, make_sampler, time_grid
from denoiserl.processes import Linear, Table, betas_cosine, betas_linear, ddim

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
TABLES: dict[str, tuple[dict[str, Any], Any]] = {
    "linear": ({"beta_schedule": "linear"}, betas_linear),
    "scaled": (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        lambda n: betas_linear(n, 0.00085, 0.012, scaled=True),
    ),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, betas_cosine),
}


class Raw(nn.Module):
    """Some smooth answer to a state and its time."""

    def forward(self, x: Tensor, clock: Tensor, context: Any = None) -> Tensor:
        return 0.4 * torch.sin(1.7 * x + 3 * clock.reshape(-1, *[1] * (x.ndim - 1))) - 0.2 * x


def times_of(timesteps: Tensor, levels: int) -> Tensor:
    """Their timestep i is our level (i + 1)/K; after the last one comes clean data."""
    return torch.cat([(timesteps.double() + 1) / levels, torch.zeros(1, dtype=torch.float64)])


def exact(theirs: Any, table: Table) -> None:
    """Their table in float64 (1 − ᾱ cancels in float32: 6e-4 of σ² at the cleanest levels); its values agree."""
    signal = torch.tensor(table.signal, dtype=torch.float64)
    assert torch.allclose(theirs.alphas_cumprod.double(), signal, rtol=2e-5, atol=1e-9)
    theirs.alphas_cumprod = signal


def ours(table: Table, predicts: str, eta: float, times: Tensor, x: Tensor, noise: Tensor) -> list[Tensor]:
    process = Diffusion(table, ddim(eta))
    steps, denoise = process.steps(times), GaussianDenoiser(Raw(), table, predicts)
    clock, states = denoise.embed_time(steps.times[:-1].float()), []
    for k in range(len(steps)):
        row = {name: v[k : k + 1] for name, v in clock.items()}
        x = process.reverse(denoise(x, row, None), x, steps[k]).sample(noise[k])
        states.append(x)
    return states


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", TABLES)
def test_ddim(name: str, eta: float, prediction: str) -> None:
    given, make = TABLES[name]
    for levels, n in ((1000, 10), (1000, 50), (100, 20), (57, 19), (40, 40)):
        theirs = DDIMScheduler(
            levels, **given, clip_sample=False, prediction_type=prediction, timestep_spacing="leading"
        )
        theirs.set_timesteps(n)
        exact(theirs, make(levels))
        rng = Rng(levels + n)
        x, noise = rng.normal(6, 3, 4), rng.normal(n, 6, 3, 4)
        table = make(levels)
        assert theirs.timesteps.tolist() == list(range((n - 1) * (levels // n), -1, -(levels // n)))
        times = times_of(theirs.timesteps, levels)
        found, state = ours(table, PREDICTIONS[prediction], eta, times, x, noise), x
        scale = 1.0
        for k, t in enumerate(theirs.timesteps):
            out = Raw()(state, times[k : k + 1].float())
            state = theirs.step(out, int(t), state, eta=eta, variance_noise=noise[k] if eta else None).prev_sample
            scale = max(scale, float(state.abs().max()))
            assert float((found[k] - state).abs().max()) < 1e-5 * scale, (levels, n, k)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", TABLES)
def test_ddpm_is_eta_one(name: str, prediction: str) -> None:
    given, make = TABLES[name]
    for levels, n in ((1000, 10), (100, 20), (57, 19), (40, 40)):
        theirs = DDPMScheduler(
            levels, **given, clip_sample=False, prediction_type=prediction, timestep_spacing="leading",
            variance_type="fixed_small",
        )  # fmt: skip
        theirs.set_timesteps(n)
        exact(theirs, make(levels))
        rng = Rng(levels + n)
        x = rng.normal(6, 3, 4)
        noise = torch.stack([torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(k)) for k in range(n)])
        times = times_of(theirs.timesteps, levels)
        found, state, scale = ours(make(levels), PREDICTIONS[prediction], 1.0, times, x, noise), x, 1.0
        for k, t in enumerate(theirs.timesteps):
            out = Raw()(state, times[k : k + 1].float())
            state = theirs.step(out, int(t), state, generator=torch.Generator().manual_seed(k)).prev_sample
            scale = max(scale, float(state.abs().max()))
            assert float((found[k] - state).abs().max()) < 1e-5 * scale, (levels, n, k)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("n", [1, 4, 28])
def test_flow_matching_euler(shift: float, n: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).numpy())
    rng = Rng(n)
    x, schedule = rng.normal(5, 3, 4), Linear(shift)
    process = Diffusion(schedule, ddim(0.0))
    chain = make_sampler(process, GaussianDenoiser(Raw(), schedule, "v"), process.steps(time_grid(n)), (3, 4))(
        None, rng, start=(x, 0)
    )
    assert torch.allclose(schedule(time_grid(n))[1].float(), theirs.sigmas, atol=1e-6)
    state = x
    for k, t in enumerate(theirs.timesteps):
        out = Raw()(state, time_grid(n)[k : k + 1].float())
        state = theirs.step(out, t, state).prev_sample
        states = chain.states
        assert isinstance(states, Tensor)
        assert float((states[:, k + 1] - state).abs().max()) < 1e-5, k
