"""DenoiseRL: reinforcement learning with denoising models.

Denoising is a decision process. A **process** noises data and denoises it step by step; each step draws from a
distribution. The record of a run is a **chain**; ``rescore`` and ``elbo`` compute its likelihood. Advantages and losses
are pure functions, and a recipe composes them on one page.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import typing

if typing.TYPE_CHECKING:
    from denoiserl.core.errors import (
        DenoiseRLError,
        InvalidInputError,
        MissingExtraError,
        NoDensityError,
        OffPolicyError,
        RunError,
    )
    from denoiserl.core.rng import Rng
    from denoiserl.distributions import Categorical, Delta, Gaussian, Product, Unmasking
    from denoiserl.policy.chain import Chain, ChainSteps
    from denoiserl.policy.likelihood import elbo, renoise, rescore
    from denoiserl.policy.policy import Policy
    from denoiserl.policy.sampler import RecordAll, RecordSample, RecordWindow, make_sampler
    from denoiserl.policy.weights import Weights
    from denoiserl.processes import (
        Autoregressive,
        Diffusion,
        GaussianDenoiser,
        Masked,
        OneStep,
        TokenDenoiser,
        time_grid,
    )
    from denoiserl.processes.denoiser import Denoiser, Estimate

__version__ = "0.1.0"

__all__ = [
    "Autoregressive",
    "Categorical",
    "Chain",
    "ChainSteps",
    "Delta",
    "DenoiseRLError",
    "Denoiser",
    "Diffusion",
    "Estimate",
    "Gaussian",
    "GaussianDenoiser",
    "InvalidInputError",
    "Masked",
    "MissingExtraError",
    "NoDensityError",
    "OffPolicyError",
    "OneStep",
    "Policy",
    "Product",
    "RecordAll",
    "RecordSample",
    "RecordWindow",
    "Rng",
    "RunError",
    "TokenDenoiser",
    "Unmasking",
    "Weights",
    "elbo",
    "make_sampler",
    "renoise",
    "rescore",
    "time_grid",
]

_ROOMS = (
    "core.errors",
    "distributions",
    "policy.chain",
    "policy.likelihood",
    "policy.policy",
    "policy.sampler",
    "policy.weights",
    "processes",
    "processes.denoiser",
    "core.rng",
)


def __getattr__(name: str) -> typing.Any:
    """Return a public name or a module, imported at its first use, so that ``denoiserl --help`` is quick."""
    if name in __all__:
        for room in _ROOMS:
            if hasattr(found := importlib.import_module(f"denoiserl.{room}"), name):
                return globals().setdefault(name, getattr(found, name))
    if not name.startswith("_") and importlib.util.find_spec(f"denoiserl.{name}"):
        return importlib.import_module(f"denoiserl.{name}")
    raise AttributeError(f"module 'denoiserl' has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = [each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_")]
    return sorted({"__version__", *__all__, *modules})
