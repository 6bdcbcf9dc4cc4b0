"""The promises of a stream, against environments in which every number is known by hand."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")
sys.path.insert(0, str(Path(__file__).parent))

from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402
from worlds import Blind, Broken, Choices, Counting, Parts  # noqa: E402

from denoiserl.advantages import gae, normalise  # noqa: E402
from denoiserl.core.counters import UsageCounter  # noqa: E402
from denoiserl.core.errors import InvalidInputError  # noqa: E402
from denoiserl.core.rng import Rng  # noqa: E402
from denoiserl.envs import Collector, evaluate  # noqa: E402
from denoiserl.envs.backends.faults import EnvFault  # noqa: E402
from denoiserl.envs.backends.subproc import SubprocBackend, _serve  # noqa: E402
from denoiserl.envs.reward_scale import RewardScale  # noqa: E402
from denoiserl.envs.spaces import env_spec, prepare_actions  # noqa: E402
from denoiserl.envs.toy.fork2d import Fork2D, demonstrations  # noqa: E402


def constant(value=0.0, chunk=None):
    def act(obs, rng):
        n = len(obs)
        return torch.full((n, 1) if chunk is None else (n, chunk, 1), value), None

    return act


def vector(mode, n=3, **kwargs):
    return SyncVectorEnv([partial(Counting, **kwargs) for _ in range(n)], autoreset_mode=mode)


def owners(n=3, **kwargs):
    make = partial(Counting, **kwargs)
    return {
        "factory": lambda: Collector(make, n, seed=1),
        "next": lambda: Collector(vector(AutoresetMode.NEXT_STEP, n, **kwargs), seed=1),
        "same": lambda: Collector(vector(AutoresetMode.SAME_STEP, n, **kwargs), seed=1),
        "disabled": lambda: Collector(vector(AutoresetMode.DISABLED, n, **kwargs), seed=1),
    }


@pytest.mark.parametrize("kind", ["factory", "next", "same", "disabled"])
@pytest.mark.parametrize("vary", [False, True])
def test_successors_are_true_in_every_autoreset_mode(kind, vary):
    episode = owners(vary=vary)[kind]().collect(constant(), 40, Rng(0))
    alive = episode.valid
    start, tick = episode.obs[..., 0], episode.obs[..., 1]
    after_start, after_tick = episode.next_obs[..., 0], episode.next_obs[..., 1]
    # within an episode the start stays and the tick advances, also where the episode ends
    assert torch.equal(after_start[alive], start[alive]) and torch.equal(after_tick[alive], tick[alive] + 1)
    assert torch.equal(episode.reward[alive], after_tick[alive])
    limit = 5 + (start % 3 if vary else 0)
    over, even = after_tick >= limit, start % 2 == 0
    assert torch.equal(episode.terminated[alive], (over & even)[alive])
    assert torch.equal(episode.done[alive], over[alive])
    assert not bool(episode.done[~alive].any()) and float(episode.reward[~alive].abs().sum()) == 0
    # what follows an end begins a new episode
    follows = episode.done[:-1] & alive[:-1]
    begins = tick[1:] == 0 if kind != "next" or not vary else ~alive[1:] | (tick[1:] == 0)
    assert bool(begins[follows].all()) and int(follows.sum()) >= 15
    assert bool(alive.all()) or (kind == "next" and vary)
    assert episode.info["success"][episode.done & alive].tolist() == even[episode.done & alive].tolist()


@pytest.mark.parametrize("vary", [False, True])
def test_every_owner_tells_the_same_story(vary):
    made = {k: make() for k, make in owners(vary=vary).items()}
    stories = {}
    for kind, stream in made.items():
        episode = stream.collect(constant(0.5), 40, Rng(0))
        stories[kind] = [
            torch.cat([episode.obs[:, b], episode.reward[:, b, None]], -1)[episode.valid[:, b]][:25] for b in range(3)
        ]
    for kind in ("next", "same", "disabled"):
        if kind == "same" or vary:
            assert all(torch.equal(a, b) for a, b in zip(stories[kind], stories["factory"], strict=True)), kind


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_chunk_is_one_step(gamma):
    stream = Collector(partial(Counting, life=5), 4, seed=3, gamma=gamma)
    episode = stream.collect(constant(0.0, chunk=3), 4, Rng(0))
    assert episode.num_executed.tolist() == [[3] * 4, [2] * 4, [3] * 4, [2] * 4]
    assert episode.executed_mask.shape == (4, 4, 3)
    assert episode.executed_mask[1, 0].tolist() == [True, True, False]
    first, second = 1 + gamma * 2 + gamma**2 * 3, 4 + gamma * 5
    torch.testing.assert_close(episode.reward[:, 0], torch.tensor([first, second] * 2))
    assert episode.next_obs[0, :, 1].tolist() == [3] * 4 and episode.next_obs[1, :, 1].tolist() == [5] * 4
    assert episode.obs[2, :, 1].tolist() == [0] * 4
    assert episode.info["return"][1].tolist() == [15.0] * 4 and episode.info["length"][1].tolist() == [5] * 4
    even = episode.obs[..., 0] % 2 == 0
    done = torch.tensor([False, True, False, True])[:, None].expand(4, 4)
    assert torch.equal(episode.done, done) and torch.equal(episode.terminated, done & even)
    expected = torch.where(episode.terminated, 0.0, 0.5 ** episode.num_executed.float())
    torch.testing.assert_close(episode.discount(0.5), expected)


def test_a_vector_environment_takes_chunks_that_end_with_its_episodes():
    same = Collector(vector(AutoresetMode.SAME_STEP, life=6), seed=1).collect(constant(0.0, 3), 6, Rng(0))
    assert bool(same.valid.all()) and same.done[1::2].all() and not same.done[::2].any()
    following = Collector(vector(AutoresetMode.NEXT_STEP, life=6), seed=1).collect(constant(0.0, 3), 6, Rng(0))
    assert bool(following.valid.all()) and following.obs[2, :, 1].tolist() == [0.0] * 3
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        with pytest.raises(InvalidInputError, match="inside a chunk"):
            Collector(vector(mode, life=5, vary=True), seed=1).collect(constant(0.0, 4), 4, Rng(0))


def test_summary_counts_finished_episodes_only():
    stream = Collector(partial(Counting, life=5), 2, seed=3)
    assert stream.collect(constant(), 4, Rng(0)).summary() == {"num_episodes": 0.0}
    told = stream.collect(constant(1.0), 6, Rng(0)).summary()  # the episode in progress ends, with 4 + 1 rewards
    assert told["num_episodes"] == 4.0 and told["length"] == 5.0
    assert told["return"] == pytest.approx((15 + 1 + 15 + 5) / 2)


def test_actions_are_clipped_here_and_recorded_as_asked():
    stream = Collector(Counting, 2, seed=0)
    episode = stream.collect(constant(7.0), 1, Rng(0))
    assert episode.reward.tolist() == [[2.0, 2.0]] and float(episode.action.max()) == 7.0


def test_border_makes_a_resumed_run_the_same_run():
    def noise(obs, rng):
        return rng.normal(len(obs), 1), None

    whole, resumed = Collector(Counting, 3, seed=5), Collector(Counting, 3, seed=5)
    whole.on_checkpoint(0)
    whole.collect(noise, 7, Rng(0))
    whole.on_checkpoint(4)
    resumed.on_checkpoint(4)
    a, b = whole.collect(noise, 12, Rng(1)), resumed.collect(noise, 12, Rng(1))
    assert torch.equal(a.obs, b.obs) and torch.equal(a.reward, b.reward)
    assert torch.equal(a.info["return"], b.info["return"])
    other = Collector(Counting, 3, seed=6)
    other.on_checkpoint(4)
    assert not torch.equal(other.obs, Collector(Counting, 3, seed=5).collect(noise, 1, Rng(0)).obs[0])
    assert len(whole.obs[:, 0].unique()) > 1  # copies have streams of their own


@pytest.mark.fixed_seed
def test_workers_are_the_same_copies():
    alone, spread = (
        Collector(partial(Counting, vary=True), 5, seed=2),
        Collector(partial(Counting, vary=True), 5, 2, processes=2),
    )
    a, b = (s.collect(constant(0.25, chunk=2), 12, Rng(0)) for s in (alone, spread))
    spread.close()
    assert (
        torch.equal(a.obs, b.obs) and torch.equal(a.reward, b.reward) and torch.equal(a.executed_mask, b.executed_mask)
    )
    assert torch.equal(a.info["success"], b.info["success"])


def test_a_broken_worker_says_so():
    """The worker's loop in a thread: what it raises travels as a message, and is raised here."""
    ours, theirs = multiprocessing.Pipe()
    given = (theirs, Broken, 2, "Broken", 4, "error", [-1, 0])
    thread = threading.Thread(target=_serve, args=given, daemon=True)
    thread.start()
    owner = object.__new__(SubprocBackend)
    owner.name, owner.blocks, owner.edges, owner.pipes = "Broken", [2], np.zeros(0, int), [ours]
    owner.waiting, owner.timeout, owner.starts, owner.early = {0}, 10.0, [None], ()
    owner.begun = [np.zeros(2, bool)]
    owner.reset([0, 1])
    with pytest.raises(EnvFault, match=r"environment 4 of Broken returned NaN .*\n\(in worker 0\)"):
        owner.step_chunk(np.zeros((2, 3, 1), np.float32), np.ones(2, bool), 1.0)
    thread.join()


def test_nan_is_refused_by_copy():
    with pytest.raises(EnvFault, match=r"environment 0 of Broken returned NaN .* entries \[0, 1\], at step 3"):
        Collector(Broken, 2, seed=0).collect(constant(), 5, Rng(0))
    with pytest.raises(InvalidInputError, match=r"action for environment 1 of Counting holds NaN"):
        Collector(Counting, 2, seed=0).collect(lambda o, r: (torch.tensor([[0.0], [torch.nan]]), None), 1, Rng(0))


@pytest.mark.parametrize(
    "give",
    [
        lambda v: v.bfloat16(),
        lambda v: v.half(),
        lambda v: v.double(),
        lambda v: v.clone().requires_grad_(),
        lambda v: v.bfloat16().requires_grad_(),
        lambda v: v.numpy(),
        lambda v: torch.complex(torch.zeros_like(v), -v).conj().imag,  # a view that turns the sign when it is read
        lambda v: v.tolist(),
    ],
)
def test_actions_of_any_kind_of_numbers_are_executed(give):
    asked = torch.tensor([[0.5], [-0.25]])
    numbers, ticks = prepare_actions(
        give(asked), env_spec(Counting().observation_space, Counting().action_space), 2, "it"
    )
    assert ticks == 1 and numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, asked[:, None].numpy())


def test_choices_are_refused_at_both_ends():
    found = env_spec(Choices().observation_space, Choices().action_space)
    for wrong in (torch.tensor([0, 3]), torch.tensor([-1, 2]), torch.tensor([[0, 1], [2, 3]])):
        with pytest.raises(InvalidInputError, match=r"takes actions 0\.\.2"):
            prepare_actions(wrong, found, 2, "it")
    for right in (torch.tensor([0, 2]), torch.tensor([[0], [2]]), torch.tensor([0, 2], dtype=torch.uint8)):
        np.testing.assert_array_equal(prepare_actions(right, found, 2, "it")[0], [[0], [2]])
    with pytest.raises(InvalidInputError, match="as integers; the policy gave float32"):
        prepare_actions(torch.zeros(2), found, 2, "it")


@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (2,), (2, 4, 2)])
def test_actions_that_do_not_fit_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"takes actions \[2, 1\] or chunks \[2, 'T_a', 1\]"):
        Collector(Counting, 2, seed=0).collect(lambda o, r: (torch.zeros(shape), None), 1, Rng(0))


def test_things_that_are_no_environment_are_refused():
    with pytest.raises(InvalidInputError, match="no vector environment"):
        Collector(3)
    silent = vector(AutoresetMode.NEXT_STEP)
    silent.metadata = {}
    with pytest.raises(InvalidInputError, match="how it resets"):
        Collector(silent)
    with pytest.raises(InvalidInputError, match="3 environments, not 5"):
        Collector(vector(AutoresetMode.NEXT_STEP), 5)


def test_a_chunk_longer_than_the_episode_ends_with_it():
    episode = Collector(partial(Counting, life=2), 3, seed=0).collect(constant(0.0, chunk=7), 3, Rng(0))
    assert bool((episode.num_executed == 2).all()) and bool(episode.done.all())
    assert episode.executed_mask[0, 0].tolist() == [True, True] + [False] * 5
    assert bool((episode.reward == 1 + 2).all()) and bool((episode.obs[..., 1] == 0).all())


def test_equal_rewards_teach_nothing_and_break_nothing():
    """With a perfect critic of a constant reward, every advantage is zero and stays so when normalised."""
    stream = Collector(partial(Counting, life=4, low=0, high=1), 3, seed=0)  # every episode is 4 ticks and truly ends
    episode = stream.collect(constant(), 8, Rng(0))
    same = replace(episode, reward=torch.ones_like(episode.reward))
    left, after = (4 - o[..., 1] for o in (same.obs, same.next_obs))  # what is to come of a reward of 1 per step
    credit = gae(same.reward, same.discount(1.0), left, after, same.done, 0.95)
    assert float(credit.abs().max()) == 0 and float(normalise(credit.flatten()).abs().max()) == 0
    scale = RewardScale()
    assert bool(scale(torch.zeros(8, 3), torch.full((8, 3), 0.99), same.done).isfinite().all())


def test_discrete_and_dict_spaces():
    stream = Collector(Choices, 2, seed=0)
    episode = stream.collect(lambda o, r: (torch.tensor([2, 1]), None), 3, Rng(0))
    assert episode.reward.tolist() == [[2.0, 1.0]] * 3 and "success" not in episode.info
    with pytest.raises(InvalidInputError, match="integers"):
        stream.collect(lambda o, r: (torch.tensor([0.5, 1.0]), None), 1, Rng(0))
    with pytest.raises(InvalidInputError, match=r"0\.\.2"):
        stream.collect(lambda o, r: (torch.tensor([3, 1]), None), 1, Rng(0))
    parts = Collector(Parts, 2, seed=0).collect(lambda o, r: (torch.zeros(2, 1), None), 7, Rng(0))
    assert parts.obs["image"].shape == (7, 2, 2, 2) and parts.obs["image"].dtype == torch.uint8
    assert parts.next_obs["image"][4].unique().tolist() == [5] and parts.obs["image"][5].unique().tolist() == [0]


def test_env_steps_are_counted_and_evaluations_are_free():
    stream = Collector(partial(Counting, life=5), 4, seed=3)
    with UsageCounter().open() as meter:
        stream.collect(constant(0.0, chunk=3), 4, Rng(0))
        assert meter.counts["env_steps"] == 4 * 10
        evaluate(constant(), Counting, 3)
        assert meter.counts["env_steps"] == 40


def test_evaluation_plays_one_episode_a_seed():
    """Short episodes succeed and long ones fail: counting what finishes first would say 100 %."""
    make = partial(Counting, life=2, vary=True)
    told = evaluate(constant(), make, 50, seed=4, num_envs=7)
    assert len(told.returns) == 50 and len(set(told.seeds)) == 50 and bool(told.finished.all())
    starts = []
    for seed in told.seeds:
        env = make()
        env.reset(seed=seed)
        starts.append(env.start)
    assert told.lengths.tolist() == [2 + s % 3 for s in starts]
    assert told.success is not None and told.success.tolist() == [s % 2 == 0 for s in starts]
    assert told.returns.tolist() == [float(sum(range(1, 3 + s % 3))) for s in starts]


def test_evaluation_does_not_depend_on_the_copies():
    def noise(obs, rng):
        return rng.normal(len(obs), 1).clamp(-1, 1)

    make = partial(Counting, vary=True)
    few, many = evaluate(noise, make, 9, seed=1, num_envs=2), evaluate(noise, make, 9, seed=1, num_envs=9)
    assert torch.equal(few.returns, many.returns) and torch.equal(few.lengths, many.lengths)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_evaluation_of_a_vector_environment(mode):
    told = evaluate(constant(), vector(mode, 4, vary=True), 10, seed=1)
    assert torch.equal(told.lengths, evaluate(constant(), partial(Counting, vary=True), 10, seed=1).lengths)
    assert told.summary() == evaluate(constant(), partial(Counting, vary=True), 10, seed=1).summary()


def test_evaluation_without_a_success_signal_has_none():
    told = evaluate(constant(), Blind, 3)
    assert told.success is None and set(told.summary()) == {"return", "length"}
    cut = evaluate(constant(), partial(Counting, life=9), 3, max_episode_steps=4)
    assert not bool(cut.finished.any()) and not bool(cut.success.any())


def test_evaluation_can_be_watched():
    seen: dict[int, int] = {}
    told = evaluate(constant(), Counting, 5, num_envs=2, on_step=lambda i, env: seen.update({i: seen.get(i, 0) + 1}))
    assert [seen[i] for i in range(5)] == told.lengths.tolist()


def test_batched_worlds_are_environments_too():
    demos = demonstrations(1, Rng(0))
    stream = Collector(Fork2D(6), seed=0)
    ahead = stream.collect(lambda o, r: (torch.tensor([1.0, 0.0]).expand(6, 4, 2), None), 3, Rng(0))
    assert ahead.num_executed.tolist()[0] == [4] * 6 and bool(
        (ahead.num_executed[1] < 4).all()
    )  # into the disc, inside a chunk
    assert bool(ahead.terminated[1].all()) and ahead.obs[2, :, 0].tolist() == pytest.approx([-0.6] * 6)
    assert float(ahead.reward.sum()) == 0 and demos.statistics()["success"] == 1.0
    told = evaluate(lambda o, r: torch.tensor([1.0, 0.0]).expand(6, 2), Fork2D(6), 12)
    assert not bool(told.success.any()) and int(told.lengths.max()) <= 6


class Passing(Fork2D):
    """Reports success in the tick of an episode that has the number of its copy, and in no other."""

    def step(self, action, mask=None):
        seen, _, _, late, _ = super().step(torch.zeros(self.num_envs, 2), mask)
        now = self.steps == torch.arange(self.num_envs)
        return seen, torch.zeros(self.num_envs), torch.zeros_like(late), late, {"success": now & (self.steps > 0)}


def test_success_in_any_tick_of_a_chunk_counts_in_batched_worlds():
    """Copies 1, 2 and 3 report in the first, second and third tick of a chunk of three, copy 0 never."""
    stream = Collector(Passing(4), seed=0)
    told = stream.collect(lambda o, r: (torch.zeros(4, 3, 2), None), 2, Rng(0))
    assert told.info["success"].tolist() == [[False, True, True, True]] * 2
    out = stream.owner
    out.reset([0, 1, 2, 3])
    played = out.step_chunk(np.zeros((4, 3, 2)), np.ones(4, bool), 1.0)
    assert played.first.tolist() == [0, 1, 2, 3] and played.last_success.tolist() == [0, 0, 0, 1]


class Early(gymnasium.Env):
    """Says success in its first tick alone, and ends in the fourth."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.tick = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.tick += 1
        seen = np.full(1, self.tick, np.float32)
        return seen, float(self.tick), self.tick == 4, False, {"success": True} if self.tick == 1 else {}


def test_success_is_remembered_over_rollouts_until_the_episode_ends() -> None:
    stream = Collector(Early, 2, seed=0)
    parts = [stream.collect(constant(), steps, Rng(0)) for steps in (2, 1, 1, 5)]
    for part in parts[:3]:
        assert bool(part.info["success"].all())
    assert parts[2].summary() == {"num_episodes": 2.0, "return": 10.0, "success": 1.0, "length": 4.0}
    assert parts[3].info["return"][:, 0].tolist() == [1, 3, 6, 10, 1]
    assert parts[3].info["length"][:, 0].tolist() == [1, 2, 3, 4, 1]


def test_an_interrupted_rollout_counts_what_was_played() -> None:
    stream, calls = Collector(Early, 1, seed=0), iter([True, True, False])

    def act(obs, rng):
        if not next(calls):
            raise KeyboardInterrupt
        return torch.zeros(1, 1), None

    with pytest.raises(KeyboardInterrupt):
        stream.collect(act, 4, Rng(0))
    assert stream.collect(constant(), 2, Rng(0)).info["return"].flatten().tolist() == [6, 10]


def test_actions_may_be_arrays_and_what_is_not_reported_is_left_out():
    """The clock of the episode counts whole ticks; an environment that says nothing of success has none."""
    parts = []
    for way in (torch.as_tensor, lambda v: v, lambda v: v.tolist()):
        stream = Collector(Blind, 2, seed=0)
        parts.append(stream.collect(lambda obs, rng, way=way: way(np.zeros((2, 1), np.float32)), 7, Rng(0)))
    for part in parts:
        assert isinstance(part.action, torch.Tensor) and part.action.shape == (7, 2, 1)
        assert torch.equal(part.reward, parts[0].reward) and torch.equal(part.next_obs, parts[0].next_obs)
        assert part.info.keys() == {"return", "length"} and part.info["length"].dtype == torch.int64
