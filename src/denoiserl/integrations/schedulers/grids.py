"""The times that a scheduler visits, and the table of its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.integrations.schedulers.convention import FLOW, convert, is_exponential
from denoiserl.processes import Diffusion, Linear, StepTable
from denoiserl.processes.transition import Transition


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
    plain.set_timesteps(len(own), **({"mu": 0.0 if is_exponential(scheduler.config) else 1.0} if dynamic else {}))
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
