"""The players and judges of the claims about made data: the truth they are held against is the truth."""

from __future__ import annotations

import torch

from denoiserl.claims.offline_rl import pgd_guidance, synther_fidelity
from denoiserl.core.rng import Rng
from denoiserl.data.synthetic import Model, select
from denoiserl.data.trajectories import Model as WindowModel
from denoiserl.data.transitions import to_transitions
from denoiserl.tasks import swingup


def test_what_truly_follows_is_what_was_recorded() -> None:
    rows = to_transitions(swingup.record_episodes(10, 40, 0.5, Rng(0)))
    assert isinstance(rows.obs, torch.Tensor) and isinstance(rows.next_obs, torch.Tensor) and len(rows) == 400
    torch.testing.assert_close(swingup.true_next_obs(rows.obs, rows.action[:, 0]), rows.next_obs, rtol=1e-4, atol=1e-4)
    assert not bool(rows.terminated.any())


def test_the_nearest_neighbour_of_a_recorded_row_is_itself() -> None:
    rows = to_transitions(swingup.record_episodes(10, 40, 0.5, Rng(0)))
    some = select(rows, slice(0, 50))
    assert torch.equal(synther_fidelity.nearest(rows, some), some.next_obs)  # type: ignore[arg-type]


def test_the_measures_can_be_taken(monkeypatch) -> None:
    """Small models: every metric has every arm, and an untrained world model errs more far ahead than a trained one."""
    monkeypatch.setattr(synther_fidelity, "TRAIN", 300)
    told = synther_fidelity.measure(0, Model(num_updates=5, batch_size=32, width=16, depth=2, sampling_steps=4))
    assert set(told) == set(synther_fidelity.METRICS) and set(told["dynamics"]) == {"made", "three neighbours"}
    assert float(told["dynamics"]["made"]) > float(told["dynamics"]["three neighbours"]), "nothing is learned yet"
    told = pgd_guidance.measure(0, WindowModel(32, 40, 2, 8, 1e-3, (8,), 3), 8)
    assert set(told) == set(pgd_guidance.METRICS)
    assert set(told["likelihood"]) == {*pgd_guidance.STRENGTHS, "world model"}
    assert float(told["likelihood"]["strong"]) > float(told["likelihood"]["unguided"])
