"""Improve your own image generator on your own reward: train a flow on your pictures, then Flow-GRPO.

Copy this file and replace what is marked YOURS. It runs in about half a minute on a laptop. A pretrained pipeline of
diffusers needs no training here: policy = denoiserl.integrations.diffusers.from_pipeline(pipeline).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.processes import ddim, flow_sde, linear
from denoiserl.recipes import flow_grpo
from denoiserl.train import Run, fit

SIDE, CORNERS = 8, 4


class Net(nn.Module):
    """YOURS: any network (noisy picture [B, 1, 8, 8], time [1] or [B], prompt [B, 4]) -> a velocity [B, 1, 8, 8]."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        first, last = nn.Linear(SIDE * SIDE + 1 + CORNERS, width), nn.Linear(width, SIDE * SIDE)
        self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(width, width), nn.GELU(), last)

    def forward(self, x: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        seen = [x.flatten(1), time.reshape(-1, 1).expand(len(x), 1), prompt]
        return self.layers(torch.cat(seen, 1)).view_as(x)


def corner(which: Tensor) -> Tensor:
    """A bright square in one of four corners, [B, 1, 8, 8], values in [-1, 1]."""
    picture = -torch.ones(len(which), 1, SIDE, SIDE)
    for k in range(CORNERS):
        top, left = SIDE // 2 * (k // 2), SIDE // 2 * (k % 2)
        picture[which == k, :, top + 1 : top + 4, left + 1 : left + 4] = 1
    return picture


def pictures(n: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """YOURS: pictures [n, 1, 8, 8] and their captions [n, 4]. Here every other caption says any corner."""
    which, any_ = rng.integers(0, CORNERS, n), rng.integers(0, CORNERS, n)
    caption = torch.where(rng.uniform(n) < 0.5, which, any_)
    return corner(which) + 0.1 * rng.normal(n, 1, SIDE, SIDE), nn.functional.one_hot(caption, CORNERS).float()


def reward(picture: Tensor, prompt: Tensor) -> Tensor:
    """YOURS: one number per picture, [B]: how close it is to the prompted one. Any function; no gradient is needed."""
    return 1 - (picture - corner(prompt.argmax(1))).abs().mean((1, 2, 3))


def main(iterations: int = 150, updates: int = 1200) -> tuple[float, float]:
    torch.manual_seed(0)
    process = Diffusion(linear, flow_sde(0.7))  # learn from an SDE, whose steps have a density
    train, serve = process.steps(time_grid(10)), process.steps(time_grid(10), ddim(0.0))  # and draw with the ODE
    policy = Policy.of(process, GaussianDenoiser(Net(), linear, "v"), (1, SIDE, SIDE), train, serve)
    data, captions = pictures(8000, Rng(0))
    list(fit(process, policy.denoiser, data, captions, updates, Rng(1), batch=128, lr=2e-3))
    prompts = torch.eye(CORNERS)

    def score() -> float:
        asked = prompts.repeat_interleave(64, 0)
        return float(reward(policy.generate(asked, Rng(1000)), asked).mean())

    before = score()
    settings = flow_grpo.Args(
        iterations=iterations, num_prompts=8, group_size=48, batch_size=192, sde_window=4, kl_coef=0.0, clip_range=0.01
    )
    for row in flow_grpo.improve(policy, (reward, prompts), settings, Rng(2), Run()):
        print(f"reward {row['rollout/reward']:.3f}")
    print(f"reward of the ODE: {before:.3f} trained on pictures, {(after := score()):.3f} improved")
    policy.save("runs/your_images")  # Policy.load("runs/your_images", net=Net()) brings it back
    return before, after


if __name__ == "__main__":
    main()
