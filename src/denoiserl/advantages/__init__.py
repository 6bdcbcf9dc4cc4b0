"""Advantages from rewards: pure functions of tensors, and one object with a state (``PerPromptStatTracker``).

| baseline | function |
|---|---|
| the future of an environment | ``gae``, ``returns`` |
| the other samples of the same prompt | ``group_relative``, ``leave_one_out``, ``PerPromptStatTracker`` |
| the rest of the denoising chain | ``over_denoising``, ``kl_to_go``, ``log_ratio_to_go`` |
| the batch | ``normalise``, ``clip_quantile`` |

``mask_invalid_rewards`` and ``dead_groups`` find rewards without a training signal.
"""

from denoiserl.advantages.batch import clip_quantile, normalise
from denoiserl.advantages.denoising import kl_to_go, log_ratio_to_go, over_denoising
from denoiserl.advantages.environment import gae, returns
from denoiserl.advantages.group import Screened, dead_groups, group_relative, leave_one_out, mask_invalid_rewards
from denoiserl.advantages.prompts import PerPromptStatTracker

__all__ = [
    "PerPromptStatTracker",
    "Screened",
    "clip_quantile",
    "dead_groups",
    "gae",
    "group_relative",
    "kl_to_go",
    "leave_one_out",
    "log_ratio_to_go",
    "mask_invalid_rewards",
    "normalise",
    "over_denoising",
    "returns",
]
