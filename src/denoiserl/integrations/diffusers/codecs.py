"""Codecs of pictures: the range of pixel-space models, and an autoencoder's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.integrations.families import read_setting, unwrap_adapters

INDEX = "index"
"""The part of a condition that only the reward reads: the number of a row's prompt."""


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
        upcast = weight.dtype == torch.float16 and bool(read_setting(unwrap_adapters(self.vae), "force_upcast"))
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
