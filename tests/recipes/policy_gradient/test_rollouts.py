"""What on-policy recipes share: which actions count, one discount, one number of executed actions, when actors stop."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, Rng, time_grid
from denoiserl.control import value_baseline
from denoiserl.control.acting import eval_actor, mask_unexecuted, normalise_minibatch
from denoiserl.core.errors import InvalidInputError
from denoiserl.data import RunningNormCodec
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.envs.reward_scale import RewardScale
from denoiserl.losses.divergence import k3
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead, ddim, linear, with_min_std
from denoiserl.recipes.policy_gradient import dppo, drwr, fpo, gorl, ppo, reinflow
from tests.recipes.kit import Spy

gymnasium = pytest.importorskip("gymnasium")


class Ends(gymnasium.Env):
    """Reward the action; over after the second tick, so the rest of a chunk of four never happens."""

    TICKS = 2
    observation_space = gymnasium.spaces.Box(-500, 500, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-9.0, 9.0, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.ticks = 0
        return self.np_random.uniform(100, 300, 1).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.ticks += 1
        seen = self.np_random.uniform(100, 300, 1).astype(np.float32)
        return seen, float(action[0]), self.ticks >= self.TICKS, False, {}


class Biases(nn.Module):
    """A network that answers one number per action, whatever it sees."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(chunk, 1))

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.bias.expand(x.shape)


def gaussian(chunk: int = 4, codec: Any = None) -> Policy:
    process = OneStep()
    steps = process.steps(time_grid(1))
    return Policy.of(process, GaussianHead(Biases(chunk), 1, 0.5), (chunk, 1), steps, None, codec)


def flow(chunk: int = 4, codec: Any = None, steps: int = 3) -> Policy:
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.2)), time_grid(steps)
    train, serve = process.steps(times), process.steps(times, ddim(0.0))
    return Policy.of(process, GaussianDenoiser(Biases(chunk), linear, "v"), (chunk, 1), train, serve, codec)


WARM = {"critic_warmup": 0, "lr": 1e-2}
METHODS: dict[str, tuple[Any, Any, Any]] = {
    "ppo": (ppo, gaussian, ppo.Args(**WARM)),
    "dppo": (dppo, flow, dppo.Args(**WARM, clip_range=0.1, clip_range_noisiest=0.1)),
    "reinflow": (reinflow, flow, reinflow.Args(**WARM, bc_weight=0.1, clip_range=0.1)),
    "fpo": (fpo, flow, fpo.Args(**WARM)),
    "drwr": (drwr, flow, drwr.Args(lr=1e-2, rollout_sampler="train")),
}
SMALL = {"iterations": 2, "num_envs": 8, "rollout_steps": 6, "batch_size": 16, "epochs": 2}


def improve(name: str, made: Policy, env: Collector | None = None, **more: Any) -> list[dict]:
    recipe, _, a = METHODS[name]
    torch.manual_seed(0)
    return list(recipe.improve(made, env or Collector(Ends, 8, 1), replace(a, **{**SMALL, **more}), Rng(0)))


@pytest.mark.parametrize("name", METHODS)
def test_what_an_end_left_of_a_chunk_is_in_no_ratio(name: str) -> None:
    """The third and fourth action of every chunk never ran: nothing is learned about them."""
    made = METHODS[name][1]()
    improve(name, made)
    net = made.denoiser.net
    assert isinstance(net, Biases)
    assert bool((net.bias[:2] != 0).all()) and bool((net.bias[2:] == 0).all())


def test_a_mask_is_that_of_every_single_chunk_and_a_dead_row_has_no_nan() -> None:
    made = gaussian(3)
    chain = made.sample_chain(torch.zeros(3, 1), Rng(0))
    live = torch.tensor([[True, True], [True, False], [False, False]])
    law, y = made.rescore(mask_unexecuted(chain, live))
    assert law.num_factors.flatten().tolist() == [2, 1, 0]
    each = made.rescore(chain)[0].log_prob(y, factors=True)[:, 0, :, 0]
    wanted = torch.stack([each[0, 0] + each[0, 1], each[1, 0], torch.zeros(())])
    assert torch.allclose(law.log_prob(y).flatten(), wanted, atol=1e-6)
    flat = flow(3)
    noised = flat.process.noise(torch.zeros(2, 3, 1), torch.full((2,), 0.5), Rng(0))
    noised = noised._replace(mask=torch.tensor([[True], [False]])[..., None].expand(2, 3, 1))
    loss = flat.process.loss(flat.denoiser, noised, None)
    assert bool(loss.isfinite().all()) and float(loss[1].detach()) == 0


@pytest.mark.parametrize("name", ["ppo", "dppo", "reinflow"])
def test_the_kl_that_stops_an_actor_is_that_of_its_ratio_and_its_critic_learns_on(name: str, monkeypatch: Any) -> None:
    recipe, make, _ = METHODS[name]
    told: list[float] = []
    original = recipe.ppo_clip

    def spy(logp: Tensor, old: Tensor, *rest: Any) -> Tensor:
        told.append(float(k3(old, logp.detach()).mean()))
        return original(logp, old, *rest)

    monkeypatch.setattr(recipe, "ppo_clip", spy)
    more: dict[str, Any] = {"bc_weight": 0.0} if name == "reinflow" else {}
    (row,) = improve(name, make(), iterations=1, critic_warmup=0, batch_size=10_000, epochs=3, **more)
    assert row["ppo/approx_kl"] == pytest.approx(np.mean(told), rel=1e-4, abs=1e-7) and told[-1] > 1e-6
    monkeypatch.setattr(recipe, "approx_kl", lambda *pair: torch.tensor(2.0))
    stopped = improve(name, make(), iterations=3, target_kl=1.0, **more)
    warm = improve(name, make(), iterations=3, critic_warmup=2, **more)
    assert [r["loss/value"] for r in stopped[:2]] == [r["loss/value"] for r in warm[:2]], (
        "the critic learns all the same"
    )
    assert "kl" not in stopped[-1]


@pytest.mark.parametrize("name", METHODS)
def test_statistics_of_observations_that_begin_from_nothing_are_learned_as_it_acts(name: str) -> None:
    codec = RunningNormCodec.without_statistics(1)
    improve(name, METHODS[name][1](codec=codec))
    assert float(codec.count) == 2 * 6 * 8, "every decision's observation, once"
    assert 150 < float(codec.mean) < 250


@pytest.mark.parametrize("name", ["ppo", "reinflow", "fpo"])
def test_a_minibatch_of_one_decision_is_learned_from(name: str) -> None:
    rows = improve(name, METHODS[name][1](), batch_size=1, epochs=1, iterations=1)
    assert np.isfinite(rows[0]["loss/policy"])
    assert torch.equal(normalise_minibatch(torch.tensor([3.0])), torch.tensor([3.0]))


def test_steps_that_never_happened_do_not_widen_the_scale_of_rewards() -> None:
    rng = Rng(0)
    reward, done = rng.normal(12, 3), rng.uniform(12, 3) < 0.2
    plain, masked = RewardScale(), RewardScale()
    plain(reward, torch.full_like(reward, 0.9), done)
    spread = {"reward": torch.zeros(24, 3), "gamma": torch.ones(24, 3), "done": torch.zeros(24, 3, dtype=torch.bool)}
    spread["reward"][::2], spread["gamma"][::2], spread["done"][::2] = reward, 0.9, done
    alive = (torch.arange(24) % 2 == 0)[:, None].expand(24, 3)
    masked(spread["reward"], spread["gamma"], spread["done"], alive)
    assert masked.std == pytest.approx(plain.std, rel=1e-6) and masked.count == plain.count == 36
    before = masked.std
    assert torch.equal(masked(reward, reward, done, torch.zeros_like(done)), reward / before), "nothing happened"


# One value of each


@pytest.mark.parametrize("name", METHODS)
def test_a_policy_carries_how_much_of_a_plan_is_executed(name: str, tmp_path: Path) -> None:
    made, obs = METHODS[name][1]().with_execution_horizon(2), torch.full((5, 1), 200.0)
    improve(name, made)
    assert eval_actor(made)(obs, Rng(0)).shape == (5, 2, 1) and made.generate(obs, Rng(0)).shape == (5, 4, 1)
    assert eval_actor(made, 3)(obs, Rng(0)).shape == (5, 3, 1), "unless it is asked for others"
    again = Policy.load(made.save(tmp_path / "p"), Biases(4))
    assert torch.equal(eval_actor(again)(obs, Rng(0)), eval_actor(made)(obs, Rng(0)))
    assert eval_actor(made.with_controller(None))(obs, Rng(0)).shape == (5, 2, 1)
    with pytest.raises(InvalidInputError, match="execution_horizon is between 1 and the chunk's 4"):
        eval_actor(made, 5)


@pytest.mark.parametrize("name", METHODS)
def test_a_chunk_is_discounted_as_decisions_are(name: str) -> None:
    env = Collector(Ends, 8, 1)
    improve(name, METHODS[name][1](), env, gamma=0.5, iterations=1)
    ep = env.collect(lambda obs, rng: (torch.ones(8, 4, 1), None), 2, Rng(0))
    assert torch.equal(ep.reward, torch.full((2, 8), 1.5)), "1 + 0.5"
    with pytest.raises(InvalidInputError, match=r"0\.9 per step inside a chunk and the method by 0\.5"):
        improve(name, METHODS[name][1](), Collector(Ends, 8, 1, gamma=0.9), gamma=0.5, iterations=1)


# GoRL's switch


def part(reward: list[list[float]], done: list[list[bool]]) -> Rollout:
    """Two copies' decisions of one tick; returns as a stream tells them."""
    r, d = torch.tensor(reward), torch.tensor(done)
    told, running = [], torch.zeros(2)
    for now, over in zip(r, d, strict=True):
        running = running + now
        told.append(running)
        running = torch.where(over, 0.0, running)
    empty, one = torch.zeros(*r.shape, 1), torch.ones(*r.shape, 1, dtype=torch.bool)
    info = {"return": torch.stack(told)}
    return Rollout(empty, empty, empty, r, d, d, torch.ones_like(r), one, None, info)


def test_a_switch_is_judged_by_the_same_measure_on_both_sides() -> None:
    never = part([[1.0, 1.0]] * 3, [[False, False]] * 3)
    ends = part([[1.0, 1.0]] * 3, [[False, False], [False, False], [True, False]])
    late = part([[2.0, 2.0]] * 3, [[False, False], [True, True], [False, False]])
    assert gorl.compare_returns([ends], [late]) == (3.0, 4.0), "first episodes of the copies that finished in both"
    assert gorl.compare_returns([ends], [never]) == gorl.compare_returns([never], [ends]) == (1.0, 1.0), (
        "else reward per environment step"
    )


class Long(Ends):
    """Twenty ticks."""

    TICKS = 20


def test_a_switch_waits_for_episodes_that_finish() -> None:
    """A rollout is shorter than an episode, and still both pairs are judged by whole ones."""
    torch.manual_seed(0)
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.2), clip=1.0), time_grid(2)

    net = GaussianDenoiser(MLP((1, 1), cond=1, width=16), linear, "v")
    made = Policy.of(
        process,
        net,
        (1, 1),
        process.steps(times),
        process.steps(times, ddim(0.0)),
        RunningNormCodec.without_statistics(1),
    )
    a = gorl.Args(
        iterations=2,
        critic_warmup=0,
        stage_fractions=(1.0, 1.0),
        num_envs=8,
        rollout_steps=4,
        batch_size=16,
        decoder_rollout_steps=7,
        decoder_updates=3,
        decoder_batch_size=8,
        encoder_width=8,
    )
    rows = list(gorl.improve(made, Collector(Long, 8, 1), a, Rng(0)))
    (row,) = [r for r in rows if "decoder/accepted" in r]
    assert abs(row["decoder/return_before"]) < 20 and abs(row["decoder/return_after"]) < 20
    env, ticks = Collector(Long, 8, 1), 0
    parts = gorl.play_episodes(env, lambda obs, rng: (torch.ones(8, 1, 1), None), 7, Rng(0))
    ticks = sum(int(p.num_executed[:, 0].sum()) for p in parts)
    assert ticks == 21 and torch.equal(gorl.first_returns(parts), torch.full((8,), 20.0))


class Saved:
    """What a graph keeps for its backward pass."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize("stop", [False, True], ids=["on", "stop"])
@pytest.mark.parametrize("name", ["ppo", "dppo"])
def test_nothing_of_a_minibatch_is_alive_when_the_next_one_runs(
    name: str, stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its graph nor its ratio, whether it was learned from or stopped the actor."""
    if name == "fpo" and stop:
        pytest.skip("nothing stops its actor")
    recipe, alive, looks = METHODS[name][0], [], []
    surrogate, squared = recipe.ppo_clip, value_baseline.half_squared_error

    def pack(value: Tensor) -> Saved:
        alive.append(weakref.ref(saved := Saved(value)))
        return saved

    def forward(self: Biases, x: Tensor, clock: Any, context: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
            return self.bias.sinh().expand(x.shape)

    def ratio(log_prob: Tensor, *rest: Any) -> Tensor:
        alive.append(weakref.ref(log_prob))
        return surrogate(log_prob, *rest)

    def watch(*given: Tensor) -> Tensor:
        looks.append(sum(ref() is not None for ref in alive))
        return squared(*given)

    monkeypatch.setattr(Biases, "forward", forward)
    monkeypatch.setattr(recipe, "ppo_clip", ratio)
    monkeypatch.setattr(value_baseline, "half_squared_error", watch)
    if stop:
        monkeypatch.setattr(
            recipe, "approx_kl", lambda log_prob, old: alive.append(weakref.ref(log_prob)) or torch.tensor(2.0)
        )
    improve(name, METHODS[name][1](), target_kl=1.0 if stop else 1e9)
    assert len(alive) >= 2 and len(looks) > 8 and not any(looks)


class Even(Ends):
    """A reward of 1 per tick for ten ticks; then a time limit cuts the episode, or it ends."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def sight(self) -> np.ndarray:
        """Return the share of the episode that has passed; nothing moves where it has no end."""
        return np.array([self.ticks / 10 if self.ends else 0.5], np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.sight(), {}

    def step(self, action: Any) -> Any:
        self.ticks += 1
        over = self.ticks == 10
        return self.sight(), 1.0, over and self.ends, over and not self.ends, {}


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["ppo", "dppo"])
def test_a_value_looks_beyond_a_time_limit_and_not_beyond_an_end(name: str, ends: bool) -> None:
    """1 / (1 - γ) without an end, Σ γ^k over ten ticks with one."""
    recipe, make, a = METHODS[name]
    spy, made = Spy(), make(1)
    a = replace(
        a,
        iterations=21,
        num_envs=8,
        rollout_steps=20,
        batch_size=40,
        epochs=3,
        gamma=0.9,
        value_lr=5e-3,
        critic_warmup=20,
    )
    list(recipe.improve(made, Collector(lambda: Even(ends), 8, 1), a, Rng(0), spy))
    seen = torch.tensor([[0.0 if ends else 0.5]])
    with torch.no_grad():
        value = float(spy.named["baseline.net"](made.codec.condition(seen))) * spy.named["baseline.scale"].std
    assert value == pytest.approx((1 - 0.9**10) / 0.1 if ends else 10.0, abs=1.0)
