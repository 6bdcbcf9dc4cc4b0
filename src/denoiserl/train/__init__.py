"""Training: ``fit``, optimiser steps, averages and schedules, resumable loops (``Run``), and devices.

| question | answer |
|---|---|
| learn to denoise data | ``fit``; its parts ``training_losses``, ``draw_antithetic_times``; lazy ``TrainingRows`` |
| one optimiser step, checked | ``optimizer_step``, ``check_optimizer_covers`` (all parameters?), ``adamw`` |
| one step from parts that fit into memory | ``accumulate``, ``accumulate_masked`` (some losses do not count) |
| averages and learning rates | ``EMA``, ``warmup_cosine`` |
| a loop that can be killed and resumed | ``Run``, ``Stopped``; a folder's policy: ``find_saved_policy`` |
| device, precision, threads | ``DeviceConfig`` |

``denoiserl.experiments.runner`` runs a recipe in a folder.
"""

from denoiserl.train.device import DeviceConfig
from denoiserl.train.ema import EMA
from denoiserl.train.fit import TrainingRows, draw_antithetic_times, fit, training_losses
from denoiserl.train.metric_means import Metrics
from denoiserl.train.optimizer_steps import accumulate, accumulate_masked, optimizer_step
from denoiserl.train.optimizers import adamw, check_optimizer_covers, warmup_cosine
from denoiserl.train.run_state import Position, Run, Stopped
from denoiserl.train.saved_state import count_durable_rows, find_saved_policy

__all__ = [
    "EMA",
    "DeviceConfig",
    "Metrics",
    "Position",
    "Run",
    "Stopped",
    "TrainingRows",
    "accumulate",
    "accumulate_masked",
    "adamw",
    "check_optimizer_covers",
    "count_durable_rows",
    "draw_antithetic_times",
    "find_saved_policy",
    "fit",
    "optimizer_step",
    "training_losses",
    "warmup_cosine",
]
