"""What objects say of themselves: one short line with what they are and their sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, Weights, tasks, time_grid
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import to_transitions
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.processes import ddim, linear
from denoiserl.rewards import RewardSignal
from denoiserl.train import Run

PROCESS = Diffusion(linear, ddim(1.0))
POLICY = Policy.of(
    PROCESS, GaussianDenoiser(MLP((4, 1), 3, width=16), linear, "v"), (4, 1), PROCESS.steps(time_grid(5))
)
SIZE = sum(p.numel() for p in POLICY.parameters())
ENV = Collector("Pendulum-v1", 2)
CHAIN = POLICY.sample_chain(torch.zeros(6, 3), 0)
DEMOS = Demonstrations.of([(torch.zeros(3, 2), torch.zeros(3, 1))] * 2, name="pushes")
DATA = EpisodeDataset(DEMOS, torch.arange(6.0), None, torch.ones(2, dtype=torch.bool), -torch.ones(1), torch.ones(1))
ROWS = to_transitions(DATA)


def kept() -> Weights:
    weights = Weights(GaussianDenoiser(MLP((4, 1), 3, width=16), linear, "v"))
    weights.snapshot("reference")
    return weights


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (POLICY, f"Policy(Diffusion, {SIZE:,} parameters, event [4, 1], 5 train and 5 eval steps, IdentityCodec, cpu)"),
        (kept(), f"Weights(current, reference: {SIZE:,} parameters, {SIZE:,} trainable)"),
        (Rng(3), "Rng(seed=3, device='cpu')"),
        (Rng.rows(range(4)), "Rng.rows(4 streams, device='cpu')"),
        (ENV, "Collector(Pendulum-v1, 2 environments, observation (3,), action (1,))"),
        (CHAIN, "Chain(batch [6], event [4, 1], 4 of 5 steps recorded, cpu)"),
        (CHAIN.steps_at(), "ChainSteps(24 steps, x [4, 1], cpu)"),
        (
            ENV.collect(lambda obs, rng: (POLICY.generate(obs, rng), None), 3, 0),
            "Rollout(3 steps of 2 environments, observation [3], action [4, 1], 0 episodes ended)",
        ),
        (DEMOS, "Demonstrations(pushes, 2 episodes, 6 frames, observation [2], action [1])"),
        (
            DATA,
            "EpisodeDataset(pushes, 2 episodes, 6 frames, observation [2], action [1], with rewards and ends)",
        ),
        (ROWS, "Transitions(pushes, 6 rows, observation [2], action [1, 1], gamma 0.99)"),
        (ROWS.replay(), "ReplayBuffer(6 of 6 decisions, cpu)"),
        (PROCESS.steps(time_grid(5)), "StepTable(5 steps, t 1 to 0, 4 with a density)"),
        (RewardSignal(math.prod, torch.zeros(128, 2)), "RewardSignal(prod, 128 prompts)"),
        (Run(), "Run(in memory)"),
        (Run("runs/x", budget={"updates": 100}), "Run(runs/x, budget 100 updates)"),
        (tasks.make("shapes", {}), "Task(shapes, offers reward, starts flow, metric 'exact_match')"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
@pytest.mark.fixed_seed
def test_a_repr_is_a_line_of_what_it_is_and_its_sizes(thing: Any, words: str) -> None:
    assert repr(thing) == words and len(words) < 150


@pytest.mark.fixed_seed
def test_the_seed_is_that_of_the_stream_after_a_resume() -> None:
    saved, other = Rng(7), Rng(1)
    other.load_state_dict(saved.state_dict())
    assert repr(other) == "Rng(seed=7, device='cpu')"
