"""LeRobot's checkpoints act here as there: LeRobot 0.4.4 itself made the fixtures (``scripts/lerobot_parity.py``)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoiserl import Policy, Rng
from denoiserl.control.acting import eval_actor, mask_unexecuted, training_actor
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Demonstrations, windows
from denoiserl.envs import Collector
from denoiserl.integrations.lerobot.policy import diffusion_policy
from denoiserl.integrations.lerobot.vision import VisionEncoder
from denoiserl.nn.vision import SpatialSoftmax
from denoiserl.processes import Relay, ddim, with_min_std
from denoiserl.recipes.policy_gradient import dppo

pytest.importorskip("diffusers")
gym = pytest.importorskip("gymnasium")
FIXTURES = Path(__file__).parent / "fixtures" / "lerobot"


class Written(Rng):
    """The noise that LeRobot was given: [steps + 1, rows, H, d], in its order of the chunk."""

    def __init__(self, noise: Tensor, past: int) -> None:
        super().__init__(0)
        self.written = noise.roll(-past, 2)

    def normal(self, *shape: int) -> Tensor:
        assert shape == tuple(self.written.shape[1:])
        return self.written[0]

    def noise(self, kind: str, steps: int, rows: int, shape: tuple[int, ...]) -> Tensor:
        assert kind == "normal" and (rows, *shape) == tuple(self.written.shape[1:])
        return self.written[len(self.written) - steps :]


def acted(policy: Policy, told: dict[str, Tensor]) -> Tensor:
    history = policy.codec.history
    seen = {
        k: told[k] if history > 1 else told[k][:, 0] for k in ("observation.state", "observation.environment_state")
    }
    return policy.generate(seen, Written(told["noise"], history - 1))


def copied(name: str, to: Path, **changes: object) -> Path:
    shutil.copytree(FIXTURES / name, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


@pytest.mark.parametrize("name", ["states", "ddim"])
def test_the_same_noise_gives_the_same_actions_as_in_lerobot(name: str) -> None:
    told = load_file(FIXTURES / name / "expected.safetensors")
    made = acted(diffusion_policy(FIXTURES / name), told)
    assert float(told["float64"].std()) > 0.05
    assert float((made - told["float64"]).abs().max()) < 1e-5
    assert float((made - told["float32"]).abs().max()) < 1e-5


def test_statistics_among_the_weights_are_read_like_those_of_processors(tmp_path: Path) -> None:
    """The layout from before LeRobot 0.4, written by hand after its migration script: not made by LeRobot itself."""
    folder = copied("states", tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    for key, value in load_file(next(folder.glob("policy_preprocessor_*"))).items():
        feature, _, statistic = key.rpartition(".")
        for kind in ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",):
            weights[f"{kind}.buffer_{feature.replace('.', '_')}.{statistic}"] = value.clone()
    save_file(weights, folder / "model.safetensors")
    for path in folder.glob("policy_*"):
        path.unlink()
    told = load_file(folder / "expected.safetensors")
    assert float((acted(diffusion_policy(folder), told) - told["float64"]).abs().max()) < 1e-5
    save_file({k: v for k, v in weights.items() if k.startswith("diffusion.")}, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"has no min of observation.state for its MIN_MAX"):
        diffusion_policy(folder)


def test_a_saved_policy_is_the_policy(tmp_path: Path) -> None:
    told = load_file(FIXTURES / "states" / "expected.safetensors")
    policy = diffusion_policy(FIXTURES / "states")
    policy.save(tmp_path / "policy")
    assert torch.equal(acted(Policy.load(tmp_path / "policy"), told), acted(policy, told))


def parity() -> Any:
    """The script that made the fixtures, with its formula for weights that are too many to keep."""
    script = Path(__file__).parents[2] / "scripts" / "lerobot_parity.py"
    spec = importlib.util.spec_from_file_location("lerobot_parity", script)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: Any) -> Path:
    """The checkpoint of a policy with two cameras."""
    folder = copied("pictures", tmp_path_factory.mktemp("lerobot") / "pictures")
    shapes = json.loads((folder / "shapes.json").read_text())
    weights = {k: parity().formula(k, shape) for k, shape in shapes.items() if not k.endswith("pos_grid")}
    across, down = np.meshgrid(np.linspace(-1, 1, 2), np.linspace(-1, 1, 1))  # 36 and 32 pixels, halved five times
    grid = torch.from_numpy(np.stack([across.ravel(), down.ravel()], 1)).float()
    save_file({**weights, **{k: grid.clone() for k in shapes if k.endswith("pos_grid")}}, folder / "model.safetensors")
    return folder


@pytest.mark.fixed_seed
def test_the_same_noise_and_pictures_give_the_same_actions_as_in_lerobot(seeing: Path, tmp_path: Path) -> None:
    told = load_file(seeing / "expected.safetensors")
    policy, pictures = diffusion_policy(seeing), parity().looked(5, 2)
    seen = {**{k: told[k] for k in policy.codec.sizes}, **pictures}
    made = policy.generate(seen, Written(told["noise"], 1))
    assert float((made - told["float64"]).abs().max()) < 1e-5
    dark = {**seen, "observation.images.wrist": pictures["observation.images.front"]}
    assert float((policy.generate(dark, Written(told["noise"], 1)) - made).abs().max()) > 1e-3
    policy.save(tmp_path / "policy")
    assert torch.equal(Policy.load(tmp_path / "policy").generate(seen, Written(told["noise"], 1)), made)


def test_pictures_as_environments_draw_them_are_the_same_condition(seeing: Path) -> None:
    policy = diffusion_policy(seeing)
    drawn = torch.randint(0, 256, (4, 2, 43, 48, 3), dtype=torch.uint8)
    numbers = {name: torch.randn(4, 2, size) for name, size in policy.codec.sizes.items()}
    theirs = {k: drawn.movedim(-1, -3).float() / 255 for k in policy.codec.pictures}
    ours, wanted = (policy.codec.condition({**numbers, **p}) for p in (dict.fromkeys(theirs, drawn), theirs))
    assert torch.equal(ours["pictures"], wanted["pictures"]) and ours["pictures"].shape == (4, 2, 2, 3, 43, 48)
    first = dict.fromkeys(theirs, drawn.movedim(-1, -3))
    assert torch.equal(policy.codec.condition({**numbers, **first})["pictures"], wanted["pictures"])
    with pytest.raises(InvalidInputError, match=r"lie in \[0, 1\], and these reach 255: divide them by 255"):
        policy.codec.condition({**numbers, **{k: v.float() for k, v in first.items()}})
    with pytest.raises(InvalidInputError, match=r"no 'observation.images.front'"):
        policy.codec.condition(numbers)
    with pytest.raises(InvalidInputError, match=r"reads observation.images.front, .*give observations as a dict"):
        policy.codec.condition(torch.zeros(4, 2, 7))
    with pytest.raises(InvalidInputError, match=r"reads pictures \[3, 43, 48\], not \[3, 40, 48\]"):
        policy.generate({**numbers, **{k: v[..., :40, :] for k, v in theirs.items()}}, Rng(0))


class Scene(gym.Env):
    """Two cameras, and the numbers that a policy with T_o = 2 sees beside them."""

    def __init__(self) -> None:
        pictures = dict.fromkeys(parity().CAMERAS, gym.spaces.Box(0, 255, (2, 43, 48, 3), np.uint8))
        numbers = {"observation.state": 3, "observation.environment_state": 4}
        boxes = {name: gym.spaces.Box(-10, 10, (2, n), np.float32) for name, n in numbers.items()}
        self.observation_space = gym.spaces.Dict({**boxes, **pictures})
        self.action_space = gym.spaces.Box(-3, 3, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> Any:
        return self.observation_space.sample(), float(action[0]), False, False, {}


def test_a_checkpoint_with_cameras_learns_and_its_critic_sees_what_its_eyes_make_of_them(seeing: Path) -> None:
    policy = diffusion_policy(seeing, 2, with_min_std(ddim(1.0), 0.1))
    args = dppo.Args(iterations=1, rollout_steps=2, num_envs=1, finetune_denoising_steps=1, batch_size=2, epochs=1)
    rows = list(dppo.improve(policy, Collector(Scene, 1, 1), args, Rng(0)))
    assert np.isfinite(rows[0]["loss/policy"]) and np.isfinite(rows[0]["loss/value"])
    net: Any = policy.denoiser.net  # type: ignore[union-attr]
    cond = policy.codec.condition({k: torch.as_tensor(v)[None] for k, v in Scene().reset(seed=0)[0].items()})
    assert net.features(cond).shape == (1, 2 * (7 + net.eyes.width))
    assert torch.equal(net.embed_condition(cond), net.unet.embed_condition(net.features(cond)))


def test_one_eye_for_all_cameras_is_equal_eyes() -> None:
    torch.manual_seed(0)
    one, two = (VisionEncoder(2, (3, 33, 40), (32, 32), 4, "resnet18", separate).eval() for separate in (False, True))
    for eye in two.each:
        eye.load_state_dict(one.each[0].state_dict())
    pictures = torch.rand(3, 2, 2, 3, 33, 40)
    seen = one(pictures)
    assert seen.shape == (3, 2, 16) and torch.allclose(seen, two(pictures), atol=1e-6)
    assert torch.allclose(seen[1, 0, 8:], one.each[0](pictures[1, 0, 1][None])[0], atol=1e-5)


def test_a_spatial_softmax_finds_the_place_of_a_peak() -> None:
    look = SpatialSoftmax(1, 5, 7, 1)
    look.nets.weight.data.fill_(1.0)
    maps = torch.zeros(2, 1, 5, 7)
    maps[0, 0, 4, 0] = maps[1, 0, 2, 6] = 100.0
    assert torch.allclose(look(maps), torch.tensor([[-1.0, 1.0], [1.0, 0.0]]), atol=1e-5)


class Drift(gym.Env):
    """A point that moves by the action and is paid for nearness to 0; five numbers of its observation are zeros."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-10, 10, (7,), np.float32)
        self.action_space = gym.spaces.Box(-3, 3, (2,), np.float32)

    def _view(self) -> np.ndarray:
        return np.concatenate([self.place, np.zeros(5)]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.ticks = self.np_random.normal(size=2), 0
        return self._view(), {}

    def step(self, action: np.ndarray) -> Any:
        self.place, self.ticks = self.place + 0.1 * action, self.ticks + 1
        return self._view(), float(-abs(self.place).sum()), False, self.ticks >= 16, {}


def remembered() -> Any:
    """Its last two observations, as a policy with T_o = 2 sees them."""
    return gym.wrappers.FlattenObservation(gym.wrappers.FrameStackObservation(Drift(), 2))


@pytest.mark.parametrize("execute", [None, 4])
def test_a_recipe_improves_a_checkpoint_in_an_environment(execute: int | None) -> None:
    """DPPO itself refuses a first update whose ratio is not one; its updates change what learns and nothing else."""
    policy = diffusion_policy(FIXTURES / "states", transition=with_min_std(ddim(1.0), 0.1))
    policy = policy.with_execution_horizon(execute)
    before = {k: v.clone() for k, v in policy.denoiser.state_dict().items()}
    args = dppo.Args(iterations=2, rollout_steps=4, finetune_denoising_steps=5, batch_size=256, epochs=1)
    rows = list(dppo.improve(policy, Collector(remembered, 8, 1), args, Rng(0)))
    assert [row["rollout/num_episodes"] for row in rows] == [8.0, 8.0] and all(
        np.isfinite(row["loss/policy"]) for row in rows
    )
    relay = policy.denoiser
    assert isinstance(relay, Relay)
    assert any(not torch.equal(v, before[k]) for k, v in relay.last.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in relay.first.state_dict().items())


def test_what_is_executed_is_what_counts_and_replay_agrees_with_the_run() -> None:
    """A chunk's first entries belong to the past; here the executed ones lead the event, so masking takes those."""
    policy = diffusion_policy(FIXTURES / "states", transition=with_min_std(ddim(1.0), 0.1))
    obs = torch.from_numpy(remembered().reset(seed=1)[0])[None].expand(3, -1)
    chunk, chain = training_actor(policy, 5, 4)(obs, Rng(1))
    assert torch.allclose(chunk, policy.codec.action.denormalize(chain.sample[:, :4]))
    masked = mask_unexecuted(chain, 4)
    law, y = policy.rescore(masked.steps_at())
    everything, _ = policy.rescore(chain.steps_at())
    assert torch.allclose(everything.log_prob(y), chain.log_prob.flatten(), atol=1e-4)
    parts = law.log_prob(y, factors=True)
    assert torch.allclose(parts[:, :4].sum((1, 2)), (masked.steps_at().mask * parts).sum((1, 2)))
    assert tuple(eval_actor(policy)(obs, Rng(1)).shape) == (3, 4, 2)


def test_windows_of_demonstrations_are_encoded_with_now_first() -> None:
    policy = diffusion_policy(FIXTURES / "states")
    actions = torch.arange(20.0)[:, None].expand(-1, 2) / 20
    demos = Demonstrations.of([(torch.zeros(20, 7), actions)])
    cut = windows(demos.ends, horizon=8, history=2, execute=4)
    index = torch.tensor([5])
    now = int(cut.frames(index)[0, 1])
    encoded = policy.codec.encode(cut.actions(demos.actions, index))
    assert torch.allclose(policy.codec.decode(encoded)[0], actions[now : now + 4], atol=1e-6)
    noised = policy.process.noise(encoded, torch.tensor([0.5]), Rng(0))
    cond = policy.codec.condition(cut.observations(demos.observations, index))
    policy.process.loss(policy.denoiser, noised, policy.denoiser.embed_condition(cond)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_observations_in_every_layout_are_the_same_condition_and_others_are_refused() -> None:
    policy = diffusion_policy(FIXTURES / "states")
    stacked = torch.randn(4, 2, 7)
    flat, parts = stacked.flatten(1), {"observation.state": stacked[..., :3]}
    parts["observation.environment_state"] = stacked[..., 3:]
    wanted = policy.codec.condition(stacked)
    assert torch.equal(policy.codec.condition(flat), wanted) and torch.equal(policy.codec.condition(parts), wanted)
    with pytest.raises(
        InvalidInputError, match=r"reads its last 2 observations of 7 numbers each; got \[4, 7\].*FrameStack"
    ):
        policy.codec.condition(stacked[:, 0])
    with pytest.raises(InvalidInputError, match=r"no 'observation.environment_state'; it has observation.state"):
        policy.codec.condition({"observation.state": stacked[..., :3]})


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no .*config.json: give the folder of a checkpoint"):
        diffusion_policy(tmp_path)
    with pytest.raises(RunError, match=r"policy of type 'act': only 'diffusion'"):
        diffusion_policy(copied("ddim", tmp_path / "act", type="act"))
    seen = json.loads((FIXTURES / "ddim" / "config.json").read_text())["input_features"]
    picture = {"observation.image": {"type": "VISUAL", "shape": [3, 96, 96]}}
    with pytest.raises(RunError, match=r"the checkpoint has no diffusion.rgb_encoder.backbone.0.weight"):
        diffusion_policy(copied("ddim", tmp_path / "pixels", input_features={**seen, **picture}))
    with pytest.raises(RunError, match=r"resizes its pictures"):
        diffusion_policy(copied("ddim", tmp_path / "sized", input_features={**seen, **picture}, resize_shape=[32, 32]))
    with pytest.raises(RunError, match=r"conv1.block.0.weight is .* and config.json needs"):
        diffusion_policy(copied("ddim", tmp_path / "kernel", kernel_size=5))
    more = copied("ddim", tmp_path / "more")
    save_file({**load_file(more / "model.safetensors"), "diffusion.extra": torch.ones(1)}, more / "model.safetensors")
    with pytest.raises(RunError, match=r"weights that config.json does not describe: diffusion.extra"):
        diffusion_policy(more)
    fewer = {k: v for k, v in seen.items() if k == "observation.state"}
    with pytest.raises(RunError, match=r"FiLM reads 15 numbers: config.json describes other observations"):
        diffusion_policy(copied("ddim", tmp_path / "blind", input_features=fewer))
    cut = copied("ddim", tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(RunError, match=r"no readable model.safetensors"):
        diffusion_policy(cut)
