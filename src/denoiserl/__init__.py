"""DenoiseRL: reinforcement learning with everything that denoises.

Denoising is a decision process. A **process** noises data and steps back through **laws**; running it is a **chain**;
``replay`` and ``elbo`` score it; credit and objectives are pure functions; a recipe composes them on a page.
"""

from denoiserl.chain import All, Chain, Rows, Sample, Window, sampler
from denoiserl.denoiser import Denoiser, Estimate
from denoiserl.law import Categorical, Delta, Gaussian, Product, Unmasking
from denoiserl.likelihood import elbo, replay, renoise
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
