"""Copies that raise, diverge, hang or die: they are named, and a stream that goes on has lost nothing else."""

from __future__ import annotations

import copy
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
sys.path.insert(0, str(Path(__file__).parent))

from gymnasium.vector import AutoresetMode, SyncVectorEnv
from worlds import Counting, Sick

from denoiserl.advantages import gae
from denoiserl.control.acting import rollout_metrics
from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.data import ActionChunkCodec, Demonstrations
from denoiserl.envs import Collector, EnvFault, evaluate
from denoiserl.envs.remarks import Remark
from denoiserl.envs.toy.fork2d import Fork2D
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import GaussianHead, OneStep, time_grid
from denoiserl.recipes.policy_gradient import ppo
from denoiserl.train import Run

KINDS = {
    "raise": "raised ZeroDivisionError: the wheel came off",
    "nan": "returned NaN or infinity in its observation, entries [0, 1]",
    "reward": "gave a reward of NaN or infinity",
}


def idle(obs, rng):
    return torch.zeros(len(obs), 1), None


def first_sick(stream):
    """The first copy with an odd start."""
    return int((stream.obs[:, 0] % 2 == 1).int().argmax())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_named(kind):
    stream = Collector(partial(Sick, kind), 6, seed=1)
    stream.on_checkpoint(0)
    sick = first_sick(stream)
    with pytest.raises(EnvFault) as stopped:
        stream.collect(idle, 5, Rng(0))
    assert stopped.value.fault == (sick, 3, KINDS[kind])
    assert f"environment {sick} of Sick {KINDS[kind]}, at step 3 of its episode" in str(stopped.value)
    assert "on_fault='restart'" in str(stopped.value)
    if kind == "raise":
        assert isinstance(stopped.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("kind", KINDS)
def test_restarting_loses_the_sick_decisions_and_nothing_else(kind):
    sick, well = (Collector(make, 6, seed=1, on_fault="restart") for make in (partial(Sick, kind), Counting))
    sick.on_checkpoint(0)
    begun = sick.obs[:, 0]
    with UsageCounter().open() as meter:
        a = sick.collect(idle, 20, Rng(0))
    b = well.collect(idle, 20, Rng(0))
    lost = ~a.valid
    # exactly the third ticks of odd episodes are lost, and each is told
    assert torch.equal(lost, (a.obs[..., 0] % 2 == 1) & (a.obs[..., 1] == 2)) and int(lost.sum()) == len(a.faults) > 3
    assert {f.env for f in a.faults} == set(lost.any(0).nonzero().flatten().tolist())
    assert meter.counts["env_steps"] == int(a.valid.sum()) == a.valid.numel() - len(a.faults)
    # a lost decision ends the episode without an end, a reward or a successor
    assert bool(a.done[lost].all()) and not bool(a.terminated[lost].any()) and float(a.reward[lost].abs().sum()) == 0
    assert torch.equal(a.next_obs[lost], a.obs[lost])
    assert bool((a.obs[1:, :, 1][lost[:-1]] == 0).all())  # what follows begins a new episode
    # all numbers are those of healthy copies until the fault
    first = torch.where(lost.any(0), lost.int().argmax(0), 20)
    for i, until in enumerate(first.tolist()):
        assert torch.equal(a.obs[: until + 1, i], b.obs[: until + 1, i])
        assert torch.equal(a.reward[:until, i], b.reward[:until, i])
    assert bool((first == 20).any()) == bool((begun % 2 == 0).all() or not lost.any(0).all())
    finished = a.done & a.valid
    assert a.summary()["num_episodes"] == float(finished.sum()) and a.summary()["return"] == 1 + 2 + 3 + 4 + 5
    assert rollout_metrics(a)["rollout/num_faults"] == len(a.faults) and "rollout/num_faults" not in rollout_metrics(b)


def test_credit_before_a_lost_decision_is_that_of_an_episode_cut_there():
    stream = Collector(partial(Sick, "raise", low=1, high=2), 1, seed=0, on_fault="restart")  # always sick
    ep = stream.collect(idle, 3, Rng(0))
    value = 0.3 * ep.obs[..., 1] + 1
    after = 0.3 * ep.next_obs[..., 1] + 1
    credit = gae(ep.reward, ep.discount(0.9), value, after, ep.done, 0.8)
    cut = [ep.reward[:2], ep.discount(0.9)[:2], value[:2], after[:2], torch.tensor([[False], [True]])]
    torch.testing.assert_close(credit[:2], gae(*cut, 0.8))
    assert float(credit[2]) == 0


def test_a_reset_that_fails_costs_no_decision():
    sick = partial(Sick, "reset", one_in=40)  # three in a row, which would stop it, are rare
    with pytest.raises(EnvFault, match="raised OSError: the simulator is busy when it was reset"):
        Collector(sick, 6, seed=3).collect(idle, 400, Rng(0))
    ep = Collector(sick, 6, seed=3, on_fault="restart").collect(idle, 400, Rng(0))
    assert bool(ep.valid.all()) and bool((ep.obs[..., 0] % 40 != 1).all()) and len(ep.faults) > 1
    assert ep.done.sum() == 6 * 80  # the episodes are as many and as long as without it
    never = partial(Sick, "reset", low=1, high=2)
    with pytest.raises(EnvFault, match="made again 3 times, it raised OSError"):
        Collector(never, 1, on_fault="restart").on_checkpoint(0)


def test_what_a_restart_does_not_cure_stops():
    always = partial(Sick, "nan", tick=1, low=1, high=2)
    with pytest.raises(EnvFault, match=r"environment 0 of Sick returned NaN.* lost 3 decisions in a row"):
        Collector(always, 2, seed=0, on_fault="restart").collect(idle, 5, Rng(0))


@pytest.mark.fixed_seed
def test_workers_restart_the_same_copies():
    alone, spread = (
        Collector(partial(Sick, "raise"), 5, seed=2, on_fault="restart", processes=processes) for processes in (1, 2)
    )
    a, b = (s.collect(idle, 14, Rng(0)) for s in (alone, spread))
    spread.close()
    assert (
        torch.equal(a.obs, b.obs)
        and torch.equal(a.executed_mask, b.executed_mask)
        and a.faults == b.faults
        and len(a.faults) > 2
    )


@pytest.mark.fixed_seed
@pytest.mark.parametrize(("kind", "said"), [("hang", "has not answered for 1 s"), ("die", r"\(exit code 7\)")])
def test_a_worker_that_hangs_or_dies_is_named_and_started_again(kind, said):
    """Copies 0, 1 and 2, 3 share a worker each; one of them is made to begin with an odd start."""
    seed = next(s for s in range(200) if starts(s) == [0, 0, 0, 1])
    stop = Collector(partial(Sick, kind, low=0, high=2), 4, seed, processes=2, timeout=1)
    began = time.monotonic()
    with pytest.raises(EnvFault, match=said) as stopped:
        stop.collect(idle, 4, Rng(0))
    assert stopped.value.fault[:2] == (3, 2) and "(worker 1)" in str(stopped.value)
    stop.close()
    on = Collector(partial(Sick, kind, low=0, high=2), 4, seed, processes=2, timeout=1, on_fault="restart")
    ep = on.collect(idle, 3, Rng(0))
    assert time.monotonic() - began < 50  # it sleeps for 60 s
    on.close()
    assert ep.valid.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert [f.env for f in ep.faults] == [3, 2] and "lost its episode with worker 1, which environment 3" in ep.faults[
        1
    ].what
    assert on.obs[:, 1].tolist() == [3, 3, 0, 0] and bool(ep.done[2, 2:].all())


def starts(seed):
    stream = Collector(partial(Counting, low=0, high=2), 4, seed)
    stream.on_checkpoint(0)
    return stream.obs[:, 0].int().tolist()


def test_a_run_that_stops_goes_on_from_its_last_save(tmp_path):
    """The fault is repaired and the run continued: it is the run that never failed."""

    def run(make, folder):
        rng, seen = Rng(0), []
        env = Collector(make, 4, seed=5)
        try:
            for _ in Run(folder, every=1, restart=1).loop(6, rng=rng, env=env):
                ep = env.collect(lambda o, r: (r.normal(len(o), 1).clamp(-1, 1), None), 4, rng)
                seen.append(float(ep.reward.sum()))
        except EnvFault:
            assert make is not Counting
        return seen

    whole = run(Counting, tmp_path / "well")
    failed = run(partial(Sick, "raise", tick=4, low=0, high=10), tmp_path / "sick")
    assert len(failed) < 6
    again = run(partial(Counting, low=0, high=10), tmp_path / "sick")
    reference = run(partial(Counting, low=0, high=10), tmp_path / "reference")
    assert failed + again == reference and len(whole) == 6


class Leaking(Fork2D):
    """Copy 1 has no number for its position in its first episode, once it has moved twice."""

    def step(self, action, mask=None):
        seen, reward, *rest = super().step(action, mask)
        if int(self.episode[1]) == 1 and int(self.steps[1]) == 2:
            seen = seen.index_fill(0, torch.tensor([1]), torch.nan)
        return seen, reward, *rest


def test_a_batched_world_restarts_the_copy_that_diverged():
    def ahead(obs, rng):
        return torch.tensor([1.0, 0.0]).expand(len(obs), 2), None

    with pytest.raises(EnvFault, match=r"environment 1 of Leaking returned NaN .* at step 2"):
        Collector(Leaking(3), seed=0).collect(ahead, 4, Rng(0))
    ep = Collector(Leaking(3), seed=0, on_fault="restart").collect(ahead, 4, Rng(0))
    well = Collector(Fork2D(3), seed=0).collect(ahead, 4, Rng(0))
    assert ep.valid[:, 1].tolist() == [True, False, True, True] and bool(ep.valid[:, [0, 2]].all())
    assert torch.equal(ep.obs[:, [0, 2]], well.obs[:, [0, 2]]) and torch.equal(ep.obs[1, 1], ep.next_obs[1, 1])
    assert ep.obs[:, 1, 0].tolist() == pytest.approx([-0.6, -0.54, -0.6, -0.54]) and len(ep.faults) == 1


def test_vector_environments_name_what_they_can():
    envs = SyncVectorEnv([partial(Sick, "nan")] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    stream = Collector(envs, seed=1)
    stream.on_checkpoint(0)
    sick = first_sick(stream)
    with pytest.raises(EnvFault, match=rf"environment {sick} of SyncVectorEnv returned NaN .* at step 3"):
        stream.collect(idle, 5, Rng(0))
    raising = SyncVectorEnv([partial(Sick, "raise")] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvFault, match=r"an environment of SyncVectorEnv raised .* does not say which"):
        Collector(raising, seed=1).collect(idle, 5, Rng(0))


def test_a_method_learns_on_and_its_rows_count_the_faults():
    """Copies that fall ill now and then still teach PPO that larger actions pay."""
    first = torch.zeros(500, 1)
    demos = Demonstrations.of([(torch.rand(500, 2) * torch.tensor([100.0, 5.0]), first.uniform_(-1, 1))])
    process, codec = OneStep(), ActionChunkCodec.fit(demos)
    head = GaussianHead(MLP((1, 1), cond=2, width=32, time=0), 1, 0.5, 0.1)
    policy = Policy.of(
        process, head, (1, 1), process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0), codec
    )
    start = copy.deepcopy(policy)
    env = Collector(partial(Sick, "raise", high=100, one_in=10), 16, seed=0, on_fault="restart")
    a = ppo.Args(
        iterations=5, rollout_steps=20, lr=5e-3, critic_warmup=0, batch_size=160, epochs=6, gamma=0.5, target_kl=1.0
    )
    rows = list(ppo.improve(policy, env, a, Rng(0)))
    assert sum(r.get("rollout/num_faults", 0) for r in rows) > 5 and all(
        np.isfinite(r["loss/policy"]) for r in rows if "loss/policy" in r
    )
    obs = torch.tensor([[50.0, t] for t in range(5)])
    before, after = (float(made.generate(obs, Rng(1)).mean()) for made in (start, policy))
    assert after > before + 0.4


def test_an_episode_that_crashes_stays_in_the_denominator_as_a_failure():
    act, well = lambda o, r: torch.zeros(len(o), 1), partial(Counting, low=0)
    with pytest.warns(Remark, match=r"\d of 9 episodes of Sick crashed .* raised ZeroDivisionError: .* at step 3"):
        told = evaluate(act, partial(Sick, "raise"), 9)
    sound = evaluate(act, well, 9)
    assert sound.success is not None and told.success is not None
    many = int(told.crashed.sum())
    assert 0 < many < 9 and not bool((told.crashed & (told.success | told.finished)).any())
    assert torch.equal(told.returns[~told.crashed], sound.returns[~told.crashed])
    assert told.returns[told.crashed].tolist() == [1.0 + 2.0] * many, "what was gained before the tick that crashed"
    assert told.summary()["success"] == float((sound.success & ~told.crashed).float().mean())


def test_a_start_that_cannot_be_had_is_a_failure_and_no_other_start_is_played_for_it():
    act = lambda o, r: torch.zeros(len(o), 1)  # noqa: E731
    with pytest.warns(Remark, match="crashed .* the simulator is busy when it was reset"):
        told = evaluate(act, partial(Sick, "reset"), 9)
    assert told.lengths[told.crashed].tolist() == told.returns[told.crashed].tolist() == [0] * int(told.crashed.sum())
    assert 0 < int(told.crashed.sum()) < 9


def test_an_environment_that_crashes_in_every_episode_is_no_evaluation():
    with pytest.raises(EnvFault, match="every episode crashed"):
        evaluate(lambda o, r: torch.zeros(len(o), 1), partial(Sick, "raise", low=1, high=2), 9)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InvalidInputError, match="Did you mean 'restart'"):
        Collector(Counting, 2, on_fault="restrat")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="processes=2 or more"):
        Collector(Counting, 2, timeout=5)
    with pytest.raises(InvalidInputError, match="make one of its rows again"):
        Collector(SyncVectorEnv([Counting] * 2, autoreset_mode=AutoresetMode.SAME_STEP), on_fault="restart")
    assert np.isfinite(Collector(Counting, 2).collect(idle, 2, Rng(0)).reward.numpy()).all()
