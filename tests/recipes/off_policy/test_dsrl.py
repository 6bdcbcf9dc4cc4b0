"""DSRL beside 2506.15799: acting by noise, Q_A, Q_W, π_W, temperature, slow critics, the rows, baselines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl.claims.off_policy import dsrl as claim
from denoiserl.control.noise_steering import steer
from denoiserl.data import ActionChunkCodec, Normalizer
from denoiserl.data.rollout import Rollout
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, linear, time_grid, with_min_std
from denoiserl.recipes.off_policy import dsrl
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, moments
from tests.recipes.worlds import Planned, planned

H, D, T_A, B = 4, 2, 2, 0.9
CLIP, LIMIT = 0.8, 1.2
MEAN, STD = torch.tensor([0.3, -0.2]), torch.tensor([0.6, 0.9])
CENTRE, WIDTH = torch.tensor([1.4, 0.8]), torch.tensor([3.0, 1.7])  # actions beyond the box of the world
A = dsrl.Args(
    iterations=3, num_envs=3, rollout_steps=4, learning_starts=14, utd=0.15, batch_size=16, n_step=2, gamma=0.8,
    reward_scale=0.5, reward_shift=-0.7, tau=0.3, noise_critic_updates=2, lr=0.02, temperature_init=0.7,
    min_temperature=0.1, target_entropy=-1.3, num_critics=3, critic_width=8,
)  # fmt: skip
BEST = claim.Args(**vars(replace(A, noise_critic_updates=1, n_step=1)), num_candidates=5)
CASES = {
    "aliased": (A, "smooth", 2),
    "best": (BEST, "repeated", 1),  # the arm of the claim that never steers
    "plain": (replace(A, aliased=False, n_step=3), "full", 4),
}


class Calm(Planned):
    """Planned episodes in which actions do a third of what they say."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return super().step(1 + (np.asarray(action, float) - 1) / 3)


def start(kind: str, rank: int) -> Policy:
    torch.manual_seed(5)
    process = Diffusion(linear, with_min_std(ddim(0.0), 0.2), clip=CLIP)
    net = GaussianDenoiser(MLP((H, D), 2, 8, 2, 8), linear, "v")
    seen = replace(Normalizer.identity(D), centre=MEAN, scale=STD)
    codec = ActionChunkCodec(seen, replace(Normalizer.identity(D), centre=CENTRE, scale=WIDTH), LIMIT)
    base = Policy.of(
        process,
        net,
        (H, D),
        process.steps(time_grid(3)),
        process.steps(time_grid(2, spacing="quadratic"), ddim(0.0)),
        codec,
    )
    made = steer(base, 2, 8, 2, B, kind, rank)  # type: ignore[arg-type]
    for p in made.denoiser.latent.parameters():
        p.data.add_(0.4 * torch.randn_like(p))
    return made


def demonstrated() -> Rollout:
    """Decisions of somebody: one true end, one time limit, a chunk that ends early, one that was lost."""
    torch.manual_seed(6)
    obs, after = torch.randn(3, 2, D), torch.randn(3, 2, D)
    action, reward = 1 + 2 * torch.randn(3, 2, T_A, D), torch.randn(3, 2) - 1
    over = torch.tensor([[False, True], [False, False], [False, False]])
    done = torch.tensor([[False, True], [True, False], [False, True]])
    length = torch.tensor([[2, 1], [2, 2], [1, 0]])
    return Rollout(obs, after, action, reward, over, done, length, torch.arange(T_A) < length[..., None])


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, kind, rank = CASES[case]
    made, env, rng = start(kind, rank).with_execution_horizon(T_A), Heard(planned(False, Calm), a.num_envs, 1), Tape(3)
    spy, demos = Spy(rng), demonstrated() if case == "aliased" else None
    logged = list((claim if case == "best" else dsrl).improve(made, env, a, rng, spy, *([demos] if demos else [])))

    whole = spy.start["policy"].weights.module
    base, latent, judge, slow = whole.base, whole.latent, spy.start["critics.net"], spy.start["critics.target_net"]
    critic = spy.start["noise_critics.net"] if a.aliased else judge  # Q_W; without aliasing it learns from rewards
    theta = torch.nn.Parameter(spy.start["temperature"].log.detach().clone())
    agree(slow.state_dict(), judge.state_dict(), 0.0)
    agree(a.min_temperature + theta.exp(), a.temperature_init)
    latent_opt, theta_opt = adam(latent.parameters(), a.lr), adam([theta], a.lr)
    critic_opt, judge_opt = adam(critic.parameters(), a.lr), adam(judge.parameters(), a.lr)

    waves = torch.stack([torch.ones(H), torch.cos(math.pi * (torch.arange(H) + 0.5) / H)], 1)
    smooth = waves / waves.square().sum(1, keepdim=True).sqrt()
    M = {"full": torch.eye(H), "repeated": torch.ones(H, 1), "smooth": smooth}[kind]

    def normed(obs: Tensor) -> Tensor:
        return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def G(obs: Tensor, z: Tensor) -> Tensor:
        """The plan from the noise w = b M z: DDIM without noise, eq. 12 of 2010.02502, where x_t = (1 − t) x₀ + t ε."""
        x = B * torch.einsum("hr,nrd->nhd", M, z)
        for t, s in ((1.0, 0.25), (0.25, 0.0)):
            x0 = answer(base, x, t, normed(obs)).mean.clamp(-CLIP, CLIP)
            eps = (x - (1 - t) * x0) / t
            x = (1 - s) * x0 + s * eps
        return CENTRE + WIDTH * x.clamp(-1, 1)

    def unit(action: Tensor) -> Tensor:
        """What Q_A sees: the actions that are executed, in units of the box."""
        return ((action[..., :T_A, :] - torch.tensor([1.0, 1.0])) / torch.tensor([2.0, 1.0])).clamp(-1, 1)

    def decide(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z = tanh u and log π(z | s) = log N(u) − Σ log (1 − tanh² u)."""
        out = answer(latent, torch.zeros(len(obs), rank, D), 1.0, normed(obs))
        mu, sigma = out.mean, out.extra["std"]
        u = mu + sigma * noise
        density = -0.5 * ((u - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
        volume = -2 * torch.cosh(u.double()).log().float()  # 1 − tanh² = 1 / cosh²
        return torch.tanh(u), (density - volume).sum((1, 2))

    def remember(ep: Rollout, z: Tensor, who: str) -> None:
        for t in range(ep.reward.shape[0]):
            for b in range(ep.reward.shape[1]):
                if bool(ep.executed_mask[t, b].any()):
                    row = {k: getattr(ep, k)[t, b] for k in ("obs", "next_obs", "terminated", "done", "num_executed")}
                    paid = a.reward_scale * float(ep.reward[t, b]) + a.reward_shift
                    memory.append({**row, "paid": paid, "a": unit(ep.action[t, b]), "z": z[t, b], "who": f"{who} {b}"})

    memory: list[dict] = []
    if demos is not None:
        remember(demos, torch.zeros(3, 2, rank, D), "demonstrator")
        assert len(memory) == 5
    begin, updates, kinds = a.learning_starts + len(memory), 0, set()
    for it in range(a.iterations):
        ep = env.episodes[it]
        if it == 0:  # what noise can do: 32 noises in every state, the spread of the actions
            many = ep.obs[0].repeat_interleave(32, 0)
            spread = G(many, rng.take("normal", len(many), rank, D) / B).view(a.num_envs, 32, H, D).std(1).mean()
        zs = []
        for t in range(a.rollout_steps):
            noise = rng.take("normal", a.num_envs, rank, D)
            alone = len(memory) < begin or case == "best"
            with torch.no_grad():
                zs.append(noise / B if alone else decide(ep.obs[t], noise)[0])
            agree(ep.action[t], G(ep.obs[t], zs[-1])[:, :T_A], where="actions")
            for b in range(a.num_envs):  # the discount inside a chunk is the method's
                s, reward = ep.obs[t, b].double(), 0.0
                for i in range(int(ep.num_executed[t, b])):
                    act = ep.action[t, b, i].double().clamp(torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 2.0]))
                    act = 1 + (act - 1) / 3
                    s = s + 0.5 * (act - 1)
                    reward += a.gamma**i * float(-(s @ s) - (act @ act) / 4 - 1)
                agree(ep.reward[t, b], reward, where="reward")
        remember(ep, torch.stack(zs), "copy")

        due = int(a.utd * (len(memory) - begin)) - updates
        updates += due
        assert due == it, "none, one, two"
        index = rng.take("integers", due, a.batch_size) if due else []
        seen = []
        for batch in index:
            rows = []
            for i in batch.tolist():
                first = last = memory[i]
                reward, discount, at = first["paid"], a.gamma ** int(first["num_executed"]), i
                for _ in range(a.n_step - 1):  # a return of n decisions
                    later = [j for j in range(at + 1, len(memory)) if memory[j]["who"] == first["who"]]
                    if bool(last["done"]) or not later:
                        break
                    at, last = later[0], memory[later[0]]
                    reward, discount = reward + discount * last["paid"], discount * a.gamma ** int(last["num_executed"])
                over = bool(last["terminated"])
                kinds.add((over, bool(last["done"])))
                rows.append((first["obs"], first["a"], first["z"], last["next_obs"], reward, 0.0 if over else discount))
            obs, action, z_done, after = (torch.stack([r[k] for r in rows]) for k in range(4))
            reward, discount = (torch.tensor([r[k] for r in rows]) for k in (4, 5))

            alpha = a.min_temperature + theta.detach().exp()
            with torch.no_grad():
                z, logp = decide(after, rng.take("normal", a.batch_size, rank, D))
                if a.aliased:  # Q_A(s, a) ← r + γ min Q̄_A(s', G(s', w')): no entropy
                    y = reward + discount * slow(normed(after), unit(G(after, z))).min(0).values
                else:
                    y = reward + discount * (slow(normed(after), z).min(0).values - alpha * logp)
            guess = judge(normed(obs), action) if a.aliased else judge(normed(obs), z_done)
            error = sum((0.5 * (q - y) ** 2).mean() for q in guess)
            descend(judge_opt, error)
            for _ in range(a.noise_critic_updates if a.aliased else 0):  # Q_W(s, w) ← Q_A(s, G(s, w)), w ~ N(0, I)
                z = rng.take("normal", a.batch_size, rank, D) / B
                with torch.no_grad():
                    y = judge(normed(obs), unit(G(obs, z))).min(0).values
                descend(critic_opt, sum((0.5 * (q - y) ** 2).mean() for q in critic(normed(obs), z)))
            z, logp = decide(obs, rng.take("normal", a.batch_size, rank, D))
            value = critic(normed(obs), z).min(0).values
            descend(latent_opt, (alpha * logp - value).mean())
            descend(theta_opt, (-(a.min_temperature + theta.exp()) * (logp.detach() + a.target_entropy)).mean())
            with torch.no_grad():
                for p, q in zip(slow.parameters(), judge.parameters(), strict=True):
                    p.copy_((1 - a.tau) * p + a.tau * q)
            seen.append(torch.stack([error, value.mean(), -logp.mean(), alpha]))

        state = spy.states[it + 1]
        agree(state["policy"]["current"], whole.state_dict(), where=f"policy after iteration {it}")
        if a.aliased:
            agree(state["noise_critics.net"], critic.state_dict(), where=f"critics of noise after iteration {it}")
        agree(state["critics.net"], judge.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"target critics after iteration {it}")
        agree(state["temperature"]["log"], theta, where=f"temperature after iteration {it}")
        told = experience(ep)
        if it == 0:
            told["policy/noise_sensitivity"] = spread
        if seen:
            told |= dict(
                zip(
                    ("loss/critic", "q/policy", "policy/entropy", "policy/temperature"),
                    torch.stack(seen).mean(0),
                    strict=True,
                )
            )
        agree(logged[it], told, where=f"row {it}")

    opts = {"optimizer": latent_opt, "temperature_optimizer": theta_opt, "critics.optimizer": judge_opt}
    for name, opt in (opts | ({"noise_critics.optimizer": critic_opt} if a.aliased else {})).items():
        agree(moments(spy.named[name]), moments(opt), where=f"moments of {name}")
    assert kinds == {(True, True), (False, True), (False, False)}, "true ends, time limits, and neither"
    assert made.weights.execute == T_A
    if case == "best":  # served is the best by Q_A of the base's own plans
        tape, obs = Tape(8), torch.randn(6, D)
        served = made.generate(obs, tape)
        z, many = tape.take("normal", 6 * a.num_candidates, rank, D) / B, obs.repeat_interleave(a.num_candidates, 0)
        plans = G(many, z)
        best = judge(normed(many), unit(plans)).min(0).values.view(6, a.num_candidates).argmax(1)
        assert len(best.unique()) > 1
        agree(served, plans.view(6, a.num_candidates, H, D)[torch.arange(6), best], where="served")
    else:
        assert made.weights.control is None
