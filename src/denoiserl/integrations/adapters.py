"""LoRA adapters (2106.09685) through peft: W x + (α/r) B A x, and only A and B learn.

``lora`` puts them on a policy's model. ``save_lora`` writes them as the file that diffusers or peft reads, and
``load_lora`` reads it. ``merge`` folds them into the weights. The reference of an adapted policy is the model with its
adapters off and costs no memory, if they are new. If they were trained before, it is a copy of them.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from denoiserl.core.errors import RunError, require, unknown_name_message
from denoiserl.integrations import diffusers, transformers
from denoiserl.policy.policy import Policy
from denoiserl.policy.weights import Weights

PEFT_FILE, DIFFUSERS_FILE = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
LOST = 0.1
"""share of the adapters' change that may be lost in ``merge`` without a warning"""
METADATA = "lora_adapter_metadata"
"""key of rank and α in the header of diffusers' file"""


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
    _bare(model)
    found = _layers(model, targets)
    targets = targets if isinstance(targets, str) else list(targets)
    turned = all(type(layer).__name__ == "Conv1D" for layer in found)  # GPT-2's, whose weights are transposed
    config = peft.LoraConfig(
        r=r, lora_alpha=r if alpha is None else alpha, target_modules=targets, fan_in_fan_out=turned
    )
    return _wrap(model, config, seed)


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


def _bare(model: nn.Module) -> None:
    """Raise RunError if a model is compiled or has adapters."""
    if "_orig_mod" in model._modules:
        raise RunError("this model is compiled: adapt model._orig_mod, then compile the result")
    if hasattr(model, "peft_config"):
        off = "take the model underneath, model.unload()" if hasattr(model, "unload") else "load the model anew"
        if hasattr(model, "unload_lora"):  # of diffusers, which has put them into itself
            off = "take them off, model.unload_lora() or pipeline.unload_lora_weights()"
        raise RunError(f"this model has adapters already: {off}; or fold them in, integrations.adapters.merge(policy)")


def _wrap(model: nn.Module, config: Any, seed: int = 0) -> Any:
    """Wrap the model by peft, in place. Its ``save_pretrained`` raises while adapters are in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = require("peft", "hub").get_peft_model(model, config)
    if hasattr(model, "save_pretrained"):
        diffusers.guard(model)
    return wrapped


def _nets(policy: Policy) -> list[Any]:
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
    _no_sets(policy)
    for net in _nets(policy):
        net.model = adapt(net.model, r, targets, alpha, seed).eval()
    return _anew(policy)


def _anew(policy: Policy) -> Policy:
    """Return the policy with new weights of its changed module; control and execution horizon are kept."""
    weights = Weights(policy.weights.module)
    weights.control, weights.execute = policy.weights.control, policy.weights.execute
    return replace(policy, weights=weights)


def _no_sets(policy: Policy) -> None:
    if policy.weights.sets:
        raise RunError(
            f"the policy holds the weights {', '.join(policy.weights.sets)} already: add adapters before them"
        )


def _adapters(net: Any) -> tuple[Any, str]:
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


def save_lora(policy: Policy, folder: str | Path) -> Path:
    """Write only the adapters of a policy and return the file.

    For a model of diffusers it is the file that ``pipeline.load_lora_weights(folder)`` reads into a new pipeline, rank
    and α included. For one of transformers, ``PeftModel.from_pretrained(model, folder)`` reads it. ``load_lora`` reads
    both. The weights are those of the active set; a scale (``set_adapters``) becomes a factor of α. Raise RunError if
    there are no LoRA adapters, if their scales differ, or if whole layers were trained too (``modules_to_save``): the
    file format cannot hold these.
    """
    if len(nets := _nets(policy)) != 1:
        raise RunError(f"this policy wraps {len(nets)} models, and one file holds one: save each by peft")
    (model, name), folder = _adapters(nets[0]), Path(folder)
    config = _scaled(model, name)
    if isinstance(nets[0], transformers.Net):
        own, model.peft_config[name] = model.peft_config[name], config
        try:
            model.save_pretrained(folder, save_embedding_layers=False)
        finally:
            model.peft_config[name] = own
        return folder / PEFT_FILE
    tensors = require("peft", "hub").get_peft_model_state_dict(model, adapter_name=name)
    tensors = {k.removeprefix("base_model.model."): v.detach().cpu().contiguous() for k, v in tensors.items()}
    if whole := sorted(k for k in tensors if ".lora_" not in k):
        raise RunError(f"{', '.join(whole[:3])} were trained as whole layers: save this policy by policy.save(path)")
    part = "unet" if type(diffusers.plain(model)).__name__.startswith("UNet") else "transformer"
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    header = {"format": "pt", METADATA: json.dumps({f"{part}.{k}": v for k, v in settings.items()}, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"{part}.{k}": v for k, v in tensors.items()}, folder / DIFFUSERS_FILE, header)
    return folder / DIFFUSERS_FILE


def _scaled(model: Any, name: str) -> Any:
    """Return the settings of an adapter, with the effective α of its layers. Raise RunError if they differ."""
    config, factors = model.peft_config[name], [1.0]
    layers = [layer for layer in model.modules() if name in getattr(layer, "lora_alpha", ()) and layer.lora_alpha[name]]
    if layers:
        root = math.sqrt if config.use_rslora else float
        factors = [layer.scaling[name] * root(layer.r[name]) / layer.lora_alpha[name] for layer in layers]
    low, high = min(factors), max(factors)
    if not math.isclose(low, high, rel_tol=1e-6):
        raise RunError(
            f"the adapter's layers are scaled by factors from {low:g} to {high:g}, and a file has one: set one, "
            f"pipeline.set_adapters([{name!r}], [{high:g}]), or fold them in, integrations.adapters.merge(policy)"
        )
    if math.isclose(high, 1.0, rel_tol=1e-6):
        return config
    config = copy.copy(config)
    config.lora_alpha = config.lora_alpha * high
    config.alpha_pattern = {k: v * high for k, v in (config.alpha_pattern or {}).items()}
    return config


def load_lora(policy: Policy, path: str | Path) -> Policy:
    """Return the policy with adapters read from a LoRA file of diffusers or peft, or from its folder.

    It works in place, as ``lora``; the adapters stay trainable. Rank and α come from the file's header or from peft's
    ``adapter_config.json``; without either, ranks come from shapes and α = r, as in diffusers. Raise RunError if the
    file is missing, has another layout, or has layers that the model lacks.
    """
    _no_sets(policy)
    peft, (net, *others) = require("peft", "hub"), _nets(policy)
    _bare(net.model)
    file = next((f for f in (Path(path) / DIFFUSERS_FILE, Path(path) / PEFT_FILE, Path(path)) if f.is_file()), None)
    if others or file is None or file.suffix != ".safetensors":
        raise RunError(
            f"{path} is no LoRA of one model: give the file, or a folder with {DIFFUSERS_FILE} or {PEFT_FILE}"
        )
    tensors, config = _read(file)
    layers = {k.split(".lora_")[0] for k in tensors}
    if unknown := sorted(layers - {name for name, _ in net.model.named_modules()}):
        raise RunError(f"{file} belongs to another model: this one has no {', '.join(unknown[:3])}")
    config = {**(config or _guess(tensors)), "inference_mode": False}
    known = inspect.signature(peft.LoraConfig).parameters
    if new := sorted(k for k, v in config.items() if k not in known and v):
        raise RunError(f"{file} has {', '.join(new)}, which this version of peft does not know: pip install -U peft")
    wrapped = _wrap(net.model, peft.LoraConfig(**{k: v for k, v in config.items() if k in known}))
    own = {k.removeprefix("base_model.model.") for k in peft.get_peft_model_state_dict(wrapped)}
    if own != set(tensors):
        wrapped.unload()
        raise RunError(f"{file} does not fill the adapters it describes: {', '.join(sorted(own ^ set(tensors))[:3])}")
    peft.set_peft_model_state_dict(wrapped, {f"base_model.model.{k}": v for k, v in tensors.items()})
    net.model = wrapped.eval()
    return _anew(policy)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return tensors by the model's own names, and the settings of the adapters if the file has them."""
    try:
        with safe_open(file, "pt") as opened:
            tensors, header = {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {}
    except SafetensorError as error:
        raise RunError(
            f"{file} is no whole safetensors file ({error}): fetch it again, and a pointer of git-lfs by git lfs pull"
        ) from error
    config = json.loads(header[METADATA]) if METADATA in header else None
    for part in ("unet.", "transformer.", "base_model.model."):
        if tensors and all(k.startswith(part) for k in tensors):
            tensors = {k.removeprefix(part): v for k, v in tensors.items()}
            config = config and {k.removeprefix(part): v for k, v in config.items()}
    if wrong := sorted(k for k in tensors if ".lora_" not in k or ".lora_down" in k or ".lora_up" in k) or not tensors:
        what = "nothing" if wrong is True else ", ".join(wrong[:3])
        raise RunError(
            f"{file} holds {what}, which is not peft's layout (layer.lora_A.weight) of one model: let diffusers read "
            "it, pipeline.load_lora_weights(file), and write it again, pipeline.transformer.save_lora_adapter(folder)"
        )
    if config is None and (beside := file.with_name("adapter_config.json")).is_file():
        config = require("peft", "hub").PeftConfig.from_pretrained(str(beside.parent)).to_dict()
    return tensors, config


def _guess(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the settings of adapters of which only shapes are known."""
    ranks = {k.split(".lora_")[0]: v.shape[0] for k, v in tensors.items() if ".lora_A" in k}
    r = max(ranks.values())
    each = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    only = "|".join(re.escape(name) for name in ranks)
    return {"r": r, "lora_alpha": r, "target_modules": only, "rank_pattern": each, "alpha_pattern": each}


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
    for net in _nets(policy):
        if (lost := _rounded(net)) >= LOST:
            warnings.warn(
                f"{100 * lost:.0f} % of the adapters' change is lost to rounding in the model's weights: make them "
                "float32 before, policy.weights.module.float(), or save the adapters alone, "
                "integrations.adapters.save_lora(policy, folder)",
                stacklevel=2,
            )
        net.model = _folded(_adapters(net)[0]).eval()
        vars(net.model).pop("save_pretrained", None)
    return _anew(policy)


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
    model, name = _adapters(net)
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
