"""Windows of trajectories in model units, and the transitions in generated windows (PGD, 2404.06356).

A window is L steps of (s, a, r, done). Actions lie in [−1, 1]; the model's units are atanh a. All samples then lie
within the bounds, and gradients with respect to actions stay finite at the bounds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Counts, NonNegative, Positive, Settings
from denoiserl.data.column_transforms import ColumnTransforms
from denoiserl.data.synthetic import UNSURE
from denoiserl.data.transitions import Transitions
from denoiserl.data.windows import windows
from denoiserl.nn import UNet1D
from denoiserl.processes import GaussianDenoiser, edm, time_grid
from denoiserl.processes.edm_training import Churn, EDMTraining, Guide, heun
from denoiserl.train import EMA, Metrics, Run, fit

BLOCK = 65536
"""windows processed at a time"""
EDGE = 0.999
"""largest absolute action that is converted to model units"""

Parts = Mapping[str, Tensor]
"""{"obs": [..., o], "action": [..., d] in [−1, 1], "reward": [..., 1], "done": [..., 1]}"""


def slice_windows(parts: Parts, ends: Tensor, ended: Tensor, length: int, stride: int = 1) -> dict[str, Tensor]:
    """Return every ``stride``-th window of ``length`` steps of episodes that stop (exclusively) at ``ends`` [E].

    Windows of episodes that truly ``ended`` [E] bool reach beyond the end: the last frame is repeated, with ``done``
    from it on. Those of a time limit stay inside. Raise InvalidInputError if there is no window.
    """
    reach = length if bool(ended.any()) else 1
    try:
        window = windows(ends, length, 1, reach)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}: take shorter windows") from None
    inside = torch.cat([window.valid(index).all(1) for index in window.all_indices.split(BLOCK)])
    index = window.all_indices[inside | ended[window.episode]][::stride]
    if len(index) == 0:
        raise InvalidInputError(
            f"no episode has the {length} steps of a window, and no shorter one truly ended: take shorter windows"
        )
    frame, real = window.frames(index), window.valid(index)
    last = torch.zeros(len(parts["reward"]), dtype=torch.bool)
    last[ends - 1] = ended
    made = {k: v[frame] for k, v in parts.items() if k != "done"}
    return {**made, "done": (last[frame] | ~real)[..., None].float()}


@dataclass(frozen=True)
class StepLayout:
    """A step of a window as a vector: fields of observation, action, reward and end."""

    obs: ColumnTransforms
    action: ColumnTransforms
    reward: ColumnTransforms
    done: ColumnTransforms

    @staticmethod
    def fit(parts: Parts, kinds: Mapping[int, str] | None = None) -> StepLayout:
        """Fit to windows [W, L, ...]. ``kinds``: declared kinds of columns of the observation."""
        flat = {k: v.flatten(0, -2) for k, v in parts.items()}
        pressed = _pressed(flat["action"])
        told = dict.fromkeys(range(pressed.shape[1]), "continuous")
        paid, done = ColumnTransforms.fit(flat["reward"]), ColumnTransforms.fit(flat["done"])
        return StepLayout(ColumnTransforms.fit(flat["obs"], kinds), ColumnTransforms.fit(pressed, told), paid, done)

    @property
    def size(self) -> int:
        """numbers per step"""
        return self.obs.size + self.action.size + self.reward.size + self.done.size

    @property
    def acts(self) -> slice:
        """slice of the action in a step"""
        return slice(self.obs.size, self.obs.size + self.action.size)

    def encode(self, parts: Parts) -> Tensor:
        """Convert windows to model units [W, L, size]."""
        batch = parts["obs"].shape[:-1]
        flat = {k: v.flatten(0, -2) for k, v in parts.items()}
        columns = (
            self.obs.encode(flat["obs"]), self.action.encode(_pressed(flat["action"])),
            self.reward.encode(flat["reward"]), self.done.encode(flat["done"]),
        )  # fmt: skip
        return torch.cat(columns, 1).unflatten(0, batch)

    def decode(self, sample: Tensor) -> dict[str, Tensor]:
        """Convert model units [W, L, size] to windows; ``sure`` marks the steps with a clear end flag."""
        split = self._split(sample)
        done = split["done"]
        made = {
            "obs": self.obs.decode(split["obs"]), "action": torch.tanh(self.action.decode(split["action"])),
            "reward": self.reward.decode(split["reward"]), "done": self.done.decode(done),
            "sure": ((done <= UNSURE[0]) | (done >= UNSURE[1])).all(1, keepdim=True),
        }  # fmt: skip
        return {k: v.unflatten(0, sample.shape[:-1]) for k, v in made.items()}

    def decision(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations [W, L, o] and actions [W, L, d] of model units [W, L, size]; differentiable in the
        actions."""
        split = self._split(sample)
        seen, done = self.obs.decode(split["obs"]), torch.tanh(self.action.decode(split["action"]))
        return seen.unflatten(0, sample.shape[:-1]), done.unflatten(0, sample.shape[:-1])

    def _split(self, sample: Tensor) -> dict[str, Tensor]:
        sizes = {k: getattr(self, k).size for k in ("obs", "action", "reward", "done")}
        return dict(zip(sizes, sample.flatten(0, -2).split(list(sizes.values()), 1), strict=True))


@dataclass(frozen=True)
class Model(Settings):
    """The diffusion model of windows. Published: width 1024, three blocks and 256 steps."""

    length: Count = 32
    """steps of a window"""
    stride: Count = 8
    """train on every so many-th window"""
    num_updates: Count = 4000
    """gradient steps; of the model"""
    batch_size: Count = 64
    """items per gradient step; windows"""
    lr: Positive = 1e-3
    """learning rate; of AdamW, with warm-up and cosine decay"""
    channels: Counts = (32, 64)
    """channels of the U-Net, per level"""
    sampling_steps: Count = 32
    """denoising steps; Heun steps per sample"""
    churn: NonNegative = 0.0
    """noise added and removed while sampling (published: 80); with so few steps it widens samples by 3 to 5 %"""


@dataclass(frozen=True)
class WindowGenerator:
    """A trained model of windows. ``track``: a step's fields; ``model``: sizes and sampling steps."""

    denoiser: GaussianDenoiser
    track: StepLayout
    model: Model

    def sample(self, n: int, rng: Rng | int, guide: Guide | None = None) -> dict[str, Tensor]:
        """Return n sampled windows, decoded (see ``StepLayout.decode``)."""
        rng = as_rng(rng, next(self.denoiser.parameters()).device)
        event = (self.model.length, self.track.size)
        churn = Churn(self.model.churn)
        return self.track.decode(
            heun(self.denoiser, time_grid(self.model.sampling_steps), event, n, rng, churn=churn, guide=guide)
        )


def train_window_generator(
    window: Parts, model: Model, rng: Rng | int, run: Run
) -> Generator[Metrics, None, WindowGenerator]:
    """Train a model of windows [W, L, ...]: a generator that yields its loss and returns the ``WindowGenerator``."""
    rng = as_rng(rng, run.device)
    track = StepLayout.fit(window)
    net = rng.init(UNet1D, (model.length, track.size), channels=model.channels, hidden=4 * model.channels[0])
    denoise = GaussianDenoiser(net, edm, "edm", 1.0).to(run.device)
    yield from fit(
        EDMTraining(), denoise, track.encode(window).to(run.device), None, model.num_updates, rng,
        batch=model.batch_size, lr=model.lr, warmup=model.num_updates // 10, run=run,
        ema=EMA(denoise, max_decay=0.9995),
    )  # fmt: skip
    return WindowGenerator(denoise, track, model)


def windows_to_transitions(parts: Parts, low: Tensor, high: Tensor, gamma: float, name: str = "") -> Transitions:
    """Return the transitions in generated windows: up to the end of their episode, or to a step with an unclear end.

    The last step of a window has a successor only at a true end. Raise InvalidInputError if there is no transition.
    """
    over, sure = parts["done"][..., 0] > 0.5, parts["sure"][..., 0]
    stop = (over | ~sure).long()
    kept = sure & (stop.cumsum(1) - stop == 0)
    kept[:, -1] &= over[:, -1]
    if not bool(kept.any()):
        raise InvalidInputError("the generated windows hold no step with a clear end flag: train the model longer")
    after = torch.cat([parts["obs"][:, 1:], parts["obs"][:, -1:]], 1)
    ended, one = over[kept], torch.ones(int(kept.sum()), dtype=torch.int64)
    return Transitions(
        parts["obs"][kept], parts["action"][kept][:, None], parts["reward"][kept][:, 0], gamma * ~ended,
        after[kept], ended, one, low, high, gamma, name,
    )  # fmt: skip


def _pressed(action: Tensor) -> Tensor:
    return torch.atanh(action.clamp(-EDGE, EDGE))
