"""SynthER and PGD: what they end at where the answer is known, resumes, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.synthetic import Model
from denoiserl.data.transitions import transitions
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.recipes.off_policy import sac, synther_sac
from denoiserl.recipes.offline_rl import synther, td3_bc
from denoiserl.tasks import offline as offline_task
from denoiserl.train import Run
from tests.recipes.off_policy.test_sac_and_td3 import SMALL, Bandit
from tests.recipes.off_policy.test_sac_and_td3 import policy as boxed_policy

TINY = Model(num_updates=5, batch_size=16, width=16, depth=2, sampling_steps=4)
BASE = offline_task.Args(policy_width=32)


def bandit(n: int = 400) -> EpisodeDataset:
    """Decisions spread around 0.3 x, which pay −(a − 0.5 x)², once."""
    rng = Rng(0)
    x = 2 * rng.uniform(n, 1) - 1
    a = (0.3 * x + 0.3 * rng.normal(n, 1)).clamp(-1, 1)
    over = torch.ones(n, dtype=torch.bool)
    return transitions(x, a, -((a - 0.5 * x)[:, 0] ** 2), x, over, -torch.ones(1), torch.ones(1), "bandit")


def start(data: EpisodeDataset, kind: str = "squashed") -> Policy:
    return offline_task.untrained_policy(BASE, data, kind, 0)


def answers(made: Policy) -> list[float]:
    return made.generate(torch.tensor([[-0.8], [0.0], [0.8]]), Rng(0)).flatten().tolist()


def same(first: Policy, second: Policy) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


OFFLINE = synther.Args(
    iterations=2,
    updates_per_iteration=3,
    batch_size=32,
    critic_width=16,
    lr=3e-3,
    num_synthetic=300,
    model=replace(TINY, num_updates=6),
)


def test_synther_learns_from_made_rows_what_is_best() -> None:
    data = bandit()
    made = start(data)
    model = Model(num_updates=500, batch_size=64, lr=3e-3, width=48, depth=3, sampling_steps=16, churn=10.0)
    a = replace(
        OFFLINE,
        iterations=6,
        updates_per_iteration=50,
        batch_size=128,
        critic_width=32,
        num_synthetic=1500,
        model=model,
        q_weight=20.0,
    )
    torch.manual_seed(1)
    list(synther.improve(made, data, a, Rng(2)))
    assert answers(made) == pytest.approx([-0.4, 0.0, 0.4], abs=0.15)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_synther_is_the_same_run_twice_and_after_a_kill(tmp_path, share) -> None:
    data, a = bandit(100), replace(OFFLINE, synthetic_fraction=share)

    def run(folder: str) -> Policy:
        made = start(data)
        list(synther.improve(made, data, a, Rng(2), Run(tmp_path / folder, every=1)))
        return made

    whole = run("whole")
    made = start(data)
    rows = synther.improve(made, data, a, Rng(2), Run(tmp_path / "half", every=1))
    for row in rows:
        if "loss/critic" in row:
            break  # stopped in the learner's first iteration
    del rows, row
    assert same(whole, run("half"))


def test_the_learner_is_td3_bc_itself() -> None:
    """Learning from copies without noise is TD3+BC on the recording with the same draws."""
    data = bandit(64)
    a = replace(OFFLINE, generator="noise", noise_std=0.0, num_synthetic=64)
    torch.manual_seed(0)
    made = start(data)
    list(synther.improve(made, data, a, Rng(7)))
    rng = Rng(7)
    index = rng.integers(0, 64, 64)
    rng.normal(64, 4)  # of x, a, r and x'; the end never changes, so it is no number to the model
    torch.manual_seed(0)
    other = start(data)
    list(td3_bc.improve(other, data.take(index), a, rng))
    assert answers(made) == pytest.approx(answers(other), abs=1e-4)


ONLINE = synther_sac.Args(
    **{**SMALL, "learning_starts": 32},
    iterations=3,
    utd=0.1,
    decisions_per_refill=64,
    num_synthetic=100,
    target_entropy=-0.5,
    model=TINY,
)


def test_synther_online_refills_its_buffer_and_goes_on_after_a_kill(tmp_path) -> None:
    def run(folder: str, stop: int = 99) -> tuple[Policy, list[dict]]:
        torch.manual_seed(0)
        made, rows = boxed_policy(Bandit), []
        torch.manual_seed(1)
        for row in synther_sac.improve(
            made, Collector(Bandit, 8, 1), ONLINE, Rng(3), Run(tmp_path / folder, every=1, restart=1)
        ):
            rows.append(row)
            if len(rows) == stop:
                break
        return made, rows

    whole, rows = run("whole")
    assert [row.get("synthetic/count") for row in rows] == [100.0, 100.0, 100.0] and all(
        "loss/critic" in row for row in rows
    )
    run("half", 2)
    again, _ = run("half")
    assert same(whole, again)


def test_without_a_share_synther_online_is_sac() -> None:
    made, other = boxed_policy(Bandit), boxed_policy(Bandit)
    a = replace(ONLINE, synthetic_fraction=0.0)
    torch.manual_seed(0)
    first = list(synther_sac.improve(made, Collector(Bandit, 8, 1), a, Rng(3)))
    torch.manual_seed(0)
    assert first == list(sac.improve(other, Collector(Bandit, 8, 1), a, Rng(3))) and same(made, other)


def test_what_synther_cannot_use_is_refused() -> None:
    data = bandit(50)
    with pytest.raises(RunError, match="Did you mean 'noise'"):
        next(synther.improve(start(data), data, replace(OFFLINE, generator="nose"), Rng(0)))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="fewer decisions than its batch"):
        next(
            synther_sac.improve(
                boxed_policy(Bandit), Collector(Bandit, 8, 1), replace(ONLINE, decisions_per_refill=8), Rng(0)
            )
        )
