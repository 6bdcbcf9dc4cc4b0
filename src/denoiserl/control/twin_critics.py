"""State-action critics with Polyak targets and their optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.rng import Rng, as_rng
from denoiserl.losses import half_squared_error
from denoiserl.nn import Critics, polyak_update, target_copy
from denoiserl.train import adamw, check_optimizer_covers, optimizer_step


class TwinCritics:
    """Q₁ ... Q_n(s, a), target networks that follow them, and the regression to a TD target.

        L = Σ_i mean ½ (Q_i(s, a) − y)²,   θ̄ ← (1 − τ) θ̄ + τ θ

    Conditions are the critics' features of a state [B, o]; actions are [B, H, d]. The caller computes the TD target y
    [B], which differs between methods. Save it with the run: it has ``state_dict``.
    """

    def __init__(
        self,
        obs_dim: int,
        action_shape: Sequence[int],
        lr: float,
        tau: float,
        rng: Rng | int,
        device: torch.device | str = "cpu",
        num_critics: int = 2,
        width: int = 256,
        max_grad_norm: float | None = None,
        **more: Any,
    ) -> None:
        rng = as_rng(rng)
        self.tau, self.max_grad_norm = tau, max_grad_norm
        self.net = rng.init(Critics, obs_dim, tuple(action_shape), num_critics, width, **more).to(device)
        self.target_net = target_copy(self.net)
        self.optimizer = adamw(self.net.parameters(), lr)
        check_optimizer_covers(self.optimizer, self.net)

    def __call__(self, cond: Tensor, action: Tensor) -> Tensor:
        """Return the values of all critics, [n, B]; differentiable."""
        return self.net(cond, action)

    @torch.no_grad()
    def target(self, cond: Tensor, action: Tensor) -> Tensor:
        """Return the values of the target networks, [n, B]."""
        return self.target_net(cond, action)

    def td_update(self, cond: Tensor, action: Tensor, td_target: Tensor) -> dict[str, float]:
        """Take a gradient step towards the TD target [B]; return the critic loss and the mean value before it."""
        value = self.net(cond, action)
        loss = half_squared_error(value, td_target.expand(len(value), -1)).sum(0).mean()
        loss = optimizer_step(self.optimizer, loss, self.max_grad_norm)["loss"]
        return {"loss/critic": loss, "q/data": float(value.detach().mean())}

    def update_target(self) -> None:
        """Move the target networks by ``tau`` towards the critics."""
        polyak_update(self.target_net, self.net, self.tau)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a run."""
        parts = {"net": self.net, "target_net": self.target_net, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of ``state_dict``."""
        for name in ("net", "target_net", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
