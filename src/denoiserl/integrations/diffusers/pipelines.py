"""Whole pipelines as policies: the model, the levels and times of its scheduler, and its autoencoder as the codec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.integrations.diffusers.codecs import INDEX, PixelCodec, VAECodec
from denoiserl.integrations.diffusers.network import denoiser
from denoiserl.integrations.families import check, network, patch_size, read_setting, unwrap_adapters
from denoiserl.integrations.schedulers import convert, steps_like
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, Linear, ddim, flow_sde
from denoiserl.processes.transition import Transition


def from_pipeline(
    pipeline: Any, n: int = 20, size: tuple[int, int] | None = None, transition: Transition | None = None
) -> Policy:
    """Return a policy of a pipeline: its model, its scheduler's levels and n times, its autoencoder as the codec.

    ``size``: (height, width) of the pictures in pixels, by default the model's. Training samples with ``transition``
    (default: the exact posterior ``ddim(1.0)``, or ``flow_sde()`` for flows); ``generate`` uses the ODE. Text encoders
    are not included: see ``prompts``. Raise RunError for a pipeline whose class is not in ``families.PIPELINES``, for
    inputs that a policy would ignore, and for a scheduler that clips latents.
    """
    check(pipeline)
    model, vae = network(pipeline), getattr(pipeline, "vae", None)
    channels, answers = (
        read_setting(unwrap_adapters(model), "in_channels"),
        read_setting(unwrap_adapters(model), "out_channels"),
    )
    if channels is None or answers not in (None, channels):
        raise RunError(
            f"the model reads {channels} channels and returns {answers}: models that also read a mask or a picture, or "
            "that predict their variance, need a wrapper that returns as many as it reads"
        )
    if size is not None and not (
        isinstance(size, Sequence) and [type(v) for v in size] == [int, int] and min(size) > 0
    ):
        raise RunError(f"size={size!r} is no size: give (height, width) in pixels, two whole numbers")
    codec = _codec(vae)
    factor = 1 if vae is None else 2 ** (len(read_setting(unwrap_adapters(vae), "block_out_channels")) - 1)
    side = read_setting(unwrap_adapters(model), "sample_size") if size is None else [_divided(v, factor) for v in size]
    if side is None:
        raise RunError("the model's config has no picture size: give size=(height, width) in pixels")
    height, width = (side, side) if isinstance(side, int) else side
    patch = patch_size(model, height, width, factor)
    tokens = (height // patch) * (width // patch)
    scheduler = getattr(pipeline, "scheduler", None)
    convention = convert(scheduler, tokens)
    if convention.clip is not None and vae is not None:
        raise RunError(
            f"the scheduler clips x̂₀ to ±{convention.clip:g}, which is for pixels, not latents: give the pipeline "
            f"{type(scheduler).__name__}.from_config(pipeline.scheduler.config, clip_sample=False)"
        )
    kind = transition or (flow_sde() if isinstance(convention.schedule, Linear) else ddim(1.0))
    process = Diffusion(convention.schedule, kind, convention.clip, clip_noise=convention.clip_noise)
    train = steps_like(scheduler, process, n)
    serve = steps_like(scheduler, process, n, ddim(0.0))
    return Policy.of(process, denoiser(model, scheduler, tokens), (channels, height, width), train, serve, codec)


def _divided(pixels: int, factor: int) -> int:
    if pixels % factor:
        raise RunError(
            f"{pixels} pixels are no multiple of {factor}, by which the autoencoder divides sizes: give a multiple"
        )
    return pixels // factor


def _codec(vae: Any) -> PixelCodec | VAECodec:
    if vae is None:
        return PixelCodec()
    name, scale = type(unwrap_adapters(vae)).__name__, read_setting(unwrap_adapters(vae), "scaling_factor")
    if name != "AutoencoderKL" or scale is None or not read_setting(unwrap_adapters(vae), "block_out_channels"):
        raise RunError(f"a {name} is no AutoencoderKL: build the policy by hand, with a codec of its encode and decode")
    if read_setting(unwrap_adapters(vae), "latents_mean") is not None:
        raise RunError(
            "the autoencoder shifts every channel of its latents (latents_mean): write a codec that does this too"
        )
    vae.eval().requires_grad_(False)
    return VAECodec(vae, float(scale), float(read_setting(unwrap_adapters(vae), "shift_factor") or 0.0))


@torch.no_grad()
def prompts(pipeline: Any, texts: Iterable[str]) -> dict[str, Tensor]:
    """Return texts as conditions: the model's embeddings, and the number of the text in ``index``.

    Recipes draw rows of this tree. A reward finds its text by ``prompts["index"]``, which the denoiser does not read.
    Supported are ``StableDiffusionPipeline`` and ``StableDiffusion3Pipeline``. Raise RunError for others, whose models
    take other arguments: pass a dict of those, batch first, as the condition.
    """
    texts = [*texts] if isinstance(texts, Iterable) and not isinstance(texts, str) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError("prompts must be a list of texts, one per row")
    name, model = type(pipeline).__name__, network(pipeline)
    if name not in ("StableDiffusionPipeline", "StableDiffusion3Pipeline"):
        hint = ""
        if name == "StableDiffusionXLPipeline":
            hint = ": encoder_hidden_states, and added_cond_kwargs with text_embeds [B, D] and time_ids [B, 6]"
        raise RunError(
            f"the text encoding of a {name} is not supported: pass the own arguments of its "
            f"{type(unwrap_adapters(model)).__name__} as a dict of tensors instead{hint}"
        )
    pooled = name == "StableDiffusion3Pipeline"
    given: dict[str, Any] = {"prompt_2": None, "prompt_3": None} if pooled else {}
    given |= {"device": next(model.parameters()).device, "num_images_per_prompt": 1}
    parts = pipeline.encode_prompt([str(text) for text in texts], do_classifier_free_guidance=False, **given)
    named = {"encoder_hidden_states": parts[0]} | ({"pooled_projections": parts[2]} if pooled else {})
    return {**named, INDEX: torch.arange(len(texts), device=parts[0].device)}


def load(path: str | Path, pipeline: Any, model: nn.Module | None = None) -> Policy:
    """Load a policy saved by ``policy.save(path)``, around the model and the autoencoder of a pipeline.

    ``model``: by default the pipeline's; pass the one with adapters if the policy had them. Trained weights are copied
    into it.
    """
    net = network(pipeline) if model is None else model
    return Policy.load(path, net, next(net.parameters()).device, getattr(pipeline, "vae", None))
