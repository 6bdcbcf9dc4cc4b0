"""Demonstrations, chunk windows and normalisers: everything between recorded episodes and a minibatch."""

from denoiserl.data.demos import Demos
from denoiserl.data.normal import Normalizer
from denoiserl.data.replay import Replay
from denoiserl.data.robot import Robot
from denoiserl.data.running import Running
from denoiserl.data.squash import Squash
from denoiserl.data.windows import Batches, Windows, stack_history, windows

__all__ = [
    "Batches",
    "Demos",
    "Normalizer",
    "Replay",
    "Robot",
    "Running",
    "Squash",
    "Windows",
    "stack_history",
    "windows",
]
