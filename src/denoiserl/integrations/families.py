"""Known properties of diffusers' networks and pipelines, by class; unknown classes are refused by name.

A flow network reads Kσ of a scheduler with K levels, or a thousandth of it, depending on its class. A wrong guess would
be off by a factor of a thousand, without an error. A pipeline that also takes a picture, a mask or a control would have
this input ignored.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import nn

from denoiserl.core.errors import RunError

LEVELS = {
    "AuraFlowTransformer2DModel": 1,
    "ChromaTransformer2DModel": 1,
    "FluxTransformer2DModel": 1,
    "SD3Transformer2DModel": 1000,
}
"""A flow network's timestep in units of σ, for a scheduler with 1000 levels: its pipeline divides the scheduler's
timestep by 1000, or does not. With K levels it is K/1000 of that."""

REVERSE = (
    "HiDreamImageTransformer2DModel",
    "Ideogram4Transformer2DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "MochiTransformer3DModel",
    "NucleusMoEImageTransformer2DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
)
"""Networks that read 1 − σ, or return data minus noise, or both."""

NEEDS = {
    "ChromaTransformer2DModel": ("txt_ids", "img_ids"),
    "FluxTransformer2DModel": ("pooled_projections", "txt_ids", "img_ids"),
    "SD3Transformer2DModel": ("pooled_projections",),
}
"""Arguments that a network needs although its signature has a default."""

PIPELINES = (
    "AuraFlowPipeline",
    "DDIMPipeline",
    "DDPMPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
)
"""Pipelines that draw a picture from noise and a condition alone."""

INPUTS = ("image", "mask", "control", "adapter", "pag_", "video", "frame", "audio", "box", "strength", "editing")
"""Parts of the names of inputs beside a prompt."""


def unwrap_adapters(model: Any) -> nn.Module:
    """Return the model under its adapters and its compilation, if it has any."""
    while True:
        inner = model._modules.get("_orig_mod") if isinstance(model, nn.Module) else None
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None:
            return model
        model = inner


def read_setting(thing: Any, name: str) -> Any:
    """Return an entry of ``thing.config``, or None."""
    config: Any = getattr(thing, "config", None)
    return config.get(name) if hasattr(config, "get") else getattr(config, name, None)


def flow_levels(model: Any, dynamic: bool, given: float | None, levels: int = 1000) -> float:
    """Return a flow network's timestep in units of σ; ``given`` for unknown networks.

    ``levels``: the scheduler's ``num_train_timesteps``, the unit of its pipeline's timestep.

    Raise RunError for a network that runs from data to noise, and for an unknown one without ``given``. Raise it too
    for an unknown one whose scheduler's shift depends on the picture (``dynamic``): each family has its own rule.
    """
    name = type(unwrap_adapters(model)).__name__
    if name in REVERSE:
        raise RunError(
            f"a {name} reads 1 − σ or returns data minus noise: wrap it in a module that reads levels · σ and returns "
            "noise minus data, and give levels="
        )
    if name in LEVELS:
        own = LEVELS[name] * levels / 1000
        if given not in (None, own):
            raise RunError(f"a {name} reads {own:g} · σ: levels={given} would be wrong, leave it out")
        return own
    if given is None or given <= 0:
        raise RunError(
            f"a {name} is not known: give its timestep, denoiser(net, scheduler, levels={levels}) for {levels} · σ or "
            f"levels={levels / 1000:g} for {levels / 1000:g} · σ (its pipeline then divides by 1000). Known: "
            f"{', '.join(LEVELS)}"
        )
    if dynamic:
        raise RunError(
            f"a {name} is not known, nor how its shift depends on the picture: give a scheduler with the shift s of "
            "your size, FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=False, shift=s)"
        )
    return given


def required_arguments(model: Any) -> tuple[str, ...]:
    """Return the required arguments of a network beside state, timestep and text."""
    base = unwrap_adapters(model)
    signature = inspect.signature(base.forward).parameters.items()
    found = [k for k, p in signature if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    found += NEEDS.get(type(base).__name__, ())
    if read_setting(base, "guidance_embeds"):
        found.append("guidance")
    sized = getattr(base, "use_additional_conditions", False)
    more = read_setting(base, "addition_embed_type") not in (None, "text")  # "text" reads the embeddings alone
    if sized or more or "image" in str(read_setting(base, "encoder_hid_dim_type")):
        found.append("added_cond_kwargs")
    if read_setting(base, "time_cond_proj_dim") is not None:
        found.append("timestep_cond")
    if getattr(base, "class_embedding", None) is not None:
        found.append("class_labels")
    return tuple(dict.fromkeys(k for k in found if k not in ("sample", "hidden_states", "timestep")))


def patch_size(model: Any, height: int, width: int, factor: int) -> int:
    """Return the side of a model's patches, 1 without them.

    ``factor``: pixels per number of the state. Raise RunError if a state of this size does not divide into patches, or
    has too many.
    """
    base = unwrap_adapters(model)
    patch, most = read_setting(base, "patch_size") or 1, read_setting(base, "pos_embed_max_size")
    if height % patch or width % patch:
        raise RunError(
            f"pictures of {height * factor} by {width * factor} pixels are cut by patches of {patch * factor}: give a "
            "size=(height, width) of multiples"
        )
    if most is not None and type(base).__name__ == "AuraFlowTransformer2DModel":
        most = math.isqrt(most)  # it counts all patches, not those of a side
    if most is not None and max(height, width) > most * patch:
        raise RunError(
            f"the model has positions of {most} by {most} patches, so size= is at most {most * patch * factor} "
            f"pixels per side: not {height * factor} by {width * factor}"
        )
    return patch


def network(pipeline: Any) -> Any:
    """Return a pipeline's unet or transformer. Raise RunError if it has neither."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise RunError(f"a {type(pipeline).__name__} has neither a unet nor a transformer: give a pipeline with one")


def check(pipeline: Any) -> None:
    """Raise RunError unless a pipeline is one of ``PIPELINES``, or a plain bundle of its parts."""
    name, model = type(pipeline).__name__, network(pipeline)
    foreign = callable(pipeline) and name not in PIPELINES
    extra = [part for part in ("controlnet", "adapter", "motion_adapter") if getattr(pipeline, part, None) is not None]
    if foreign:
        signature = inspect.signature(pipeline).parameters
        taken = [k for k in signature if "ip_adapter" not in k and not k.endswith("_per_prompt")]
        extra += [k for k in taken if any(word in k for word in INPUTS) and k not in extra]
    if read_setting(unwrap_adapters(model), "time_cond_proj_dim") is not None:
        extra.append("timestep_cond (guidance that its network was distilled with)")
    adapted = "image" in str(read_setting(unwrap_adapters(model), "encoder_hid_dim_type"))
    if adapted or getattr(unwrap_adapters(model), "image_proj", None) is not None:
        extra.append("ip_adapter_image (an IP-Adapter is loaded)")
    if extra:
        raise RunError(
            f"a {name} also takes {', '.join(extra)}, and a policy would ignore it: {_by_hand(pipeline)}, with this "
            "input in its condition"
        )
    if foreign:
        raise RunError(f"a {name} is not known here ({', '.join(PIPELINES)} are): {_by_hand(pipeline)}")


def _by_hand(pipeline: Any) -> str:
    kind = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    packs = hasattr(pipeline, "_pack_latents")
    more = ", tokens, fixed={'img_ids': ..., 'txt_ids': ...}" if packs else ""
    grid = " and steps_like(..., sigmas=torch.linspace(1, 1 / n, n)), which such pipelines serve" if packs else ""
    tokens = " (its latents are packed into tokens)" if packs else ""
    return f"build the policy by hand{tokens}, Policy.of with denoiser(pipeline.{kind}, pipeline.scheduler{more}){grid}"
