"""Environments: a stream of experience from any of them, one-episode evaluation, and Meta-World.

Nothing here imports a simulator until it is asked for.
"""

from denoiserl.data.rollout import Rollout
from denoiserl.envs.backends.faults import EnvFault
from denoiserl.envs.collector import Act, Collector
from denoiserl.envs.evaluate import Evaluation, evaluate, record_video

__all__ = ["Act", "Collector", "EnvFault", "Evaluation", "Rollout", "evaluate", "record_video"]
