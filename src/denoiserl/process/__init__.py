"""Processes: how data is noised and, given the denoiser's estimate, which law the next state has."""

from denoiserl.process.base import Noised, Process, Step, Steps, stratified
from denoiserl.process.classic import Autoregressive, GaussianHead, OneStep
from denoiserl.process.diffusion import Diffusion, Gauss
from denoiserl.process.exploring import Exploring
from denoiserl.process.masked import Logits, Masked, step_map, truncate
from denoiserl.process.meanflow import Average, MeanFlow
from denoiserl.process.relay import Relay
from denoiserl.process.schedule import (
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
    grid,
    linear,
    vp,
)
from denoiserl.process.transition import (
    cps,
    dance,
    ddim,
    decaying,
    floored,
    flow_sde,
    injected,
    precise,
    quiet,
    window,
)

__all__ = [
    "VP",
    "Autoregressive",
    "Average",
    "Cosine",
    "Diffusion",
    "Exploring",
    "Gauss",
    "GaussianHead",
    "Karras",
    "Linear",
    "Logits",
    "Masked",
    "MeanFlow",
    "Noised",
    "OneStep",
    "Process",
    "Relay",
    "Schedule",
    "Step",
    "Steps",
    "Table",
    "betas_cosine",
    "betas_linear",
    "cosine",
    "cps",
    "dance",
    "ddim",
    "decaying",
    "edm",
    "floored",
    "flow_sde",
    "grid",
    "injected",
    "linear",
    "precise",
    "quiet",
    "step_map",
    "stratified",
    "truncate",
    "vp",
    "window",
]
