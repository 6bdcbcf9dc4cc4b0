"""LoRA adapters (2106.09685) through peft: W x + (α/r) B A x, and only A and B learn.

``lora`` puts them on a policy's model. ``save_lora`` writes them as the file that diffusers or peft reads, and
``load_lora`` reads it. ``merge`` folds them into the weights. The reference of an adapted policy is the model with its
adapters off and costs no memory, if they are new. If they were trained before, it is a copy of them.
"""

from denoiserl.integrations.adapters.files import load_lora, save_lora
from denoiserl.integrations.adapters.layers import adapt, lora, merge

__all__ = ["adapt", "load_lora", "lora", "merge", "save_lora"]
