"""Critics of decisions, target networks, and the temperature of an entropy bonus."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoiserl.core.averages import update_average
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.nn.embed import Shape, check_event_shape, nonlinearity, shape

Net = TypeVar("Net", bound=nn.Module)


class Critics(nn.Module):
    """``count`` critics of (condition [B, *cond], decision [B, *action]): values [count, B].

    Independent perceptrons, evaluated together: weights are [count, in, out], so ten need as many calls as one. Two
    and their minimum are the twin critics of TD3 (1802.09477) and SAC (1812.05905). ``layer_norm`` before each
    activation keeps many updates per step stable (RLPD, 2302.02948).
    """

    def __init__(
        self,
        cond: Shape,
        action: Shape,
        count: int = 2,
        width: int = 256,
        depth: int = 2,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.cond, self.action = shape(cond), shape(action)
        shape((count, width, depth))
        self.config = {
            "cond": self.cond, "action": self.action, "count": count, "width": width, "depth": depth,
            "activation": activation, "layer_norm": layer_norm,
        }  # fmt: skip
        self.act, self.layer_norm = nonlinearity(activation), layer_norm
        sizes = [math.prod(self.cond) + math.prod(self.action)] + [width] * depth + [1]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(_uniform(count, a, b, a) for a, b in pairs)
        self.biases = nn.ParameterList(_uniform(count, 1, b, a) for a, b in pairs)
        scaled = [width] * depth if layer_norm else []
        self.scales = nn.ParameterList(torch.ones(count, 1, n) for n in scaled)
        self.shifts = nn.ParameterList(torch.zeros(count, 1, n) for n in scaled)

    def forward(self, cond: Tensor, action: Tensor) -> Tensor:
        check_event_shape(cond, self.cond)
        check_event_shape(action, self.action)
        h = torch.cat([cond.flatten(1), action.flatten(1)], -1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i < last and self.layer_norm:
                h = torch.addcmul(self.shifts[i], F.layer_norm(h, h.shape[-1:]), self.scales[i])
            h = self.act(h) if i < last else h
        return h.squeeze(-1)


def _uniform(count: int, rows: int, columns: int, fan: int) -> nn.Parameter:
    """Return parameters uniform within ±1/√fan-in, torch's initialisation of linear layers."""
    return nn.Parameter(torch.empty(count, rows, columns).uniform_(-1, 1) / math.sqrt(fan))


class Temperature(nn.Module):
    """The temperature α of an entropy bonus, learned so that the policy's entropy settles at a target (1812.05905).

        α = α_min + exp θ,   loss = −α (log π + H̄): the gradient raises α while the entropy is below H̄

    ``min_temperature`` keeps the policy exploring if α would fall to 0 before the critic has learned.
    """

    def __init__(self, start: float = 1.0, min_temperature: float = 0.0) -> None:
        super().__init__()
        if not 0 <= min_temperature < start:
            raise RunError(
                f"a temperature starts above its floor: 0 <= min_temperature < start, not {min_temperature} and {start}"
            )
        self.config = {"start": start, "min_temperature": min_temperature}
        self.min_temperature, self.log = min_temperature, nn.Parameter(torch.tensor(math.log(start - min_temperature)))

    @property
    def alpha(self) -> Tensor:
        """Return α, detached."""
        return self.min_temperature + self.log.detach().exp()

    def loss(self, log_prob: Tensor, target: float) -> Tensor:
        """Return −α (log π + H̄) per element of ``log_prob``. Raise InvalidInputError if that requires a gradient."""
        if log_prob.requires_grad:
            raise InvalidInputError("log_prob is a constant of the temperature's loss but has a gradient: detach it")
        return -(self.min_temperature + self.log.exp()) * (log_prob + target)


def target_copy(net: Net) -> Net:
    """Return a frozen copy of a network, the initial target network."""
    made = copy.deepcopy(net)
    return made.requires_grad_(False)


def polyak_update(target: nn.Module, net: nn.Module, tau: float) -> None:
    """Update θ̄ ← (1 − τ) θ̄ + τ θ in place (Polyak averaging); τ = 1 copies."""
    update_average(dict(target.named_parameters()), dict(net.named_parameters()), tau, {})


@contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Let gradients pass through ``nets``, but not to their parameters: for an actor's loss through a critic."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
