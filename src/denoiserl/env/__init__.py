"""Environments: a stream of experience from any of them, one-episode evaluation, and Meta-World.

Nothing here imports a simulator until it is asked for.
"""

from denoiserl.env.evaluate import Evaluation, evaluate, filmed
from denoiserl.env.faults import EnvFault
from denoiserl.env.stream import Act, Episode, Stream

__all__ = ["Act", "EnvFault", "Episode", "Evaluation", "Stream", "evaluate", "filmed"]
