"""A check whether an environment reports success."""

from __future__ import annotations

from typing import Any

import torch

from denoiserl.core.counters import no_usage_counting
from denoiserl.core.progress import track
from denoiserl.core.rng import Rng
from denoiserl.envs.collector import Collector

PROBE_STEPS = 1000
"""steps within which an environment must report success for the first time"""


def reports_success(make_env: Any) -> bool:
    """Return whether an environment (what ``Collector`` takes) reports success.

    It is stepped until an episode ends, or for ``PROBE_STEPS`` steps: some report success only at the end.
    """
    env = Collector(make_env, 1)
    still = torch.as_tensor(env.spec.low) if env.spec.choices else torch.zeros(env.spec.action)
    zeros = still.expand(1, 1, *env.spec.action)
    try:
        with no_usage_counting(), track("look at the environment"):
            for _ in range(PROBE_STEPS):
                step = env.collect(lambda obs, rng: (zeros, None), 1, Rng(0))
                if "success" in step.info or bool(step.done.any()):
                    return "success" in step.info
        return False
    finally:
        env.close()
