"""Tasks: something to get better at, for every method of a kind.

A task says where a policy starts, which signals it offers and how a policy is evaluated on held-out trials. It knows
no method. Methods that learn from one kind of signal have the same call, so ``run``, ``compare`` and ``claim`` use any
of them on any task that offers the signal. A task of yours is a function in a file of yours:

    def make_task() -> Task:
        return Task("reach", starts=start, outcomes=outcomes, metrics={"success": ("goals reached", "%")},
                    env=lambda copies, seed: Collector(Reach, copies, seed))
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.core.counters import no_usage_counting
from denoiserl.core.errors import RunError, unknown_name_message
from denoiserl.core.tree import Tree
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.rewards import Reward, RewardSignal
from denoiserl.train import Run

Start = Callable[[int, Run], Policy | Generator[dict, None, Policy]]
"""``start(seed, keep)``: a policy, or a generator that trains one, yields rows of metrics and returns it"""

OFFERS = {"env": ("env",), "reward": ("reward", "prompts"), "pairs": ("pairs",), "data": ("data",)}
"""the parts of a task that make up each kind of signal"""


def means(told: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the trials that have such a number; metrics without any are left out."""
    return {name: float(v.float().nanmean()) for name, v in told.items() if not bool(v.isnan().all())}


@dataclass(frozen=True)
class Task:
    """Signals to learn from, a policy to start from, and held-out trials.

    ``starts``: where a policy starts, or several kinds of it by name, the first being the default ("diffusion",
    "gaussian", ...: methods that need one say so). ``outcomes(policy, seed, n)``: {metric: [n]} of n held-out trials;
    the same seed gives the same trials whatever the policy. ``metrics``: {metric: (what it is, unit)}, the main one
    first; unit "%" is a rate. ``better``: the direction of a gain.

    | signal | parts | what a method gets |
    |---|---|---|
    | env | ``env(copies, seed)`` | a ``Collector`` |
    | reward | ``reward`` and ``prompts(seed)`` | a ``RewardSignal`` |
    | data | ``data(seed)`` | demonstrations, or a recording with rewards |
    | pairs | ``pairs(seed)`` | preferences |

    Optional: ``look(policy, seed, n)`` for pictures and films; ``imitate(policy, seed, updates, keep, stream)``, the
    control that only imitates longer; ``restore(path, device)`` where a policy holds networks of yours; ``caption``, a
    sentence for the pictures; ``num_eval_trials``, those of an evaluation while learning goes on.
    """

    name: str
    starts: Start | Mapping[str, Start]
    outcomes: Callable[[Policy, int, int], Mapping[str, Tensor]]
    metrics: Mapping[str, tuple[str, str]]
    env: Callable[[int | None, int], Collector] | None = None
    reward: Reward | None = None
    prompts: Callable[[int], Tree] | None = None
    data: Callable[[int], Any] | None = None
    pairs: Callable[[int], Any] | None = None
    look: Callable[[Policy, int, int], Mapping[str, bytes | str]] | None = None
    imitate: Callable[[Policy, int, int, Run, int], Iterator[dict]] | None = None
    restore: Callable[[Path, torch.device], Policy] | None = None
    caption: str = ""
    num_eval_trials: int = 50
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if not self.signals:
            raise RunError(
                f"task {self.name!r} offers nothing to learn from: give env=..., reward=... with prompts=..., data=... "
                "or pairs=..."
            )
        if (self.reward is None) != (self.prompts is None):
            lost = "reward" if self.reward is None else "prompts"
            raise RunError(f"task {self.name!r} has no {lost}: reward and prompts are given together")
        if not self.metrics:
            raise RunError(f"task {self.name!r} names no metric: say what its trials are judged by")

    def __repr__(self) -> str:
        signals, starts = " and ".join(self.signals), ", ".join(self.start_kinds)
        return f"Task({self.name}, offers {signals}, starts {starts}, metric {self.metric!r})"

    @property
    def signals(self) -> tuple[str, ...]:
        """The kinds of signal that it offers."""
        return tuple(k for k, parts in OFFERS.items() if all(getattr(self, part) is not None for part in parts))

    @property
    def metric(self) -> str:
        """The main metric."""
        return next(iter(self.metrics))

    @property
    def start_kinds(self) -> tuple[str, ...]:
        """The kinds of policy that it can start from."""
        return tuple(self.starts) if isinstance(self.starts, Mapping) else ("policy",)

    def start_policy(self, seed: int, run: Run, kind: str | None = None) -> Generator[dict, None, Policy]:
        """The starting policy of a seed: yields rows of metrics while it is made."""
        if kind is not None and kind not in self.start_kinds:
            raise RunError(
                f"task {self.name!r}: {unknown_name_message(kind, self.start_kinds, 'kind of starting policy')}"
            )
        start = self.starts[kind or self.start_kinds[0]] if isinstance(self.starts, Mapping) else self.starts
        policy = start(seed, run)
        if isinstance(policy, Generator):
            policy = yield from policy
        if not isinstance(policy, Policy):
            raise RunError(f"the start of task {self.name!r} gave a {type(policy).__name__}, not a Policy: return one")
        return policy

    def require_signal(self, kind: str, method: str = "the method") -> None:
        """Raise RunError if the task does not offer this kind of signal."""
        if kind not in self.signals:
            raise RunError(
                f"{method} learns from {kind}, task {self.name!r} offers {' and '.join(self.signals)}: choose a method "
                "that learns from that, or another task"
            )

    @contextmanager
    def signal(self, kind: str, copies: int | None, seed: int) -> Iterator[Any]:
        """What a method of this kind learns from; environments are closed afterwards. ``copies``: environments side by
        side (None: the task's own number)."""
        self.require_signal(kind)
        if kind == "env":
            assert self.env is not None
            collector = self.env(copies, seed + 1)
            try:
                yield collector
            finally:
                collector.close()
        elif kind == "reward":
            assert self.reward is not None and self.prompts is not None
            yield RewardSignal(self.reward, self.prompts(seed))  # prompts are moved to where the noise is
        else:
            source = self.data if kind == "data" else self.pairs
            assert source is not None
            yield source(seed)

    def evaluate(self, policy: Policy, seed: int, n: int) -> dict[str, Tensor]:
        """Return ``outcomes``, checked and free of charge: {metric: float32 [n]}.

        NaN marks a trial that has no such number, "steps_to_success" of a failure; the main metric has one in every
        trial.
        """
        with no_usage_counting(), torch.no_grad():
            told = self.outcomes(policy, seed, n)
        if self.metric not in told:
            raise RunError(
                f"task {self.name!r}: {unknown_name_message(self.metric, told, 'metric among its outcomes')}"
            )
        for name, value in told.items():
            if tuple(value.shape) != (n,):
                raise RunError(
                    f"task {self.name!r}: outcomes give {name!r} of shape {tuple(value.shape)} for {n} trials: one "
                    "number a trial is needed"
                )
        if lost := int((~torch.isfinite(told[self.metric].float())).sum()):
            raise RunError(
                f"task {self.name!r}: {lost} of {n} trials have no finite {self.metric!r}, the main metric: give every "
                "trial a number, and count what went wrong as a failure"
            )
        return {name: value.float().cpu() for name, value in told.items()}

    def load_policy(self, path: Path, device: str | torch.device = "cpu") -> Policy:
        """A saved policy of this task."""
        return self.restore(path, torch.device(device)) if self.restore else Policy.load(path, None, device)
