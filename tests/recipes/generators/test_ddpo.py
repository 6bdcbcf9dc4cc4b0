"""DDPO beside 2305.13301, section 4: chains, a prompt's running statistics, the clipped score function, the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl import tasks
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, flow_sde, time_grid
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.schedule import Cosine, Linear
from denoiserl.recipes.generators import ddpo
from denoiserl.tasks import shapes
from tests.recipes.kit import Spy, Tape, adam, agree, descend, moments

N, D = 13, 4
A = ddpo.Args(
    iterations=2, num_samples=N, epochs=2, batch_size=7, clip_range=0.006, adv_clip=0.9, stat_window=5, min_count=3,
    lr=0.01, reward_weights={"near": 1.5, "flat": -0.5},
)  # fmt: skip
PROMPTS = torch.tensor([[0.3, -1.0], [1.7, 0.4], [0.6, 9.0], [0.3, -1.0], [-0.8, 1.2], [2.0, -0.5]])
NAMES = ["a", "b", "tied", "a", "c", "d"]  # rows 0 and 3 are equal: they share a memory
ASKED = [[0, 3, 0, 2, 3, 1, 0, 2, 0, 3, 1, 4, 2], [1, 5, 2, 0, 3, 5, 1, 2, 4, 2, 5, 2, 0]]


@dataclass(frozen=True)
class Twice:
    """Data are 2 x + 1, prompts are seen as (c − 1) / 2."""

    def encode(self, data: Any) -> Any:
        return (data - 1) / 2

    def decode(self, sample: Any) -> Any:
        return 2 * sample + 1

    def condition(self, cond: Any) -> Any:
        return None if cond is None else (cond - 1) / 2

    def initial_state(self, cond: Any) -> Any:
        return None


class Asks(Tape):
    """A tape that asks for the prompts of ``ASKED``, so that every case of the memory occurs."""

    turn = 0

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        assert (low, high, shape) == (0, len(PROMPTS), (N,))
        self.turn += 1
        return self._heard("integers", torch.tensor(ASKED[self.turn - 1]))


class Judge:
    """Two parts, of both signs; one number for all of the prompt "tied"; the fifth sample of an iteration has none."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []

    def __call__(self, sample: Tensor, prompts: Tensor | None) -> dict[str, Tensor]:
        c = torch.zeros(len(sample), 2) if prompts is None else prompts
        near = -(sample.mean((1, 2)) - c[:, 0]).square() - 0.1
        flat = (sample[:, 0, 0] - sample[:, 1, 1]).square() / 4
        tied = c[:, 1] == 9
        near, flat = near.masked_fill(tied, -2.0), flat.masked_fill(tied, 0.5)
        for i in range(len(sample)):
            near[i] = torch.nan if len(self.samples) % N == 4 else near[i]
            self.samples.append(sample[i].clone())
            self.parts.append({"near": near[i].clone(), "flat": flat[i].clone()})
        return {"near": near, "flat": flat}


def alpha(t: Any) -> Any:
    """√ᾱ of the cosine schedule, ᾱ ∝ cos²((t + 0.008)/1.008 · π/2), 2102.09672."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)


class Noise(Denoiser):
    """ε, in float64: in float32 the ratio of a step with little noise keeps four digits. x̂₀ = (x − σ ε) / α."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net.double()

    def embed_condition(self, cond: Any) -> Any:
        return self.net.embed_condition(cond)

    def embed_time(self, t: Tensor) -> Any:
        return {"net": self.net.embed_time(t), "alpha": alpha(t)[:, None, None]}

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        sigma = (1 - clock["alpha"] ** 2).sqrt()
        return Estimate((x - sigma * self.net(x, clock["net"], context)) / clock["alpha"])


def start(case: str) -> Policy:
    torch.manual_seed(4)
    net = MLP((2, 2), 0 if case == "flow" else 2, 12, 2, 4, activation="tanh")
    if case == "flow":
        process, denoiser = Diffusion(Linear(2.0), flow_sde(0.2)), GaussianDenoiser(net, Linear(2.0), "v")
        return Policy.of(process, denoiser, (2, 2), process.steps(time_grid(3)), codec=Twice())
    process, denoiser = Diffusion(Cosine(), ddim(0.25), clip=1.0), Noise(net)
    return Policy.of(process, denoiser, (2, 2), process.steps(time_grid(3, 0.8)), codec=Twice())


@pytest.mark.parametrize("case", ["ddim", "flow", "ddim in parts"])
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    flow, a = case == "flow", A
    if case != "ddim":
        a = ddpo.Args(**{**vars(A), "micro_batch_size": 3})
    judge, rng = Judge(), Tape(3) if flow else Asks(3)
    spy = Spy(rng)
    logged = list(ddpo.improve(start(case), (judge, None if flow else PROMPTS), a, rng, spy))

    actor = start(case)
    net = actor.weights.module.net
    opt = adam(actor.weights.module.parameters(), A.lr)
    times = torch.linspace(1.0 if flow else 0.8, 0.0, 4, dtype=torch.float64).tolist()
    clamped: list[bool] = []
    steps = [0, 1, 2] if flow else [0, 1]  # the exact posterior has no noise left at t = 0: no density

    def mean_and_std(x: Tensor, k: int, c: Tensor | None) -> tuple[Tensor, float]:
        """Of p(x_s | x_t, c), the decision of step k."""
        t, s = times[k], times[k + 1]
        out = net(x, net.embed_time(torch.tensor([t])), net.embed_condition(c))
        if flow:  # Flow-GRPO's SDE, v = ε − x₀: x + dt [v + g²/(2σ) ε̂], ε̂ = x + (1 − σ) v, times shifted by 2
            t, s = 2 * t / (1 + t), 2 * s / (1 + s)
            dt = s - t
            g = 0.2 * math.sqrt(t / (1 - (s if t == 1 else t)))
            assert g * math.sqrt(-dt) < t, "no step is so long that its noise is lowered"
            return x + dt * (out + g**2 / (2 * t) * (x + (1 - t) * out)), g * math.sqrt(-dt)

        a_t, a_s = float(alpha(t)), float(alpha(s))
        s_t, s_s = math.sqrt(1 - a_t**2), math.sqrt(max(0.0, 1 - a_s**2))
        free = (x - s_t * out) / a_t
        clamped.append(bool((free.abs() > 1).any()) and bool((free.abs() < 1).any()))
        x0 = free.clamp(-1, 1)
        eps = (x - a_t * x0) / s_t
        std = 0.25 * s_s / s_t * math.sqrt(1 - (a_t / a_s) ** 2)  # DDIM, 2010.02502, equation 16
        return a_s * x0 + math.sqrt(s_s**2 - std**2) * eps, std

    def log_prob(y: Tensor, x: Tensor, k: int, c: Tensor | None) -> Tensor:
        """Mean over the dimensions of log N(y; μ, σ²), [N]."""
        mu, std = mean_and_std(x, k, c)
        each = -0.5 * ((y.double() - mu.double()) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
        return each.sum((1, 2)) / D

    memory: dict[str, list[float]] = {}
    sides, cut, statistics, norms = set(), set(), set(), []
    for it in range(A.iterations):
        index = rng.take("integers", N)
        names = ["" if flow else NAMES[i] for i in index.tolist()]
        c = None if flow else (PROMPTS[index] - 1) / 2
        states, noise = [rng.take("normal", N, 2, 2).clone()], rng.take("normal", 3, N, 2, 2).clone()
        old = torch.zeros(N, 3, dtype=torch.float64)
        with torch.no_grad():
            for k in range(3):
                mu, std = mean_and_std(states[k], k, c)
                states.append(mu + std * noise[k])
                if k in steps:
                    old[:, k] = log_prob(states[k + 1], states[k], k, c)
        agree(torch.stack(judge.samples[it * N : (it + 1) * N]), 2 * states[-1] + 1, where="samples in data units")

        parts = judge.parts[it * N : (it + 1) * N]
        near, flat = ([float(p[name]) for p in parts] for name in ("near", "flat"))
        reward = [1.5 * p - 0.5 * q for p, q in zip(near, flat, strict=True)]
        valid = [i for i in range(N) if i != 4]
        for i in valid:
            memory.setdefault(names[i], []).append(reward[i])
        mine = {name: [reward[i] for i in valid if names[i] == name] for name in names}
        forgotten = sum(max(0, len(r) - A.stat_window) for r in mine.values())
        advantage = torch.zeros(N, dtype=torch.float64)
        for i in valid:
            memory[names[i]] = memory[names[i]][-A.stat_window :]
            known = len(memory[names[i]]) >= A.min_count
            r = torch.tensor(memory[names[i]] if known else [reward[j] for j in valid], dtype=torch.float64)
            std = (r - r.mean()).square().mean().sqrt()
            if float(std) > 1e-6:
                advantage[i] = ((reward[i] - r.mean()) / std).clamp(-A.adv_clip, A.adv_clip)
            statistics.add("own" if known else "the batch's")
            cut |= {int(torch.sign(advantage[i]))} if float(advantage[i].abs()) == A.adv_clip else set()

        rows = [(i, k) for i in range(N) for k in steps if float(advantage[i]) != 0]
        losses, outside = [], []
        for _ in range(A.epochs):
            order = rng.take("permutation", len(rows)).tolist()
            for low in range(0, len(rows), A.batch_size):
                picked = [rows[j] for j in order[low : low + A.batch_size]]
                i, k = (torch.tensor(v) for v in zip(*picked, strict=True))
                now = torch.stack([log_prob(states[k + 1], states[k], k, c) for k in steps], 1)[i, k]
                rho, advantages = (now - old[i, k]).exp(), advantage[i]
                best = torch.minimum(rho * advantages, rho.clamp(1 - A.clip_range, 1 + A.clip_range) * advantages)
                out = (rho - 1).abs() > A.clip_range
                outside += out.tolist()
                sides |= set(zip((rho > 1)[out].tolist(), (advantages > 0)[out].tolist(), strict=True))
                loss = -best.mean()
                norms.append(descend(opt, loss, 1.0))
                losses.append(loss.item())

        agree(spy.states[it + 1]["policy"], actor.state_dict(), where=f"policy after iteration {it}")
        told = {
            "rollout/reward": sum(reward[i] for i in valid) / len(valid),
            "reward/near": sum(near[i] for i in valid) / len(valid),
            "reward/flat": sum(flat) / N,
            "rollout/num_invalid_rewards": 1,
            "rollout/zero_advantage_fraction": float((advantage == 0).double().mean()),
            "rollout/num_forgotten_prompts": forgotten,
            "ppo/clip_fraction": sum(outside) / len(outside),
        }
        agree(logged[it].pop("loss/policy"), sum(losses) / len(losses), 1e-4, f"loss {it}, whose terms cancel")
        agree(logged[it], told, where=f"row {it}")

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    agree({k: v for k, v in spy.states[-1]["memory"].items() if k != "seen"}, {"stat_window": 5, "min_count": 3})
    both = {(high, good) for high in (False, True) for good in (False, True)}
    assert sides == both or (not flow and {high for high, _ in sides} == {False, True}), "ratios left on both sides"
    assert cut == {-1, 1}, "advantages of both signs were clipped"
    assert logged[0]["rollout/num_forgotten_prompts"] > 0 and min(norms) < 1
    if not flow:
        assert max(norms) > 1, "a gradient was shortened"
        assert all(clamped), "some of every estimate was clamped, some was not"
        assert statistics == {"own", "the batch's"} and logged[0]["rollout/zero_advantage_fraction"] > 1 / N


def test_the_task_asks_training_prompts_and_keeps_the_held_out_ones_back() -> None:
    """As many as the pool, all different, and none of those that are evaluated."""
    task = tasks.make(ddpo.DEFAULT_TASK, ddpo.DEFAULT_TASK_ARGS)
    assert task.prompts is not None
    asked = task.prompts(0)
    train, held_out = ({tuple(row) for row in part.tolist()} for part in shapes.prompts(shapes.Args()))
    rows = {tuple(row) for row in asked.tolist()}
    assert len(asked) == len(rows) == 64 and rows <= train and rows.isdisjoint(held_out)
