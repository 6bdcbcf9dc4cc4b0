"""Measure how realistic generated data are: marginals, correlations, distances to training data, and dynamics.

Generated rows are compared with recorded rows, some of which were held out from the generator's training. A copy of the
training data passes every test of marginals and fails ``memorization``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data.synthetic import columns
from denoiserl.data.transitions import Transitions
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead, OneStep
from denoiserl.train import fit

MOST = 2000
"""rows whose nearest neighbours are computed"""
SMALL = 0.05
"""error of a step, in standard deviations, that is always tolerated: without simulator noise every model has some"""
STEP_PARTS = ("obs", "action"), ("next_obs", "reward")
"""inputs and outputs of the dynamics model"""


def marginals(real: Tensor, made: Tensor) -> Tensor:
    """Return the Kolmogorov-Smirnov distance of every column, [C] in [0, 1]: max |F(x) − G(x)| of [N, C] and [M, C]."""
    pairs = zip(_numpy(real).T, _numpy(made).T, strict=True)
    return torch.tensor([float(ks_2samp(a, b).statistic) for a, b in pairs])  # type: ignore[attr-defined]


def correlations(real: Tensor, made: Tensor) -> Tensor:
    """Return |ρ − ρ'| of every pair of columns that change in both, [P]."""
    moving = (real.std(0) > 1e-9) & (made.std(0) > 1e-9)
    if int(moving.sum()) < 2:
        return torch.zeros(0)
    gap = (torch.corrcoef(real[:, moving].double().T) - torch.corrcoef(made[:, moving].double().T)).abs()
    return gap[torch.triu(torch.ones_like(gap), 1).bool()].float()


def nearest_distances(rows: Tensor, known: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the Euclidean distance of every row [N, C] to the nearest of the ``known`` [M, C].

    It is in standard deviations of those (or ``scale`` [C]); constant columns do not count.
    """
    scale = known.std(0) if scale is None else scale
    counts = scale > 1e-9
    if not bool(counts.any()):
        raise InvalidInputError("no column of the data changes, so distances are undefined: record data that vary")
    a, b = (v[:, counts] / scale[counts] for v in (rows, known))
    exact = "donot_use_mm_for_euclid_dist"  # the fast mode loses small distances, which copies have
    return torch.cat([torch.cdist(block, b, compute_mode=exact).amin(1) for block in a.split(256)])


def memorization(made: Tensor, held_out: Tensor, train: Tensor) -> float:
    """Return the median distance of held-out rows to the training rows over that of generated rows, at most 1000.

    About 1: generated rows are as new as held-out ones. Far above 1: they are copies.
    """
    scale = train.std(0)
    new, copied = (float(nearest_distances(v, train, scale).median()) for v in (held_out, made))
    return min(new / max(copied, 1e-12), 1000.0)


def dynamics(train: Transitions, updates: int, rng: Rng | int, width: int = 64) -> Callable[[Transitions], Tensor]:
    """Train a model of s' and r given (s, a) on recorded rows; return its error function ``errors(rows) -> [N]``.

    The error is in standard deviations (root mean square over the columns that change).
    """
    given, answer = (_side(train, parts) for parts in STEP_PARTS)
    before, after = _scaler(given), _scaler(answer)
    size = answer.shape[1]
    net = GaussianHead(MLP((size,), given.shape[1], width, 3, 0), size)
    for _ in fit(OneStep(), net, after(answer), before(given), updates, rng, lr=2e-3, warmup=50):
        pass
    changes = (answer.std(0) > 1e-9).float()

    @torch.no_grad()
    def errors(rows: Transitions) -> Tensor:
        given, answer = (_side(rows, parts) for parts in STEP_PARTS)
        predicted = net(
            torch.zeros(len(given), size), net.embed_time(torch.ones(1)), net.embed_condition(before(given))
        ).mean
        return (((predicted - after(answer)) ** 2 * changes).sum(1) / changes.sum().clamp_min(1)).sqrt()

    return errors


@dataclass(frozen=True)
class Fidelity:
    """Measures of how realistic generated rows are.

    ``names`` [C] of columns, ``ks`` [C] their Kolmogorov-Smirnov distances.

    ``correlation``, ``worst``: mean and largest change of a correlation. ``distance``: median distance to the nearest
    training row, of generated and of held-out rows. ``memorised``: the second over the first. ``copies``: share of
    generated rows nearer to a training row than a hundredth of the held-out median. ``dynamics_error``: median error of
    a dynamics model on generated and on held-out rows. ``dropped``: share of samples with an unclear end.
    """

    names: tuple[str, ...]
    ks: tuple[float, ...]
    chance: float
    """99 % quantile of the distance of as many independent rows of one distribution, per column"""
    correlation: float
    worst: float
    distance: tuple[float, float]
    memorised: float
    copies: float
    dynamics_error: tuple[float, float]
    dropped: float
    rows: dict[str, int]

    def warnings(self) -> list[str]:
        """Return warnings about these numbers, as sentences."""
        said = []
        if self.rows["training"] < 1000:
            said.append(
                f"The model learned from {self.rows['training']} rows: below 1000 it tends to memorise them (ratio "
                f"{self.memorised:.2f}; 1 is as new as held-out rows)."
            )
        elif self.memorised > 2:
            said.append(
                f"Generated rows are {self.memorised:.1f} times nearer to the training rows than held-out ones: the "
                "model memorises. Record more, or train it for fewer updates."
            )
        if self.memorised < 0.5:
            said.append(
                f"Generated rows are {1 / max(self.memorised, 1e-3):.1f} times as far from the training rows as "
                "held-out ones: the model blurs the data. Train longer, or a wider model."
            )
        far = [f"{n} ({v:.2f})" for n, v in zip(self.names, self.ks, strict=True) if v > 0.1 + self.chance]
        if far:
            said.append(f"Marginals are off in {', '.join(far)}: train longer, or name the kind of these columns.")
        if self.dynamics_error[0] > 3 * self.dynamics_error[1] + SMALL:
            said.append(
                f"The dynamics of generated rows err by {self.dynamics_error[0]:.3g}, those of held-out ones by "
                f"{self.dynamics_error[1]:.3g}: train longer, or a wider model."
            )
        if self.dropped > 0.2:
            said.append(f"{self.dropped:.0%} of the samples had an unclear end of episode, and were dropped.")
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers and warnings, for a file."""
        made = asdict(self)
        made["ks"] = dict(zip(self.names, self.ks, strict=True))
        made.pop("names")
        pairs = {"distance": ("generated", "held out"), "dynamics_error": ("generated", "held out")}
        return {k: dict(zip(pairs[k], v, strict=True)) if k in pairs else v for k, v in made.items()} | {
            "warnings": self.warnings()
        }


def fidelity(
    made: Transitions,
    train: Transitions,
    held_out: Transitions,
    rng: Rng | int,
    updates: int = 2000,
    dropped: float = 0.0,
) -> Fidelity:
    """Compare generated rows with the model's training rows and with held-out rows."""
    rng = as_rng(rng)
    if min(len(made), len(train), len(held_out)) < 2:
        raise InvalidInputError("fidelity needs at least two generated, two training and two held-out rows")
    a, b, c = (torch.cat(list(columns(v).values()), 1) for v in (made, train, held_out))
    few = [v[rng.permutation(len(v))[:MOST]] for v in (a, b, c)]
    seen = b[rng.permutation(len(b))[: 10 * MOST]]
    scale = seen.std(0)
    near, new = (nearest_distances(v, seen, scale) for v in (few[0], few[2]))
    gaps = correlations(b, a)
    errors = dynamics(train, updates, rng)
    return Fidelity(
        names(made),
        tuple(marginals(b, a).tolist()),
        1.63 * (1 / len(b) + 1 / len(a)) ** 0.5,  # Smirnov's asymptotic distribution
        float(gaps.mean()) if len(gaps) else 0.0,
        float(gaps.max()) if len(gaps) else 0.0,
        (float(near.median()), float(new.median())),
        min(float(new.median()) / max(float(near.median()), 1e-12), 1000.0),
        float((near < 0.01 * new.median()).float().mean()),
        (float(errors(made).median()), float(errors(held_out).median())),
        dropped,
        {"generated": len(made), "training": len(train), "held out": len(held_out)},
    )


def names(data: Transitions) -> tuple[str, ...]:
    """Return the columns' names in order: obs 0, obs 1 ... action 0 ... reward, next obs 0 ..., terminated."""
    words = {"next_obs": "next obs"}
    found = []
    for name, value in columns(data).items():
        word = words.get(name, name)
        found += [word] if value.shape[1] == 1 and name in ("reward", "terminated") else [
            f"{word} {i}" for i in range(value.shape[1])
        ]  # fmt: skip
    return tuple(found)


def _side(data: Transitions, parts: tuple[str, ...]) -> Tensor:
    found = columns(data)
    return torch.cat([found[p] for p in parts], 1)


def _scaler(data: Tensor) -> Callable[[Tensor], Tensor]:
    centre, scale = data.mean(0), data.std(0)
    scale = torch.where(scale > 1e-9, scale, torch.ones_like(scale))
    return lambda v: (v - centre) / scale


def _numpy(v: Tensor) -> np.ndarray:
    return v.detach().cpu().double().numpy()
