"""A denoiser with learned exploration noise beside it, while it learns: what ``with_learned_std()`` steps draw with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from denoiserl.core.precision import run_in_precision
from denoiserl.processes.denoiser import Denoiser, Estimate


class NoiseInjectedDenoiser(Denoiser):
    """``denoiser``, and how far each number of a step may stray from its answer: ``extra["std"]`` (2505.22094).

        log σ = log least + ½ (1 + tanh f(x, t, c)) (log most − log least)

    so σ lies between ``least`` > 0 and ``most``, and every step of an ``with_learned_std()`` transition has a density.
    ``noise`` is the network f, one number for each of the state; one that answers 0 starts σ at √(least · most).
    ``denoiser`` is not copied: what is learned here is learned there, and it is served without the noise.
    ``most`` may be lowered between chains, never between drawing one and scoring it.
    """

    def __init__(self, denoiser: Denoiser, noise: nn.Module, least: float, most: float) -> None:
        super().__init__()
        if not 0 < least <= most:
            raise ValueError(f"exploration noise needs 0 < least <= most, not least={least} and most={most}")
        self.denoiser, self.noise, self.least, self.most = denoiser, noise, least, most

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"denoiser": self.denoiser, "noise": self.noise, "least": self.least, "most": self.most}

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """What each of the two needs of the condition; of pictures, the noise net sees the points."""
        looks = getattr(getattr(self.denoiser, "net", None), "features", None)
        seen = cond if looks is None or isinstance(cond, Tensor) else looks(cond).detach()
        own = self.noise.embed_condition(seen) if hasattr(self.noise, "embed_condition") else seen  # type: ignore[operator]
        return {"mean": self.denoiser.embed_condition(cond), "noise": own}

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """What each of the two needs of the times."""
        own = self.noise.embed_time(t) if hasattr(self.noise, "embed_time") else t  # type: ignore[operator]
        return {"mean": self.denoiser.embed_time(t), "noise": own}

    def forward(self, x: Tensor, clock: dict[str, Any], context: dict[str, Any]) -> Estimate:
        """The denoiser's estimate, with its std."""
        estimate = self.denoiser(x, clock["mean"], context["mean"])
        share = 0.5 * (1 + run_in_precision(self.noise, x, clock["noise"], context["noise"]).float().tanh())
        if share.shape != x.shape:
            raise ValueError(f"the noise net answers {tuple(share.shape)} for a state of {tuple(x.shape)}")
        std = self.least * (self.most / self.least) ** share
        return Estimate(estimate.mean, {**estimate.extra, "std": std})
