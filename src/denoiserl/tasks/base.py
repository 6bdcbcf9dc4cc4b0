"""Tasks: a starting policy, signals to learn from, and held-out trials.

A task does not depend on a method. Methods that learn from the same kind of signal have the same call. So ``run``,
``compare`` and ``claim`` use any of them on any task that offers the signal. A custom task is a function in a file:

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
"""``start(seed, run)``: a policy, or a generator that trains one, yields rows of metrics and returns it"""

OFFERS = {"env": ("env",), "reward": ("reward", "prompts"), "pairs": ("pairs",), "data": ("data",)}
"""the parts of a task that make up each kind of signal"""


def means(outcomes: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the trials that have one (not NaN); metrics without any are left out."""
    return {name: float(v.float().nanmean()) for name, v in outcomes.items() if not bool(v.isnan().all())}


@dataclass(frozen=True)
class Task:
    """Signals to learn from, a policy to start from, and held-out trials.

    ``starts``: the starting policy, or several kinds of it by name, the default first ("diffusion", "gaussian", ...).
    ``outcomes(policy, seed, n)``: {metric: [n]} of n held-out trials; the trials depend on the seed, not on the policy.
    ``metrics``: {metric: (description, unit)}, the main one first; unit "%" is a rate. ``better``: the direction of
    improvement.

    | signal | parts | argument of the method |
    |---|---|---|
    | env | ``env(copies, seed)`` | a ``Collector`` |
    | reward | ``reward`` and ``prompts(seed)`` | a ``RewardSignal`` |
    | data | ``data(seed)`` | demonstrations, or episodes with rewards |
    | pairs | ``pairs(seed)`` | preferences |

    Optional: ``render(policy, seed, n)``, pictures and videos; ``continue_imitation(policy, seed, updates, run,
    stream)``, the control that only imitates for longer; ``restore(path, device)``, to load policies with custom
    networks; ``caption``, a sentence for the pictures; ``num_eval_trials``, trials per evaluation during training;
    ``num_denoising_steps``, those of its starting policies, which settings of methods must fit.
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
    render: Callable[[Policy, int, int], Mapping[str, bytes | str]] | None = None
    continue_imitation: Callable[[Policy, int, int, Run, int], Iterator[dict]] | None = None
    restore: Callable[[Path, torch.device], Policy] | None = None
    caption: str = ""
    num_eval_trials: int = 50
    num_denoising_steps: int | None = None
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if not self.signals:
            raise RunError(
                f"task {self.name!r} offers nothing to learn from: give env=..., reward=... with prompts=..., data=... "
                "or pairs=..."
            )
        if (self.reward is None) != (self.prompts is None):
            lost = "reward" if self.reward is None else "prompts"
            raise RunError(f"task {self.name!r} has no {lost}: give reward and prompts together")
        if not self.metrics:
            raise RunError(f"task {self.name!r} has no metrics: give metrics={{name: (description, unit)}}")

    def __repr__(self) -> str:
        signals, starts = " and ".join(self.signals), ", ".join(self.start_kinds)
        return f"Task({self.name}, offers {signals}, starts {starts}, metric {self.metric!r})"

    @property
    def signals(self) -> tuple[str, ...]:
        """The kinds of signal that the task offers."""
        return tuple(k for k, parts in OFFERS.items() if all(getattr(self, part) is not None for part in parts))

    @property
    def metric(self) -> str:
        """The main metric."""
        return next(iter(self.metrics))

    @property
    def start_kinds(self) -> tuple[str, ...]:
        """The kinds of starting policy."""
        return tuple(self.starts) if isinstance(self.starts, Mapping) else ("policy",)

    def start_policy(self, seed: int, run: Run, kind: str | None = None) -> Generator[dict, None, Policy]:
        """Return the starting policy of a seed; yield rows of metrics while it is trained."""
        if kind is not None and kind not in self.start_kinds:
            raise RunError(
                f"task {self.name!r}: {unknown_name_message(kind, self.start_kinds, 'kind of starting policy')}"
            )
        start = self.starts[kind or self.start_kinds[0]] if isinstance(self.starts, Mapping) else self.starts
        policy = start(seed, run)
        if isinstance(policy, Generator):
            policy = yield from policy
        if not isinstance(policy, Policy):
            raise RunError(f"the start of task {self.name!r} returned a {type(policy).__name__}: return a Policy")
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
        """Yield the signal of this kind; close environments afterwards.

        ``copies``: the number of environments (None: the task's own number).
        """
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
            yield RewardSignal(self.reward, self.prompts(seed))  # methods move prompts to the policy's device
        else:
            source = self.data if kind == "data" else self.pairs
            assert source is not None
            yield source(seed)

    def evaluate(self, policy: Policy, seed: int, n: int) -> dict[str, Tensor]:
        """Return checked ``outcomes``: {metric: float32 [n]}. Usage counters do not count them.

        NaN marks a trial without a value, such as "steps_to_success" of a failure. Raise RunError if the main metric is
        missing or not finite in a trial, or if a metric has another shape.
        """
        with no_usage_counting(), torch.no_grad():
            found = self.outcomes(policy, seed, n)
        if self.metric not in found:
            raise RunError(
                f"task {self.name!r}: {unknown_name_message(self.metric, found, 'metric among its outcomes')}"
            )
        for name, value in found.items():
            if tuple(value.shape) != (n,):
                raise RunError(
                    f"task {self.name!r}: outcomes has {name!r} of shape {tuple(value.shape)} for {n} trials: return "
                    "one number per trial"
                )
        if lost := int((~torch.isfinite(found[self.metric].float())).sum()):
            raise RunError(
                f"task {self.name!r}: {lost} of {n} trials have no finite {self.metric!r}, the main metric: return a "
                "number for every trial, and count faults as failures"
            )
        return {name: value.float().cpu() for name, value in found.items()}

    def load_policy(self, path: Path, device: str | torch.device = "cpu") -> Policy:
        """Load a saved policy of this task."""
        return self.restore(path, torch.device(device)) if self.restore else Policy.load(path, None, device)
