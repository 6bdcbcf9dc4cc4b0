"""Demonstrations, chunk windows, normalisers and replay: from recorded episodes to a minibatch."""

from denoiserl.data.codecs.action_chunk import ActionChunkCodec
from denoiserl.data.codecs.normalize import Normalizer
from denoiserl.data.codecs.running_norm import DiscreteActionCodec, RunningNormCodec
from denoiserl.data.codecs.squash import TanhCodec
from denoiserl.data.demos import Demonstrations
from denoiserl.data.replay import ReplayBuffer
from denoiserl.data.windows import EpochSampler, Windows, windows

__all__ = [
    "ActionChunkCodec",
    "Demonstrations",
    "DiscreteActionCodec",
    "EpochSampler",
    "Normalizer",
    "ReplayBuffer",
    "RunningNormCodec",
    "TanhCodec",
    "Windows",
    "windows",
]
