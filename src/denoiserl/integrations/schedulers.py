"""Schedulers of diffusers as a schedule, a prediction type and a grid of times.

Their timestep i of K is time (i + 1)/K here, because their table starts at the first noisy level and the time axis at
clean data; a flow's sigma is σ. Known faults of schedulers are not reproduced by default:

- DDIM guesses the previous timestep as i − ⌊K/n⌋, which is not the next visited one except with ``leading`` spacing; -
FlowMatchEuler applies its shift to times whose last one is shifted already, so its last sigma is too large.

``faithful=True`` reproduces both, for comparison with pictures that were made with them.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.processes import Diffusion, Linear, Schedule, StepTable, Table, ddim
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
        use_exponential_sigmas=other,
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
    return Linear(math.exp(mu) if _exponential(config) else mu)


def _exponential(config: Any) -> bool:
    return config.get("time_shift_type", "exponential") == "exponential"


def grid_like(scheduler: Any, n: int, faithful: bool = False, sigmas: Sequence[float] | Tensor | None = None) -> Tensor:
    """Return the n + 1 times that a scheduler visits in ``set_timesteps(n)``, decreasing, float64, on this time axis.

    The last one is clean data, or the cleanest level if the scheduler ends there (``set_alpha_to_one=False``). A
    scheduler that was set to n custom sigmas or timesteps keeps them. ``faithful``: with FlowMatchEuler's second shift;
    DDIM's guess of the previous timestep is no grid of times, see ``steps_like``. ``sigmas`` [n]: the argument of
    ``set_timesteps(sigmas=...)``, before any shift. The pipelines of Flux, Qwen-Image, LTX, Chroma and Lumina2 pass 1,
    (n − 1)/n, ..., 1/n, which is ``torch.linspace(1, 1 / n, n)``; that of Stable Diffusion 3 passes none. Raise
    RunError if they do not fit.
    """
    if n < 1:
        raise RunError(f"n={n} steps: give at least 1")
    if type(scheduler).__name__ == FLOW:
        times = torch.cat([_flow_times(scheduler, n, faithful, sigmas), torch.zeros(1, dtype=torch.float64)])
        if len(times) != n + 1 or bool((times.diff() >= 0).any()) or float(times[0]) > 1:
            given = times[:-1].tolist()
            raise RunError(f"{n} steps have {n} decreasing sigmas in (0, 1], without the last 0: not {given}")
        return times
    if sigmas is not None:
        raise RunError(
            f"a {type(scheduler).__name__} takes no sigmas: with s for σ/α and a last 0, the steps are "
            "process.steps(process.schedule.inverse(s / (1 + s * s).sqrt()))"
        )
    index, levels = _timesteps(scheduler, n)
    times = (index + 1) / levels
    end = _end(scheduler)
    return torch.cat([times, torch.tensor([end if end < times[-1] - 1e-9 else 0.0], dtype=torch.float64)])


def _flow_times(scheduler: Any, n: int, faithful: bool, sigmas: Sequence[float] | Tensor | None) -> Tensor:
    """Return the n times of a flow scheduler before clean data."""
    if sigmas is not None:
        return torch.as_tensor(sigmas, dtype=torch.float64).cpu().flatten()
    if (own := _own_times(scheduler)) is not None:
        if len(own) != n:
            raise RunError(
                f"the scheduler was set to {len(own)} custom sigmas: pass n={len(own)}, or sigmas=, or set it again, "
                "scheduler.set_timesteps(n)"
            )
        return own
    last = 1 / scheduler.config["num_train_timesteps"]
    if faithful and not scheduler.config.get("use_dynamic_shifting"):
        last = float(scheduler.sigma_min)
    return torch.linspace(1, last, n, dtype=torch.float64)


def _own_times(scheduler: Any) -> Tensor | None:
    """Return the times of a flow scheduler's custom sigmas; None if they are those of ``set_timesteps(n)``."""
    if getattr(scheduler, "num_inference_steps", None) is None:
        return None
    levels, dynamic = scheduler.config["num_train_timesteps"], bool(scheduler.config.get("use_dynamic_shifting"))
    own = scheduler.sigmas[:-1].double().cpu()
    if not torch.allclose(scheduler.timesteps.double().cpu(), own * levels, atol=1e-3 * levels):
        raise RunError(
            "the scheduler was set to timesteps that are not its sigmas: set_timesteps(sigmas=...) sets both"
        )
    plain = copy.deepcopy(scheduler)
    plain.set_timesteps(len(own), **({"mu": 0.0 if _exponential(scheduler.config) else 1.0} if dynamic else {}))
    if _shifted(plain.sigmas[:-1].double().cpu(), own, dynamic):
        return None
    if not dynamic:
        return Linear(float(scheduler.shift)).inverse(own.clamp(0, 1))
    even = torch.linspace(1, 1 / len(own), len(own), dtype=torch.float64)
    if _shifted(even, own, True):
        return even
    raise RunError("the scheduler was set to custom sigmas, after a shift that it does not store: give sigmas=")


def _shifted(times: Tensor, sigma: Tensor, any_shift: bool) -> bool:
    """Return whether ``sigma`` are the times, or (``any_shift``) the times after one shift."""
    middle = int((sigma - 0.5).abs().argmin())
    t, s = float(times[middle]), float(sigma[middle])
    shift = s * (1 - t) / (t * (1 - s)) if any_shift and 0 < t < 1 and 0 < s < 1 else 1.0
    return torch.allclose(Linear(shift)(times)[1], sigma, rtol=0, atol=2e-6)


def _timesteps(scheduler: Any, n: int) -> tuple[Tensor, int]:
    """Return the scheduler's timesteps, float64, from a copy, because ``set_timesteps`` changes a scheduler."""
    convert(scheduler)
    theirs = copy.deepcopy(scheduler)
    if not getattr(theirs, "custom_timesteps", False):
        if n > (levels := scheduler.config["num_train_timesteps"]):
            raise RunError(f"the scheduler has {levels} noise levels, too few for {n} steps: use {levels} at most")
        theirs.set_timesteps(n)
    index = theirs.timesteps.double().cpu()
    if len(index) != n:
        raise RunError(
            f"the scheduler was set to {len(index)} custom timesteps: pass n={len(index)}, or set it again, "
            "scheduler.set_timesteps(n)"
        )
    if bool((index.diff() >= 0).any()):
        raise RunError(f"in {n} steps the scheduler visits a timestep twice ({index.tolist()}): use fewer steps")
    return index, scheduler.config["num_train_timesteps"]


def _end(scheduler: Any) -> float:
    """Return the time of the last step: clean data, or the first level."""
    return 0.0 if scheduler.config.get("set_alpha_to_one", True) else 1 / scheduler.config["num_train_timesteps"]


def steps_like(
    scheduler: Any,
    process: Diffusion,
    n: int,
    transition: Transition | None = None,
    faithful: bool = False,
    sigmas: Sequence[float] | Tensor | None = None,
) -> StepTable:
    """Return the table of a scheduler's n steps under a process converted from it; ``transition`` overrides its own.

    ``faithful``: use the levels that diffusers steps to, if they are not the next visited ones. ``sigmas``: as in
    ``grid_like``.
    """
    times = grid_like(scheduler, n, faithful, sigmas)
    steps = process.steps(times, transition)
    if not faithful or type(scheduler).__name__ != "DDIMScheduler":
        return steps
    index, levels = _timesteps(scheduler, n)
    previous = index - levels // n
    to = torch.where(previous >= 0, (previous + 1) / levels, _end(scheduler))
    pairs = [process.steps(torch.stack(pair), transition) for pair in zip(times[:-1], to, strict=True)]
    table = {name: torch.cat([p.table[name] for p in pairs]) for name in steps.table}
    return StepTable(times, table, tuple(p.dense[0] for p in pairs))
