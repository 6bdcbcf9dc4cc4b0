"""Demonstrations, chunk windows and normalisers: everything between recorded episodes and a minibatch."""

from denoiserl.data.codecs.action_chunk import Robot
from denoiserl.data.codecs.normalize import Normalizer
from denoiserl.data.codecs.running_norm import Running
from denoiserl.data.codecs.squash import Squash
from denoiserl.data.demos import Demos
from denoiserl.data.replay import Replay
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
