"""What is advised for the scheduler classes of diffusers that are refused: the same model, or nothing."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from denoiserl.core.errors import RunError
from denoiserl.integrations.schedulers import convert
from denoiserl.processes import Linear
from tests.integrations import models

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]


def every_scheduler() -> dict[str, Any]:
    """All classes that can be made, as they come and in the settings that shipped models have."""
    needed: dict[str, Any] = {"AmusedScheduler": {"mask_token_id": 5}, "VQDiffusionScheduler": {"num_vec_classes": 8}}
    found, mixin = {}, diffusers.SchedulerMixin
    for name in sorted(dir(diffusers.schedulers)):
        made = getattr(diffusers.schedulers, name)
        if inspect.isclass(made) and issubclass(made, mixin) and made is not mixin:
            with contextlib.suppress(ImportError, TypeError):  # a package is missing, or arguments are
                found[name] = made(**needed.get(name, {}))
    v = {"prediction_type": "v_prediction"}
    latent = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    more = [
        (diffusers.PNDMScheduler, {**latent, "skip_prk_steps": True, "steps_offset": 1}),
        (diffusers.PNDMScheduler, {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3, "skip_prk_steps": True}),
        (diffusers.EulerDiscreteScheduler, {**latent, **v}),
        (diffusers.EulerDiscreteScheduler, {**latent, "use_karras_sigmas": True}),
        (
            diffusers.EulerDiscreteScheduler,
            {**v, "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0},
        ),
        (diffusers.EulerAncestralDiscreteScheduler, {**latent, **v, "rescale_betas_zero_snr": True}),
        (diffusers.HeunDiscreteScheduler, {"beta_schedule": "exp"}),
        (diffusers.LCMScheduler, {"clip_sample": True, "clip_sample_range": 0.7}),
        (diffusers.TCDScheduler, {**latent, "beta_end": 0.02}),
        (diffusers.DDIMParallelScheduler, {"clip_sample_range": 2.0, "num_train_timesteps": 100}),
        (diffusers.DDIMParallelScheduler, {"rescale_betas_zero_snr": True}),
        (diffusers.DDPMParallelScheduler, {"variance_type": "learned_range"}),
        (diffusers.DPMSolverMultistepScheduler, {"thresholding": True}),
        (diffusers.DPMSolverMultistepScheduler, {"variance_type": "learned_range"}),
        (diffusers.DPMSolverMultistepScheduler, flow),
        (diffusers.DPMSolverMultistepScheduler, {**flow, "use_dynamic_shifting": True}),
        (diffusers.DPMSolverMultistepScheduler, {**flow, "use_flow_sigmas": False}),
        (diffusers.UniPCMultistepScheduler, flow),
        (diffusers.UniPCMultistepScheduler, {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
        (diffusers.FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
        (diffusers.FlowMatchLCMScheduler, {"shift": 3.0}),
        (diffusers.FlowMatchLCMScheduler, {"shift_terminal": 0.02}),
        (diffusers.CogVideoXDDIMScheduler, {**v, "snr_shift_scale": 1.0, "rescale_betas_zero_snr": True}),
        (diffusers.UnCLIPScheduler, {"prediction_type": "sample", "clip_sample_range": 5.0}),
        (diffusers.UnCLIPScheduler, {"variance_type": "learned_range"}),
    ]
    return found | {f"{made.__name__} {k}": made(**settings) for k, (made, settings) in enumerate(more)}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of solvers under numpy 2
    ALL = every_scheduler()


@pytest.mark.parametrize("name", ALL)
def test_an_advice_keeps_levels_prediction_and_clipping(name: str) -> None:
    """A scheduler is accepted, refused without an advice, or the advice makes one of the same model.

    The levels are those that the scheduler itself noises with, or its table.
    """
    theirs = ALL[name]
    try:
        convert(theirs)
    except RunError as refusal:
        said = str(refusal)
        assert type(theirs).__name__ in said or "scheduler has" in said or "scheduler ends" in said
        assert "Did you mean" not in said
        advice = re.search(r"(?<=clipping is )\w+Scheduler.*\)$", said)
        if advice is None:
            assert "from_config" not in said
            return
        mended = eval(advice[0], {**vars(diffusers), "pipeline": SimpleNamespace(scheduler=theirs)})
        known = inspect.signature(type(theirs).__init__).parameters
        clip = theirs.config["clip_sample_range"] if "clip_sample" in known and theirs.config["clip_sample"] else None
        assert convert(mended).clip == clip
        names = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "v", "sample": "x0"}
        assert convert(mended).predicts == names[theirs.config.get("prediction_type", "v_prediction")]
        theirs, same = copy.deepcopy(theirs), convert(mended)
        if hasattr(theirs, "alphas_cumprod") and not theirs.config.get("use_flow_sigmas"):
            abar = same.schedule((torch.arange(same.levels, dtype=torch.float64) + 1) / same.levels)[0] ** 2
            assert torch.allclose(abar, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)
        theirs.set_timesteps(1 if same.levels < 10 else 5)
        if same.flow:  # what the network is told and how far the sampler thinks it is, both in sigma
            assert torch.allclose(
                theirs.timesteps.unique().double() / 1000, theirs.sigmas[:-1].unique().double(), atol=1e-3
            )
            return
        one, none = torch.ones(1, 1), torch.zeros(1, 1)
        often = theirs.timesteps.tolist()
        for t in theirs.timesteps if hasattr(theirs, "add_noise") else []:
            a, s = same.schedule((t.double() + 1) / same.levels)
            if often.count(float(t)) > 1 or float(t) != round(float(t)) or a < 1e-2:
                continue  # stages of a solver between two levels; a level of no signal, which each class caps
            at = t.reshape(1)
            signal, noise = float(theirs.add_noise(one, none, at)), float(theirs.add_noise(none, one, at))
            assert noise / signal == pytest.approx(float(s / a), rel=5e-3)
        return
    assert type(theirs).__name__ in ("DDIMScheduler", "DDPMScheduler", "FlowMatchEulerDiscreteScheduler")


def test_an_advice_follows_a_scheduler_that_was_set_anew() -> None:
    scheduler = diffusers.FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_shift(7.0)
    with pytest.raises(RunError, match=r"FlowMatchEulerDiscreteScheduler\.from_config\(.*shift=7\.0\)") as refusal:
        convert(scheduler)
    advice = str(refusal.value).partition("clipping is ")[2]
    mended = eval(advice, {**vars(diffusers), "pipeline": SimpleNamespace(scheduler=scheduler)})
    assert convert(mended).schedule == Linear(7.0)
    scheduler.set_scale_factors([0.5, 1.0], "nearest")
    with pytest.raises(RunError, match="no supported scheduler"):
        convert(scheduler)


def test_most_solvers_of_shipped_models_have_an_advice() -> None:
    """The test above would pass if none had one."""
    helped = []
    for name, scheduler in ALL.items():
        try:
            convert(scheduler)
        except RunError as refusal:
            helped += [name] if "clipping is" in str(refusal) else []
    assert {"PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "LCMScheduler"} <= set(helped)
    assert {"DPMSolverMultistepScheduler 14", "UniPCMultistepScheduler 17", "FlowMatchHeunDiscreteScheduler 19"} <= set(
        helped
    )
    other = ["CogVideoXDDIMScheduler", "EDMEulerScheduler", "SCMScheduler", "ScoreSdeVeScheduler", "IPNDMScheduler"]
    assert not set(helped) & set(other)
