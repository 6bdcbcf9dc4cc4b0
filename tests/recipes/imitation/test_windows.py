"""What a clone is trained on: chunks that begin now, whatever the codec, and no loss beyond the ends of episodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, time_grid
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer
from denoiserl.integrations.lerobot.policy import LeRobotCodec
from denoiserl.processes import GaussianHead, cosine, ddim, with_min_std
from denoiserl.recipes.imitation import diffusion_policy


class Linear(nn.Module):
    """Chunks [H, d] as a linear function of what is seen."""

    def __init__(self, cond: int, event: tuple[int, int]) -> None:
        super().__init__()
        self.event, self.map = event, nn.Linear(cond, event[0] * event[1])
        for p in self.map.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, clock: Any, context: Tensor) -> Tensor:
        return self.map(context.flatten(1)).unflatten(1, self.event)


def walks(episodes: int = 40, ticks: int = 12) -> Demonstrations:
    """Who acts does what is seen now: an observation says nothing about the next one."""
    seen = torch.rand(episodes * ticks, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen[:2, 0] = torch.tensor([-1.0, 1.0])
    return Demonstrations(seen, seen.clone(), torch.arange(1, episodes + 1) * ticks)


CODECS = {
    "robot": lambda demos: ActionChunkCodec.fit(demos),
    "lerobot": lambda demos: LeRobotCodec(
        Normalizer.fit(demos.observations), Normalizer.fit(demos.actions), {"observation.state": 1}, 2, 3
    ),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("stacked", [False, True])
def test_a_policy_that_sees_two_observations_executes_from_now_on(name: str, stacked: bool) -> None:
    """The first executed action is the one of the newest observation. ``stacked``: the demonstrations hold two
    observations as one, as ``ObservationHistory`` shows them."""
    demos = walks()
    process, steps = OneStep(), OneStep().steps(time_grid(1), std_scale=0.0)
    made = Policy.of(process, GaussianHead(Linear(2, (4, 1)), 1, 0.3), (4, 1), steps, codec=CODECS[name](demos))
    data = demos
    if stacked:
        first = torch.arange(len(demos.actions)) % 12 == 0
        before = torch.where(first[:, None], demos.observations, demos.observations.roll(1, 0))
        data = Demonstrations(torch.cat([before, demos.observations], 1), demos.actions, demos.ends)
    a = diffusion_policy.Args(num_updates=300, batch_size=128, lr=2e-2, obs_horizon=1 if stacked else 2)
    for _ in diffusion_policy.improve(made, data, a, Rng(0)):
        pass
    seen = torch.rand(256, 2, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    acts = made.generate(seen.flatten(1), Rng(0))
    assert float((acts[:, 0] - seen[:, 1]).abs().mean()) < 0.05, "now"
    assert float((acts[:, 0] - seen[:, 0]).abs().mean()) > 0.4, "and not a tick ago"
    assert acts.shape[1] == (3 if name == "lerobot" else 4)


def last_differs(episodes: int = 30, ticks: int = 7) -> Demonstrations:
    """All actions are −1, the last of an episode is 1."""
    seen = (torch.arange(ticks) / ticks).repeat(episodes)[:, None]
    acts = torch.full((episodes * ticks, 1), -1.0)
    acts[ticks - 1 :: ticks] = 1.0
    return Demonstrations(seen, acts, torch.arange(1, episodes + 1) * ticks)


class Table(nn.Module):
    """One number an action of the chunk, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8, 1))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.bias.expand(x.shape)


def answers(mask: bool) -> Tensor:
    """What the best constant chunk of 8 is for episodes of 7 ticks, 5 actions of which are executed."""
    made = Policy.of(
        OneStep(std=0.5), GaussianDenoiser(Table(), cosine, "x0"), (8, 1), OneStep(std=0.5).steps(time_grid(1))
    ).with_execution_horizon(5)
    a = diffusion_policy.Args(num_updates=400, batch_size=512, lr=2e-2, obs_horizon=1, mask_padding=mask)
    for _ in diffusion_policy.improve(made, last_differs(), a, Rng(0)):
        pass
    assert isinstance(made.denoiser.net, Table)
    return made.denoiser.net.bias.detach().flatten()


def test_actions_beyond_the_end_of_an_episode_have_no_loss() -> None:
    """Windows start at ticks 0 to 3; entry j of the one at i is real where i + j < 7. The best constant is the mean of
    the real ones: entry j is 1 in the window that ends there, of those that reach it."""
    real = torch.tensor([[i + j < 7 for j in range(8)] for i in range(4)]).float()
    acts = torch.tensor([[1.0 if i + j >= 6 else -1.0 for j in range(8)] for i in range(4)])
    mean = (acts * real).sum(0) / real.sum(0).clamp_min(1)
    masked, imitated = answers(True), answers(False)
    assert torch.allclose(masked[:7], mean[:7], atol=0.1) and float(masked[7]) == 0, "entry 7 is never real"
    assert torch.allclose(imitated, acts.mean(0), atol=0.1)


def test_padding_is_noised_like_the_rest_and_only_its_loss_is_left_out() -> None:
    """Were it left clean, the network could read the last action from it."""
    from denoiserl.train.fit import training_losses

    class Spy(nn.Module):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            told.append(x)
            return torch.zeros_like(x)

    told: list[Tensor] = []
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1))
    x0, counts = torch.ones(64, 8, 1), torch.zeros(64, 8, 1, dtype=torch.bool)
    counts[:, :3] = True
    t = torch.full((64,), 0.5)
    loss = training_losses(process, GaussianDenoiser(Spy(), cosine, "x0"), x0, None, Rng(0), t=t, counts=counts)
    whole = training_losses(process, GaussianDenoiser(Spy(), cosine, "x0"), x0, None, Rng(0), t=t)
    assert torch.equal(told[0], told[1]) and bool((told[0][:, 3:] != x0[:, 3:]).all())
    assert torch.allclose(loss, whole), "the error is 1 everywhere, and so is its mean over what counts"
