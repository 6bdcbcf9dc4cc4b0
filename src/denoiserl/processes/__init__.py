"""Processes: how data is noised, and how the next state is distributed given the denoiser's estimate."""

from denoiserl.processes.autoregressive import Autoregressive
from denoiserl.processes.base import Noised, Process, Step, StepTable, draw_stratified_times
from denoiserl.processes.diffusion import Diffusion, GaussianDenoiser
from denoiserl.processes.learned_noise import NoiseInjectedDenoiser
from denoiserl.processes.masked import Masked, step_map
from denoiserl.processes.meanflow import MeanFlow, MeanVelocityDenoiser
from denoiserl.processes.one_step import CategoricalHead, GaussianHead, OneStep
from denoiserl.processes.relay import Relay
from denoiserl.processes.schedule import (
    VP,
    Cosine,
    Karras,
    Linear,
    Schedule,
    Table,
    betas_cosine,
    betas_linear,
    cosine,
    edm,
    linear,
    time_grid,
    vp,
)
from denoiserl.processes.tokens import TokenDenoiser, truncate
from denoiserl.processes.transition import (
    cps,
    dance_sde,
    ddim,
    flow_sde,
    precise,
    window,
    with_capped_std,
    with_decaying_std,
    with_learned_std,
    with_min_std,
)

__all__ = [
    "VP",
    "Autoregressive",
    "CategoricalHead",
    "Cosine",
    "Diffusion",
    "GaussianDenoiser",
    "GaussianHead",
    "Karras",
    "Linear",
    "Masked",
    "MeanFlow",
    "MeanVelocityDenoiser",
    "NoiseInjectedDenoiser",
    "Noised",
    "OneStep",
    "Process",
    "Relay",
    "Schedule",
    "Step",
    "StepTable",
    "Table",
    "TokenDenoiser",
    "betas_cosine",
    "betas_linear",
    "cosine",
    "cps",
    "dance_sde",
    "ddim",
    "draw_stratified_times",
    "edm",
    "flow_sde",
    "linear",
    "precise",
    "step_map",
    "time_grid",
    "truncate",
    "vp",
    "window",
    "with_capped_std",
    "with_decaying_std",
    "with_learned_std",
    "with_min_std",
]
