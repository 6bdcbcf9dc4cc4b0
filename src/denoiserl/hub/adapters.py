"""LoRA adapters (2106.09685) through peft: W x + (α/r) B A x, and only A and B learn.

As long as they have not learned, the reference of an adapted policy is the model with its adapters off and costs no
memory; of adapters that have learned before, it is a copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from denoiserl.errors import BadRun, nearest, need
from denoiserl.hub import diffusers, transformers
from denoiserl.policy import Policy
from denoiserl.weights import Weights


def adapt(model: nn.Module, r: int, targets: Sequence[str], alpha: float | None = None, seed: int = 0) -> Any:
    """The model with adapters of rank r on every layer whose name ends in one of ``targets``; the rest is frozen.

    α defaults to r. B starts at zero, so the adapted model is the model. ``policy.save`` keeps base and adapters; to
    load them, make the same adapters first: ``Policy.load(path, net=adapt(model, r, targets))``.
    """
    peft = need("peft", "hub")
    if r < 1:
        raise BadRun(f"the rank of an adapter is at least 1, not {r}")
    if hasattr(model, "peft_config"):
        raise BadRun("this model has adapters already: take the model underneath, model.unload()")
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    names = [name for name, layer in model.named_modules() if isinstance(layer, layers)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise BadRun(nearest(target, {name.rsplit(".", 1)[-1] for name in names}, "layer to adapt"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=alpha or r, target_modules=list(targets)))


def lora(policy: Policy, r: int, targets: Sequence[str], alpha: float | None = None, seed: int = 0) -> Policy:
    """The policy with adapters on the model that it wraps; before they learn, ``weights.keep("reference")`` is free.

    Works on models of ``hub.diffusers`` and ``hub.transformers``, in place: peft puts its layers into the model.
    """
    if policy.weights.sets:
        raise BadRun(f"the policy keeps {', '.join(policy.weights.sets)} already: add adapters before keeping weights")
    denoiser = policy.weights.module
    wrapped = [m for m in denoiser.modules() if isinstance(m, diffusers.Net | transformers.Net)]
    if not wrapped:
        raise BadRun("this policy wraps no model of diffusers or transformers: adapt its network and wrap that")
    for net in wrapped:
        net.model = adapt(net.model, r, targets, alpha, seed).eval()
    return replace(policy, weights=Weights(denoiser))
