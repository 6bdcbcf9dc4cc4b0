"""DenoiseRL: reinforcement learning with everything that denoises.

Denoising is a decision process. A **process** noises data and steps back through **laws**; running it is a **chain**;
``replay`` and ``elbo`` score it; credit and objectives are pure functions; a recipe composes them on a page.
"""

from __future__ import annotations

import importlib
import importlib.util
import typing

if typing.TYPE_CHECKING:
    from denoiserl.chain import All, Chain, Rows, Sample, Window, sampler
    from denoiserl.denoiser import Denoiser, Estimate
    from denoiserl.law import Categorical, Delta, Gaussian, Product, Unmasking
    from denoiserl.likelihood import elbo, renoise, replay
    from denoiserl.policy import Policy
    from denoiserl.process import Autoregressive, Diffusion, Gauss, Logits, Masked, OneStep, grid
    from denoiserl.rng import Rng
    from denoiserl.weights import Weights

__version__ = "0.1.0"

__all__ = [
    "All",
    "Autoregressive",
    "Categorical",
    "Chain",
    "Delta",
    "Denoiser",
    "Diffusion",
    "Estimate",
    "Gauss",
    "Gaussian",
    "Logits",
    "Masked",
    "OneStep",
    "Policy",
    "Product",
    "Rng",
    "Rows",
    "Sample",
    "Unmasking",
    "Weights",
    "Window",
    "elbo",
    "grid",
    "renoise",
    "replay",
    "sampler",
]

_ROOMS = ("chain", "denoiser", "law", "likelihood", "policy", "process", "rng", "weights")


def __getattr__(name: str) -> typing.Any:
    """A public name, or a module: imported when first asked for, so that ``denoiserl --help`` is quick."""
    if name in __all__:
        for room in _ROOMS:
            if hasattr(found := importlib.import_module(f"denoiserl.{room}"), name):
                return globals().setdefault(name, getattr(found, name))
    if not name.startswith("_") and importlib.util.find_spec(f"denoiserl.{name}"):
        return importlib.import_module(f"denoiserl.{name}")
    raise AttributeError(f"module 'denoiserl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_ROOMS])
