"""PGD: the guidance in closed form on Gaussians, what it leaves alone, resumes, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng
from denoiserl.data import Normalizer, TanhCodec
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.trajectories import Model, WindowGenerator, train_window_generator
from denoiserl.policy.policy import Policy
from denoiserl.processes import edm, time_grid
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.edm_training import Churn, heun
from denoiserl.recipes.offline_rl import pgd
from denoiserl.tasks import offline as offline_task
from denoiserl.train import Run

CENTRE, VARIANCE, STEPS = 0.4, 0.09, 64
STILL = Churn(0.0)


class Behaviour(Denoiser):
    """The exact posterior mean of windows whose numbers are all N(0.4, 0.09)."""

    def forward(self, x: Tensor, clock: Tensor, context: None) -> Estimate:
        noise = edm(clock.double())[1].reshape(-1, 1, 1) ** 2
        return Estimate(((VARIANCE * x + noise * CENTRE) / (VARIANCE + noise)).to(x.dtype))


def drawn(guide) -> Tensor:
    """[4000, 2, 2]: one state and one action per step; the same draws whatever the guide."""
    return heun(Behaviour(), time_grid(STEPS), (2, 2), 4000, Rng(0), churn=STILL, guide=guide)


def predicted(mean: float, pull: Callable[[float, float, int], float]) -> float:
    """The mean of the action at the end: ``pull(mean, σ², k)`` before step k, and between pulls the exact flow of the
    behaviour, under which a − 0.4 shrinks by √((v + σ'²) / (v + σ²))."""
    levels = edm(time_grid(STEPS))[1].tolist()
    for k in range(STEPS):
        mean += pull(mean, levels[k] ** 2, k)
        mean = CENTRE + (mean - CENTRE) * math.sqrt((VARIANCE + levels[k + 1] ** 2) / (VARIANCE + levels[k] ** 2))
    return mean


@pytest.mark.parametrize("denoised", [False, True])
def test_a_constant_score_tilts_the_actions_exponentially_and_nothing_else(denoised: bool) -> None:
    """π ∝ exp(g a): the tilted behaviour is N(m + κ v g, v), and each pull reaches the end as the flow carries it."""
    g, c = 1.5, 0.02
    guide = pgd.direction_guide(
        lambda x: torch.full_like(x[..., 1:], g), slice(1, 2), c, STEPS, 0.3, denoised, normal=False
    )
    plain, tilted = drawn(None), drawn(guide)
    assert torch.equal(plain[..., 0], tilted[..., 0]), "states are not guided, and here nothing else moves them"
    moved = float((tilted - plain)[..., 1].mean())
    expected = predicted(0.0, lambda mean, s, k: c * g * pgd.guidance_weight(k, STEPS, 0.3)) - predicted(
        0.0, lambda *_: 0.0
    )
    assert moved == pytest.approx(expected, rel=0.02) and moved > 0.1
    assert float(tilted[..., 1].std() / plain[..., 1].std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("denoised", [False, True])
def test_a_gaussian_policy_pulls_the_mean_as_predicted(denoised: bool) -> None:
    """Pulls of c λ (μ − a)/s², at the noisy action or at its posterior mean, are linear, so their mean is known."""
    aim, width, c = 1.2, 0.5, 0.01

    def score(x: Tensor) -> Tensor:
        return (aim - x[..., 1:]) / width**2

    def pull(mean: float, noise: float, k: int) -> float:
        at = (VARIANCE * mean + noise * CENTRE) / (VARIANCE + noise) if denoised else mean
        return c * pgd.guidance_weight(k, STEPS, 0.3) * (aim - at) / width**2

    guided = drawn(pgd.direction_guide(score, slice(1, 2), c, STEPS, 0.3, denoised, normal=False))
    found = float(guided[..., 1].mean())
    assert found == pytest.approx(predicted(0.0, pull), abs=0.02)
    assert CENTRE + 0.2 < found < aim, "between the behaviour and the policy"
    assert float(guided[..., 1].std()) < 0.9 * math.sqrt(VARIANCE), "a product of Gaussians is narrower than both"


def test_a_normalised_pull_has_its_length_whatever_the_score_and_none_comes_last() -> None:
    x = Rng(1).normal(5, 3, 2)
    for size in (0.01, 100.0):
        guide = pgd.direction_guide(lambda z, size=size: size * (z[..., 1:] + 1), slice(1, 2), 0.7, 10)
        first, last = (guide(x, k, lambda: x) - x for k in (0, 9))
        torch.testing.assert_close(
            first.flatten(1).norm(dim=1), torch.full((5,), 0.7 * pgd.guidance_weight(0, 10, 0.3))
        )
        assert not bool(last.any()) and not bool(first[..., 0].any())
    falling = [pgd.guidance_weight(k, 10, 0.0) for k in range(10)]
    assert falling == sorted(falling, reverse=True) and falling[0] == 1.0 and pgd.guidance_weight(9, 10, 0.3) == 0


def recording(episodes: int = 40, ticks: int = 12) -> EpisodeDataset:
    """x' = 0.9 x + 0.3 a + noise, a ~ N(0, 0.3²): what is done depends on nothing; reward −x²; no episode ends."""
    rng, x, seen, done = Rng(0), Rng(1).normal(episodes, 1), [], []
    for _ in range(ticks):
        a = (0.3 * rng.normal(episodes, 1)).clamp(-1, 1)
        seen.append(x)
        done.append(a)
        x = 0.9 * x + 0.3 * a + 0.02 * rng.normal(episodes, 1)
    obs, action = torch.stack(seen, 1), torch.stack(done, 1)
    demos = Demonstrations.of([(obs[i], action[i]) for i in range(episodes)], None, None, "line")
    never, box = torch.zeros(episodes, dtype=torch.bool), torch.ones(1)
    return EpisodeDataset(demos, -demos.observations.square()[:, 0], x, never, -box, box)  # type: ignore[union-attr]


def start(data: EpisodeDataset, kind: str = "squashed") -> Policy:
    return offline_task.untrained_policy(offline_task.Args(policy_width=16), data, kind, 0)


class Aim(Denoiser):
    """The mean atanh 0.6 whatever is seen."""

    def forward(self, x, clock, context) -> Estimate:
        mean = torch.full_like(x, math.atanh(0.6))
        return Estimate(mean, {"std": torch.ones_like(mean)})


def test_guided_windows_are_likelier_under_the_policy_and_keep_the_dynamics() -> None:
    data = recording(120)
    own = start(data)
    model = Model(4, 1, 200, 64, 5e-3, (16,), 12, 5.0)
    torch.manual_seed(0)
    running = train_window_generator(pgd.make_windows(own, data, model), model, Rng(0), Run())
    while True:
        try:
            next(running)
        except StopIteration as stop:
            made: WindowGenerator = stop.value
            break
    aiming = Policy.of(own.process, Aim(), (1, 1), own.train_steps, own.eval_steps, own.codec)
    told = []
    for c in (0.0, 0.4, 1.2):
        guide = pgd.make_action_guide(made.track, aiming, c, 12) if c else None
        rows = pgd.to_policy_transitions(aiming, made.sample(300, Rng(5), guide), 0.99)
        likely = pgd.likelihood(aiming, rows.obs, rows.action[:, 0])
        codec = own.codec
        assert isinstance(codec, TanhCodec) and isinstance(codec.observation, Normalizer)
        x, after = (codec.observation.denormalize(v) for v in (rows.obs, rows.next_obs))
        error = (after - 0.9 * x - 0.3 * rows.action[:, 0]).abs().mean()
        told.append((float(likely.mean()), float(rows.action.mean()), float(error)))
    assert told[0][0] < told[1][0] < told[2][0], f"likelihoods {told}"
    assert abs(told[0][1]) < 0.1 and told[2][1] > 0.2
    assert told[2][2] < 1.3 * told[0][2] < 0.2, "dynamics are the model's, and it has seen such actions"


def test_the_score_of_an_action_does_not_explode_on_the_edge_of_the_box() -> None:
    data = recording()
    policy = start(data)
    window = pgd.make_windows(policy, data, Model(4))
    from denoiserl.data.trajectories import StepLayout

    track = StepLayout.fit(window)
    guide = pgd.make_action_guide(track, policy, 1.0, 10, denoised=False, normal=False)
    for far in (1.0, 5.0, 50.0):
        x = torch.full((2, 4, track.size), far)
        moved = (guide(x, 0, lambda x=x: x) - x)[..., track.acts]
        assert bool(moved.isfinite().all()) and float(moved.abs().max()) < 3.0


TINY = Model(length=4, stride=1, num_updates=3, batch_size=8, channels=(8, 8), sampling_steps=3)
ARGS = pgd.Args(
    iterations=4,
    updates_per_iteration=2,
    batch_size=16,
    critic_width=16,
    num_windows=12,
    refill_every=2,
    synthetic_fraction=0.75,
    model=TINY,
)


@pytest.mark.parametrize("learner", ["td3_bc", "iql"])
def test_pgd_is_the_same_run_after_a_kill(tmp_path, learner) -> None:
    data, a = recording(10), replace(ARGS, learner=learner)

    def run(folder: str, stop: int = 99) -> tuple[Policy, list[dict]]:
        made, rows = start(data, pgd.start(a)), []
        torch.manual_seed(3)
        for row in pgd.improve(made, data, a, Rng(2), Run(tmp_path / folder, every=1)):
            rows.append(row)
            if sum("synthetic/count" in r for r in rows) == stop:
                break
        return made, rows

    whole, rows = run("whole")
    likely = [r["synthetic/log_likelihood"] for r in rows if "synthetic/count" in r]
    assert len(likely) == 4 and likely[1] == likely[2] and len(set(likely)) == 3, "drawn anew after every second row"
    run("half", 3)
    again, _ = run("half")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_what_pgd_cannot_use_is_refused() -> None:
    data = recording(5)
    with pytest.raises(RunError, match="Did you mean 'iql'"):
        next(pgd.improve(start(data), data, replace(ARGS, learner="iqk"), Rng(0)))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="shorter windows"):
        next(pgd.improve(start(data), data, replace(ARGS, model=replace(TINY, length=32)), Rng(0)))
    with pytest.raises(InvalidInputError, match="give data that have all of them"):
        next(pgd.improve(start(data), replace(data, terminated=None), ARGS, Rng(0)))
