"""The policy that learns is the one that is served: what is executed of a chunk, controls, and who can be made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, time_grid
from denoiserl.control.acting import eval_actor, set_execution_horizon
from denoiserl.control.best_of_n import LatentController
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import RunningNormCodec, TanhCodec
from denoiserl.doctor import signal
from denoiserl.envs import Collector
from denoiserl.nn import MLP, TwoTimeNet
from denoiserl.processes import GaussianHead, MeanFlow, MeanVelocityDenoiser, ddim, linear, with_min_std
from denoiserl.recipes.off_policy import sac
from denoiserl.recipes.policy_gradient import beyond_human, dppo, gorl, ppo
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies
from denoiserl.tasks.user_inputs import load_policy
from denoiserl.train import Run

gymnasium = pytest.importorskip("gymnasium")
SEEN = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Near(gymnasium.Env):
    """Reward −|a − 0.8|, four ticks."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seen, self.ticks = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.seen, {}

    def step(self, action: Any) -> Any:
        self.ticks += 1
        return self.seen, -float(np.abs(action - 0.8).sum()), False, self.ticks >= 4, {"success": self.ticks == 4}


class Foreign(nn.Module):
    """A network of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor, clock: Any, context: Tensor) -> Tensor:
        return self.net(context).view_as(x)


class Counts(Collector):
    """How many actions of each decision were asked for."""

    asked: list[int]

    def collect(self, act: Any, steps: int, rng: Rng) -> Any:
        ep = super().collect(act, steps, rng)
        self.asked = [*getattr(self, "asked", []), ep.action.shape[-2]]
        return ep


def flow(net: nn.Module | None = None) -> Policy:
    torch.manual_seed(0)
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.2), clip=1.0), time_grid(3)
    made = GaussianDenoiser(net or MLP((2, 1), cond=2, width=16, depth=2), linear, "v")
    return Policy.of(process, made, (2, 1), process.steps(times), process.steps(times, ddim(0.0)))


def latents(made: Policy) -> Policy:
    """The policy, served through the mean of an encoder."""
    net = MLP(made.event_shape, 2, 8, 1, time=0, residual=False)
    return made.with_controller(LatentController(GaussianHead(net, 1, 1.0)))


GORL = gorl.Args(
    iterations=4,
    stage_fractions=(1, 1),
    num_envs=4,
    rollout_steps=4,
    batch_size=16,
    epochs=1,
    decoder_rollout_steps=4,
    decoder_updates=5,
    first_stage="actions",
)
DPPO = dppo.Args(iterations=1, num_envs=4, rollout_steps=4, batch_size=16, epochs=1)


def test_all_stages_execute_what_the_policy_carries() -> None:
    made, env = flow(), Counts(Near, 4, 1)
    set_execution_horizon(made, 1)
    for _ in gorl.improve(made, env, GORL, Rng(0)):
        pass
    assert set(env.asked) == {1} and eval_actor(made)(SEEN, Rng(0)).shape[1] == 1


def test_what_learns_is_served_and_not_the_control_of_before(tmp_path: Path) -> None:
    made = latents(flow())
    path = made.save(tmp_path / "p")
    with pytest.warns(UserWarning, match=r"has a controller \(LatentController\).* the policy goes on without it"):
        for _ in dppo.improve(made, Collector(Near, 4, 1), DPPO, Rng(0)):
            pass
    alone = made.with_controller(None)
    assert torch.equal(made.generate(SEEN, Rng(1)), alone.generate(SEEN, Rng(1)))
    with pytest.warns(UserWarning, match=r"p has a controller \(LatentController\)"):
        again = load_policy(str(path), torch.device("cpu"))
    assert again.weights.control is None and torch.equal(again.generate(SEEN, Rng(1)), flow().generate(SEEN, Rng(1)))


def test_a_decision_of_an_off_policy_method_is_a_whole_chunk_when_it_is_served_too() -> None:
    made = policies.squashed_gaussian((3, 1), 2, 16, 1, TanhCodec.from_box([-1.0], [1.0]), 0)
    set_execution_horizon(made, 1)
    env = Counts(Near, 1, 1)
    for _ in sac.improve(made, env, sac.Args(iterations=1, rollout_steps=4, learning_starts=0, batch_size=4), Rng(0)):
        pass
    assert env.asked == [3] and eval_actor(made)(SEEN, Rng(0)).shape[1] == 3


def test_a_mean_flow_learns_all_of_its_steps_and_is_left_whole() -> None:
    process = MeanFlow()
    net = TwoTimeNet(MLP((2, 1), cond=2, width=16, depth=1, time=0))
    made = Policy.of(
        process, MeanVelocityDenoiser(net), (2, 1), process.steps(time_grid(3), 0.2), process.steps(time_grid(3))
    )
    with pytest.raises(
        InvalidInputError, match=r"a mean flow learns all of its steps.*leave finetune_denoising_steps=1 out"
    ):
        next(dppo.improve(made, Collector(Near, 4, 1), dppo.Args(finetune_denoising_steps=1), Rng(0)))
    assert isinstance(made.denoiser, MeanVelocityDenoiser)


@pytest.mark.parametrize("recipe", [gorl, beyond_human])
def test_a_network_that_cannot_be_made_anew_is_refused_before_anything_is_played(recipe: Any) -> None:
    env = Counts(Near, 4, 1)
    with pytest.raises(InvalidInputError, match=r"network is a .*Foreign, which cannot be built again"):
        next(recipe.improve(flow(Foreign()), env, recipe.Args(), Rng(0)))
    assert not hasattr(env, "asked")


def test_a_doctor_plays_what_the_policy_carries() -> None:
    made, env = flow(), Counts(Near, 4, 1)
    set_execution_horizon(made, 1)
    signal.play_episodes(made, env, 0, True)
    assert set(env.asked) == {1}
    signal.play_episodes(made, env, 0, True, 2)
    assert env.asked[-1] == 2


def test_cloning_does_not_leave_a_start_out_silently() -> None:
    with pytest.raises(RunError, match="trains new weights, and start=runs/mine"):
        env_task.untrained_start(env_task.Args(env="pusht", start="runs/mine"), 0, Run())


def test_a_policy_that_has_seen_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    """Its statistics are what the run learned, and no other codec; another scale of actions is one."""

    def made(scale: float = 1.0) -> Policy:
        torch.manual_seed(0)
        process, codec = OneStep(), RunningNormCodec.without_statistics(2, scale)
        head = GaussianHead(MLP((2, 1), 2, 8, 1, time=0, residual=False), 1, 0.5)
        return Policy.of(process, head, (2, 1), process.steps(time_grid(1)), None, codec)

    def go(policy: Policy, iters: int, folder: Path) -> None:
        a = ppo.Args(iterations=iters, num_envs=4, rollout_steps=4, batch_size=16, epochs=1, critic_warmup=0)
        for _ in ppo.improve(policy, Collector(Near, 4, 1), a, Rng(5), Run(folder, restart=1)):
            pass

    one, whole = made(), made()
    go(one, 1, tmp_path / "a")
    go(one, 2, tmp_path / "a")
    go(whole, 2, tmp_path / "b")
    assert isinstance(one.codec, RunningNormCodec) and isinstance(whole.codec, RunningNormCodec)
    assert torch.equal(one.codec.mean, whole.codec.mean)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), whole.parameters(), strict=True))
    with pytest.raises(RunError, match="another codec of the policy"):
        go(made(2.0), 3, tmp_path / "a")
