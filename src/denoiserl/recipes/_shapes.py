"""The image experiment: a flow generator of coloured shapes that has learned from badly captioned pictures.

Every object of a training caption is wrong with probability ``mislabel``: the web's captions, in small. However long
it imitates, a faithful generator draws what such captions go with, so its prompt hits stop near (1 − mislabel)^objects;
a reward that reads the picture can teach it what the captions could not. Training and test prompts share no scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiserl.labs import shapes
from denoiserl.net import DiT
from denoiserl.policy import Policy
from denoiserl.process import Diffusion, Gauss, ddim, flow_sde, grid, linear
from denoiserl.rng import Rng
from denoiserl.train import Keep, fit

EVENT = shapes.EVENT


@dataclass(frozen=True)
class Base:
    """The generator before reward."""

    updates: int = 1200
    """gradient steps of imitation"""
    batch: int = 128
    """pictures a gradient step"""
    lr: float = 4e-3
    """AdamW's learning rate, with warm-up and cosine decay"""
    mislabel: float = 0.3
    """probability that an object's caption is wrong"""
    objects: tuple[int, int] = (1, 2)
    """fewest and most objects in a scene"""
    width: int = 64
    """the transformer's features a patch"""
    depth: int = 3
    """the transformer's layers"""
    denoise: int = 10
    """denoising steps, for the training SDE and the serving ODE"""
    churn: float = 0.7
    """noise level a of the training SDE"""


def scenes(base: Base, seed: int) -> tuple[Tensor, Tensor]:
    """4000 training scenes and 256 test scenes [n, 9] that share none."""
    every = torch.unique(shapes.scenes(12_000, Rng(seed + 77), base.objects), dim=0)
    order = Rng(seed + 78).permutation(len(every))
    return every[order[256:4256]], every[order[:256]]


def prompts(base: Base, seed: int) -> tuple[Tensor, Tensor]:
    """The training prompts [4000, 81] and the held-out ones [256, 81]."""
    train, test = scenes(base, seed)
    return shapes.encode(train), shapes.encode(test)


def captions(scene: Tensor, mislabel: float, rng: Rng) -> Tensor:
    """The scene that a caption claims: each object is replaced by a random one with probability ``mislabel``."""
    wrong = (rng.uniform(*scene.shape) < mislabel) & (scene > shapes.EMPTY)
    return torch.where(wrong, rng.integers(1, 17, *scene.shape), scene)


def reward(picture: Tensor, prompt: Tensor) -> Tensor:
    """The fraction of prompted objects that the parser finds where they should stand, [B]."""
    return shapes.reward(picture, prompt)["found"]


def policy(base: Base, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A rectified-flow transformer, one patch a cell: trained under the Flow-SDE, served by the ODE."""
    torch.manual_seed(seed)
    process = Diffusion(linear, flow_sde(base.churn))
    net = Gauss(DiT(EVENT, patch=4, width=base.width, depth=base.depth, places=shapes.PROMPT // shapes.CELLS), linear, "v").to(device)
    times = grid(base.denoise)
    return Policy.of(process, net, EVENT, process.steps(times), process.steps(times, ddim(0.0)))


def imitate(made: Policy, base: Base, seed: int, updates: int | None, lr: float, keep: Keep) -> Iterator[dict]:
    """Fit the generator to captioned pictures."""
    rng = Rng(seed)
    scene = scenes(base, seed)[0]
    many = scene[rng.integers(0, len(scene), 20_000)]
    picture, caption = shapes.draw(many, rng), shapes.encode(captions(many, base.mislabel, rng))
    yield from fit(
        made.process, made.denoiser, picture, caption, updates or base.updates, rng, batch=base.batch, lr=lr, keep=keep
    )


def pretrain(base: Base, seed: int, keep: Keep) -> Iterator[dict]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    made = policy(base, seed, keep.device)
    yield from imitate(made, base, seed, None, base.lr, keep)
    return made


def evaluate(made: Policy, held_out: Tensor, rng: Rng, each: int = 4) -> dict[str, float]:
    """The serving ODE on held-out prompts: strict hits, found share, on-manifold rate and diversity within a prompt."""
    asked = held_out.repeat_interleave(each, 0)
    picture = made.draw(asked, rng)
    said = shapes.reward(picture, asked)
    return {
        "held-out strict": float(said["strict"].mean()),
        "held-out found": float(said["found"].mean()),
        "on manifold": float(shapes.on_manifold(picture).float().mean()),
        "diversity": float(shapes.diversity(picture.reshape(-1, each, *EVENT)).mean()),
    }
