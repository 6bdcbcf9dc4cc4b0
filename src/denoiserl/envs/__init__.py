"""Environments: a stream of experience from any of them, one-episode evaluation, and Meta-World.

Nothing here imports a simulator until it is asked for.
"""

from denoiserl.data.rollout import Episode
from denoiserl.envs.backends.faults import EnvFault
from denoiserl.envs.collector import Act, Stream
from denoiserl.envs.evaluate import Evaluation, evaluate, filmed

__all__ = ["Act", "EnvFault", "Episode", "Evaluation", "Stream", "evaluate", "filmed"]
