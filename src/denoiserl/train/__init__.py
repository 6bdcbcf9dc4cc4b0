"""Training: ``fit`` and ``step``, averages and schedules, loops that survive (``Keep``), and the place they run in.

| question | answer |
|---|---|
| learn to denoise data | ``fit``; its parts ``losses``, ``stratified``; ``Rows`` that are made when drawn |
| one optimiser step, safely | ``step``, ``covers`` (all parameters?), ``adamw`` |
| one in pieces that fit into memory | ``accumulate``, ``accumulate_masked`` (where some losses do not count) |
| averages and learning rates | ``EMA``, ``warmup_cosine`` |
| a loop that can be killed and resumed | ``Keep``, ``Stopped``; what it left behind: ``saved`` |
| device, precision, threads | ``Place`` |

``denoiserl.experiments.runner`` runs a recipe in a folder.
"""

from denoiserl.train.device import Place
from denoiserl.train.fit import Rows, fit, losses, stratified
from denoiserl.train.optim import EMA, Schedule, accumulate, accumulate_masked, adamw, covers, step, warmup_cosine
from denoiserl.train.run_state import Keep, Position, Stopped, rows_kept, saved

__all__ = [
    "EMA",
    "Keep",
    "Place",
    "Position",
    "Rows",
    "Schedule",
    "Stopped",
    "accumulate",
    "accumulate_masked",
    "adamw",
    "covers",
    "fit",
    "losses",
    "rows_kept",
    "saved",
    "step",
    "stratified",
    "warmup_cosine",
]
