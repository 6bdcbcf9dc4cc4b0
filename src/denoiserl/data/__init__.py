"""Demonstrations, chunk windows and normalisers: everything between recorded episodes and a minibatch."""

from denoiserl.data.demos import Demos
from denoiserl.data.normal import Normalizer
from denoiserl.data.robot import Robot
from denoiserl.data.running import Running
from denoiserl.data.windows import Batches, Windows, stack_history, windows

__all__ = ["Batches", "Demos", "Normalizer", "Robot", "Running", "Windows", "stack_history", "windows"]
