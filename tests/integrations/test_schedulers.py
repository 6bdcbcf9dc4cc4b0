"""Converted schedulers take the steps of diffusers' own, and what has no counterpart is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Rng
from denoiserl.core.errors import RunError
from denoiserl.integrations.schedulers import convert, grid_like, steps_like
from denoiserl.processes import Linear, StepTable, ddim

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # solvers of diffusers under numpy 2

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


class Raw(nn.Module):
    """Some smooth answer that depends on the state and on their timestep, or sigma."""

    def forward(self, x: Tensor, clock: Tensor, context: Any = None) -> Tensor:
        return 0.4 * torch.sin(1.7 * x + 3 * clock.reshape(-1, *[1] * (x.ndim - 1))) - 0.2 * x


def compare(theirs: Any, steps: StepTable, process: Diffusion, **kwargs: Any) -> None:
    """Their chain, and ours on the converted table: every state agrees to 1e-5 of the largest.

    Their table in float64: 1 − ᾱ_t/ᾱ_s cancels in float32, up to 6e-4 of it at the cleanest levels.
    """
    if hasattr(theirs, "alphas_cumprod"):
        theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    said, n = convert(theirs), len(steps)
    denoise, rng = GaussianDenoiser(Raw(), said.schedule, said.predicts), Rng(n)
    state = ours = rng.normal(4, 3, 4)
    clock, scale = denoise.embed_time(steps.times[:-1].float()), 1.0
    for k, t in enumerate(theirs.timesteps):
        out = Raw()(state, steps.times[k : k + 1].float())
        noise = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(k))
        if type(theirs) is DDPMScheduler:
            state = theirs.step(out, int(t), state, generator=torch.Generator().manual_seed(k)).prev_sample
        elif type(theirs) is DDIMScheduler:
            extra = {"variance_noise": noise} if kwargs.get("eta") else {}
            state = theirs.step(out, int(t), state, **extra, **kwargs).prev_sample
        else:
            state = theirs.step(out, t, state).prev_sample
        row = {name: v[k : k + 1] for name, v in clock.items()}
        ours = process.reverse(denoise(ours, row, None), ours, steps[k]).sample(noise)
        scale = max(scale, float(state.abs().max()))
        assert float((ours - state).abs().max()) < 1e-5 * scale, k


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("one", [True, False])
def test_ddim(prediction: str, eta: float, one: bool) -> None:
    """Where upstream's guess of the previous timestep is right, the honest grid is upstream's chain."""
    for levels, n, offset in ((1000, 10, 0), (1000, 50, 1), (100, 20, 0)):
        theirs = DDIMScheduler(
            levels, **LATENT, set_alpha_to_one=one, steps_offset=offset, prediction_type=prediction,
            timestep_spacing="leading",
        )  # fmt: skip
        theirs.set_timesteps(n)
        if not one and offset == 0:
            continue  # upstream's last step goes from the first level to the first level
        process = Diffusion(convert(theirs).schedule, ddim(eta))
        compare(theirs, steps_like(theirs, process, n), process, eta=eta)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [7, 13, 20])
def test_faithful_ddim_steps_where_upstream_steps(spacing: str, n: int) -> None:
    """Its guess is another level than the one visited next, and it is reproduced only on request."""
    theirs = DDIMScheduler(1000, **LATENT, set_alpha_to_one=False, timestep_spacing=spacing)
    theirs.set_timesteps(n)
    process = Diffusion(convert(theirs).schedule, ddim(0.0))
    compare(theirs, steps_like(theirs, process, n, faithful=True), process)
    honest, faithful = (steps_like(theirs, process, n, faithful=f).table["c_0"] for f in (False, True))
    assert torch.equal(honest[:-1], faithful[:-1]) == (spacing == "leading" or (spacing == "trailing" and n == 20))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(spacing: str, variance: str, clip: bool) -> None:
    for levels, n in ((1000, 13), (100, 20), (40, 40)):
        theirs = DDPMScheduler(
            levels, variance_type=variance, clip_sample=clip, clip_sample_range=0.8, timestep_spacing=spacing
        )
        theirs.set_timesteps(n)
        said = convert(theirs)
        assert said.clip == (0.8 if clip else None)
        process = Diffusion(said.schedule, said.transition, said.clip)
        compare(theirs, steps_like(theirs, process, n), process)


def test_a_clipped_ddim_step_uses_the_clipped_output() -> None:
    theirs = DDIMScheduler(1000, **{**LATENT, "clip_sample": True, "clip_sample_range": 0.5})
    theirs.set_timesteps(10)
    process = Diffusion(convert(theirs).schedule, ddim(0.3), convert(theirs).clip)
    compare(theirs, steps_like(theirs, process, 10), process, eta=0.3, use_clipped_model_output=True)


@pytest.mark.parametrize("n", [1, 6, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float, n: int) -> None:
    """Its own grid shifted once; twice only on request."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = Diffusion(convert(theirs).schedule, ddim(0.0))
    assert process.schedule == Linear(shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 1000, n))
    compare(theirs, steps_like(theirs, process, n), process)
    theirs.set_timesteps(n)
    compare(theirs, steps_like(theirs, process, n, faithful=True), process)
    sigma = process.schedule(grid_like(theirs, n, faithful=True))[1].float()
    assert torch.allclose(sigma, theirs.sigmas, atol=1e-6)
    if shift == 3.0 and n == 6:
        honest = process.schedule(grid_like(theirs, n))[1]
        assert float(theirs.sigmas[-2]) == pytest.approx(0.0089, abs=1e-4)
        assert float(honest[-2]) == pytest.approx(0.0030, abs=1e-4)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_that_depends_on_the_picture(kind: str) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    tokens = 1024
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    theirs.set_timesteps(8, mu=mu)
    found = convert(theirs, tokens).schedule(grid_like(theirs, 8))[1].float()
    assert torch.allclose(found, theirs.sigmas, atol=1e-6)
    with pytest.raises(RunError, match="tokens"):
        convert(theirs)


def test_a_table_that_ends_in_pure_noise_is_usable() -> None:
    theirs = DDIMScheduler(1000, **LATENT, rescale_betas_zero_snr=True, prediction_type="v_prediction",
                           timestep_spacing="trailing")  # fmt: skip
    said = convert(theirs)
    alpha, sigma = said.schedule(grid_like(theirs, 20))
    assert bool(alpha.isfinite().all()) and float(alpha[0]) < 1e-3 and float(sigma[0]) == pytest.approx(1.0)
    theirs.set_timesteps(20)
    process = Diffusion(said.schedule, ddim(0.0))
    compare(theirs, steps_like(theirs, process, 20), process)


def test_settings_without_a_counterpart_are_refused() -> None:
    with pytest.raises(RunError, match="thresholding=True"):
        convert(DDIMScheduler(thresholding=True))
    with pytest.raises(RunError, match="variance type 'learned_range'"):
        convert(DDPMScheduler(variance_type="learned_range"))
    with pytest.raises(RunError, match="pure noise"):
        convert(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(RunError, match=r"prediction_type='flow_prediction'.*reads epsilon, v_prediction, sample only"):
        convert(DDIMScheduler.from_config(DDIMScheduler().config, prediction_type="flow_prediction"))
    with pytest.raises(RunError, match="use_karras_sigmas"):
        convert(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))
    with pytest.raises(RunError, match=r"cps\(1.0\)"):
        convert(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(RunError, match="3 noise levels and num_train_timesteps=1000"):
        convert(DDIMScheduler(trained_betas=[0.1, 0.2, 0.3]))
    with pytest.raises(RunError, match="a SimpleNamespace is no scheduler"):
        convert(SimpleNamespace())


def sigmas_of(scheduler: Any, times: Tensor) -> Tensor:
    return convert(scheduler).schedule(times)[1].float()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_of_its_own_are_followed(shift: float) -> None:
    """A distilled flow's list, told to the scheduler or to us, is the chain; under a plain setting it is not needed."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    four = [1.0, 0.75, 0.5, 0.25]
    process = Diffusion(convert(theirs).schedule, ddim(0.0))
    told = steps_like(theirs, process, 4, sigmas=four)
    theirs.set_timesteps(sigmas=four)
    assert torch.allclose(sigmas_of(theirs, grid_like(theirs, 4)), theirs.sigmas, atol=1e-6)
    assert torch.allclose(told.times, grid_like(theirs, 4), atol=1e-6)
    compare(theirs, steps_like(theirs, process, 4), process)
    with pytest.raises(RunError, match=r"4 custom sigmas: pass n=4"):
        grid_like(theirs, 10)
    assert len(grid_like(theirs, 10, sigmas=torch.linspace(1, 0.1, 10))) == 11
    theirs.set_timesteps(7)
    assert torch.equal(grid_like(theirs, 10), grid_like(FlowMatchEulerDiscreteScheduler(shift=shift), 10))


def test_a_shift_that_was_set_is_followed() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    theirs.set_shift(5.0)
    assert convert(theirs).schedule == Linear(5.0)
    theirs.set_timesteps(6)
    assert torch.allclose(sigmas_of(theirs, grid_like(theirs, 6, faithful=True)), theirs.sigmas, atol=1e-6)


def test_what_flux_and_its_kin_serve_is_a_grid() -> None:
    """1, ..., 1/n before the shift: told by an argument, or by the scheduler once its pipeline was called."""
    theirs, n, mu = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4, 0.63
    tokens = 256 + round((mu - 0.5) / 0.65 * 3840)
    even = torch.linspace(1, 1 / n, n)
    want = torch.cat([even.double(), torch.zeros(1)])
    assert torch.equal(grid_like(theirs, n, sigmas=even), want.double())
    theirs.set_timesteps(sigmas=even.tolist(), mu=mu)
    assert torch.allclose(grid_like(theirs, n), want.double(), atol=1e-6)
    schedule = convert(theirs, tokens).schedule
    assert torch.allclose(schedule(grid_like(theirs, n))[1].float(), theirs.sigmas, atol=2e-5)
    theirs.set_timesteps(n, mu=mu)
    assert float(grid_like(theirs, n)[-2]) == pytest.approx(1 / 1000)
    theirs.set_timesteps(sigmas=[1.0, 0.9, 0.3], mu=mu)
    with pytest.raises(RunError, match="give sigmas="):
        grid_like(theirs, 3)


def test_timesteps_of_its_own_are_followed_or_refused() -> None:
    theirs = DDPMScheduler(1000, clip_sample=False)
    theirs.set_timesteps(timesteps=[999, 500, 20])
    assert torch.allclose(grid_like(theirs, 3), torch.tensor([1.0, 0.501, 0.021, 0.0], dtype=torch.float64))
    process = Diffusion(convert(theirs).schedule, convert(theirs).transition)
    compare(theirs, steps_like(theirs, process, 3), process)
    with pytest.raises(RunError, match="3 custom timesteps"):
        grid_like(theirs, 4)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(timesteps=[1000.0, 500.0])
    with pytest.raises(RunError, match="timesteps that are not its sigmas"):
        grid_like(flow, 2)


@pytest.mark.parametrize("bad", [[1.0, 0.5], [1.0, 0.5, 0.5], [0.2, 0.5, 1.0], [1.2, 0.5, 0.1], [1.0, 0.5, 0.0]])
def test_sigmas_that_are_no_grid_are_refused(bad: list[float]) -> None:
    with pytest.raises(RunError, match="have 3 decreasing sigmas"):
        grid_like(FlowMatchEulerDiscreteScheduler(), 3, sigmas=bad)
    with pytest.raises(RunError, match="takes no sigmas"):
        grid_like(DDIMScheduler(), 3, sigmas=bad)


def test_the_sigmas_of_a_solver_are_times_of_its_table() -> None:
    """What is said where DDIM takes no sigmas: Karras' levels of a latent model, as its Euler scheduler visits them."""
    theirs = EulerDiscreteScheduler(use_karras_sigmas=True, **{k: v for k, v in LATENT.items() if k != "clip_sample"})
    theirs.set_timesteps(12)
    s = theirs.sigmas.double()
    schedule = convert(DDIMScheduler(**LATENT)).schedule
    alpha, sigma = schedule(schedule.inverse(s / (1 + s * s).sqrt()))
    assert torch.allclose(sigma / alpha, s, rtol=1e-6)


def test_a_scheduler_is_asked_on_a_copy() -> None:
    theirs = DDIMScheduler(1000, **LATENT)
    theirs.set_timesteps(50)
    before = theirs.timesteps.clone()
    grid_like(theirs, 7)
    assert torch.equal(theirs.timesteps, before)
