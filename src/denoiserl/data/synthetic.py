"""Synthetic experience: a diffusion model of what happened, and rows that it makes (SynthER, 2303.06614).

``train_generator`` trains EDM on transitions x = [s, a, r, s', done] in the units of ``ColumnTransforms``;
``TransitionGenerator.sample`` makes as many as wanted, all of them of the columns' kinds: actions inside their box,
angles on the circle, ends of episodes certain. ``MixedReplayBuffer`` is a replay buffer of which part of each batch is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Settings
from denoiserl.data.column_transforms import ColumnTransforms
from denoiserl.data.replay import ReplayBuffer
from denoiserl.data.transitions import Transitions
from denoiserl.nn import MLP
from denoiserl.processes import GaussianDenoiser, edm, time_grid
from denoiserl.processes.edm_training import Churn, EDMTraining, heun
from denoiserl.train import EMA, Metrics, Run, fit

FEW = 1000
"""rows below which a model of them remembers rather than learns"""
UNSURE = (0.2, 0.8)
"""ends of episodes that the model leaves open: such rows are dropped"""
BLOCK = 4096
"""rows drawn side by side"""


@dataclass(frozen=True)
class Model(Settings):
    """The diffusion model, and how long it learns. Published are a width of 1024, a depth of 6, 100 000 updates, a
    learning rate of 3e-4 and 128 steps; the defaults are for a laptop."""

    num_updates: Count = 10_000
    """gradient steps of the model"""
    batch_size: Count = 256
    """rows a gradient step"""
    lr: NonNegative = 1e-3
    """AdamW's learning rate, with warm-up and cosine decay"""
    width: Count = 256
    """the residual perceptron's width"""
    depth: Count = 4
    """its hidden layers"""
    sampling_steps: Count = 48
    """Heun steps of a draw"""
    churn: NonNegative = 0.0
    """noise added and removed on the way (80 as published): with it so few steps widen what is made by 3 to 5 %"""
    ema_decay: Fraction = 0.9995
    """the decay of the weights' moving average, at most"""


@dataclass(frozen=True)
class Layout:
    """Transitions as vectors: fields of observations (before and after alike), actions, rewards and ends."""

    obs: ColumnTransforms
    action: ColumnTransforms
    reward: ColumnTransforms
    terminated: ColumnTransforms

    @staticmethod
    def fit(data: Transitions, kinds: Mapping[str, Mapping[int, str]] | None = None) -> Layout:
        """Of logged rows. ``kinds``: {"obs" | "action" | "reward": {column: kind}} where it is not to be recognised."""
        told = dict(kinds or {})
        parts = columns(data)
        return Layout(
            ColumnTransforms.fit(torch.cat([parts["obs"], parts["next_obs"]]), told.get("obs")),
            ColumnTransforms.fit(parts["action"], told.get("action")),
            ColumnTransforms.fit(parts["reward"], told.get("reward")),
            ColumnTransforms.fit(parts["terminated"]),
        )

    @property
    def fields(self) -> tuple[tuple[str, ColumnTransforms], ...]:
        """The parts in their order."""
        return (
            ("obs", self.obs), ("action", self.action), ("reward", self.reward), ("next_obs", self.obs),
            ("terminated", self.terminated),
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Numbers of a transition in model units."""
        return sum(f.size for _, f in self.fields)

    def encode(self, data: Transitions) -> Tensor:
        """Rows to model units [N, size]."""
        parts = columns(data)
        return torch.cat([f.encode(parts[name]) for name, f in self.fields], 1)

    def decode(self, sample: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Model units [N, size] to columns, and which rows are sure whether the episode ended [N]."""
        split = dict(zip((n for n, _ in self.fields), sample.split([f.size for _, f in self.fields], 1), strict=True))
        decoded = {name: f.decode(split[name]) for name, f in self.fields}
        end = split["terminated"]
        sure = ((end <= UNSURE[0]) | (end >= UNSURE[1])).all(1)
        return decoded, sure


def columns(data: Transitions) -> dict[str, Tensor]:
    """The columns of a row, each [N, ...]. Refused: observations that are not flat, rows of unequal length."""
    if not isinstance(data.obs, Tensor) or not isinstance(data.next_obs, Tensor) or data.obs.ndim != 2:
        raise InvalidInputError(
            "synthetic experience is made of flat observations [N, o]: concatenate the parts, or encode them"
        )
    if len(data) == 0 or bool((data.length != data.length[0]).any()):
        raise InvalidInputError(
            "rows of unequal length: make them of single transitions, to_transitions(data, chunk=1, n=1)"
        )
    return {
        "obs": data.obs, "action": data.action.flatten(1), "reward": data.reward[:, None], "next_obs": data.next_obs,
        "terminated": data.terminated[:, None].float(),
    }  # fmt: skip


@dataclass(frozen=True)
class TransitionGenerator:
    """A trained model of transitions. ``like``: one of the rows that it has learned from, for what they share."""

    denoiser: GaussianDenoiser
    layout: Layout
    like: Transitions
    model: Model

    def sample(self, n: int, rng: Rng | int, told: Callable[[int], None] | None = None) -> tuple[Transitions, float]:
        """``n`` new rows, in data units, on the CPU, and the share of rows that were dropped on the way.

        Actions are clipped to their box. Rows whose end is unsure are drawn again; refused where more than 90 % are.
        ``told(done)`` hears how many are made.
        """
        rng = as_rng(rng, next(self.denoiser.parameters()).device)
        if n < 1:
            raise InvalidInputError(f"there is at least one row to make, not {n}")
        times, made, done, drawn = time_grid(self.model.sampling_steps), [], 0, 0
        while done < n:
            count = min(BLOCK, n if not made else max(256, n - done))
            sample = heun(self.denoiser, times, (self.layout.size,), count, rng, churn=Churn(self.model.churn)).cpu()
            if not bool(sample.isfinite().all()):
                raise InvalidInputError("the model draws NaN or infinity: train it longer, or at a lower learning rate")
            parts, sure = self.layout.decode(sample)
            drawn, done = drawn + count, done + int(sure.sum())
            if drawn >= 512 and done < 0.1 * drawn:
                raise InvalidInputError(
                    f"of {drawn} rows that the model drew, {done} say whether the episode ended: train it longer"
                )
            made.append({k: v[sure] for k, v in parts.items()})
            if told is not None:
                told(min(done, n))
        return rows(made, self.like, n), 1 - done / drawn


def rows(made: list[dict[str, Tensor]], like: Transitions, n: int | None = None) -> Transitions:
    """The first ``n`` (None: all) rows of decoded ``columns``, with what they share with ``like``."""
    parts = {k: torch.cat([m[k] for m in made])[:n] for k in made[0]}
    over = parts["terminated"][:, 0] > 0.5
    action = parts["action"].unflatten(1, like.action.shape[1:]).clamp(like.low, like.high)
    length = like.length[:1].expand(len(over)).clone()
    name = f"made from {like.name}" if like.name else "made"
    discount = like.gamma ** length.float() * ~over
    last = (over, length, like.low, like.high, like.gamma, name)
    return Transitions(parts["obs"], action, parts["reward"][:, 0], discount, parts["next_obs"], *last)


def train_generator(
    data: Transitions,
    model: Model,
    rng: Rng | int,
    run: Run | None = None,
    kinds: Mapping[str, Mapping[int, str]] | None = None,
) -> Generator[Metrics, None, TransitionGenerator]:
    """Train a model of the rows: a generator that yields its loss and returns the ``TransitionGenerator``.

    Refused: fewer rows than a batch, NaN and infinity.
    """
    run = run or Run()
    rng = as_rng(rng, run.device)
    if len(data) < model.batch_size:
        raise InvalidInputError(
            f"{len(data)} rows are fewer than a batch of {model.batch_size}: record more, or take a smaller batch"
        )
    layout = Layout.fit(data, kinds)
    net = rng.init(MLP, (layout.size,), width=model.width, depth=model.depth, time=16)
    denoise = GaussianDenoiser(net, edm, "edm", 1.0).to(run.device)
    yield from fit(
        EDMTraining(), denoise, layout.encode(data).to(run.device), None, model.num_updates, rng,
        batch=model.batch_size, lr=model.lr, warmup=model.num_updates // 20, ema=EMA(denoise, most=model.ema_decay),
        run=run,
    )  # fmt: skip
    return TransitionGenerator(denoise, layout, part(data, slice(0, 1)), model)


def train_generator_now(
    data: Transitions, model: Model, rng: Rng | int, device: torch.device | str = "cpu"
) -> TransitionGenerator:
    """``train_generator`` in one go, in memory: for who makes models on the way."""
    running = train_generator(data, model, rng, Run(None, device))
    while True:
        try:
            next(running)
        except StopIteration as stop:
            return stop.value


def add_gaussian_noise(data: Transitions, n: int, std: float, rng: Rng | int) -> Transitions:
    """``n`` copies of rows with Gaussian noise of ``std`` standard deviations on all that is continuous: the plain
    augmentation that a model has to beat."""
    rng = as_rng(rng)
    layout = Layout.fit(data)
    at = rng.integers(0, len(data), n)
    z = layout.encode(part(data, at))
    blur = [torch.full((f.size,), std if f.kind in ("continuous", "quantile", "circle", "angle") else 0.0)
            for _, g in layout.fields for f in g.fields]  # fmt: skip
    parts, _ = layout.decode(z + torch.cat(blur) * rng.normal(*z.shape))
    return rows([parts], data)


def part(data: Transitions, index: Any) -> Transitions:
    """Some of the rows."""
    names = ("obs", "action", "reward", "discount", "next_obs", "terminated", "length")
    return replace(data, **{k: getattr(data, k)[index] for k in names})


def buffer_to_transitions(replay: ReplayBuffer, low: Tensor, high: Tensor, gamma: float) -> Transitions:
    """The decisions that a replay buffer holds, as logged rows on the CPU."""
    c = {k: v[: len(replay)].cpu() for k, v in replay.columns.items() if isinstance(v, Tensor)}
    discount = gamma ** c["length"].float() * ~c["terminated"]
    return Transitions(
        c["obs"], c["action"], c["reward"], discount, c["next_obs"], c["terminated"], c["length"], low, high, gamma
    )


class MixedReplayBuffer:
    """A replay buffer of real decisions, beside which lie made ones: ``share`` of every batch is drawn from those.

    As long as ``made`` is None all of a batch is real. It remembers, made rows included: name it in ``run.loop``.
    """

    def __init__(self, real: ReplayBuffer, share: float = 0.5) -> None:
        if not 0 <= share < 1:
            raise RunError(f"the made share of a batch lies in [0, 1), not {share}: what is all made needs no mixing")
        self.real, self.share = real, share
        self.synthetic: ReplayBuffer | None = None
        self.filled = 0
        """how many real decisions there were when rows were made last"""

    @property
    def count(self) -> int:
        """Real decisions, ever."""
        return self.real.count

    @property
    def columns(self) -> dict[str, Any]:
        """Those of the real decisions."""
        return self.real.columns

    def __len__(self) -> int:
        return len(self.real)

    def add(self, ep: Any, **more: Any) -> int:
        """Take in real decisions."""
        return self.real.add(ep, **more)

    def refill(self, made: ReplayBuffer) -> None:
        """Exchange all that is made."""
        self.synthetic, self.filled = made, self.count

    def sample(
        self, n: int, rng: Rng | int, gamma: float, steps: int = 1, batches: int | None = None
    ) -> dict[str, Any]:
        """As ``ReplayBuffer.sample``; the made rows come last, and are single transitions whatever ``steps``."""
        rng = as_rng(rng, self.real.device)
        made = 0 if self.synthetic is None else round(self.share * n)
        drawn = self.real.sample(n - made, rng, gamma, steps, batches)
        if not made or self.synthetic is None:
            return drawn
        other = self.synthetic.sample(made, rng, gamma, 1, batches)
        axis = 0 if batches is None else 1
        return {k: torch.cat([v, other[k]], axis) for k, v in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """Both buffers."""
        made = None if self.synthetic is None else self.synthetic.state_dict()
        return {"real": self.real.state_dict(), "made": made, "filled": self.filled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the saved buffers stood."""
        self.real.load_state_dict(state["real"])
        self.synthetic, self.filled = None, state["filled"]
        if state["made"] is not None:
            self.synthetic = ReplayBuffer(state["made"]["capacity"], self.real.device)
            self.synthetic.load_state_dict(state["made"])
