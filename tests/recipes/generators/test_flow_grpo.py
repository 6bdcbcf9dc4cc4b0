"""Flow-GRPO beside 2505.05470, equations 4 to 9: the SDE, group advantages, clipped ratios, the KL, the rows."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.nn import MLP
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, Masked, TokenDenoiser, ddim, flow_sde, time_grid
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.schedule import Linear
from denoiserl.recipes.generators import flow_grpo
from tests.recipes.kit import Spy, Tape, adam, agree, descend, moments

P, G, N, D, S = 4, 3, 12, 4, 4
A = flow_grpo.Args(
    iterations=2, num_prompts=P, group_size=G, epochs=2, batch_size=5, clip_range=0.03, adv_clip=0.5, kl_coef=2.0,
    lr=0.02, invalid_rewards="drop", reward_weights={"near": 1.5, "flat": -0.5}, sde_window=0,
)  # fmt: skip
SETTINGS = {
    "whole": A,
    "fast": replace(A, sde_window=2),
    "fast in parts": replace(A, sde_window=2, micro_batch_size=4),
    "free": replace(A, kl_coef=0.0),
}
PROMPTS = torch.tensor([[0.3, -1.0], [1.7, 0.4], [0.6, 2.0], [-0.8, 1.2], [2.0, -0.5]])


@dataclass(frozen=True)
class Twice:
    """Data are 2 x + 1, prompts are seen as (c − 1) / 2."""

    def encode(self, data: Any) -> Any:
        return (data - 1) / 2

    def decode(self, sample: Any) -> Any:
        return 2 * sample + 1

    def condition(self, cond: Any) -> Any:
        return (cond - 1) / 2

    def initial_state(self, cond: Any) -> Any:
        return None


class Judge:
    """Two parts, of both signs; the third group ties; the fifth sample of an iteration has none."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []

    def __call__(self, sample: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        near = -(sample.mean((1, 2)) - prompts[:, 0]).square() - 0.1
        flat = (sample[:, 0, 0] - sample[:, 1, 1]).square() / 4
        for i in range(len(sample)):
            which = len(self.samples) % N
            if which // G == 2:
                near[i], flat[i] = -1.7, 0.3
            near[i] = torch.nan if which == 4 else near[i]
            self.samples.append(sample[i].clone())
            self.parts.append({"near": near[i].clone(), "flat": flat[i].clone()})
        return {"near": near, "flat": flat}


class Flow(Denoiser):
    """v = ε − x₀, in float64: in float32 a ratio and a KL of small steps keep four digits. x̂₀ = x − σ v."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP((2, 2), 2, 8, 2, 4, activation="tanh").double()

    def embed_condition(self, cond: Any) -> Any:
        return self.net.embed_condition(cond)

    def embed_time(self, t: Tensor) -> Any:
        return {"net": self.net.embed_time(t), "sigma": (2 * t / (1 + t)).double()}

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        return Estimate(x - clock["sigma"][:, None, None] * self.net(x, clock["net"], context))


def start() -> Policy:
    torch.manual_seed(4)
    process = Diffusion(Linear(2.0), flow_sde(0.2), clip=2.5)
    steps, serve = process.steps(time_grid(S)), process.steps(time_grid(2), ddim(0.0))
    return Policy.of(process, Flow(), (2, 2), steps, serve, Twice())


@pytest.mark.parametrize("case", list(SETTINGS))
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, judge, rng, spy = SETTINGS[case], Judge(), Tape(3), Spy()
    made = start()
    logged = list(flow_grpo.improve(made, (judge, PROMPTS), a, rng, spy))

    actor, first = start(), start().weights.module.net
    net = actor.weights.module.net
    opt = adam(actor.weights.module.parameters(), a.lr)
    stochastic = a.sde_window or S
    times = torch.linspace(1.0, 0.0, S + 1, dtype=torch.float64).tolist()
    clamped = set()

    def mean_and_std(net: Any, x: Tensor, k: int, c: Tensor) -> tuple[Tensor, float]:
        """μ and σ √−dt of equation 9, with v = ε − x₀ and times shifted by 2; or the ODE's step and 0."""
        v = net(x, net.embed_time(torch.tensor([times[k]])), net.embed_condition(c))
        t, after = (2 * u / (1 + u) for u in times[k : k + 2])
        x0 = x - t * v
        clamped.update((x0.abs() > 2.5).flatten().tolist())
        v = (x - x0.clamp(-2.5, 2.5)) / t
        dt = after - t
        if k >= stochastic:
            return x + dt * v, 0.0
        sigma = 0.2 * math.sqrt(t / (1 - (after if t == 1 else t)))  # at t = 1 the next time stands below the root
        assert sigma * math.sqrt(-dt) < t, "no step is so long that its noise is lowered"
        return x + dt * (v + sigma**2 / (2 * t) * (x + (1 - t) * v)), sigma * math.sqrt(-dt)

    def log_prob(y: Tensor, mu: Tensor, std: float) -> Tensor:
        """Mean over the dimensions of log N(y; μ, σ²), [N]."""
        each = -0.5 * ((y - mu) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
        return each.sum((1, 2)) / D

    sides, cut, norms = set(), set(), []
    for it in range(a.iterations):
        c = (PROMPTS[rng.take("integers", P)].repeat_interleave(G, 0) - 1) / 2
        states, noise = [rng.take("normal", N, 2, 2).clone()], rng.take("normal", S, N, 2, 2).clone()
        old = torch.zeros(N, stochastic, dtype=torch.float64)
        with torch.no_grad():
            for k in range(S):
                mu, std = mean_and_std(net, states[k], k, c)
                states.append(mu + std * noise[k])
                if k < stochastic:
                    old[:, k] = log_prob(states[k + 1], mu, std)
        agree(torch.stack(judge.samples[it * N : (it + 1) * N]), 2 * states[-1] + 1, where="samples in data units")

        parts = judge.parts[it * N : (it + 1) * N]
        near, flat = ([float(p[name]) for p in parts] for name in ("near", "flat"))
        reward = torch.tensor([1.5 * p - 0.5 * q for p, q in zip(near, flat, strict=True)], dtype=torch.float64)
        valid = [i for i in range(N) if i != 4]
        std = (reward[valid] - reward[valid].mean()).square().mean().sqrt()  # of the whole batch
        advantage, dead = torch.zeros(N, dtype=torch.float64), 0
        for p in range(P):
            group = [i for i in valid if i // G == p]
            if float(reward[group].max() - reward[group].min()) < 1e-6:
                dead += 1
                continue
            advantage[group] = ((reward[group] - reward[group].mean()) / std).clamp(-a.adv_clip, a.adv_clip)
        cut |= set(advantage[advantage.abs() == a.adv_clip].sign().int().tolist())

        losses, kls, outside = [], [], []
        for _ in range(a.epochs):
            for picked in rng.take("permutation", N).split(a.batch_size):
                loss, many = torch.zeros((), dtype=torch.float64), len(picked) * stochastic
                for k in range(stochastic):
                    x, y = states[k][picked], states[k + 1][picked]
                    mu, std = mean_and_std(net, x, k, c[picked])
                    with torch.no_grad():
                        mu_ref, _ = mean_and_std(first, x, k, c[picked])
                    rho = (log_prob(y, mu, std) - old[picked, k]).exp()
                    gain = torch.minimum(
                        rho * advantage[picked], rho.clamp(1 - a.clip_range, 1 + a.clip_range) * advantage[picked]
                    )
                    kl = ((mu - mu_ref) ** 2 / (2 * std**2)).sum((1, 2)) / D
                    loss = loss + (-gain + a.kl_coef * kl).sum() / many
                    out = (rho - 1).abs() > a.clip_range
                    outside += out.tolist()
                    kls += (kl if a.kl_coef else torch.zeros(len(picked))).tolist()
                    sides |= set(
                        zip((rho > 1)[out].tolist(), advantage[picked][out].sign().int().tolist(), strict=True)
                    )
                norms.append(descend(opt, loss, 1.0))
                losses.append(loss.item())

        state = spy.states[it + 1]["policy"]
        agree(state["current"], actor.weights.module.state_dict(), where=f"policy after iteration {it}")
        kept = {"reference": {f"net.{k}": v for k, v in first.state_dict().items()}}
        agree(state["sets"], kept if a.kl_coef else {}, 0.0, "the reference stays")
        told = {
            "rollout/reward": float(reward[valid].mean()),
            "reward/near": sum(near[i] for i in valid) / len(valid),
            "reward/flat": sum(flat) / N,
            "rollout/num_invalid_rewards": 1,
            "rollout/dead_group_fraction": dead / P,
            "loss/reference_kl": sum(kls) / len(kls),
            "ppo/clip_fraction": sum(outside) / len(outside),
        }
        agree(logged[it].pop("loss/policy"), sum(losses) / len(losses), 1e-4, f"loss {it}, whose terms cancel")
        agree(logged[it], told, where=f"row {it}")
        assert dead == 1

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    assert made.eval_steps is spy.named["policy"].eval_steps, "it serves the ODE"
    both = {(high, good) for high in (False, True) for good in (-1, 1)}
    assert both <= sides or case != "whole", "ratios left on both sides"
    assert cut == {-1, 1}, "advantages of both signs were clipped"
    assert clamped == {False, True}, "some of the estimates were clamped"
    assert min(norms) < 1 and (max(norms) > 1 or case != "whole"), "some gradients were shortened"


def test_groups_that_all_tie_make_no_step() -> None:
    """Not even the KL to the reference does, where nothing was learned from."""
    made, spy, a = start(), Spy(), replace(A, reward_weights={})
    rows = list(flow_grpo.improve(made, (lambda x, prompts: torch.ones(len(x)), PROMPTS), a, Tape(3), spy))
    assert (
        rows
        == [{"rollout/reward": 1.0, "rollout/num_invalid_rewards": 0.0, "rollout/dead_group_fraction": 1.0}]
        * a.iterations
    )
    assert not spy.named["optimizer"].state
    agree(made.weights.module.state_dict(), start().weights.module.state_dict(), 0.0)


class Table(torch.nn.Module):
    """The same logits [2, 3] of two tokens, whatever they are asked."""

    def __init__(self, p: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(p).log())

    def forward(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        return self.logits.expand(len(x), 2, 3)


def test_the_kl_of_tokens_is_from_the_policy_to_the_reference() -> None:
    """Two tokens are written in one step, and told is half of KL(π ‖ π_ref) = Σ π (log π − log π_ref) of both."""
    now, before = [[0.9, 0.05, 0.05], [0.5, 0.25, 0.25]], [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.1, 0.4]]
    process = Masked(3)
    made = Policy.of(process, TokenDenoiser(Table(before)), (2,), process.steps(time_grid(1)), codec=InfillCodec(4))
    made.weights.snapshot("reference")
    made.weights.module.load_state_dict(TokenDenoiser(Table(now)).state_dict())
    canvas, a, watch = torch.full((N, 2), 3), replace(A, kl_coef=0.5), list[tuple[Tensor, Tensor]]()
    chain = made.sample_chain(canvas, Tape(3))
    loss = flow_grpo.surrogate(made, chain, torch.zeros(N, 1), a, True, watch)

    wanted = 0.0
    for one, other in itertools.product(range(3), range(3)):  # of every text
        p, q = now[0][one] * now[1][other], before[0][one] * before[1][other]
        wanted += p * math.log(p / q) / 2
    agree(watch[0][0], torch.full((N,), wanted))
    agree(loss, torch.full((N, 1), a.kl_coef * wanted))
