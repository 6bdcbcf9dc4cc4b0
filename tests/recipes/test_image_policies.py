"""Policies that look: what only a picture tells is learned, and critics see through the policy's own eyes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from denoiserl.control.acting import eval_actor
from denoiserl.control.value_baseline import critic_features
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data import Demonstrations
from denoiserl.envs import Collector
from denoiserl.envs.toy.fork2d import Box
from denoiserl.nn.vision import SpatialSoftmax
from denoiserl.policy.policy import Policy
from denoiserl.recipes.policy_gradient import beyond_human, dppo, drwr, fpo, ppo, reinflow
from denoiserl.recipes.test_time import taco
from denoiserl.tasks import env as env_task
from denoiserl.tasks import policies
from denoiserl.tasks.user_inputs import bounds
from denoiserl.train import Run

SIZE = 16


class Dict:
    """A dict of spaces, as Gymnasium's."""

    def __init__(self, **spaces: Box) -> None:
        self.spaces = spaces


class Spot:
    """One decision a time: a bright spot stands left or right in the picture, and the action's sign has to agree."""

    steps_some = True

    def __init__(self, copies: int) -> None:
        self.num_envs = copies
        image = Box(torch.zeros(SIZE, SIZE, 3).numpy(), torch.full((SIZE, SIZE, 3), 255.0).numpy())
        one = torch.ones(1).numpy()
        self.single_observation_space: Any = Dict(image=image, state=Box(-one, one))
        self.single_action_space = Box(-one, one)
        self.side = torch.ones(copies)
        self.rng = Rng(0)

    def look(self) -> dict[str, Any]:
        image = torch.zeros(self.num_envs, SIZE, SIZE, 3, dtype=torch.uint8)
        where = torch.where(self.side > 0, 11, 3)
        for i, x in enumerate(where.tolist()):
            image[i, 7:10, x : x + 3] = 255
        return {"image": image.numpy(), "state": torch.zeros(self.num_envs, 1).numpy()}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.rng = Rng(int(seed[0] if isinstance(seed, list) else seed))
        fresh = self.rng.integers(0, 2, self.num_envs).float() * 2 - 1
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if options is not None and "reset_mask" in options:
            mask = torch.as_tensor(options["reset_mask"], dtype=torch.bool)
        self.side = torch.where(mask, fresh, self.side)
        return self.look(), {}

    def step(self, action: Any, mask: Any = None) -> Any:
        right = torch.as_tensor(action)[:, 0] * self.side > 0
        over = torch.ones(self.num_envs, dtype=torch.bool)
        return self.look(), right.float(), over, torch.zeros_like(over), {"success": right}


def demos(n: int, wrong: float) -> Demonstrations:
    """What a demonstrator does who errs in a share ``wrong`` of the cases."""
    world, rng = Spot(n), Rng(5)
    seen, _ = world.reset(seed=3)
    flip = torch.where(rng.uniform(n) < wrong, -1.0, 1.0)
    acts = (world.side * flip * (0.3 + 0.6 * rng.uniform(n)))[:, None]
    seen = {k: torch.from_numpy(v) for k, v in seen.items()}
    return Demonstrations.of(
        [({k: v[i : i + 1] for k, v in seen.items()}, acts[i : i + 1]) for i in range(n)], None, None, "spot"
    )


BASE = env_task.Args(action_horizon=1, sampling_steps=3, policy_width=32, pretrain_updates=300, pretrain_batch_size=64)


def cloned(kind: Any, updates: int = 300) -> Policy:
    told = demos(256, 0.3)
    made = kind(BASE, told, 0)
    for _ in env_task.imitate(made, BASE, 0, updates, 1e-3, Run(), demos=told):
        pass
    return made


def success(policy: Policy) -> float:
    world = Spot(400)
    seen, _ = world.reset(seed=11)
    act = eval_actor(policy)({k: torch.from_numpy(v) for k, v in seen.items()}, Rng(2))
    return float((act[:, 0, 0] * world.side > 0).float().mean())


def test_a_clone_learns_what_only_the_picture_tells_and_reward_corrects_the_demonstrator():
    policy = cloned(policies.diffusion)
    before = success(policy)
    assert 0.55 < before < 0.85, "the clone errs about as often as the demonstrator"
    a = dppo.Args(
        iterations=8, num_envs=64, rollout_steps=4, batch_size=192, lr=1e-3, clip_range=0.05, clip_range_noisiest=0.05
    )
    list(dppo.improve(policy, Collector(Spot(64), seed=1), a, Rng(1)))
    assert success(policy) > 0.93


@pytest.mark.parametrize(
    ("method", "kind"),
    [(ppo, policies.gaussian), (reinflow, policies.flow), (fpo, policies.flow), (drwr, policies.diffusion)],
    ids=["ppo", "reinflow", "fpo", "drwr"],
)
def test_every_method_that_acts_improves_a_policy_that_looks(method: Any, kind: Any):
    """Two iterations; the ratio is checked to be 1 before the first step inside."""
    policy = cloned(kind, 20)
    old = {k: v.clone() for k, v in policy.denoiser.state_dict().items()}
    more = {k: v for k, v in {"critic_warmup": 0, "bc_weight": 0.1}.items() if hasattr(method.Args, k)}
    a = method.Args(iterations=2, num_envs=16, rollout_steps=2, batch_size=16, **more)
    rows = list(method.improve(policy, Collector(Spot(16), seed=1), a, Rng(1)))
    assert len(rows) == 2
    new = policy.denoiser.state_dict()
    assert any(not torch.equal(v, new[k]) for k, v in old.items() if "maps" in k), "the eyes learn too"


def test_a_critic_sees_through_eyes_that_are_held():
    policy = cloned(policies.diffusion, 5)
    env = Collector(Spot(4))
    see, size = critic_features(policy, env)
    env.on_checkpoint(0)
    before = see(env.obs)
    assert before.shape == (4, size) and size == 1 + 2 * policies.POINTS
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    assert torch.equal(see(env.obs), before), "learning does not change what the critic sees"
    assert not torch.equal(policy.denoiser.net.features(policy.codec.condition(env.obs)), before)


def test_a_network_that_does_not_say_what_it_sees_is_refused():
    policy = cloned(policies.diffusion, 1)
    policy.denoiser.net = nn.Linear(1, 1)
    with pytest.raises(InvalidInputError, match="features"):
        critic_features(policy, Collector(Spot(2)))


def test_a_point_is_where_its_map_is_bright():
    """A map with one very bright pixel has its point there: the corners are (±1, ±1), the first number is across."""
    eye = SpatialSoftmax(1, 5, 9, 1)
    with torch.no_grad():
        eye.nets.weight.fill_(1.0)
        eye.nets.bias.zero_()
    maps = torch.zeros(3, 1, 5, 9)
    maps[0, 0, 0, 0] = maps[1, 0, 4, 8] = maps[2, 0, 2, 0] = 100.0
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 0.0]])
    assert torch.allclose(eye(maps), expected, atol=1e-5)


def test_pictures_of_another_size_are_refused_and_a_policy_that_looks_is_saved(tmp_path: Any):
    policy = cloned(policies.diffusion, 1)
    policy.save(tmp_path / "p")
    seen = {k: torch.from_numpy(v) for k, v in Spot(3).reset(seed=4)[0].items()}
    assert torch.equal(Policy.load(tmp_path / "p").generate(seen, Rng(1)), policy.generate(seen, Rng(1)))
    with pytest.raises(InvalidInputError, match="needs images"):
        policy.generate({**seen, "image": seen["image"][:, :8]}, Rng(1))
    with pytest.raises(InvalidInputError, match=r"float32: .*uint8"):
        policy.generate({**seen, "image": seen["image"] / 255}, Rng(1))


def test_pictures_in_bytes_are_not_learned_for_an_environment_that_shows_them_from_0_to_1():
    space = Dict(image=Box(np.zeros((8, 8, 3)), np.ones((8, 8, 3))))
    with pytest.raises(InvalidInputError, match=r"images/image are from 0 to 1.*uint8"):
        list(bounds({"image": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}, space))


def test_cloning_pictures_takes_image_and_state():
    told = demos(4, 0.0)
    odd = Demonstrations(told.observations | {"extra": torch.zeros(4, 1)}, told.actions, told.ends, None, None, "spot")
    with pytest.raises(InvalidInputError, match="'image' and 'state'"):
        policies.diffusion(BASE, odd, 0)


@pytest.mark.filterwarnings("ignore::denoiserl.envs.remarks.Remark")  # a spot is left or right
def test_frozen_steps_and_counts_of_plans_look_too(tmp_path: Any):
    policy = cloned(policies.diffusion, 20)
    a = dppo.Args(iterations=1, num_envs=16, rollout_steps=2, batch_size=16, finetune_denoising_steps=1)
    list(dppo.improve(policy, Collector(Spot(16), seed=1), a, Rng(1)))
    seen = {k: torch.from_numpy(v) for k, v in Spot(3).reset(seed=4)[0].items()}
    assert torch.equal(Policy.load(policy.save(tmp_path / "p")).generate(seen, Rng(1)), policy.generate(seen, Rng(1)))
    counts = taco.Args(num_updates=2, num_candidates=2, num_noise_candidates=2, counter_width=8, features="plan")
    list(taco.improve(policy, demos(16, 0.3), counts, Rng(0)))
    assert policy.generate(seen, Rng(1)).shape == (3, 1, 1)
    flies = beyond_human.Args(
        iterations=1,
        num_envs=16,
        rollout_steps=2,
        critic_warmup=0,
        num_student_episodes=4,
        max_recorded_episodes=32,
        student_updates=2,
        student_batch_size=8,
    )
    (*_, row) = beyond_human.improve(cloned(policies.diffusion, 20), Collector(Spot(16), seed=1), flies, Rng(1))
    assert row["demos/episodes"] > 0 and "demos/start_coverage" not in row
    flat = torch.zeros(3, 1)
    with pytest.raises(InvalidInputError, match="a dict of 'image'"):
        policy.generate(flat, Rng(1))
