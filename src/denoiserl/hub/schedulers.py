"""diffusers schedulers as a schedule, a kind of prediction and a grid of times.

Their timestep i of K is our time (i + 1)/K, because their table starts at the first noisy level and ours at clean
data; a flow's sigma is our σ. A scheduler's known faults are left at the border unless they are asked for:

- DDIM guesses the previous timestep as i − ⌊K/n⌋, which is not the one it visits next except with ``leading`` spacing;
- FlowMatchEuler applies its shift to times whose last one is shifted already, so its last sigma is too large.

``faithful=True`` reproduces both, for comparison with pictures that were made with them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.errors import BadRun, nearest
from denoiserl.process import Diffusion, Linear, Schedule, Steps, Table, ddim
from denoiserl.process.transition import Coefficients, Grid, Transition

VARIANCE_PRESERVING = ("DDIMScheduler", "DDPMScheduler")
FLOW = "FlowMatchEulerDiscreteScheduler"
KNOWN = (*VARIANCE_PRESERVING, FLOW)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FAINTEST = 1e-12
"""The least ᾱ: a table rescaled to end in pure noise has a level of exactly 0, whose logarithm is not finite."""


class Convention(NamedTuple):
    """What a scheduler says about a model.

    ``schedule``; ``predicts``: what the network answers; ``transition``: the scheduler's own step; ``clip``: its bound
    on x̂₀; ``levels``: K; ``flow``: does the network read 1000σ (or a level's index)? ``clip_noise``: does the clipped
    x̂₀ set the noise of a step too?
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

    The cleanest of the ``levels`` adds no noise, as upstream.
    """

    levels: int

    def __call__(self, grid: Grid, schedule: Schedule) -> Coefficients:
        """ddim(1)'s mean; not preserving."""
        std = (1 - (grid.a_t / grid.a_s) ** 2).clamp_min(0).sqrt()
        noisy = grid.t * self.levels > 1.5
        return ddim(1.0)(grid, schedule)._replace(std=torch.where(noisy, std, torch.zeros_like(std)))


def convert(scheduler: Any, tokens: int | None = None) -> Convention:
    """The convention of a DDIM, DDPM or FlowMatchEuler scheduler; others are refused with the nearest of these.

    ``tokens``: patches in a picture, for flow schedulers whose shift depends on them (``use_dynamic_shifting``).
    A DDIM step with ``clip_sample`` keeps the noise of the raw x̂₀; a process follows it with ``clip_noise=False``, and
    is otherwise upstream's with ``use_clipped_model_output=True``.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in KNOWN:
        raise BadRun(
            f"{nearest(name, KNOWN, 'scheduler whose steps have a law')} Solvers that look back over several steps "
            "have none; the noise levels are the same: DDIMScheduler.from_config(pipeline.scheduler.config)."
        )
    if name == FLOW:
        return Convention(_flow(config, tokens), "v", ddim(0.0), None, config["num_train_timesteps"], True)
    if config["prediction_type"] not in PREDICTIONS:
        raise BadRun(nearest(config["prediction_type"], PREDICTIONS, "prediction type"))
    _refuse(config, thresholding="the estimate is clipped by its own quantile; set it to False")
    levels = config["num_train_timesteps"]
    signal, predicts = scheduler.alphas_cumprod.double(), PREDICTIONS[config["prediction_type"]]
    if predicts == "eps" and float(signal.min()) < FAINTEST:
        raise BadRun("the scheduler ends in pure noise, where a predicted noise says nothing about the data: predict v")
    signal = signal.clamp_min(FAINTEST)
    clip = float(config["clip_sample_range"]) if config["clip_sample"] else None
    transition: Transition = ddim(0.0)
    if name == "DDPMScheduler":
        kind = config["variance_type"]
        choices = {"fixed_small": ddim(1.0), "fixed_small_log": ddim(1.0), "fixed_large": FixedLarge(levels)}
        if kind not in choices:
            raise BadRun(nearest(kind, choices, "variance type"))
        transition = choices[kind]
    own = name == "DDPMScheduler"
    return Convention(Table(tuple(signal.tolist())), predicts, transition, clip, levels, False, clip_noise=own)


def _refuse(config: Any, **reasons: str) -> None:
    for name, why in reasons.items():
        if config.get(name):
            raise BadRun(f"the scheduler has {name}={config[name]!r}: {why}")


def _flow(config: Any, tokens: int | None) -> Linear:
    """σ = s t/(1 + (s − 1) t); a shift μ that depends on the picture's size is s = e^μ, or μ itself if linear."""
    other = "these noise levels have no schedule here; set it to False"
    _refuse(
        config,
        use_karras_sigmas=other,
        use_exponential_sigmas=other,
        use_beta_sigmas=other,
        shift_terminal=other.replace("False", "None"),
        invert_sigmas="its time runs from data to noise; set it to False and negate the prediction",
        stochastic_sampling="set it to False and ask for transition=cps(1.0), which is that step with its law",
    )
    if not config.get("use_dynamic_shifting"):
        return Linear(float(config["shift"]))
    if tokens is None:
        raise BadRun("this scheduler's shift depends on the picture: give tokens=, the number of patches in one")
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    mu = config["base_shift"] + (config["max_shift"] - config["base_shift"]) * (tokens - low) / (high - low)
    return Linear(math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu)


def grid_like(scheduler: Any, n: int, faithful: bool = False) -> Tensor:
    """The n + 1 times that a scheduler visits in ``set_timesteps(n)``, decreasing, float64, ours.

    The last one is clean data, or the cleanest level where the scheduler ends there (``set_alpha_to_one=False``).
    ``faithful``: with FlowMatchEuler's second shift; DDIM's guess of the previous timestep is no grid of times, and
    belongs to ``steps_like``.
    """
    if type(scheduler).__name__ == FLOW:
        levels, last = scheduler.config["num_train_timesteps"], 1 / scheduler.config["num_train_timesteps"]
        if faithful and not scheduler.config.get("use_dynamic_shifting"):
            last = float(_flow(scheduler.config, None)(torch.tensor(1 / levels, dtype=torch.float64))[1])
        times = torch.linspace(1, last, n, dtype=torch.float64)
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    index, levels = _timesteps(scheduler, n)
    times = (index + 1) / levels
    end = _end(scheduler)
    return torch.cat([times, torch.tensor([end if end < times[-1] - 1e-9 else 0.0], dtype=torch.float64)])


def _timesteps(scheduler: Any, n: int) -> tuple[Tensor, int]:
    """Their timesteps, float64, from a copy: a scheduler remembers what it was asked."""
    convert(scheduler)
    theirs = copy.deepcopy(scheduler)
    theirs.set_timesteps(n)
    index = theirs.timesteps.double().cpu()
    if bool((index.diff() >= 0).any()):
        raise BadRun(f"in {n} steps the scheduler visits a timestep twice ({index.tolist()}): take fewer steps")
    return index, scheduler.config["num_train_timesteps"]


def _end(scheduler: Any) -> float:
    """Where the last step goes: clean data, or the first level."""
    return 0.0 if scheduler.config.get("set_alpha_to_one", True) else 1 / scheduler.config["num_train_timesteps"]


def steps_like(
    scheduler: Any, process: Diffusion, n: int, transition: Transition | None = None, faithful: bool = False
) -> Steps:
    """The table of a scheduler's n steps under a process that was converted from it; ``transition`` overrides it.

    ``faithful``: the levels that upstream steps to, where they are not the ones it visits next.
    """
    times = grid_like(scheduler, n, faithful)
    steps = process.steps(times, transition)
    if not faithful or type(scheduler).__name__ != "DDIMScheduler":
        return steps
    index, levels = _timesteps(scheduler, n)
    previous = index - levels // n
    to = torch.where(previous >= 0, (previous + 1) / levels, _end(scheduler))
    pairs = [process.steps(torch.stack(pair), transition) for pair in zip(times[:-1], to, strict=True)]
    table = {name: torch.cat([p.table[name] for p in pairs]) for name in steps.table}
    return Steps(times, table, tuple(p.dense[0] for p in pairs))
