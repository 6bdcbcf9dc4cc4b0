"""Pseudo-counts: how often something like this was seen, read from a network that learned to flip coins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.nn.mlp import MLP


def coin_flip_targets(n: int, coins: int, seed: int = 0) -> Tensor:
    """The random signs of data 0 ... n − 1, [n, coins]: those of datum i depend on (seed, i) alone."""
    begin = seed * 2_147_483_647
    return 2.0 * Rng.rows(range(begin, begin + n)).integers(0, 2, n, coins) - 1.0


class CoinFlipNetwork(nn.Module):
    """The coin-flipping network (Lobel et al., 2306.03186): features [B, features] to [B, coins].

        f(φ) = g(γ z) + (h(γ z) − mean h) / std h,    z = (φ − centre) / scale

    g learns, by squared error, the random signs of every datum (``flips``); h is the same network at another
    initialisation, frozen, and standardised on the data. Where equal features came n times, the best answer is the mean
    of n signs a coin, and E f² = 1/n; g starts at 0, so what was never seen has E f² ≈ 1. Between data the count is
    a smoothed density: rank by it, and do not read it as a number. γ is ``gain``: how near is near.
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
        """Fit the two standardisations to data [N, features]; numbers that never change are left out of z."""
        if len(features) < 2 or not bool(features.isfinite().all()):
            raise InvalidInputError(f"counting needs two data or more, all finite; there are {len(features)}")
        scale = features.std(0, correction=0)
        self.centre.copy_(features.mean(0))
        self.scale.copy_(torch.where(scale > 1e-6 * features.abs().amax(0).clamp_min(1.0), scale, torch.inf))
        if not bool(self.scale.isfinite().any()):
            raise InvalidInputError("all data have the same features: nothing tells frequent from rare")
        self.mean.zero_()
        self.std.fill_(1.0)
        answer = self._frozen(self._inside(features))
        self.mean.copy_(answer.mean(0))
        self.std.copy_(answer.std(0, correction=0).clamp_min(1e-6))

    def _inside(self, features: Tensor) -> Tensor:
        return self.gain * (features - self.centre) / self.scale

    def _frozen(self, z: Tensor) -> Tensor:
        return (self.prior(z, self.prior.embed_time(z.new_zeros(len(z)))) - self.mean) / self.std

    def forward(self, features: Tensor) -> Tensor:
        z = self._inside(features)
        return self.learned(z, self.learned.embed_time(z.new_zeros(len(z)))) + self._frozen(z)

    def count(self, features: Tensor) -> Tensor:
        """The pseudo-count, coins / ‖f‖², [B]."""
        return self.coins / self(features).square().sum(-1)
