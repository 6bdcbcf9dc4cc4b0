"""Pseudo-counts of similar data, from a coin-flipping network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.nn.mlp import MLP


def coin_flip_targets(n: int, coins: int, seed: int = 0) -> Tensor:
    """Draw the random signs of data 0 ... n − 1, [n, coins]: those of datum i depend on (seed, i) alone."""
    begin = seed * 2_147_483_647
    return 2.0 * Rng.rows(range(begin, begin + n)).integers(0, 2, n, coins) - 1.0


class CoinFlipNetwork(nn.Module):
    """The coin-flipping network (Lobel et al., 2306.03186): features [B, features] to [B, coins].

        f(φ) = g(γ z) + (h(γ z) − mean h) / std h,    z = (φ − centre) / scale

    g learns the random signs of every datum (``coin_flip_targets``) by squared error. h is the same network at another
    initialisation. It is frozen, and standardised on the data. If equal features occur n times, the best f is the mean
    of n signs per coin. Then E f² = 1/n. At the start g is 0, so data that never occurred have E f² ≈ 1. Between data
    the count is a smoothed density: use it for ranking only. γ is ``gain``: larger values make the count more local.
    """

    centre: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, features: int, coins: int = 20, width: int = 256, depth: int = 3, gain: float = 1.0) -> None:
        super().__init__()
        self.config = {"features": features, "coins": coins, "width": width, "depth": depth, "gain": gain}
        self.coins, self.gain = coins, gain
        self.learned = MLP(features, width=width, depth=depth, time=0, out=coins, zero=True)
        self.prior = MLP(features, width=width, depth=depth, time=0, out=coins).requires_grad_(False)
        for name, value in (("centre", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((features,), value))
        for name, value in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((coins,), value))

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Fit the two standardisations to data [N, features]; constant features are left out of z.

        Raise InvalidInputError if there are fewer than two rows, or all features are constant.
        """
        if len(features) < 2 or not bool(features.isfinite().all()):
            raise InvalidInputError(f"counting needs two data or more, all finite; there are {len(features)}")
        scale = features.std(0, correction=0)
        self.centre.copy_(features.mean(0))
        self.scale.copy_(torch.where(scale > 1e-6 * features.abs().amax(0).clamp_min(1.0), scale, torch.inf))
        if not bool(self.scale.isfinite().any()):
            raise InvalidInputError("all data have the same features, so counts are equal: use features that differ")
        self.mean.zero_()
        self.std.fill_(1.0)
        prior = self._frozen(self._inside(features))
        self.mean.copy_(prior.mean(0))
        self.std.copy_(prior.std(0, correction=0).clamp_min(1e-6))

    def _inside(self, features: Tensor) -> Tensor:
        return self.gain * (features - self.centre) / self.scale

    def _frozen(self, z: Tensor) -> Tensor:
        return (self.prior(z, self.prior.embed_time(z.new_zeros(len(z)))) - self.mean) / self.std

    def forward(self, features: Tensor) -> Tensor:
        z = self._inside(features)
        return self.learned(z, self.learned.embed_time(z.new_zeros(len(z)))) + self._frozen(z)

    def count(self, features: Tensor) -> Tensor:
        """Return the pseudo-count, coins / ‖f‖², [B]."""
        return self.coins / self(features).square().sum(-1)
