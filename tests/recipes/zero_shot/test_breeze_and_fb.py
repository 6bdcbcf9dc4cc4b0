"""BREEZE and FB: what they learn where the answer is known, resumes, what data they take, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from denoiserl import Rng, tasks
from denoiserl.control.best_of_n import BestOfN
from denoiserl.control.zero_shot import policy_for_reward, require_task_conditioned
from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.serialization.args_json import to_json
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.experiments import experiment
from denoiserl.policy.policy import Policy
from denoiserl.recipes.zero_shot import breeze, fb
from denoiserl.recipes.zero_shot import common as successors
from denoiserl.tasks import zero_shot as zero_shot_task
from denoiserl.train import Run, find_saved_policy

BASE = zero_shot_task.Args(
    rooms=2,
    num_episodes=4,
    episode_steps=60,
    max_episode_steps=10,
    task_dim=4,
    policy_width=16,
    pretrain_updates=4,
    sampling_steps=2,
    action_horizon=2,
)
SMALL = {"num_updates": 2, "batch_size": 32, "representation_width": 16}
METHODS = {"breeze": (breeze, zero_shot_task.untrained_policy), "fb": (fb, zero_shot_task.squashed_policy)}
methods = pytest.mark.parametrize("name", METHODS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:B has collapsed"),
    pytest.mark.filterwarnings("ignore::denoiserl.envs.remarks.Remark"),  # Segment has one start
]


def start(name: str, base: zero_shot_task.Args = BASE) -> Policy:
    return METHODS[name][1](base, 0, Run())


def improve(name: str, made: Policy, data=None, keep: Run | None = None, **more) -> list[dict]:
    module = METHODS[name][0]
    a = module.Args(**{**SMALL, **more})
    return list(module.improve(made, zero_shot_task.load_dataset(BASE, 0) if data is None else data, a, Rng(5), keep))


@methods
def test_the_same_run_twice_and_a_resumed_one_end_in_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = start(name)
    rows = improve(name, whole, keep=Run(tmp_path / "whole", every=1))
    assert rows == improve(name, start(name))
    halves, a = start(name), METHODS[name][0].Args(**SMALL)
    data = zero_shot_task.load_dataset(BASE, 0)
    part = METHODS[name][0].improve(halves, data, a, Rng(5), Run(tmp_path / "half", every=1))
    next(part)
    next(part)
    del part
    resumed = start(name)
    improve(name, resumed, keep=Run(tmp_path / "half", every=1))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.weights.control is not None and resumed.weights.control is not None
    own, other = whole.weights.control.state_dict(), resumed.weights.control.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own)


@methods
def test_the_experiment_runs_and_its_policy_answers_rewards_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    module = METHODS[name][0]
    task, keep = tasks.make(module.DEFAULT_TASK, to_json(BASE)), Run(tmp_path)
    rows = list(experiment.run_recipe(module, task, module.Args(**SMALL), 0, keep))
    assert {"eval/score", "eval/goal_6", "eval/stay_left", "eval/overestimation"} <= rows[-1].keys()
    made = Policy.load(find_saved_policy(tmp_path, "last"))
    asked = policy_for_reward(made, successors.demos(zero_shot_task.load_dataset(BASE, 0)), lambda at: at[:, 0])
    again = Policy.load(asked.save(tmp_path / "asked"))
    obs = torch.rand(3, 2) + 1
    assert torch.equal(again.generate(obs, Rng(1)), asked.generate(obs, Rng(1)))


def line(n: int = 40, length: int = 12) -> Demonstrations:
    """A walker on a segment who steps ±1 of a tenth, at random, and cannot leave it."""
    g, episodes = torch.Generator().manual_seed(0), []
    for _ in range(n):
        x, seen, done = torch.rand(1, generator=g) * 2 - 1, [], []
        for _ in range(length):
            a = torch.rand(1, generator=g) * 2 - 1
            seen.append(x)
            done.append(a)
            x = (x + 0.4 * a).clamp(-1, 1)
        episodes.append((torch.stack(seen), torch.stack(done)))
    return Demonstrations.of(episodes)


@methods
def test_a_walker_who_never_had_a_reward_goes_to_whichever_end_is_asked_for(name: str) -> None:
    """On a segment walked at random, the policies for 'be right' and 'be left' go right and left from the middle."""
    base, data = replace(BASE, action_horizon=1, policy_width=32, task_dim=4, sampling_steps=3), line()
    keep, mine = Run(), METHODS[name][1]
    made = zero_shot_task.diffusion(base, data, 4, 0, "cpu") if name == "breeze" else None
    if made is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zero_shot_task, "load_dataset", lambda base, seed: data)
            made = mine(base, 0, keep)
    more = {"inverse_temperature": 0.5, "num_candidates": 8, "policy_ema": 0.05} if name == "breeze" else {}
    improve(
        name, made, data, num_updates=150, batch_size=64, representation_width=32, lr=2e-3, tau=0.05, gamma=0.8, **more
    )
    obs = torch.linspace(-0.5, 0.5, 21)[:, None]
    right, left = (policy_for_reward(made, data, lambda o, s=s: (s * o[:, 0] > 0.5).float()) for s in (1, -1))
    ways = [float(policy.generate(obs, Rng(0)).mean()) for policy in (right, left)]
    assert ways[0] > 0.3 and ways[1] < -0.3, ways


def test_next_actions_are_the_best_proposal_by_q() -> None:
    made = start("breeze")
    improve("breeze", made)
    control = made.weights.control
    assert isinstance(control, BestOfN)
    both, g = control.verifier.represent, torch.Generator().manual_seed(0)  # type: ignore[union-attr]
    cond, z, plan = (torch.randn(*s, generator=g) for s in ((6, 2), (6, 4), (6, 5, 2, 2)))
    with torch.no_grad():
        chosen = breeze.best_by_q(both, cond, z, plan)
        every = torch.stack([both.value(cond, plan[:, k], z).amin(0) for k in range(5)], 1)
        assert torch.allclose(both.value(cond, chosen, z).amin(0), every.amax(1), atol=1e-5)


def test_tasks_have_the_norm_of_b_and_half_of_them_are_b_of_states() -> None:
    made = start("fb")
    improve("fb", made)
    both = made.weights.control.verifier.represent  # type: ignore[union-attr]
    obs = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    z, back = successors.sample_task_vectors(both, obs, Rng(0), 0.5), both.backward_embedding(obs).detach()
    assert torch.allclose(z.norm(dim=1), torch.full((400,), 2.0), atol=1e-4)
    apart = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # products of matrices leave 1e-3
    found = apart(z, back).amin(1) < 1e-4
    assert 0.4 < float(found.float().mean()) < 0.6
    assert bool((apart(successors.sample_task_vectors(both, obs, Rng(0), 1.0), back).amin(1) < 1e-4).all())


def test_transitions_end_where_episodes_do() -> None:
    """Frames are numbered, so every row can say by itself which decision it is."""
    lengths = (5, 3, 1)
    obs = torch.arange(9.0)[:, None]
    demos = Demonstrations(obs, obs + 100, torch.tensor(lengths).cumsum(0))
    row = successors.make_transitions(demos, 2)
    assert row["obs"].flatten().tolist() == [0, 1, 2, 5]  # 3 + 2 is the next episode's, and nobody saw it
    assert row["next_obs"].flatten().tolist() == [2, 3, 4, 7]
    assert row["action"][..., 0].tolist() == [[100, 101], [101, 102], [102, 103], [105, 106]]
    assert row["has_next_action"].tolist() == [True, True, False, False]
    assert row["next_action"][0, :, 0].tolist() == [102, 103]
    ended = torch.tensor([True, False, True])
    box = torch.ones(1)
    last = torch.tensor([[50.0], [60.0], [70.0]])
    row = successors.make_transitions(EpisodeDataset(demos, None, last, ended, -box, box), 1)
    assert row["next_obs"].flatten().tolist() == [1, 2, 3, 4, 50, 6, 7, 60, 70]
    assert row["terminated"].tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    with pytest.raises(InvalidInputError, match="no episode is longer"):
        successors.make_transitions(demos, 6)


def test_logged_rewards_are_asked_for_where_they_were_given_and_judged_in_an_environment(tmp_path: Path) -> None:
    """A file of transitions with rewards: r belongs to the state it was given in, and the answer plays in ``env``."""
    pytest.importorskip("gymnasium")
    pytest.importorskip("h5py")
    from denoiserl.data.formats.hdf5 import write

    demos = line(6, 10)
    last = (demos.observations[demos.ends - 1] + 0.4 * demos.actions[demos.ends - 1]).clamp(-1, 1)
    after = successors.make_transitions(
        data := EpisodeDataset(demos, None, last, torch.zeros(6).bool(), -torch.ones(1), torch.ones(1))
    )
    wanted = lambda at: (at[:, 0] > 0.2).float()  # noqa: E731
    path = write(tmp_path / "walks.hdf5", replace(data, rewards=wanted(after["next_obs"])))
    (tmp_path / "segment.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Segment(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        self.x, self.t = 0.0, 0\n"
        "        return np.array([self.x], np.float32), {}\n"
        "    def step(self, a):\n"
        "        self.x, self.t = float(np.clip(self.x + 0.4 * a[0], -1, 1)), self.t + 1\n"
        "        return np.array([self.x], np.float32), float(self.x > 0.2), False, self.t >= 6, {}\n"
    )
    base = replace(BASE, data=str(path), env=f"{tmp_path / 'segment.py'}:Segment", action_horizon=2)
    row, read = successors.make_transitions(zero_shot_task.load_dataset(base, 0)), zero_shot_task.load_dataset(base, 0)
    assert isinstance(read, EpisodeDataset) and read.rewards is not None
    assert torch.equal(read.rewards[row["frame"]], wanted(row["next_obs"]))
    made = start("fb", base)
    improve("fb", made, read)
    told = zero_shot_task.task(base).evaluate(made, 0, 4)
    assert bool((told["length"] == 6).all()) and bool(((told["return"] >= 0) & (told["return"] <= 6)).all())
    with pytest.raises(RunError, match="holds no rewards: give a reward"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_shot_task, "load_dataset", lambda base, seed: data)
        zero_shot_task.outcomes(base, made, 0, 2)


def test_a_true_end_has_no_future_and_a_chunk_is_discounted_by_its_ticks() -> None:
    made = start("breeze", replace(BASE, action_horizon=3))
    demos = zero_shot_task.load_dataset(BASE, 0)
    assert isinstance(demos, Demonstrations)
    box = torch.ones(2)
    ends = torch.arange(len(demos)) % 2 == 0
    record = EpisodeDataset(demos, None, torch.zeros(len(demos), 2), ends, -box, box)
    _, known = successors.prepare_transitions(made, record, 32, 0.9, "BREEZE")
    assert known["discount"].unique().tolist() == pytest.approx([0.0, 0.9**3])
    assert int((known["discount"] == 0).sum()) == int((ends & (demos.lengths >= 3)).sum())


def test_scores_are_zero_for_who_stays_and_a_hundred_for_the_shortest_way() -> None:
    """The references themselves, judged as a policy would be; and an imitator of goals is judged like everybody."""
    pytest.importorskip("matplotlib")
    base = replace(BASE, max_episode_steps=60)
    from denoiserl.envs.toy.maze import expert

    reward = zero_shot_task.rewards(base)["goal_2"]
    low, high = zero_shot_task.references(base)["goal_2"]
    goal = zero_shot_task.maze(base).cells[reward(zero_shot_task.maze(base).cells).argmax()]

    def shortest(world, position, rng):
        world.goal = goal.expand(len(position), 2)
        return expert(world)[:, None]

    came = zero_shot_task.roll_out(base, shortest, reward, 3, 100).rewards.sum(1).mean()
    assert 100 * (float(came) - low) / (high - low) == pytest.approx(100, abs=12)
    task = zero_shot_task.task(BASE)
    rows = task.start_policy(0, Run(), "goals")
    try:
        while True:
            next(rows)
    except StopIteration as done:
        policy = done.value
    drawn = task.render(policy, 1, 2) if task.render else {}
    assert isinstance(drawn["ways.png"], bytes) and drawn["ways.png"].startswith(b"\x89PNG")
    told = task.evaluate(policy, 1, 3)
    assert told.keys() == task.metrics.keys() and require_task_conditioned(policy).z.shape == (2,)


def test_overestimation_is_what_q_promised_less_what_came() -> None:
    """With r in the span of an orthonormal B, Q of the discounted return itself: a promise kept is an error of 0."""
    made = start("fb")
    improve("fb", made)
    reward = zero_shot_task.rewards(BASE)["stay_left"]
    seen = successors.demos(zero_shot_task.load_dataset(BASE, 0)).observations
    asked = policy_for_reward(made, seen, reward)
    begin, first = seen[:5], torch.zeros(5, 2, 2)
    path = begin[:, None].expand(-1, 11, -1)
    nothing = zero_shot_task.overestimation(
        asked, zero_shot_task.Trajectories(torch.zeros(5, 10), path, first), seen, reward
    )
    ones = zero_shot_task.overestimation(
        asked, zero_shot_task.Trajectories(torch.ones(5, 10), path, first), seen, reward
    )
    gamma = 0.98**2  # two environment steps per decision, five decisions
    assert torch.allclose(nothing - ones, torch.full((5,), sum(gamma**k for k in range(5))), atol=1e-4)
    both = asked.weights.control.verifier.represent  # type: ignore[union-attr]
    codec = require_task_conditioned(asked)
    moment = (reward(seen)[:, None] * both.backward_embedding(codec.inner.condition(seen))).mean(0)
    unit = codec.unit(codec.encode(first))
    f = both.forward_embedding(codec.inner.condition(begin), unit, codec.z.expand(5, -1))
    assert torch.allclose(nothing, (f @ moment).amin(0), atol=1e-4)


def test_a_collapsed_b_is_told() -> None:
    made = start("fb")
    improve("fb", made)
    both = made.weights.control.verifier.represent  # type: ignore[union-attr]
    with torch.no_grad():
        both.name[-1].weight.zero_()
        both.name[-1].bias.fill_(1.0)
    with pytest.warns(UserWarning, match="effective rank of 1.0 of 4"):
        successors.warn_if_collapsed(both, torch.randn(50, 2))


def test_a_policy_that_carries_to_execute_part_of_a_chunk_is_refused() -> None:
    made = start("breeze", replace(BASE, action_horizon=3))
    made.weights.execute = 2
    with pytest.raises(InvalidInputError, match="executes 2 of them"):
        successors.prepare_transitions(made, zero_shot_task.load_dataset(BASE, 0), 32, 0.9, "BREEZE")


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="fewer than a batch"):
        improve("breeze", start("breeze"), batch_size=10_000)
    with pytest.raises(RunError, match=r"gamma = 1\.0 is out of range"):
        improve("fb", start("fb"), gamma=1.0)
    with pytest.raises(InvalidInputError, match="maximises Q inside a box"):
        improve("fb", start("breeze"))
    bad = successors.demos(zero_shot_task.load_dataset(BASE, 0))
    seen = bad.observations.clone()
    seen[3, 0] = float("nan")
    with pytest.raises(InvalidInputError, match="NaN or infinity"):
        improve("breeze", start("breeze"), replace(bad, observations=seen))
    with pytest.raises(RunError, match="pass --env"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zero_shot_task, "load_dataset", lambda base, seed: bad)
            zero_shot_task.outcomes(replace(BASE, data="my.hdf5"), start("fb"), 0, 2)
