"""Files of adapters alone, as diffusers and peft write and read them."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.integrations import transformers
from denoiserl.integrations.adapters.layers import (
    find_adapters,
    find_nets,
    renew_weights,
    require_no_adapters,
    require_no_sets,
    wrap_model,
)
from denoiserl.integrations.families import unwrap_adapters
from denoiserl.policy.policy import Policy

PEFT_FILE, DIFFUSERS_FILE = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""key of rank and α in the header of diffusers' file"""


def save_lora(policy: Policy, folder: str | Path) -> Path:
    """Write only the adapters of a policy and return the file.

    For a model of diffusers it is the file that ``pipeline.load_lora_weights(folder)`` reads into a new pipeline, rank
    and α included. For one of transformers, ``PeftModel.from_pretrained(model, folder)`` reads it. ``load_lora`` reads
    both. The weights are those of the active set; a scale (``set_adapters``) becomes a factor of α. Raise RunError if
    there are no LoRA adapters, if their scales differ, or if whole layers were trained too (``modules_to_save``): the
    file format cannot hold these.
    """
    if len(nets := find_nets(policy)) != 1:
        raise RunError(f"this policy wraps {len(nets)} models, and one file holds one: save each by peft")
    (model, name), folder = find_adapters(nets[0]), Path(folder)
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
    part = "unet" if type(unwrap_adapters(model)).__name__.startswith("UNet") else "transformer"
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
    require_no_sets(policy)
    peft, (net, *others) = require("peft", "hub"), find_nets(policy)
    require_no_adapters(net.model)
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
    wrapped = wrap_model(net.model, peft.LoraConfig(**{k: v for k, v in config.items() if k in known}))
    own = {k.removeprefix("base_model.model.") for k in peft.get_peft_model_state_dict(wrapped)}
    if own != set(tensors):
        wrapped.unload()
        raise RunError(f"{file} does not fill the adapters it describes: {', '.join(sorted(own ^ set(tensors))[:3])}")
    peft.set_peft_model_state_dict(wrapped, {f"base_model.model.{k}": v for k, v in tensors.items()})
    net.model = wrapped.eval()
    return renew_weights(policy)


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
