"""The interface of all processes, and the table of the steps of a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree
from denoiserl.distributions import Distribution
from denoiserl.processes.denoiser import Denoiser, Estimate


class Step(NamedTuple):
    """One row of a table (numbers), or rows gathered for a batch of different steps (tensors [*batch])."""

    index: Any
    t: Any
    s: Any
    table: dict[str, Any]
    dense: bool | None


@dataclass(frozen=True, eq=False)
class StepTable:
    """The table of a chain: one row per step, in float64, computed once per grid.

    ``times`` [S + 1] decreasing; ``table`` named columns [S]; ``dense[k]``: whether step k has a density. The table
    knows it, so that no step has to read it from the device.
    """

    times: Tensor
    table: dict[str, Tensor]
    dense: tuple[bool, ...]
    rows: tuple[Step, ...] = field(init=False, repr=False)
    _device: dict[torch.device, dict[str, Tensor]] = field(init=False, repr=False, default_factory=dict)
    _scalars: dict[torch.device, tuple[Step, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        t, columns = self.times.tolist(), {k: v.tolist() for k, v in self.table.items()}
        rows = tuple(
            Step(k, t[k], t[k + 1], {name: column[k] for name, column in columns.items()}, self.dense[k])
            for k in range(len(t) - 1)
        )
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        t = self.times
        return f"StepTable({len(self)} steps, t {t[0]:.4g} to {t[-1]:.4g}, {sum(self.dense)} with a density)"

    def __getitem__(self, k: int) -> Step:
        return self.rows[k]

    def on(self, device: torch.device) -> tuple[Step, ...]:
        """Return the rows with float32 scalars on a device: products with these cost half of those with numbers."""
        if device not in self._scalars:
            with torch.inference_mode(False):  # kept for draws with gradients too
                columns = {k: v.float().to(device).unbind() for k, v in self.table.items()}
                self._scalars[device] = tuple(
                    row._replace(table={name: c[k] for name, c in columns.items()}) for k, row in enumerate(self.rows)
                )
        return self._scalars[device]

    def slice_steps(self, low: int, high: int) -> StepTable:
        """Return the table of the steps low ≤ k < high. Raise InvalidInputError if they are no part of this table."""
        if not 0 <= low < high <= len(self):
            raise InvalidInputError(f"the steps [{low}, {high}) are not a part of a chain of {len(self)}")
        table = {name: column[low:high] for name, column in self.table.items()}
        return StepTable(self.times[low : high + 1], table, self.dense[low:high])

    def gather(self, index: Tensor) -> Step:
        """Return the rows ``index`` [*batch] as float32 tensors on its device.

        ``dense`` is None if only some steps of the table have a density.
        """
        if index.device not in self._device:
            columns = {"t": self.times[:-1], "s": self.times[1:], **self.table}
            self._device[index.device] = {k: v.float().to(index.device) for k, v in columns.items()}
        got = {k: v[index] for k, v in self._device[index.device].items()}
        dense = self.dense[0] if len(set(self.dense)) == 1 else None
        return Step(index, got.pop("t"), got.pop("s"), got, dense)


class Noised(NamedTuple):
    """Noised data x_t, with the clean data and the noise.

    ``x`` and ``noise`` [*batch, *event], ``t`` [*batch], ``x0`` the clean data. ``mask``: the factors that may be
    noised (None: all). ``weight`` [*batch]: the weight of an ELBO term where the draw fixes one.
    """

    x: Tree
    t: Tensor
    x0: Tree
    noise: Tree | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None


class Process(ABC):
    """A process: how data is noised and denoised. Subclasses are final, frozen dataclasses."""

    @abstractmethod
    def steps(self, times: Tensor) -> StepTable:
        """Return the table of a grid of times."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Distribution:
        """Return the distribution at t = 1 of states of ``shape`` (batch included)."""

    @abstractmethod
    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return the noise of one step: ("normal" | "uniform", shape of one event's noise)."""

    @abstractmethod
    def noise(self, x0: Tree, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise clean data to times ``t`` [*batch]."""

    @abstractmethod
    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return the training loss of one noised sample, [*batch]."""

    @abstractmethod
    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return one ELBO term, [*batch]: its mean over ``renoise`` draws is a bound on (or a part of) log p(x₀)."""

    @abstractmethod
    def renoise(self, x0: Tree, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times, [*batch, n], at stratified times that suit the ELBO."""

    def renoise_uniform(self, x0: Tree, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Noise every row n times at uniform times, as the training loss does. By default: ``renoise``."""
        return self.renoise(x0, n, rng, loss_mask)

    def condition(self, cond: Tree, start: Tree) -> Tree:
        """Return ``cond``, with what the steps need to know of the initial state ``start``. By default: ``cond``."""
        return cond

    def check(self, start: Tree, n: int, event: tuple[int, ...]) -> None:  # noqa: B027 - most can start anywhere
        """Raise InvalidInputError if n steps cannot lead from ``start`` (None: the prior) to clean data of shape
        ``event``."""

    def finish(self, x: Tree, start: Tree) -> Tree:
        """Return the sample of the final state ``x`` of a chain from ``start``. By default: ``x``."""
        return x

    @abstractmethod
    def reverse(self, estimate: Estimate, x: Tree, step: Step) -> Distribution:
        """Return the distribution of the next state."""


def draw_stratified_times(shape: tuple[int, ...], rng: Rng | int) -> Tensor:
    """Draw uniform times in (0, 1), one in each of n equal strata along the last axis, in random order."""
    rng = as_rng(rng)
    *batch, n = shape
    rows = 1
    for b in batch:
        rows *= b
    u = (torch.arange(n, device=rng.device) + rng.uniform(rows, n)) / n
    order = rng.uniform(rows, n).argsort(-1)
    return u.gather(-1, order).clamp(1e-6, 1 - 1e-6).reshape(shape)
