"""A scheduler's noise levels, prediction type and own step, and the known scheduler that equals an unknown one."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.processes import Linear, Schedule, Table, ddim
from denoiserl.processes.transition import Coefficients, GridLevels, Transition

FLOW = "FlowMatchEulerDiscreteScheduler"
KNOWN = ("DDIMScheduler", "DDPMScheduler", FLOW)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
MIN_ALPHA = 1e-12
"""The smallest ᾱ: a table rescaled to end in pure noise has a level of exactly 0, whose logarithm is not finite."""


class Convention(NamedTuple):
    """A scheduler's properties.

    ``schedule``; ``predicts``: the network's prediction type; ``transition``: the scheduler's own step; ``clip``: its
    bound on x̂₀; ``levels``: K; ``flow``: True if the network reads 1000σ, False if a level's index; ``clip_noise``:
    True if the clipped x̂₀ also sets the noise of a step.
    """

    schedule: Schedule
    predicts: str
    transition: Transition
    clip: float | None
    levels: int
    flow: bool
    clip_noise: bool = True


@dataclass(frozen=True)
class FixedLarge:
    """The posterior's mean with the upper bound of its variance, 1 − ᾱ_t/ᾱ_s (2006.11239): ``fixed_large``.

    The cleanest of the ``levels`` adds no noise, as in diffusers.
    """

    levels: int

    def __call__(self, grid: GridLevels, schedule: Schedule) -> Coefficients:
        """Return ddim(1)'s mean with this std; it does not preserve the marginals."""
        std = (1 - (grid.a_t / grid.a_s) ** 2).clamp_min(0).sqrt()
        noisy = grid.t * self.levels > 1.5
        return ddim(1.0)(grid, schedule)._replace(std=torch.where(noisy, std, torch.zeros_like(std)))


def convert(scheduler: Any, tokens: int | None = None) -> Convention:
    """Return the convention of a DDIM, DDPM or FlowMatchEuler scheduler.

    ``tokens``: patches per picture, for flow schedulers whose shift depends on them (``use_dynamic_shifting``). A DDIM
    step with ``clip_sample`` keeps the noise of the raw x̂₀: use ``clip_noise=False`` in a process. ``clip_noise=True``
    equals diffusers with ``use_clipped_model_output=True``. Raise RunError for other classes; the message names a known
    scheduler with the same noise levels, prediction and clipping, if there is one.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if config is None:
        raise RunError(f"a {name} is no scheduler of diffusers: give pipeline.scheduler")
    if name not in KNOWN:
        raise RunError(_unknown(scheduler))
    if name == FLOW:
        return Convention(_flow(scheduler, tokens), "v", ddim(0.0), None, config["num_train_timesteps"], True)
    kind = config["prediction_type"]
    if kind not in PREDICTIONS:
        raise RunError(f"the scheduler has prediction_type={kind!r}, and a {name} reads {', '.join(PREDICTIONS)} only")
    _refuse(config, thresholding="no process here clips x̂₀ by its own quantile")
    levels = config["num_train_timesteps"]
    signal, predicts = scheduler.alphas_cumprod.double().cpu(), PREDICTIONS[kind]
    if len(signal) != levels:
        raise RunError(
            f"the scheduler has {len(signal)} noise levels and num_train_timesteps={levels}: make them equal"
        )
    if predicts == "eps" and float(signal.min()) < MIN_ALPHA:
        raise RunError(
            "the scheduler ends in pure noise, where a predicted noise does not determine the data: predict v"
        )
    signal = signal.clamp_min(MIN_ALPHA)
    clip = float(config["clip_sample_range"]) if config["clip_sample"] else None
    transition: Transition = ddim(0.0)
    if name == "DDPMScheduler":
        kind = config["variance_type"]
        choices = {"fixed_small": ddim(1.0), "fixed_small_log": ddim(1.0), "fixed_large": FixedLarge(levels)}
        if kind not in choices:
            raise RunError(
                f"the scheduler has variance type {kind!r}: the network predicts its variance too. Wrap it in a module "
                "that returns the first half of its channels, and give the scheduler variance_type='fixed_small'"
            )
        transition = choices[kind]
    own = name == "DDPMScheduler"
    return Convention(Table(tuple(signal.tolist())), predicts, transition, clip, levels, False, clip_noise=own)


def _unknown(scheduler: Any) -> str:
    """Return the error message for another class, with the known scheduler that a model of it can use instead."""
    name = type(scheduler).__name__
    if (advice := _same(scheduler)) is None:
        return (
            f"{name} is not supported, and no supported scheduler has its noise levels, prediction and "
            "clipping. Build the process by hand: Diffusion(schedule) and GaussianDenoiser(net, "
            "schedule, predicts). Supported: "
            f"{', '.join(KNOWN)}."
        )
    return (
        f"{name}: its steps have no distribution here. A scheduler with its noise levels, prediction and clipping is "
        f"{advice}"
    )


def _same(scheduler: Any) -> str | None:
    """Return the call that makes a known scheduler of the same noise levels, prediction and clipping, or None.

    The result is verified: the scheduler is made and compared.
    """
    if not type(scheduler).__module__.startswith("diffusers."):
        return None
    diffusers, config = require("diffusers", "hub"), scheduler.config
    knows = inspect.signature(type(scheduler).__init__).parameters
    if any(config.get(key) for key in ("use_dynamic_shifting", "scale_factors", "thresholding", "shift_terminal")):
        return None
    if getattr(scheduler, "_scale_factors", None):  # set_scale_factors has set them
        return None
    if str(config.get("variance_type")).startswith("learned"):
        return None
    if {"prediction_type", "flow_shift"} <= set(knows) and config["prediction_type"] == "flow_prediction":
        made = f"{FLOW}(num_train_timesteps={config['num_train_timesteps']}, shift={config['flow_shift']!r})"
        return made if config.get("use_flow_sigmas") else None
    flow = type(scheduler).__name__ in ("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
    if not flow and ("prediction_type" not in knows or config.get("timestep_type", "discrete") != "discrete"):
        return None
    target = getattr(diffusers, FLOW if flow else "DDIMScheduler")
    shared = [key for key in inspect.signature(target.__init__).parameters if key in knows and key != "self"]
    fixed = {} if flow else {"clip_sample": bool("clip_sample" in knows and config["clip_sample"])}
    try:
        made = target.from_config(config, **fixed)
        fixed |= {key: config[key] for key in shared if made.config[key] != config[key]}
        if flow and (shift := vars(scheduler).get("_shift", config["shift"])) != config["shift"]:  # by set_shift
            fixed["shift"] = shift
        made = target.from_config(config, **fixed)
        convert(made)
    except (RunError, NotImplementedError):
        return None
    if not flow and not (
        isinstance(theirs := getattr(scheduler, "alphas_cumprod", None), Tensor)
        and theirs.shape == made.alphas_cumprod.shape
        and torch.allclose(theirs.double().cpu(), made.alphas_cumprod.double(), rtol=0, atol=1e-6)
    ):
        return None
    options = "".join(f", {key}={value!r}" for key, value in fixed.items())
    return f"{target.__name__}.from_config(pipeline.scheduler.config{options})"


def _refuse(config: Any, **reasons: str) -> None:
    for name, why in reasons.items():
        if config.get(name):
            raise RunError(f"the scheduler has {name}={config[name]!r}: {why}")


def _flow(scheduler: Any, tokens: int | None) -> Linear:
    """Return σ = s t/(1 + (s − 1) t); a shift μ that depends on the picture's size is s = e^μ, or μ itself if
    linear.
    """
    config = scheduler.config
    other = "its steps are not those of a shift. Without it the model is the same and the steps are others"
    _refuse(
        config,
        use_karras_sigmas=other,
        useis_exponential_sigmas=other,
        use_beta_sigmas=other,
        shift_terminal=other,
        invert_sigmas="its time runs from data to noise; set it to False and wrap the network in a module that takes "
        "σ, passes on 1 − σ and returns noise minus data",
        stochastic_sampling="set it to False and pass transition=cps(1.0), which is that step with its distribution",
    )
    if not config.get("use_dynamic_shifting"):
        return Linear(float(scheduler.shift))  # set_shift may have changed it
    if tokens is None:
        raise RunError("this scheduler's shift depends on the picture: give tokens=, the number of patches in one")
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    mu = config["base_shift"] + (config["max_shift"] - config["base_shift"]) * (tokens - low) / (high - low)
    return Linear(math.exp(mu) if is_exponential(config) else mu)


def is_exponential(config: Any) -> bool:
    """Return whether a shift μ that depends on the picture's size is e^μ, not μ itself."""
    return config.get("time_shift_type", "exponential") == "exponential"
