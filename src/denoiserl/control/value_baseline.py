"""A state-value critic as a baseline: GAE over decisions from scaled rewards, and its own regression."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from denoiserl.control.acting import AdvantageEstimate, critic_features, estimate_advantages
from denoiserl.core.rng import Rng
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.envs.reward_scale import RewardScale
from denoiserl.losses import half_squared_error
from denoiserl.nn import Value
from denoiserl.policy.policy import Policy
from denoiserl.train import adamw, check_optimizer_covers, optimizer_step


class ValueBaseline:
    """V(s), its optimiser and the running scale of rewards.

        δ_t = r_t/σ + γ^n V(s_{t+1}) − V(s_t),   Â_t = Σ (γ^n λ)^i δ_{t+i},   L = ½ (V(s_t) − (Â_t + V(s_t)))²

    ``gamma`` is the discount per environment step, n the steps of a decision, σ the running std of returns. V sees the
    policy's conditions (see ``control.acting.critic_features``). Save it with the run: it has ``state_dict``.
    """

    def __init__(
        self,
        policy: Policy,
        env: Collector,
        lr: float,
        gamma: float,
        gae_lambda: float,
        rng: Rng,
        max_grad_norm: float = 1.0,
        width: int = 256,
    ) -> None:
        self.gamma, self.gae_lambda, self.max_grad_norm = gamma, gae_lambda, max_grad_norm
        self.features, size = critic_features(policy, env)
        self.net, self.scale = rng.init(Value, size, width=width).to(policy.device), RewardScale()
        self.optimizer = adamw(self.net.parameters(), lr)
        check_optimizer_covers(self.optimizer, self.net)

    def estimate(self, rollout: Rollout) -> AdvantageEstimate:
        """Return advantages [T, B], values [T, B], and the returns [T·B] that values are fitted to."""
        return estimate_advantages(rollout, self.net, self.features, self.scale, self.gamma, self.gae_lambda)

    def update(self, estimate: AdvantageEstimate, index: Tensor) -> float:
        """Take a gradient step on the decisions ``index`` of [T·B]; return the loss."""
        error = half_squared_error(self.net(estimate.features[index]), estimate.returns[index]).mean()
        return optimizer_step(self.optimizer, error, clip=self.max_grad_norm)["loss"]

    def on_checkpoint(self, iteration: int) -> None:
        """Reset the running returns: the environments start afresh here."""
        self.scale.on_checkpoint(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run goes on from."""
        parts = {"net": self.net, "optimizer": self.optimizer, "scale": self.scale}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in ("net", "optimizer", "scale"):
            getattr(self, name).load_state_dict(state[name])
