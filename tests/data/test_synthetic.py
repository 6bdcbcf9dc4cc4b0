"""Synthetic experience on a linear-Gaussian system: what is made obeys the system; what cannot be made is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import ReplayBuffer, synthetic, trajectories
from denoiserl.data.synthetic import (
    Layout,
    MixedReplayBuffer,
    Model,
    TransitionGenerator,
    add_gaussian_noise,
    buffer_to_transitions,
    select,
    train_generator,
)
from denoiserl.data.transitions import Transitions
from denoiserl.processes import edm, time_grid
from denoiserl.processes.denoiser import Estimate
from denoiserl.processes.edm_training import Churn, heun
from denoiserl.recipes.offline_rl import pgd, synther
from denoiserl.train import Run

GAIN, PUSH, NOISE = 0.8, 0.5, 0.1


def system(n: int, seed: int = 0) -> Transitions:
    """A turning body: s = (cos θ, sin θ, v), v' = 0.8 v + 0.5 a + ε, θ' = θ + 0.2 v'; a in [−1, 1]; ends at v' > 1."""
    rng = Rng(seed)
    turn, v, a = 2 * math.pi * rng.uniform(n), 0.5 * rng.normal(n), (0.7 * rng.normal(n)).clamp(-1, 1)
    after = GAIN * v + PUSH * a + NOISE * rng.normal(n)
    angle = turn + 0.2 * after
    obs = torch.stack([turn.cos(), turn.sin(), v], 1)
    next_obs = torch.stack([angle.cos(), angle.sin(), after], 1)
    over, one = after > 1, torch.ones(n, dtype=torch.int64)
    box = torch.ones(1)
    return Transitions(obs, a[:, None, None], -(v**2), 0.9 * ~over, next_obs, over, one, -box, box, 0.9, "body")


SMALL = Model(num_updates=700, batch_size=128, lr=3e-3, width=64, depth=3, sampling_steps=24, churn=20.0)


def train(data: Transitions, model: Model = SMALL, seed: int = 0, keep: Run | None = None) -> TransitionGenerator:
    torch.manual_seed(seed)
    running = train_generator(data, model, Rng(seed), keep)
    while True:
        try:
            next(running)
        except StopIteration as stop:
            return stop.value


def test_made_transitions_obey_the_system_they_were_learned_from() -> None:
    data = system(3000)
    made, dropped = train(data).sample(2000, Rng(9))
    assert len(made) == 2000 and 0 <= dropped < 0.2
    v, a, after = made.obs[:, 2], made.action[:, 0, 0], made.next_obs[:, 2]
    design = torch.stack([v, a], 1)
    found = torch.linalg.lstsq(design, after[:, None]).solution.flatten()
    assert found.tolist() == pytest.approx([GAIN, PUSH], abs=0.06)
    assert float((after - design @ found).std()) < 3 * NOISE
    assert float(v.std() / data.obs[:, 2].std()) == pytest.approx(1.0, abs=0.12)
    torch.testing.assert_close(made.obs[:, :2].square().sum(1), torch.ones(2000))
    turned = torch.atan2(made.next_obs[:, 1], made.next_obs[:, 0]) - torch.atan2(made.obs[:, 1], made.obs[:, 0])
    turned = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
    assert float((turned - 0.2 * after).abs().median()) < 0.1
    assert bool((made.action.abs() <= 1).all()) and set(made.terminated.unique().tolist()) <= {False, True}
    rate = float(data.terminated.float().mean())
    assert float(made.terminated.float().mean()) == pytest.approx(rate, abs=0.04)
    assert torch.equal(made.discount, 0.9 * ~made.terminated)


def test_a_killed_model_ends_where_a_whole_one_does(tmp_path) -> None:
    data, few = system(300), replace(SMALL, num_updates=10, batch_size=32)
    whole, _ = train(data, few, keep=Run(tmp_path / "whole", every=1)).sample(5, Rng(1))
    torch.manual_seed(0)
    running = train_generator(data, few, Rng(0), Run(tmp_path / "half", every=1))
    for _ in range(4):
        next(running)
    del running
    again, _ = train(data, few, seed=5, keep=Run(tmp_path / "half", every=1)).sample(5, Rng(1))
    assert torch.equal(whole.obs, again.obs) and torch.equal(whole.reward, again.reward)


def test_unsure_ends_are_not_rows() -> None:
    layout = Layout.fit(system(500))
    z = layout.encode(select(system(500), slice(0, 4)))
    z[:, -1] = torch.tensor([0.1, 0.3, 0.7, 0.95])
    parts, sure = layout.decode(z)
    assert sure.tolist() == [True, False, False, True]
    assert parts["terminated"][:, 0].tolist() == [0, 0, 1, 1]


def test_noised_copies_move_what_is_continuous_and_nothing_else() -> None:
    data = system(400)
    near = add_gaussian_noise(data, 1000, 0.05, Rng(2))
    torch.testing.assert_close(near.obs[:, :2].square().sum(1), torch.ones(1000))
    far = (near.reward[:, None] - data.reward).abs().amin(1)
    assert 0 < float(far.median()) < 0.05 * float(data.reward.std())
    assert float(near.terminated.float().mean()) == pytest.approx(float(data.terminated.float().mean()), abs=0.04)


def filled(n: int, value: float) -> ReplayBuffer:
    return replace(system(n), reward=torch.full((n,), value)).replay()


def test_batches_are_mixed_by_their_share_and_saved_whole() -> None:
    mixed = MixedReplayBuffer(filled(50, 1.0), 0.75)
    assert mixed.sample(8, Rng(0), 0.9)["reward"].tolist() == [1.0] * 8
    mixed.refill(filled(20, 2.0))
    drawn = mixed.sample(8, Rng(0), 0.9, batches=3)
    assert drawn["reward"].tolist() == [[1.0] * 2 + [2.0] * 6] * 3 and drawn["obs"].shape == (3, 8, 3)
    other = MixedReplayBuffer(ReplayBuffer(50), 0.75)
    other.load_state_dict(mixed.state_dict())
    again = other.sample(8, Rng(0), 0.9, batches=3)
    assert all(torch.equal(v, again[k]) for k, v in drawn.items()) and other.filled == 50
    rows = buffer_to_transitions(mixed.real, -torch.ones(1), torch.ones(1), 0.9)
    assert torch.equal(rows.obs, system(50).obs) and torch.equal(rows.discount, system(50).discount)
    with pytest.raises(RunError, match="generated share of a minibatch"):
        MixedReplayBuffer(ReplayBuffer(5), 1.0)


def test_what_cannot_be_learned_is_refused() -> None:
    data = system(300)
    with pytest.raises(InvalidInputError, match="fewer than a batch of 512"):
        train(data, replace(SMALL, batch_size=512))
    with pytest.raises(InvalidInputError, match="unequal length"):
        train(replace(data, length=torch.arange(300)))
    with pytest.raises(InvalidInputError, match="flat observations"):
        train(replace(data, obs={"state": data.obs}))
    bad = data.reward.clone()
    bad[7] = float("inf")
    with pytest.raises(InvalidInputError, match="NaN or infinity in 1 rows"):
        train(replace(data, reward=bad))
    with pytest.raises(InvalidInputError, match="n is at least 1"):
        train(data, replace(SMALL, num_updates=1)).sample(0, Rng(0))


class Known(torch.nn.Module):
    """The exact denoiser of independent numbers ±1 with std 0.3 around them, scaled to unit variance."""

    centre, std = 1 / (1 + 0.3**2) ** 0.5, 0.3 / (1 + 0.3**2) ** 0.5

    def embed_condition(self, cond: Any) -> Any:
        return cond

    def embed_time(self, t: torch.Tensor) -> torch.Tensor:
        return edm(t.double())[1].float()

    def forward(self, x: torch.Tensor, clock: torch.Tensor, context: Any) -> Estimate:
        a, s, sigma = self.centre, self.std**2, clock.square()
        side = torch.tanh(a * x / (s + sigma))
        return Estimate(a * side + s / (s + sigma) * (x - a * side))


@pytest.mark.parametrize("model", [synthetic.Model(), trajectories.Model(), synther.Args().model, pgd.Args().model])
def test_what_is_made_is_as_wide_as_what_was_recorded(model: Any) -> None:
    """With the exact denoiser, in as many steps and with as much churn as defaults take: within 2 %."""
    x = heun(Known(), time_grid(model.sampling_steps), (1,), 60_000, Rng(0), churn=Churn(model.churn))  # type: ignore[arg-type]
    assert float(x.std()) == pytest.approx(1.0, abs=0.02)
    assert float(x.abs().std()) == pytest.approx(Known.std, rel=0.06), "each of both modes too"


def test_held_rows_are_discounted_by_their_ticks() -> None:
    """γ = ½: rows of 1, 2 and 3 ticks have ½, ¼ and ⅛, and one that truly ended has 0."""
    data = system(4)
    length, over = torch.tensor([1, 2, 3, 2]), torch.tensor([False, False, False, True])
    replay = replace(data, length=length, terminated=over).replay()
    rows = buffer_to_transitions(replay, -torch.ones(1), torch.ones(1), 0.5)
    assert rows.discount.tolist() == [0.5, 0.25, 0.125, 0.0]
    assert rows.length.tolist() == length.tolist() and rows.terminated.tolist() == over.tolist()


@pytest.mark.parametrize(("sure", "refused"), [(100, False), (99, True)])
def test_a_model_is_refused_where_more_than_nine_rows_in_ten_are_unsure(
    sure: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first 1000 rows that are drawn, ``sure`` say whether the episode ended; of the later ones, all."""
    data, drawn = system(500), list[int]()
    layout = Layout.fit(data)
    z = layout.encode(select(data, slice(0, 1)))

    def made(denoise: Any, times: Any, event: Any, n: int, rng: Rng, **more: Any) -> torch.Tensor:
        x = z.repeat(n, 1)
        x[:, -1] = 0.0
        if not drawn:
            x[sure:, -1] = 0.5
        drawn.append(n)
        return x

    monkeypatch.setattr(synthetic, "heun", made)
    maker = TransitionGenerator(torch.nn.Linear(1, 1), layout, select(data, slice(0, 1)), SMALL)  # type: ignore[arg-type]
    if refused:
        with pytest.raises(InvalidInputError, match=f"of 1000 sampled rows, only {sure} have a clear end"):
            maker.sample(1000, Rng(0))
        return
    rows, dropped = maker.sample(1000, Rng(0))
    assert len(rows) == 1000 and drawn == [1000, 900]
    assert dropped == pytest.approx(900 / 1900)


def test_noise_as_large_as_the_data_flips_no_flag() -> None:
    """An action that is the end of its episode stays that, whatever is added to numbers: their variance grows by
    std²."""
    data = system(4000)
    data = replace(data, action=data.terminated[:, None, None].float())
    near = add_gaussian_noise(data, 4000, 1.5, Rng(3))
    assert torch.equal(near.action.flatten() > 0.5, near.terminated) and 0 < int(near.terminated.sum()) < 4000
    assert set(near.action.unique().tolist()) == {0.0, 1.0}
    wide = float(near.obs[:, 2].var() / data.obs[:, 2].var())
    assert wide == pytest.approx(1 + 1.5**2, rel=0.15)


def test_the_dropped_share_is_that_of_all_rows_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth row is unsure: a quarter is dropped, also where more were drawn than were wanted."""
    data = system(500)
    layout = Layout.fit(data)
    z = layout.encode(select(data, slice(0, 4)))
    z[:, -1] = torch.tensor([0.0, 1.0, 0.5, 0.0])
    monkeypatch.setattr(synthetic, "heun", lambda denoise, times, event, n, rng, **more: z.repeat(n // 4, 1))
    maker = TransitionGenerator(torch.nn.Linear(1, 1), layout, select(data, slice(0, 1)), SMALL)  # type: ignore[arg-type]
    for n in (4, 100, 1000):
        rows, dropped = maker.sample(n, Rng(0))
        assert len(rows) == n and dropped == 0.25
