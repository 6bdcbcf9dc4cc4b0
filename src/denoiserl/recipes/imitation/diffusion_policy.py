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
the chunk given the observations, E ‖x̂₀ − x₀‖² weighted as its prediction asks. The moving average of its weights acts.
In the environment a chunk is drawn, its first T_a actions are executed, and the policy plans again.

As published: min-max normalisation to [−1, 1], windows that reach over the ends of an episode, EMA, receding horizon.

Differences:

- Actions that a window repeats beyond the ends are padding and have no loss. As published, and here with
  ``mask_padding=False``, they are imitated.
- A chunk begins now, so it is executed from its first action on. As published, and in LeRobot's policies here too, it
  begins T_o − 1 steps ago.
- Times are continuous on a cosine schedule instead of 100 levels, so any number of sampling steps works.
- The network is an MLP (small actions) or the 1-D U-Net with GELU (Mish costs 13 times as much on a CPU).

Expect, with the defaults, a success of 0.5 to 0.75 on Meta-World's drawer-open. It is cloned from a scripted
demonstrator with wrong estimates of positions, which succeeds in a third of the episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.data_checks import check_data_fits
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Positive, Settings
from denoiserl.core.tree import tree_map
from denoiserl.data import Demonstrations, windows
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.train import Metrics, Run, TrainingRows, fit

BLOCK = 65536
"""windows that are checked at a time"""


@dataclass(frozen=True)
class Args(Settings):
    num_updates: Count = 9000
    """gradient steps"""
    batch_size: Count = 256
    """items per gradient step; windows"""
    lr: Positive = 1e-3
    """learning rate; of AdamW, with warm-up and cosine decay"""
    obs_horizon: Count = 1
    """observations that the policy sees (T_o)"""
    mask_padding: bool = True
    """leave out the loss of actions that a window repeats beyond the ends of its episode"""


def improve(
    policy: Policy, data: Demonstrations | EpisodeDataset, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Clone demonstrations; the policy keeps how many actions of a chunk are executed.

    Warn of actions outside the range of the policy's codec.
    """
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    rows = training_rows(policy, data, args)
    how: dict[str, Any] = {"batch": args.batch_size, "lr": args.lr, "warmup": 100, "run": run}
    yield from fit(policy.process, policy.denoiser, rows, None, args.num_updates, rng, **how)


def training_rows(policy: Policy, data: Demonstrations | EpisodeDataset, args: Args) -> TrainingRows:
    """Return the windows of demonstrations as rows for ``fit``: chunks of actions with the observations before them."""
    data = data.demos if isinstance(data, EpisodeDataset) else data
    check_data_fits(policy, data)
    horizon, past = policy.event_shape[0], getattr(policy.codec, "history", 1) - 1  # chunks begin ``past`` steps ago
    now = max(args.obs_horizon - 1, past)
    window = windows(data.ends, horizon + now - past, now + 1, set_execution_horizon(policy))
    chunks, mask = slice(now - past, None), getattr(args, "mask_padding", True)
    padded = mask and any(not bool(window.valid(i)[:, chunks].all()) for i in window.all_indices.split(BLOCK))

    def select(index: Tensor) -> dict[str, Any]:
        chunk = policy.codec.encode(window.actions(data.actions, index)[:, chunks])
        obs = tree_map(lambda v: v[:, now + 1 - args.obs_horizon :], window.observations(data.observations, index))
        cond = policy.codec.condition(tree_map(lambda v: v[:, 0], obs) if args.obs_horizon == 1 else obs)
        cond = cond.flatten(1) if isinstance(cond, Tensor) else cond
        inside = window.valid(index)[:, chunks].roll(-past, 1)[..., None].expand(chunk.shape)  # now first
        return {"x0": chunk, "cond": cond, "counts": inside if padded else None}

    return TrainingRows(len(window), lambda index: select(index.cpu()), data)


SIGNAL = "data"
START = "untrained"
DEFAULT_TASK = "env"
