"""Beyond Human beside 2509.19752: generate, keep successes, drop the longest, clone; and what the data are like."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.data import ActionChunkCodec, Normalizer, RunningNormCodec
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    OneStep,
    ddim,
    linear,
    time_grid,
    with_min_std,
)
from denoiserl.recipes.policy_gradient import beyond_human, dppo, ppo
from tests.recipes.kit import Heard, Made, Spy, Tape, adam, agree, answer, descend
from tests.recipes.worlds import Booked

pytestmark = pytest.mark.usefixtures("double")

H, D, DONE, SEED = 3, 2, 2, 3000
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
A = beyond_human.Args(
    iterations=2, num_envs=4, rollout_steps=4, gamma=0.8, generator_lr=0.003, critic_warmup=1, num_student_episodes=6,
    max_recorded_episodes=1000, length_quantile=0.6, student_updates=6, student_batch_size=9, student_lr=0.02,
)  # fmt: skip
CASES = {
    "diffusion": A,  # by DPPO; more than the wanted episodes are left
    "gaussian": replace(
        A, generator_lr=0.0, critic_warmup=0, max_recorded_episodes=18, num_student_episodes=18
    ),  # by PPO, with its own learning rate; fewer
}


class Fixed(Made):
    """A stream whose seed of the recorded episodes is known."""

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        drawn = super().integers(low, high, *shape)
        return torch.full_like(drawn, SEED) if high == 2**31 else drawn


def start(case: str) -> Policy:
    torch.manual_seed(4)
    if case == "gaussian":
        one = OneStep()
        net = GaussianHead(MLP((H, D), 2, 8, 2, 0, False, activation="tanh"), D, 0.7, 0.2)
        steps, serve = one.steps(time_grid(1)), one.steps(time_grid(1), std_scale=0.0)
        return Policy.of(one, net, (H, D), steps, serve, RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE))
    seen = replace(Normalizer.identity(2), centre=MEAN, scale=STD)
    acts = replace(Normalizer.identity(2), centre=CENTRE, scale=SCALE, low=CENTRE - SCALE, high=CENTRE + SCALE)
    process = Diffusion(linear, with_min_std(ddim(1.0), 0.3), 1.1)
    net = GaussianDenoiser(MLP((H, D), 2, 8, 2, 4, activation="tanh"), linear, "v")
    train, serve = process.steps(time_grid(2)), process.steps(time_grid(3), ddim(0.0))
    return Policy.of(process, net, (H, D), train, serve, ActionChunkCodec(seen, acts, LIMIT))


def valid(obs: Tensor, actions: Tensor) -> Tensor:
    return torch.arange(len(obs)) < (2 if len(obs) == 3 else len(obs))  # the last tick of three is not


@pytest.mark.parametrize("case", CASES)
def test_flywheel_is_that_of_the_paper(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = CASES[case]
    booked = {k: derive_seed(SEED + k // a.num_envs, k % a.num_envs) for k in range(40)}
    monkeypatch.setattr(Booked, "plan", {s: ((2, 5, 3, 7, 5)[k % 5], k % 3 != 1) for k, s in booked.items()})
    policy, env, rng = start(case).with_execution_horizon(DONE), Heard(Booked, a.num_envs, 1), Fixed(3)
    spy = Spy(rng)
    logged = list(beyond_human.improve(policy, env, a, rng, spy, valid if case == "gaussian" else None))
    rng.drawn = rng.drawn[spy.stages["student"].draws[0] :]

    method, own = (dppo, dppo.Args()) if case == "diffusion" else (ppo, ppo.Args())
    own = replace(
        own,
        iterations=2,
        num_envs=4,
        rollout_steps=4,
        gamma=0.8,
        critic_warmup=a.critic_warmup,
        lr=a.generator_lr or own.lr,
    )
    generator = start(case).with_execution_horizon(DONE)
    made = list(method.improve(generator, Heard(Booked, a.num_envs, 1), own, Tape(3)))
    agree(logged[:-1], made, 0.0)
    agree(spy.stages["student"].start["policy"].state_dict(), generator.state_dict(), 0.0)
    codec = generator.codec

    def standard(obs: Tensor) -> Tensor:
        centre, scale = (MEAN, STD) if case == "diffusion" else (codec.mean, (codec.variance + 1e-8).sqrt())
        return ((obs - centre) / scale).clamp(-LIMIT, LIMIT)

    played: list[tuple[Tensor, Tensor, bool]] = []
    while (
        sum(won for *_, won in played) < a.num_student_episodes / a.length_quantile
        and len(played) < a.max_recorded_episodes
    ):
        for _ in range(a.num_envs):  # as it is served: episode i of part p from (seed + p, i)
            seed, world = booked[len(played)], Booked()
            noise, (s, _), obs, actions, over, told = Rng.rows([seed]), world.reset(seed=seed), [], [], False, {}
            while not over:
                for act in generator.generate(torch.from_numpy(s)[None], noise)[0, :DONE]:
                    if not over:
                        obs.append(torch.from_numpy(s))
                        actions.append(np.clip(act.float().numpy(), world.action_space.low, world.action_space.high))
                        s, _, true, cut, told = world.step(actions[-1])
                        over = true or cut
            played.append((torch.stack(obs), torch.from_numpy(np.stack(actions)), told["success"]))

    good = [(o, x) for o, x, won in played if won and (case == "diffusion" or bool(valid(o, x).all()))]
    lengths = sorted(len(x) for _, x in good)
    longest = lengths[math.floor(a.length_quantile * (len(lengths) - 1))]
    short = [(o, x) for o, x in good if len(x) <= longest]
    kept = short[: a.num_student_episodes]

    chunks, conds, real = [], [], []
    for o, x in kept:  # windows of H actions from every tick on, over the end by one less than is executed
        for t in range(len(x) - H + DONE):
            ahead = torch.arange(t, t + H)
            chunks.append((x[ahead.clamp(max=len(x) - 1)] - CENTRE) / SCALE)
            conds.append(standard(o[t]))
            real.append((ahead < len(x)).double()[:, None].expand(H, D))
    chunk, cond, live = torch.stack(chunks), torch.stack(conds), torch.stack(real)

    student = rng.made[-1]  # new weights
    assert not torch.equal(student.net.enter.weight, generator.denoiser.net.enter.weight)
    opt, mean, losses, norm, b = adam(student.parameters(), 0.0), None, [], 0.0, a.student_batch_size
    for n in range(a.student_updates):
        opt.param_groups[0]["lr"] = a.student_lr * (n + 1) / a.student_updates  # fewer updates than its warm-up has
        i, half = rng.take("integers", b), b // 2
        early = (torch.arange(half + b % 2) + rng.take("uniform", half + b % 2)) / b
        t = torch.cat([early, 1 - early[:half]])[rng.take("permutation", b)].clamp(1e-5, 1 - 1e-5)
        if case == "gaussian":  # −log π
            mu = answer(student.net, torch.zeros(b, H, D), 1.0, cond[i])
            sigma = (0.2**2 + (2 * student.log_std).exp()).sqrt()
            each = 0.5 * ((chunk[i] - mu) / sigma) ** 2 + sigma.log() + 0.5 * math.log(2 * math.pi)
            loss = (each * live[i]).sum((1, 2)).mean()
        else:  # (v̂ − (ε − a))² of what was done
            noise, at = rng.take("normal", b, H, D), t[:, None, None]
            out = answer(student.net, (1 - at) * chunk[i] + at * noise, t, cond[i])
            error = (out - (noise - chunk[i])) ** 2
            loss = ((error * live[i]).sum((1, 2)) / live[i].sum((1, 2))).mean()
        losses.append(loss.detach())
        norm = descend(opt, loss, 1.0)
        decay, now = 1 - (1 + n) ** -0.75, [p.detach().clone() for p in student.parameters()]
        mean = now if mean is None else [decay * m + (1 - decay) * p for m, p in zip(mean, now, strict=True)]
    agree(list(policy.denoiser.parameters()), mean, where="student, the average of its weights")
    agree(spy.stages["student"].states[1]["policy"]["current"], policy.denoiser.state_dict(), 0.0)

    def begun(episodes: Any) -> Tensor:
        """First observations, standardised by those of all that were played."""
        first = torch.stack([o[0] for o, *_ in played]).double()
        return (torch.stack([o[0] for o, *_ in episodes]).double() - first.mean(0)) / first.std(0, correction=0)

    states, done = torch.cat([o for o, _ in kept]).double(), torch.cat([x for _, x in kept]).double()
    place = (states - states.mean(0)) / states.std(0, correction=0)
    near = torch.cdist(place, place).topk(10, largest=False).indices  # of a state the ten nearest, itself included
    spread = done[near].var(1, correction=1).mean(1).sqrt().mean()
    rough = [(x[2:] - 2 * x[1:-1] + x[:-2]).norm(dim=1).mean() for _, x in kept if len(x) > 2]
    own = torch.cdist(begun(played), begun(played)).topk(2, largest=False).values[:, 1]
    away = torch.cdist(begun(played), begun(kept)).amin(1)
    row = {
        "generator/success": sum(won for *_, won in played) / len(played),
        "demos/episodes": len(kept),
        "demos/frames": len(done),
        "demos/length": len(done) / len(kept),
        "demos/jerk": torch.stack(rough).mean(),
        "demos/spread": spread,
        "demos/start_coverage": (away <= own.quantile(0.5) * (1 + 1e-9)).double().mean(),
        "loss/denoising": losses[-1],
        "train/grad_norm": norm,
    }
    agree(logged[-1], row, where="last row")
    won = sum(won for *_, won in played)
    assert len(good) > len(short) and 0 < row["demos/start_coverage"] < 1, (
        "some were too long, and some starts are missing"
    )
    assert won > len(good) if case == "gaussian" else len(short) > len(kept)
