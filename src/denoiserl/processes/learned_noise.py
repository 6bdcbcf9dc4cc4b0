"""A denoiser with learned exploration noise for training, used by ``with_learned_std()`` transitions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.precision import run_in_precision
from denoiserl.processes.denoiser import Denoiser, Estimate


class NoiseInjectedDenoiser(Denoiser):
    """``denoiser``, with a learned std of each number of a step in ``extra["std"]`` (ReinFlow, 2505.22094).

        log σ = log min_std + ½ (1 + tanh f(x, t, c)) (log max_std − log min_std)

    so σ lies between ``min_std`` > 0 and ``max_std``, and every step of a ``with_learned_std()`` transition has a
    density. ``noise`` is the network f, with outputs shaped like the state; an output of 0 starts σ at
    √(min_std · max_std). ``denoiser`` is not copied: training changes it in place, and it is evaluated without the
    noise.
    ``max_std`` may be lowered between chains, never between drawing a chain and scoring it.
    """

    def __init__(self, denoiser: Denoiser, noise: nn.Module, min_std: float, max_std: float) -> None:
        super().__init__()
        if not 0 < min_std <= max_std:
            raise InvalidInputError(
                f"exploration noise needs 0 < min_std <= max_std, not min_std={min_std} and max_std={max_std}"
            )
        self.denoiser, self.noise, self.min_std, self.max_std = denoiser, noise, min_std, max_std

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"denoiser": self.denoiser, "noise": self.noise, "min_std": self.min_std, "max_std": self.max_std}

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
        std = self.min_std * (self.max_std / self.min_std) ** share
        return Estimate(estimate.mean, {**estimate.extra, "std": std})
