"""The image task: a flow generator of coloured shapes, pre-trained on images with wrong captions.

With probability ``label_noise`` a caption names a random colour for an object. A generator that fits these captions
matches a prompt of n objects with probability (1 − ¾ label_noise)^n, however long it imitates. The reward reads the
image itself and so removes this limit. Training and held-out prompts never share a scene.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.nn import DiT
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, flow_sde, linear, time_grid
from denoiserl.report.media import image_grid
from denoiserl.tasks.base import Task
from denoiserl.tasks.domains import shapes
from denoiserl.train import Run, fit

EVENT = shapes.EVENT
HELD_OUT = 1024
PICTURES = 20_000


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the pre-trained generator."""

    pretrain_updates: CountOrZero = 2000
    """gradient steps of imitation"""
    pretrain_batch_size: Count = 64
    """items per gradient step of imitation; images"""
    pretrain_lr: Positive = 6e-3
    """learning rate of imitation (AdamW, cosine decay)"""
    label_noise: Fraction = 0.3
    """probability that a label is wrong; a caption names a random colour"""
    objects: tuple[Count, Count] = (2, 4)
    """minimum and maximum number of objects in a scene"""
    policy_width: Count = 96
    """width of the policy network; features per patch"""
    policy_depth: Count = 2
    """layers of the policy network"""
    sampling_steps: Count = 10
    """denoising steps; of the training SDE and the evaluation ODE"""
    sde_noise: NonNegative = 0.7
    """noise level a of the training SDE"""
    sampler: Literal["flow_sde", "ddim"] = "flow_sde"
    """training steps: the flow's SDE, or DDIM's with noise ``ddim_eta``"""
    ddim_eta: Fraction = 1.0
    """noise of DDIM's training steps; 1: the exact posterior (DDPM), 0: the ODE, which cannot learn"""
    prompt_pool: Count | None = None
    """number of training prompts (None: all, about 11,000); few prompts repeat often"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_ordered_pair("objects")


@lru_cache(maxsize=2)
def split_scenes(objects: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return training scenes and 1024 other, held-out ones [n, 9]; the same for every seed."""
    every = torch.unique(shapes.random_scenes(12_000, Rng(77), objects), dim=0)
    if len(every) < 2 * HELD_OUT:
        raise RunError(f"there are only {len(every)} scenes with {objects} objects: allow more objects")
    order = Rng(78).permutation(len(every))
    return every[order[HELD_OUT:]], every[order[:HELD_OUT]]


def prompts(base: Args) -> tuple[Tensor, Tensor]:
    """Return the training prompts [about 11,000, 81] and the held-out ones [1024, 81]."""
    train, test = split_scenes(base.objects)
    return shapes.encode(train), shapes.encode(test)


def noisy_captions(scene: Tensor, mislabel: float, rng: Rng | int) -> Tensor:
    """Return the captions' scenes: with probability ``mislabel`` the colour of an object is random."""
    rng = as_rng(rng, scene.device)
    colours = len(shapes.COLOURS)
    wrong = (rng.uniform(*scene.shape) < mislabel) & (scene > shapes.EMPTY)
    named = 1 + (scene - 1) // colours * colours + rng.integers(0, colours, *scene.shape)
    return torch.where(wrong, named, scene)


def reward(picture: Tensor, prompt: Tensor) -> Tensor:
    """Return the fraction of prompted objects that the parser finds in the right cell, [B]."""
    return shapes.reward(picture, prompt)["objects_found"]


def untrained_policy(base: Args, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a rectified-flow transformer, one patch per cell: it trains with the Flow-SDE and evaluates by the ODE."""
    torch.manual_seed(seed)
    process = Diffusion(linear, flow_sde(base.sde_noise))
    net = DiT(EVENT, patch=4, width=base.policy_width, depth=base.policy_depth, places=shapes.PROMPT // shapes.CELLS)
    times = time_grid(base.sampling_steps)
    steps = process.steps(times, ddim(base.ddim_eta) if base.sampler == "ddim" else None)
    serve = process.steps(times, ddim(0.0))
    return Policy.of(process, GaussianDenoiser(net, linear, "v").to(device), EVENT, steps, serve)


def imitate(
    policy: Policy, base: Args, seed: int, updates: int, lr: float, run: Run, stream: int = 0
) -> Iterator[dict]:
    """Fit the generator to the captioned images of ``seed``; each ``stream`` has its own minibatches and noise."""
    rng = Rng(seed)  # on the CPU, so that the data do not depend on the device
    train = split_scenes(base.objects)[0]
    scene = train[rng.integers(0, len(train), PICTURES)]
    data = [shapes.draw(scene, rng), shapes.encode(noisy_captions(scene, base.label_noise, rng))]
    picture, caption = (v.to(policy.device) for v in data)
    rng = Rng(seed + 1_000_003 * (stream + 1), policy.device)
    yield from fit(
        policy.process, policy.denoiser, picture, caption, updates, rng, batch=base.pretrain_batch_size, lr=lr, run=run
    )


def pretrained_policy(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """Train a policy by imitation: yield metrics and return the policy."""
    policy = untrained_policy(base, seed, run.device)
    yield from imitate(policy, base, seed, base.pretrain_updates, base.pretrain_lr, run)
    return policy


METRICS = {
    "exact_match": ("held-out prompts drawn without a mistake", "%"),
    "objects_found": ("prompted objects found (the reward)", "%"),
    "count_correct": ("images with the prompted number of objects", "%"),
    "clean_image": ("images of clean shapes only", "%"),
    "diversity": ("distance of two images of a prompt", ""),
}


def evaluate_outcomes(policy: Policy, held_out: Tensor, rng: Rng | int) -> dict[str, Tensor]:
    """Generate two images per prompt [n, 81] with the eval steps, and score them; [n] each.

    The rewards and ``clean_image`` are of the first image; ``diversity`` is the distance (RMS per pixel) of both. The
    reward of training is ``objects_found``; ``exact_match`` and ``count_correct`` are held out.
    """
    prompt = held_out.to(policy.device)
    picture = policy.generate(torch.cat([prompt, prompt]), rng)
    one, other = picture.chunk(2)
    scores = shapes.reward(one, prompt) | {"clean_image": shapes.on_manifold(one).float()}
    return scores | {"diversity": shapes.diversity(torch.stack([one, other], 1))}


def outcomes(policy: Policy, base: Args, seed: int, n: int) -> dict[str, Tensor]:
    """Return ``evaluate_outcomes`` on n of the 1024 held-out prompts. Raise RunError for a larger n."""
    held_out = prompts(base)[1]
    if n > len(held_out):
        raise RunError(f"{n} trials need more prompts than the {len(held_out)} held-out ones: use fewer trials")
    return evaluate_outcomes(policy, held_out[Rng(seed).permutation(len(held_out))[:n]], Rng(seed, policy.device))


def pictures(policy: Policy, prompt: Tensor, rng: Rng | int) -> Tensor:
    """Generate images [n, 3, 12, 12] in [-1, 1] for prompts [n, 81]."""
    picture = policy.generate(prompt.to(policy.device), rng)
    return picture.clamp(-1, 1)


def render_trials(policy: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """Render the prompted scenes and, below them, the generated images; also return the prompts in words."""
    prompt = prompts(base)[1][Rng(seed).permutation(HELD_OUT)[:n]]
    scene = shapes.decode(prompt)
    drawn = pictures(policy, prompt, Rng(seed, policy.device)).cpu()
    text = "\n".join(shapes.describe_scene(s) for s in scene)
    return {
        "pictures.png": image_grid(torch.cat([shapes.render(scene, 0.1, 0.9), drawn]), columns=n),
        "prompts.txt": text,
    }


def task(base: Args) -> Task:
    """Return the task: learn from a parser's reward of the image."""
    return Task(
        "shapes",
        {"flow": partial(pretrained_policy, base)},
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        METRICS,
        reward=reward,
        prompts=lambda seed: prompts(base)[0][: base.prompt_pool],
        render=lambda policy, seed, n: render_trials(policy, base, seed, n),
        continue_imitation=lambda policy, seed, updates, keep, stream: imitate(
            policy, base, seed, updates, base.pretrain_lr, keep, stream
        ),
        caption="Top: the prompted scenes. Bottom: the generated images.",
        num_eval_trials=512,
        num_denoising_steps=base.sampling_steps,
    )
