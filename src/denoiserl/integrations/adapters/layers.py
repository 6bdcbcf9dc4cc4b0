"""Adapters on the layers of a model, and their sum with its weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from denoiserl.core.errors import RunError, require, unknown_name_message
from denoiserl.integrations import diffusers, transformers
from denoiserl.integrations.diffusers.network import forbid_saving_adapters
from denoiserl.policy.policy import Policy
from denoiserl.policy.weights import Weights

LOST = 0.1
"""share of the adapters' change that may be lost in ``merge`` without a warning"""


def adapt(model: nn.Module, r: int, targets: Sequence[str] | str, alpha: float | None = None, seed: int = 0) -> Any:
    """Return the model with adapters of rank r on ``targets``; the rest is frozen.

    ``targets``: ends of layers' names, or one string in peft's form, "all-linear" or a regular expression of whole
    names. α defaults to r. B starts at zero, so the adapted model equals the model. ``policy.save`` keeps base and
    adapters; to load them, make the same adapters first: ``Policy.load(path, net=adapt(model, r, targets))``. Raise
    RunError if a target is no layer, if the model has adapters, or if it is compiled.
    """
    peft = require("peft", "hub")
    if not isinstance(r, int) or r < 1:
        raise RunError(f"r={r!r} is no rank of an adapter: give a whole number of at least 1")
    if alpha is not None and alpha <= 0:
        raise RunError(f"alpha={alpha} is not positive: give a positive one, or leave it out for alpha = r")
    require_no_adapters(model)
    found = _layers(model, targets)
    targets = targets if isinstance(targets, str) else list(targets)
    turned = all(type(layer).__name__ == "Conv1D" for layer in found)  # GPT-2's, whose weights are transposed
    config = peft.LoraConfig(
        r=r, lora_alpha=r if alpha is None else alpha, target_modules=targets, fan_in_fan_out=turned
    )
    return wrap_model(model, config, seed)


def _layers(model: nn.Module, targets: Sequence[str] | str) -> list[nn.Module]:
    """Return the layers that ``targets`` name. Raise RunError if one names none."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    known = {n: m for n, m in model.named_modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"}
    last = {name.rsplit(".", 1)[-1] for name in known}
    if targets == "all-linear":
        return list(known.values())
    if isinstance(targets, str):
        try:
            hit = [layer for name, layer in known.items() if re.fullmatch(targets, name)]
        except re.error as error:
            raise RunError(f"{targets!r} is no regular expression ({error}): give a list of layers' names") from error
        if not hit and targets in last:
            raise RunError(f"targets={targets!r} is read as a regular expression of whole names: give [{targets!r}]")
        if not hit:
            raise RunError(unknown_name_message(targets, last, "layer to adapt"))
        return hit
    if not targets:
        raise RunError(f"targets names no layer: give some of {', '.join(sorted(last))}")
    hit = []
    for target in targets:
        found = [layer for name, layer in known.items() if name == target or name.endswith(f".{target}")]
        if not found:
            raise RunError(unknown_name_message(target, last, "layer to adapt"))
        hit += found
    return hit


def require_no_adapters(model: nn.Module) -> None:
    """Raise RunError if a model is compiled or has adapters."""
    if "_orig_mod" in model._modules:
        raise RunError("this model is compiled: adapt model._orig_mod, then compile the result")
    if hasattr(model, "peft_config"):
        off = "take the model underneath, model.unload()" if hasattr(model, "unload") else "load the model anew"
        if hasattr(model, "unload_lora"):  # of diffusers, which has put them into itself
            off = "take them off, model.unload_lora() or pipeline.unload_lora_weights()"
        raise RunError(f"this model has adapters already: {off}; or fold them in, integrations.adapters.merge(policy)")


def wrap_model(model: nn.Module, config: Any, seed: int = 0) -> Any:
    """Wrap the model by peft, in place. Its ``save_pretrained`` raises while adapters are in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = require("peft", "hub").get_peft_model(model, config)
    if hasattr(model, "save_pretrained"):
        forbid_saving_adapters(model)
    return wrapped


def find_nets(policy: Policy) -> list[Any]:
    """Return the wrapped models of the active weights. Raise RunError if there are none."""
    nets = [m for m in policy.denoiser.modules() if isinstance(m, diffusers.Net | transformers.Net)]
    if not nets:
        raise RunError("this policy wraps no model of diffusers or transformers: adapt its network and wrap that")
    return nets


def lora(policy: Policy, r: int, targets: Sequence[str] | str, alpha: float | None = None, seed: int = 0) -> Policy:
    """Return the policy with adapters on the model that it wraps: see ``adapt``.

    It works on models of ``integrations.diffusers`` and ``integrations.transformers``, in place: peft puts its layers
    into the model.
    """
    require_no_sets(policy)
    for net in find_nets(policy):
        net.model = adapt(net.model, r, targets, alpha, seed).eval()
    return renew_weights(policy)


def renew_weights(policy: Policy) -> Policy:
    """Return the policy with new weights of its changed module; control and execution horizon are kept."""
    weights = Weights(policy.weights.module)
    weights.control, weights.execute = policy.weights.control, policy.weights.execute
    return replace(policy, weights=weights)


def require_no_sets(policy: Policy) -> None:
    """Raise RunError if a policy holds copies of its weights, which would lack the adapters."""
    if policy.weights.sets:
        raise RunError(
            f"the policy holds the weights {', '.join(policy.weights.sets)} already: add adapters before them"
        )


def find_adapters(net: Any) -> tuple[Any, str]:
    """Return the model that holds the adapters, and the name of the only one.

    Raise RunError if there is no adapter, several, or another kind.
    """
    model = net.model._modules.get("_orig_mod", net.model)
    names = list(getattr(model, "peft_config", {}))
    if len(names) != 1:
        raise RunError(f"the policy's model has {len(names)} adapters ({', '.join(names) or 'none'}): keep exactly one")
    if (kind := getattr(model.peft_config[names[0]].peft_type, "value", "")) != "LORA":
        raise RunError(
            f"the policy's adapters are {kind}, not LORA: save them by peft, net.model.save_pretrained(folder)"
        )
    return model, names[0]


def merge(policy: Policy) -> Policy:
    """Return the policy with its adapters folded into the model's weights, in place: W + (α/r) B A.

    The model then has no adapters, so that ``pipeline.save_pretrained`` writes a whole pipeline. Raise RunError if
    another set of weights than ``current`` is active. Warn if rounding to low-precision weights loses a tenth or more
    of the adapters' change.
    """
    if policy.active_weights != "current":
        raise RunError(
            f"the adapters of {policy.active_weights!r} are a copy: "
            f"policy.weights.load({policy.active_weights!r}) first"
        )
    for net in find_nets(policy):
        if (lost := _rounded(net)) >= LOST:
            warnings.warn(
                f"{100 * lost:.0f} % of the adapters' change is lost to rounding in the model's weights: make them "
                "float32 before, policy.weights.module.float(), or save the adapters alone, "
                "integrations.adapters.save_lora(policy, folder)",
                stacklevel=2,
            )
        net.model = _folded(find_adapters(net)[0]).eval()
        vars(net.model).pop("save_pretrained", None)
    return renew_weights(policy)


def _folded(model: Any) -> Any:
    """Return the model without its adapters, wrapped by peft or inside the model itself."""
    if hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    kind = require("peft.tuners.tuners_utils", "hub").BaseTunerLayer
    for name, layer in list(model.named_modules()):
        if isinstance(layer, kind):
            layer.merge()  # type: ignore[operator]
            plain: Any = layer.get_base_layer()  # type: ignore[operator]
        elif hasattr(layer, "unload_and_optionally_merge_module"):  # a whole trained layer
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


@torch.no_grad()
def _rounded(net: Any) -> float:
    """Return the share of the adapters' change that is lost by rounding to low-precision weights."""
    model, name = find_adapters(net)
    lost, whole = 0.0, 0.0
    for layer in model.modules():
        if not hasattr(layer, "get_delta_weight") or name not in getattr(layer, "active_adapters", ()):
            continue
        weight = layer.get_base_layer().weight
        if weight.dtype not in (torch.bfloat16, torch.float16):
            continue
        before, more = weight.float(), layer.get_delta_weight(name).float()
        kept = (before + more).to(weight.dtype).float() - before
        lost, whole = lost + float((kept - more).abs().sum()), whole + float(more.abs().sum())
    return lost / whole if whole else 0.0
