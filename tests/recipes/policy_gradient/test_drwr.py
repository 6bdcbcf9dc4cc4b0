"""D-RWR beside 2409.00588: whole episodes, discounted returns, capped weights, the denoising loss of what was done."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Normalizer, RunningNormCodec
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    OneStep,
    cosine,
    ddim,
    linear,
    time_grid,
    with_min_std,
)
from denoiserl.recipes.policy_gradient import drwr
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, moments
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D = 3, 2
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
A = drwr.Args(
    iterations=2,
    num_envs=4,
    rollout_steps=6,
    gamma=0.8,
    inverse_temperature=1.5,
    max_weight=2.0,
    rollout_sampler="eval",
    lr=0.01,
    epochs=2,
    batch_size=6,
)


def start(kind: str) -> Policy:
    torch.manual_seed(4)
    seen, acts = (
        replace(Normalizer.identity(2), centre=centre, scale=scale) for centre, scale in ((MEAN, STD), (CENTRE, SCALE))
    )
    codec = (
        RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE)
        if kind == "eps"
        else ActionChunkCodec(seen, acts, LIMIT)
    )
    if kind == "one_step":
        one = OneStep()
        net = GaussianHead(MLP((H, D), 2, 8, 2, 0, False, activation="tanh"), D, 0.7, 0.2)
        return Policy.of(one, net, (H, D), one.steps(time_grid(1)), one.steps(time_grid(1), std_scale=0.0), codec)
    if kind == "eps":
        process = Diffusion(cosine, with_min_std(ddim(1.0), 0.3), 1.2, "noise")
        train, serve = process.steps(time_grid(3)), process.steps(time_grid(2), ddim(0.0))
    else:
        process = Diffusion(linear, ddim(0.0), 0.9, "velocity")
        train, serve = process.steps(time_grid(2), with_min_std(ddim(1.0), 0.3)), process.steps(time_grid(3), ddim(0.0))
    net = GaussianDenoiser(
        MLP((H, D), 2, 8, 2, 4, activation="tanh"), process.schedule, "eps" if kind == "eps" else "v"
    )
    return Policy.of(process, net, (H, D), train, serve, codec)


def vector() -> Any:
    """Copies that begin anew by themselves, in a step that is swallowed."""
    make = planned(breaks=False)
    later = gymnasium.vector.AutoresetMode.NEXT_STEP
    return gymnasium.vector.SyncVectorEnv([make for _ in range(A.num_envs)], autoreset_mode=later)


CASES = {
    "flow": ("flow", A, planned(breaks=False)),
    "eps": ("eps", replace(A, rollout_sampler="train"), planned(breaks=False)),
    "one_step": ("one_step", replace(A, rollout_sampler="train", rollout_steps=8), vector),
    "faults": ("flow", A, planned()),
}


@pytest.mark.parametrize("kind, a, world", CASES.values(), ids=CASES)
def test_two_updates_are_those_of_the_paper(kind: str, a: drwr.Args, world: Any) -> None:
    execute = 1 if kind == "one_step" else 2
    made, env, rng = (
        start(kind).with_execution_horizon(execute),
        Heard(world() if world is vector else world, a.num_envs, 1),
        Tape(3),
    )
    env.owner.on_fault = "restart"
    spy = Spy(rng)
    logged = list(drwr.improve(made, env, a, rng, spy))
    net = spy.start["policy"].denoiser
    opt = adam(net.parameters(), a.lr)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t: ᾱ = cos²((t + 0.008)/1.008 · π/2) over its value at 0, α at least 1e-4; or 1 − t and t."""
        if kind == "flow":
            return 1 - t, t
        angle = (t + 0.008) / 1.008 * math.pi / 2
        alpha = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).clamp(1e-4, 1)
        return alpha, (1 - alpha**2).clamp_min(0).sqrt()

    def drawn(z: Tensor) -> Tensor:
        """A chunk: μ + σ ξ; or three steps of the ODE; or three of DDPM, whose std is at least 0.3."""
        if kind == "one_step":
            return answer(net.net, torch.zeros(len(z), H, D), 1.0, z) + sigma() * rng.take("normal", 1, len(z), H, D)[0]
        x, noise = rng.take("normal", len(z), H, D), rng.take("normal", 3, len(z), H, D)
        for k in range(3):
            t, s = torch.tensor(1 - k / 3), torch.tensor(1 - (k + 1) / 3)
            (a_t, s_t), (a_s, s_s) = levels(t), levels(s)
            out = answer(net.net, x, t, z)
            x0 = ((x - s_t * out) / a_t).clamp(-1.2, 1.2) if kind == "eps" else (x - s_t * out).clamp(-0.9, 0.9)
            std = s_s * (1 - (s_s * a_t / (a_s * s_t)) ** 2).clamp_min(0).sqrt() if kind == "eps" else torch.zeros(())
            x = a_s * x0 + (s_s**2 - std**2).sqrt() * (x - a_t * x0) / s_t
            x = x + std.clamp_min(0.3) * noise[k] if kind == "eps" else x
        return x

    def sigma() -> Tensor:
        return (0.2**2 + (2 * net.log_std).exp()).sqrt()

    def loss_of(x0: Tensor, z: Tensor, live: Tensor) -> Tensor:
        """−log π(a | s); or mean (v̂ − (ε − a))² or mean (ε̂ − ε)² at x_t = α_t a + σ_t ε, of the executed actions."""
        n = len(x0)
        u = rng.take("uniform", (n + 1) // 2)
        early = (torch.arange(len(u)) + u) / n  # one time in each of n strata, in antithetic pairs
        t = torch.cat([early, 1 - early[: n // 2]])[rng.take("permutation", n)].clamp(1e-5, 1 - 1e-5)
        if kind == "one_step":
            mu = answer(net.net, torch.zeros(n, H, D), 1.0, z)
            each = 0.5 * ((x0 - mu) / sigma()) ** 2 + sigma().log() + 0.5 * math.log(2 * math.pi)
            return (each * live).sum((1, 2))
        noise = rng.take("normal", n, H, D)
        alpha, std = (c.view(-1, 1, 1) for c in levels(t))
        out = answer(net.net, alpha * x0 + std * noise, t, z)
        aim = noise if kind == "eps" else noise - x0
        return (((out - aim) ** 2) * live).sum((1, 2)) / live.sum((1, 2))

    seen, capped, kinds = torch.empty(0, 2), [], {"true": 0, "cut": 0, "open": 0, "dead": 0, "early": 0}
    for it in range(a.iterations):
        ep = env.episodes[it]
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        conds = []
        for t in range(a.rollout_steps):
            seen = torch.cat([seen, ep.obs[t]])
            centre, scale = seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()
            centre, scale = (centre, scale) if kind == "eps" else (MEAN, STD)
            conds.append(((ep.obs[t] - centre) / scale).clamp(-LIMIT, LIMIT))
            with torch.no_grad():
                x = drawn(conds[t])
            agree(ep.chain.sample[t], x, where="decisions")
            actions = CENTRE + SCALE * (x if kind == "eps" else x.clamp(-1, 1))
            agree(ep.action[t], actions[:, :execute], where="actions")

        alive, length = ep.executed_mask.any(-1), ep.num_executed.double()
        whole, togo = torch.zeros(alive.shape, dtype=torch.bool), torch.zeros(alive.shape)
        for b in range(a.num_envs):
            ended, g = False, 0.0
            for t in reversed(range(a.rollout_steps)):
                if bool(ep.done[t, b]):
                    ended, g = bool(alive[t, b]), 0.0
                g = float(ep.reward[t, b]) + a.gamma ** float(length[t, b]) * g
                whole[t, b], togo[t, b] = ended and bool(alive[t, b]), g
        z = (togo - togo[whole].mean()) / togo[whole].std(correction=0)
        w = (a.inverse_temperature * z).exp().clamp(max=a.max_weight).flatten()

        chunk, cond = ep.chain.sample.flatten(0, 1), torch.cat(conds)
        live = torch.zeros(len(chunk), H, D)
        live[:, :execute] = ep.executed_mask.flatten(0, 1)[..., None].double()
        index, told = whole.flatten().nonzero().flatten(), []
        for _ in range(a.epochs):
            for i in index[rng.take("permutation", len(index))].tensor_split(max(1, len(index) // a.batch_size)):
                loss = (w[i] * loss_of(chunk[i], cond[i], live[i])).mean()
                told.append(loss.detach())
                descend(opt, loss, 1.0)

        agree(spy.states[it + 1]["policy"]["current"], net.state_dict(), where=f"policy after iteration {it}")
        share = w[index].sum() ** 2 / (len(index) * (w[index] ** 2).sum())
        row = experience(ep) | {"loss/policy": sum(told) / len(told), "awr/ess_fraction": share}
        agree(logged[it], row, where=f"row {it}")
        capped += (w[index] == a.max_weight).tolist()
        found = (ep.terminated, ep.done & alive & ~ep.terminated, alive & ~whole, ~alive, (length > 0) & (length < 2))
        kinds = {k: n + int(v.sum()) for (k, n), v in zip(kinds.items(), found, strict=True)}

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    assert not torch.equal(env.episodes[0].obs[0], env.episodes[1].obs[0]), "every iteration has starts of its own"
    assert 0 < sum(capped) < len(capped), "some weights were capped"
    assert (kinds.pop("dead") > 0) == (kind == "one_step" or world is CASES["faults"][2])
    assert min(kinds.values()) > 0, "true ends, time limits, open episodes and chunks that ended early were there"
