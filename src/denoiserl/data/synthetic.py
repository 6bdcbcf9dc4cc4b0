"""Synthetic experience: a diffusion model of transitions, and its samples (SynthER, 2303.06614).

``train_generator`` trains EDM on transitions x = [s, a, r, s', done] in the units of ``ColumnTransforms``.
``TransitionGenerator.sample`` returns any number of samples of the columns' kinds: actions within their bounds, angles
on the circle, clear ends of episodes. ``MixedReplayBuffer`` draws part of each minibatch from samples.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, Settings
from denoiserl.data.column_transforms import ColumnTransforms
from denoiserl.data.replay import ReplayBuffer
from denoiserl.data.transitions import Transitions
from denoiserl.nn import MLP
from denoiserl.processes import GaussianDenoiser, edm, time_grid
from denoiserl.processes.edm_training import Churn, EDMTraining, heun
from denoiserl.train import EMA, Metrics, Run, fit

FEW = 1000
"""number of rows below which a model tends to memorise them"""
UNSURE = (0.2, 0.8)
"""unclear values of the end of an episode: such rows are dropped"""
BLOCK = 4096
"""rows sampled at a time"""


@dataclass(frozen=True)
class Model(Settings):
    """The diffusion model. Published: width 1024, depth 6, 100 000 updates, learning rate 3e-4, 128 steps."""

    num_updates: Count = 10_000
    """gradient steps; of the model"""
    batch_size: Count = 256
    """items per gradient step; rows"""
    lr: Positive = 1e-3
    """learning rate; of AdamW, with warm-up and cosine decay"""
    width: Count = 256
    """width of the residual MLP"""
    depth: Count = 4
    """hidden layers of the residual MLP"""
    sampling_steps: Count = 48
    """denoising steps; Heun steps per sample"""
    churn: NonNegative = 0.0
    """noise added and removed while sampling (published: 80); with so few steps it widens samples by 3 to 5 %"""
    ema_decay: Fraction = 0.9995
    """largest decay of the weights' moving average"""


@dataclass(frozen=True)
class Layout:
    """Transitions as vectors: fields of observations (before and after alike), actions, rewards and ends."""

    obs: ColumnTransforms
    action: ColumnTransforms
    reward: ColumnTransforms
    terminated: ColumnTransforms

    @staticmethod
    def fit(data: Transitions, kinds: Mapping[str, Mapping[int, str]] | None = None) -> Layout:
        """Fit to logged rows. ``kinds``: {"obs" | "action" | "reward": {column: kind}} of declared kinds."""
        declared = dict(kinds or {})
        parts = columns(data)
        return Layout(
            ColumnTransforms.fit(torch.cat([parts["obs"], parts["next_obs"]]), declared.get("obs")),
            ColumnTransforms.fit(parts["action"], declared.get("action")),
            ColumnTransforms.fit(parts["reward"], declared.get("reward")),
            ColumnTransforms.fit(parts["terminated"]),
        )

    @property
    def fields(self) -> tuple[tuple[str, ColumnTransforms], ...]:
        """the parts in order"""
        return (
            ("obs", self.obs), ("action", self.action), ("reward", self.reward), ("next_obs", self.obs),
            ("terminated", self.terminated),
        )  # fmt: skip

    @property
    def size(self) -> int:
        """numbers per transition in model units"""
        return sum(f.size for _, f in self.fields)

    def encode(self, data: Transitions) -> Tensor:
        """Convert rows to model units [N, size]."""
        parts = columns(data)
        return torch.cat([f.encode(parts[name]) for name, f in self.fields], 1)

    def decode(self, sample: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Convert model units [N, size] to columns; return them and which rows have a clear end flag [N]."""
        split = dict(zip((n for n, _ in self.fields), sample.split([f.size for _, f in self.fields], 1), strict=True))
        decoded = {name: f.decode(split[name]) for name, f in self.fields}
        end = split["terminated"]
        sure = ((end <= UNSURE[0]) | (end >= UNSURE[1])).all(1)
        return decoded, sure


def columns(data: Transitions) -> dict[str, Tensor]:
    """Return the columns of rows, [N, ...] each. Raise InvalidInputError if they are not flat or of unequal length."""
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
    """A trained model of transitions. ``like``: one of its training rows, for what all rows share."""

    denoiser: GaussianDenoiser
    layout: Layout
    like: Transitions
    model: Model

    def sample(
        self, n: int, rng: Rng | int, on_progress: Callable[[int], None] | None = None
    ) -> tuple[Transitions, float]:
        """Return ``n`` new rows in data units on the CPU, and the share of samples that were dropped for an unclear
        end.

        Raise InvalidInputError if more than 90 % are dropped. ``on_progress(done)`` is called with the number of
        finished rows.
        """
        rng = as_rng(rng, next(self.denoiser.parameters()).device)
        if n < 1:
            raise InvalidInputError(f"n is at least 1, not {n}")
        times, made, done, drawn = time_grid(self.model.sampling_steps), [], 0, 0
        while done < n:
            count = min(BLOCK, n if not made else max(256, n - done))
            sample = heun(self.denoiser, times, (self.layout.size,), count, rng, churn=Churn(self.model.churn)).cpu()
            if not bool(sample.isfinite().all()):
                raise InvalidInputError(
                    "the model samples NaN or infinity: train it longer, or at a lower learning rate"
                )
            parts, sure = self.layout.decode(sample)
            drawn, done = drawn + count, done + int(sure.sum())
            if drawn >= 512 and done < 0.1 * drawn:
                raise InvalidInputError(
                    f"of {drawn} sampled rows, only {done} have a clear end of episode: train the model longer"
                )
            made.append({k: v[sure] for k, v in parts.items()})
            if on_progress is not None:
                on_progress(min(done, n))
        return rows(made, self.like, n), 1 - done / drawn


def rows(made: list[dict[str, Tensor]], like: Transitions, n: int | None = None) -> Transitions:
    """Return the first ``n`` (None: all) of the decoded rows ``made``; bounds, γ and length are those of ``like``."""
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
    """Train a model of the rows; yield its loss and return the ``TransitionGenerator``.

    Raise InvalidInputError for fewer rows than a minibatch, NaN and infinity.
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
        batch=model.batch_size, lr=model.lr, warmup=model.num_updates // 20, run=run,
        ema=EMA(denoise, max_decay=model.ema_decay),
    )  # fmt: skip
    return TransitionGenerator(denoise, layout, select(data, slice(0, 1)), model)


def train_generator_now(
    data: Transitions, model: Model, rng: Rng | int, device: torch.device | str = "cpu"
) -> TransitionGenerator:
    """Run ``train_generator`` to its end, in memory, and return the model."""
    running = train_generator(data, model, rng, Run(None, device))
    while True:
        try:
            next(running)
        except StopIteration as stop:
            return stop.value


def add_gaussian_noise(data: Transitions, n: int, std: float, rng: Rng | int) -> Transitions:
    """Return ``n`` rows with Gaussian noise of ``std`` standard deviations on continuous columns: a simple baseline."""
    rng = as_rng(rng)
    layout = Layout.fit(data)
    at = rng.integers(0, len(data), n)
    z = layout.encode(select(data, at))
    blur = [torch.full((f.size,), std if f.kind in ("continuous", "quantile", "circle", "angle") else 0.0)
            for _, g in layout.fields for f in g.fields]  # fmt: skip
    parts, _ = layout.decode(z + torch.cat(blur) * rng.normal(*z.shape))
    return rows([parts], data)


def select(data: Transitions, index: Any) -> Transitions:
    """Return the rows of an index."""
    names = ("obs", "action", "reward", "discount", "next_obs", "terminated", "length")
    return replace(data, **{k: getattr(data, k)[index] for k in names})


def buffer_to_transitions(replay: ReplayBuffer, low: Tensor, high: Tensor, gamma: float) -> Transitions:
    """Return the decisions of a replay buffer as logged rows on the CPU."""
    c = {k: v[: len(replay)].cpu() for k, v in replay.columns.items() if isinstance(v, Tensor)}
    discount = gamma ** c["length"].float() * ~c["terminated"]
    return Transitions(
        c["obs"], c["action"], c["reward"], discount, c["next_obs"], c["terminated"], c["length"], low, high, gamma
    )


class MixedReplayBuffer:
    """A replay buffer of which ``share`` of every minibatch is generated. It has a state: name it in ``run.loop``."""

    def __init__(self, real: ReplayBuffer, share: float = 0.5) -> None:
        if not 0 <= share < 1:
            raise RunError(
                f"the generated share of a minibatch lies in [0, 1), not {share}: use ReplayBuffer for generated rows"
            )
        self.real, self.share = real, share
        self.synthetic: ReplayBuffer | None = None
        self.filled = 0
        """number of real decisions at the last refill"""

    @property
    def count(self) -> int:
        """number of real decisions ever added"""
        return self.real.count

    @property
    def columns(self) -> dict[str, Any]:
        """columns of the real decisions"""
        return self.real.columns

    def __len__(self) -> int:
        return len(self.real)

    def add(self, ep: Any, **more: Any) -> int:
        """Add real decisions."""
        return self.real.add(ep, **more)

    def refill(self, made: ReplayBuffer) -> None:
        """Replace all generated rows."""
        self.synthetic, self.filled = made, self.count

    def sample(
        self, n: int, rng: Rng | int, gamma: float, steps: int = 1, batches: int | None = None
    ) -> dict[str, Any]:
        """Sample as ``ReplayBuffer.sample``; generated rows come last, and are single transitions for any ``steps``."""
        rng = as_rng(rng, self.real.device)
        made = 0 if self.synthetic is None else round(self.share * n)
        drawn = self.real.sample(n - made, rng, gamma, steps, batches)
        if not made or self.synthetic is None:
            return drawn
        other = self.synthetic.sample(made, rng, gamma, 1, batches)
        axis = 0 if batches is None else 1
        return {k: torch.cat([v, other[k]], axis) for k, v in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both buffers."""
        made = None if self.synthetic is None else self.synthetic.state_dict()
        return {"real": self.real.state_dict(), "made": made, "filled": self.filled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of both buffers."""
        self.real.load_state_dict(state["real"])
        self.synthetic, self.filled = None, state["filled"]
        if state["made"] is not None:
            self.synthetic = ReplayBuffer(state["made"]["capacity"], self.real.device)
            self.synthetic.load_state_dict(state["made"])
