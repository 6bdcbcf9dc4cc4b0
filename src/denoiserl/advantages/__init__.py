"""Credit: from rewards to advantages. Pure functions of tensors, and one visible memory (``PerPrompt``).

| who decides how good a sample was | function |
|---|---|
| the future of an environment | ``gae``, ``returns`` |
| the other samples of the same prompt | ``group_relative``, ``leave_one_out``, ``PerPrompt`` |
| the rest of the denoising chain | ``over_denoising``, ``kl_to_go``, ``log_ratio_to_go`` |
| the batch | ``normalise``, ``clip_quantile`` |

``screen`` and ``dead_groups`` say which rewards cannot be learned from.
"""

from denoiserl.advantages.batch import clip_quantile, normalise
from denoiserl.advantages.denoising import kl_to_go, log_ratio_to_go, over_denoising
from denoiserl.advantages.environment import gae, returns
from denoiserl.advantages.group import Screened, dead_groups, group_relative, leave_one_out, screen
from denoiserl.advantages.prompts import PerPrompt

__all__ = [
    "PerPrompt",
    "Screened",
    "clip_quantile",
    "dead_groups",
    "gae",
    "group_relative",
    "kl_to_go",
    "leave_one_out",
    "log_ratio_to_go",
    "normalise",
    "over_denoising",
    "returns",
    "screen",
]
