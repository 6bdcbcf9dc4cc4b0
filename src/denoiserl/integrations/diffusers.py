"""Models and pipelines of diffusers, unmodified: as denoisers, codecs and whole policies.

``denoiser(model, scheduler)`` wraps a UNet or a transformer. ``from_pipeline(pipeline)`` makes a policy of a loaded
text-to-image pipeline (latents through its autoencoder) or of a pixel-space one. ``prompts(pipeline, texts)`` encodes
text once; conditions are embeddings after that. No classifier-free guidance is applied: the conditional model itself is
sampled, scored and trained.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import tensors, tree_map
from denoiserl.integrations.families import check, fits, flow_levels, needs, network, plain, read_setting
from denoiserl.integrations.schedulers import convert, steps_like
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, Linear, Schedule, ddim, flow_sde
from denoiserl.processes.transition import Transition

INDEX = "index"
"""The part of a condition that only the reward reads: the number of a row's prompt."""


class Net(nn.Module):
    """A diffusers model as a raw network: times to its timesteps, a condition to its keyword arguments.

    ``flow``: the model reads ``levels`` · σ(t) (Kσ or Kσ/1000, see ``families.LEVELS``). Otherwise it reads the index t
    · levels − 1 of a discrete level, exact if t is one of them. A condition is one tensor (the model's
    ``encoder_hidden_states``, or the ``class_labels`` of a model without text) or a dict of the model's own arguments,
    batch first. ``fixed`` are arguments without a batch dimension, the same in every call (Flux's ``img_ids``).
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, levels: float, flow: bool, fixed: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        base = plain(model)
        known = list(inspect.signature(base.forward).parameters)
        self.state = next((name for name in ("sample", "hidden_states") if name in known), "")
        self.main = next((name for name in ("encoder_hidden_states", "class_labels") if name in known), "")
        if not self.state or "timestep" not in known:
            raise RunError(
                f"a {type(base).__name__} lacks the arguments (sample | hidden_states, timestep, ...): wrap it"
            )
        self.model, self.schedule, self.levels, self.flow = model.eval(), schedule, levels, flow
        self.needs = needs(model)
        self.known = [name for name in known if name not in (self.state, "timestep", "return_dict")]
        self.fixed = tensors(dict(fixed or {}))
        self._check(self.fixed)
        for name, value in self.fixed.items():
            self.register_buffer(f"fixed_{name}", value, persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """the constructor's arguments"""
        own = {"model": self.model, "schedule": self.schedule, "levels": self.levels, "flow": self.flow}
        return own | {"fixed": self.fixed}

    @property
    def dtype(self) -> torch.dtype:
        """the model's floating-point type"""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def _check(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.known:
                raise InvalidInputError(unknown_name_message(name, self.known, "condition of this model"))

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Return the model's keyword arguments, in its precision. Raise InvalidInputError for missing or
        unknown ones.
        """
        given = cond if isinstance(cond, dict) else {} if cond is None else {self.main: cond}
        self._check(given)
        if self.main == "encoder_hidden_states" and self.main not in given:
            raise InvalidInputError(
                "this model needs a condition: embeddings [B, tokens, features], or prompts(pipeline, texts)"
            )
        if missing := [name for name in self.needs if name not in given and name not in self.fixed]:
            raise InvalidInputError(
                f"a {type(plain(self.model)).__name__} also needs {', '.join(missing)}: give a dict of its arguments"
            )
        return tree_map(self._precise, given)

    def _precise(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InvalidInputError(f"a condition is a {type(value).__name__}: give tensors, batch first")
        return value.to(self.dtype) if value.is_floating_point() else value

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the model's timestep, [*t]."""
        if self.flow:
            return self.levels * self.schedule(t)[1]
        index = t * self.levels - 1
        near = index.round()
        return torch.where((index - near).abs() < 1e-3, near, index).clamp_min(0)

    def forward(self, x: Tensor, clock: Tensor, context: dict[str, Any] | None = None) -> Tensor:
        fixed = {name: getattr(self, f"fixed_{name}") for name in self.fixed}
        seen = {self.state: x.to(self.dtype), "timestep": clock.expand(len(x)), **fixed, **(context or {})}
        return self.model(**seen, return_dict=False)[0]


def denoiser(
    model: nn.Module,
    scheduler: Any,
    tokens: int | None = None,
    fixed: Mapping[str, Tensor] | None = None,
    levels: float | None = None,
) -> GaussianDenoiser:
    """Return an unmodified model, with the scheduler it was trained with, as the denoiser of a Gaussian process.

    ``levels``: the timestep of a flow model of an unknown class, in units of σ (1000 or 1 if the scheduler has 1000
    levels). Other models read the index of a level, and ``levels`` is the scheduler's. Raise RunError if it is unknown.
    """
    if not isinstance(model, nn.Module):
        raise RunError(f"a {type(model).__name__} is no network: give pipeline.unet or pipeline.transformer")
    convention = convert(scheduler, tokens)
    if convention.flow:
        levels = flow_levels(model, bool(scheduler.config.get("use_dynamic_shifting")), levels, convention.levels)
    elif levels not in (None, convention.levels):
        raise RunError(f"the scheduler has {convention.levels} levels: levels={levels} would be wrong, leave it out")
    net = Net(model, convention.schedule, levels or convention.levels, convention.flow, fixed)
    if hasattr(base := plain(model), "peft_config") and hasattr(base, "save_pretrained"):
        guard(base)
    return GaussianDenoiser(net, convention.schedule, convention.predicts).eval()


def guard(model: Any) -> None:
    """Make ``model.save_pretrained`` raise RunError while adapters are in the model."""
    own, layer = type(model).save_pretrained, require("peft.tuners.tuners_utils", "hub").BaseTunerLayer

    @functools.wraps(own)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(module, layer) for module in self.modules()):
            raise RunError(
                f"this {type(self).__name__} holds adapters, and no library reads its file with them: write the "
                "adapters alone, integrations.adapters.save_lora(policy, folder), or fold them into the weights "
                "first, integrations.adapters.merge(policy)"
            )
        return own(self, *args, **kwargs)

    model.save_pretrained = types.MethodType(save_pretrained, model)


def _seen(cond: Any) -> Any:
    """Return the part of a condition that the denoiser reads: all but the prompt's number."""
    if isinstance(cond, str | list | tuple):
        raise InvalidInputError("a condition is not text: encode texts first, prompts(pipeline, texts)")
    return {k: v for k, v in cond.items() if k != INDEX} or None if isinstance(cond, dict) else cond


@dataclass(frozen=True)
class PixelCodec:
    """Pictures in [0, 1], [B, C, H, W], to the [−1, 1] of pixel-space models."""

    def encode(self, data: Tensor) -> Tensor:
        """Convert [0, 1] to [−1, 1]."""
        return 2 * data - 1

    def decode(self, sample: Tensor) -> Tensor:
        """Convert [−1, 1] to [0, 1], clamped."""
        return (sample / 2 + 0.5).clamp(0, 1)

    def condition(self, cond: Any) -> Any:
        """Return the condition without the prompts' numbers."""
        return _seen(cond)

    def initial_state(self, cond: Any) -> None:
        """Return None: chains start from the prior."""
        return None


@dataclass(frozen=True, eq=False)
class VAECodec:
    """Pictures in [0, 1], [B, 3, H, W], to an autoencoder's latents: z = (encode(2x − 1) − shift) · scale.

    Encoding uses the mean of the autoencoder's posterior. It processes ``micro_batch_size`` pictures at a time, in
    float32 if it is float16 and its ``force_upcast`` is set.
    """

    vae: Any
    scale: float
    shift: float = 0.0
    micro_batch_size: int = 16

    def encode(self, data: Tensor) -> Tensor:
        """Convert pictures to latents."""
        latent = self._through(2 * data - 1, lambda v: self.vae.encode(v).latent_dist.mode().float())
        return (latent - self.shift) * self.scale

    def decode(self, sample: Tensor) -> Tensor:
        """Convert latents to pictures, clamped to [0, 1]."""
        latent = sample / self.scale + self.shift
        return self._through(latent, lambda v: (self.vae.decode(v, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1))

    def _through(self, data: Tensor, call: Any) -> Tensor:
        weight = next(self.vae.parameters())
        if weight.device != data.device:  # moving a policy does not move this module
            self.vae.to(data.device)
        upcast = weight.dtype == torch.float16 and bool(read_setting(plain(self.vae), "force_upcast"))
        try:  # such an autoencoder overflows in float16, so its pipeline uses float32
            dtype = next((self.vae.float() if upcast else self.vae).parameters()).dtype
            return torch.cat([call(part) for part in data.to(dtype).split(self.micro_batch_size)])
        finally:
            if upcast and not (torch.is_grad_enabled() and data.requires_grad):  # the backward pass needs it in float32
                self.vae.half()

    def condition(self, cond: Any) -> Any:
        """Return the condition without the prompts' numbers."""
        return _seen(cond)

    def initial_state(self, cond: Any) -> None:
        """Return None: chains start from the prior."""
        return None


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
    channels, answers = read_setting(plain(model), "in_channels"), read_setting(plain(model), "out_channels")
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
    factor = 1 if vae is None else 2 ** (len(read_setting(plain(vae), "block_out_channels")) - 1)
    side = read_setting(plain(model), "sample_size") if size is None else [_divided(v, factor) for v in size]
    if side is None:
        raise RunError("the model's config has no picture size: give size=(height, width) in pixels")
    height, width = (side, side) if isinstance(side, int) else side
    patch = fits(model, height, width, factor)
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
    name, scale = type(plain(vae)).__name__, read_setting(plain(vae), "scaling_factor")
    if name != "AutoencoderKL" or scale is None or not read_setting(plain(vae), "block_out_channels"):
        raise RunError(f"a {name} is no AutoencoderKL: build the policy by hand, with a codec of its encode and decode")
    if read_setting(plain(vae), "latents_mean") is not None:
        raise RunError(
            "the autoencoder shifts every channel of its latents (latents_mean): write a codec that does this too"
        )
    vae.eval().requires_grad_(False)
    return VAECodec(vae, float(scale), float(read_setting(plain(vae), "shift_factor") or 0.0))


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
            f"the text encoding of a {name} is not supported: pass its {type(plain(model)).__name__}'s own arguments "
            f"as a dict of tensors instead{hint}"
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
