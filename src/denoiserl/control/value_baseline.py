"""A state-value critic as a baseline: GAE over decisions from scaled rewards, and its own regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.advantages import gae
from denoiserl.control.acting import AdvantageEstimate, to_device, zero_observation
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, tree_map
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.envs.reward_scale import RewardScale
from denoiserl.losses import half_squared_error
from denoiserl.nn import Value
from denoiserl.policy.policy import Policy
from denoiserl.train import adamw, check_optimizer_covers, optimizer_step


def critic_features(policy: Policy, env: Collector) -> tuple[Callable[[Tree], Tensor], int]:
    """Return the feature function of this policy's critics, features(obs) -> [B, o], and its output size.

    Flat conditions are used as they are. Image features come from a frozen copy of the policy's encoder (its
    ``features``), because a critic cannot track features that keep changing.
    """
    frozen: list[Any] = []

    @torch.no_grad()
    def see(obs: Tree) -> Tensor:
        cond = policy.codec.condition(to_device(obs, policy))
        if isinstance(cond, Tensor):
            return cond
        if not frozen:
            net = getattr(policy.weights.snapshot("base"), "net", None)
            if not hasattr(net, "features"):
                raise InvalidInputError(
                    "this policy's observations are not flat, and its network has no features(cond) -> [B, o], which "
                    "critics need: add it, as in nn.vision"
                )
            frozen.append(net)
        return frozen[0].features(cond).float()

    return see, see(zero_observation(env.spec.obs)).shape[-1]


def estimate_advantages(
    ep: Rollout,
    value: nn.Module,
    features_fn: Callable[[Tree], Tensor],
    scale: RewardScale,
    gamma: float,
    lam: float,
) -> AdvantageEstimate:
    """Return GAE over the decisions of a rollout, from scaled rewards; ``gamma``: discount per environment step.

    ``features_fn``: see ``critic_features``. A chunk of n steps is discounted by γⁿ. The critic's target is Â + v. A
    time limit stops the sum and bootstraps from the value of the true successor; a true end does not bootstrap.
    """
    device = next(value.parameters()).device
    seen, after = (features_fn(tree_map(lambda v: v.flatten(0, 1), o)) for o in (ep.obs, ep.next_obs))
    with torch.no_grad():
        v, after_v = (value(o).unflatten(0, ep.reward.shape) for o in (seen, after))
    reward = scale(ep.reward, gamma ** ep.num_executed.float(), ep.done, ep.valid).to(device)
    advantages = gae(reward, ep.discount(gamma).to(device), v, after_v, ep.done.to(device), lam)
    return AdvantageEstimate(seen, v, advantages, (advantages + v).flatten())


class ValueBaseline:
    """V(s), its optimiser and the running scale of rewards.

        δ_t = r_t/σ + γ^n V(s_{t+1}) − V(s_t),   Â_t = Σ (γ^n λ)^i δ_{t+i},   L = ½ (V(s_t) − (Â_t + V(s_t)))²

    ``gamma`` is the discount per environment step, n the steps of a decision, σ the running std of returns. V sees the
    policy's conditions: ``features``, by default ``critic_features(policy, env)``. Save it with the run:
    it has ``state_dict``.
    """

    def __init__(
        self,
        policy: Policy,
        env: Collector,
        lr: float,
        gamma: float,
        gae_lambda: float,
        rng: Rng | int,
        max_grad_norm: float = 1.0,
        width: int = 256,
        features: tuple[Callable[[Tree], Tensor], int] | None = None,
    ) -> None:
        rng = as_rng(rng, policy.device)
        self.gamma, self.gae_lambda, self.max_grad_norm = gamma, gae_lambda, max_grad_norm
        self.features, size = features or critic_features(policy, env)
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
        """Reset the running returns: the environments are reset here."""
        self.scale.on_checkpoint(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a run."""
        parts = {"net": self.net, "optimizer": self.optimizer, "scale": self.scale}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of ``state_dict``."""
        for name in ("net", "optimizer", "scale"):
            getattr(self, name).load_state_dict(state[name])
