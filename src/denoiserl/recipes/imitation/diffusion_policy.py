"""Diffusion Policy: clone demonstrations with a diffusion model over chunks of actions.

paper: arXiv 2303.04137
signal: data
family: imitation
side: B
base: diffusion
task: policy learning
stage: imitation
output: actions
process: diffusion, flow
likelihood: none

Every window of a demonstration pairs the last T_o observations with the next H actions. A network learns to denoise
the chunk given the observations, E ‖x̂₀ − x₀‖² weighted as its prediction asks; the moving average of its weights is
what acts. In the environment a chunk is drawn, its first T_a actions are executed, and the policy plans again.

As published: min-max normalisation to [−1, 1], windows that reach over the ends of an episode, EMA, receding horizon.
Differences: what a window repeats beyond the ends is padding and has no loss (published, and here with
``mask_padding=False``: it is imitated); a chunk begins now (published: T_o − 1 ticks ago, as LeRobot's policies do here
too), so it is executed from its first action on; times are continuous on a cosine schedule instead of 100 levels, so
any number of steps serves; the network is an MLP (small actions) or the 1-D U-Net with GELU (Mish costs 13 times as
much on a CPU).

Expect, with the defaults, a success of 0.5 to 0.75 on Meta-World's drawer-open, cloned from a demonstrator that
misjudges where things are and succeeds in a third of his episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from denoiserl.control.acting import carry
from denoiserl.control.data_checks import check_data_fits
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, NonNegative, Settings
from denoiserl.core.tree import tree_map
from denoiserl.data import Demonstrations, windows
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.policy.policy import Policy
from denoiserl.train import Metrics, Run, TrainingRows, fit

BLOCK = 65536
"""windows looked at side by side"""


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 9000
    """gradient steps"""
    batch_size: Count = 256
    """items per gradient step; windows"""
    lr: NonNegative = 1e-3
    """learning rate; of AdamW, with warm-up and cosine decay"""
    obs_horizon: Count = 1
    """observations that the policy sees (T_o)"""
    mask_padding: bool = True
    """leave out the loss of actions that a window repeats beyond the ends of its episode"""


def improve(
    policy: Policy, data: Demonstrations | EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Clone demonstrations; the policy carries from now on how many actions of a chunk are executed.

    Warn of actions beyond what the policy's codec can say.
    """
    rng = as_rng(rng, policy.device)
    data = data.demos if isinstance(data, EpisodeDataset) else data
    check_data_fits(policy, data)
    horizon, past = (
        policy.event_shape[0],
        getattr(policy.codec, "history", 1) - 1,
    )  # ticks before now that its chunks begin
    now = max(args.obs_horizon - 1, past)
    window = windows(data.ends, horizon + now - past, now + 1, carry(policy))
    chunks, mask = slice(now - past, None), getattr(args, "mask_padding", True)
    padded = mask and any(not bool(window.inside(i)[:, chunks].all()) for i in window.every.split(BLOCK))

    def take(index: Tensor) -> dict[str, Any]:
        chunk = policy.codec.encode(window.actions(data.actions, index)[:, chunks])
        observed = tree_map(lambda v: v[:, now + 1 - args.obs_horizon :], window.observations(data.observations, index))
        seen = policy.codec.condition(tree_map(lambda v: v[:, 0], observed) if args.obs_horizon == 1 else observed)
        real = window.inside(index)[:, chunks].roll(-past, 1)[..., None].expand(chunk.shape)  # now first
        cond = seen.flatten(1) if isinstance(seen, Tensor) else seen
        return {"x0": chunk, "cond": cond, "counts": real if padded else None}

    how: dict[str, Any] = {"batch": args.batch_size, "lr": args.lr, "warmup": 100, "run": run}
    made = TrainingRows(len(window), lambda index: take(index.cpu()), data)
    yield from fit(policy.process, policy.denoiser, made, None, args.num_updates, rng, **how)


SIGNAL = "data"
START = "untrained"
DEFAULT_TASK = "env"
