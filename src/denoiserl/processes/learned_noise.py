"""A denoiser with learned exploration noise for training, used by ``with_learned_std()`` transitions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.precision import run_in_precision
from denoiserl.processes.denoiser import Denoiser, Estimate


class NoiseInjectedDenoiser(Denoiser):
    """``denoiser``, with a learned std of each number of a step in ``extra["std"]`` (ReinFlow, 2505.22094).

        log σ = log least + ½ (1 + tanh f(x, t, c)) (log most − log least)

    so σ lies between ``least`` > 0 and ``most``, and every step of a ``with_learned_std()`` transition has a density.
    ``noise`` is the network f, with outputs shaped like the state; an output of 0 starts σ at √(least · most).
    ``denoiser`` is not copied: training changes it in place, and it is evaluated without the noise.
    ``most`` may be lowered between chains, never between drawing a chain and scoring it.
    """

    def __init__(self, denoiser: Denoiser, noise: nn.Module, least: float, most: float) -> None:
        super().__init__()
        if not 0 < least <= most:
            raise InvalidInputError(f"exploration noise needs 0 < least <= most, not least={least} and most={most}")
        self.denoiser, self.noise, self.least, self.most = denoiser, noise, least, most

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"denoiser": self.denoiser, "noise": self.noise, "least": self.least, "most": self.most}

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Return the embeddings of both networks; of pictures, the noise network gets the denoiser's features."""
        features = getattr(getattr(self.denoiser, "net", None), "features", None)
        seen = cond if features is None or isinstance(cond, Tensor) else features(cond).detach()
        own = self.noise.embed_condition(seen) if hasattr(self.noise, "embed_condition") else seen  # type: ignore[operator]
        return {"mean": self.denoiser.embed_condition(cond), "noise": own}

    def embed_time(self, t: Tensor) -> dict[str, Any]:
        """Return the embeddings of both networks."""
        own = self.noise.embed_time(t) if hasattr(self.noise, "embed_time") else t  # type: ignore[operator]
        return {"mean": self.denoiser.embed_time(t), "noise": own}

    def forward(self, x: Tensor, clock: dict[str, Any], context: dict[str, Any]) -> Estimate:
        """Return the denoiser's estimate with its std."""
        estimate = self.denoiser(x, clock["mean"], context["mean"])
        share = 0.5 * (1 + run_in_precision(self.noise, x, clock["noise"], context["noise"]).float().tanh())
        if share.shape != x.shape:
            raise InvalidInputError(f"the noise network returns {tuple(share.shape)} for a state of {tuple(x.shape)}")
        std = self.least * (self.most / self.least) ** share
        return Estimate(estimate.mean, {**estimate.extra, "std": std})
