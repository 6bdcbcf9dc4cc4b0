"""Collect experience from any environment, evaluate policies in it, and load Meta-World.

Simulators are imported only when an environment that needs them is made.
"""

from denoiserl.data.rollout import Rollout
from denoiserl.envs.backends.faults import EnvFault
from denoiserl.envs.collector import Act, Collector
from denoiserl.envs.evaluate import Evaluation, evaluate, record_video

__all__ = ["Act", "Collector", "EnvFault", "Evaluation", "Rollout", "evaluate", "record_video"]
