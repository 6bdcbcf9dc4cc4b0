"""TD3 beside 1802.09477, algorithm 1: exploration, smoothed targets, twin critics, the delayed actor, slow networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.data import Normalizer, TanhCodec
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.processes.denoiser import Denoiser
from denoiserl.recipes.off_policy import td3
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, drifted, moments
from tests.recipes.worlds import Drift

H, D = 2, 2
MEAN, STD, LIMIT = torch.tensor([0.3, -0.2]), torch.tensor([0.7, 1.4]), 1.1
CENTRE, HALF = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0])
EVEN = td3.Args(
    iterations=3, num_envs=3, rollout_steps=4, learning_starts=6, warmup_policy="random", exploration_noise=0.5,
    target_noise=0.4, target_noise_clip=0.3, policy_delay=2, utd=0.17, batch_size=17, n_step=2, gamma=0.8, tau=0.3,
    lr=0.02, critic_width=8, layer_norm=True,
)  # fmt: skip
OWN = replace(
    EVEN, learning_starts=20, warmup_policy="policy", policy_delay=1, utd=0.13, n_step=3, tau=0.1, layer_norm=False
)
CASES = [(EVEN, [0, 3, 2]), (OWN, [0, 0, 2])]
"""with the updates after every iteration: utd · (decisions − begin) in all, and none before 17 make a batch"""


def start() -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(D), centre=MEAN, scale=STD)
    net = Actor(MLP((H, D), 2, 8, 2, 0, False, activation="relu", out=(H, 2 * D)))
    with torch.no_grad():  # decisions near the edges of the box: up and back
        net.net.leave.weight.mul_(5)  # type: ignore[union-attr, operator]
        net.net.leave.bias.copy_(torch.tensor([1.2, -1.2, 0.0, 0.0, -1.2, 1.2, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    codec = replace(TanhCodec.from_box([-1.0, 0.0], [3.0, 2.0], seen), limit=LIMIT)
    return Policy.of(process, net, (H, D), steps, serve, codec)


def mu(net: Denoiser, seen: Tensor) -> Tensor:
    """The decision tanh μ(s) in [−1, 1]."""
    return torch.tanh(answer(net, torch.zeros(len(seen), H, D), 1.0, seen).mean)


def units(obs: Tensor) -> Tensor:
    return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)


@pytest.mark.parametrize(("A", "due"), CASES, ids=["random", "own"])
def test_updates_are_those_of_the_paper(A: td3.Args, due: list[int]) -> None:
    made, env, rng = start(), Heard(Drift, A.num_envs, 1), Tape(3)
    spy = Spy(rng)
    logged = list(td3.improve(made, env, A, rng, spy))

    critic, slow, policy = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    actor, slow_actor = policy.weights.module, policy.weights.sets["target"]
    agree([slow.state_dict(), slow_actor.state_dict()], [critic.state_dict(), actor.state_dict()], 0.0)
    assert (critic.config["width"], critic.config["layer_norm"]) == (A.critic_width, A.layer_norm)
    critic_opt, actor_opt = adam(critic.parameters(), A.lr), adam(actor.parameters(), A.lr)

    memory: list[dict] = []
    updates, plain, ticks = 0, [0.0] * A.num_envs, [0] * A.num_envs
    kinds = list[object]()
    for it in range(A.iterations):
        ep, known = env.episodes[it], len(memory)
        whole, returns, lengths = [], [], []
        for t in range(A.rollout_steps):
            if A.warmup_policy == "random" and known < A.learning_starts:
                unit = 2 * rng.take("uniform", A.num_envs, H, D) - 1
            else:
                with torch.no_grad():
                    unit = mu(actor, units(ep.obs[t])) + A.exploration_noise * rng.take("normal", A.num_envs, H, D)
                kinds += ["box"] * bool((unit > 1).any() and (unit < -1).any())
                unit = unit.clamp(-1, 1)
            agree(ep.action[t], CENTRE + HALF * unit, where=f"action {t} of iteration {it}")
            for b in range(A.num_envs):
                row = {k: getattr(ep, k)[t, b] for k in ("obs", "next_obs", "terminated", "done")}
                n = int(ep.num_executed[t, b])
                gain, sum_, after = drifted(row["obs"], ep.action[t, b], n, A.gamma)
                agree([ep.reward[t, b], row["next_obs"]], [gain, after])
                whole, plain[b], ticks[b] = [*whole, gain], plain[b] + sum_, ticks[b] + n
                if bool(row["done"]):
                    returns, lengths = [*returns, plain[b]], [*lengths, float(ticks[b])]
                    plain[b], ticks[b] = 0.0, 0
                memory.append({**row, "reward": gain, "length": n, "unit": unit[b], "copy": b})
        told = {"rollout/num_episodes": len(returns), "rollout/return": sum(returns) / len(returns)}
        told |= {"rollout/length": sum(lengths) / len(lengths), "rollout/reward": sum(whole) / len(whole)}

        seen = []
        for index in rng.take("integers", due[it], A.batch_size) if due[it] else ():
            rows = []
            for i in index.tolist():
                first, last = memory[i], memory[i]
                reward, discount = first["reward"], A.gamma ** first["length"]
                for _ in range(A.n_step - 1):
                    at = next(j for j, r in enumerate(memory) if r is last)
                    later = [r for r in memory[at + 1 :] if r["copy"] == first["copy"]]
                    if bool(last["done"]) or not later:
                        break
                    last = later[0]
                    reward, discount = reward + discount * last["reward"], discount * A.gamma ** last["length"]
                over, cut = bool(last["terminated"]), bool(last["done"] & ~last["terminated"])
                kinds += ["end"] * over + ["cut"] * cut + [round(discount, 5)]
                rows.append((first["obs"], first["unit"], reward, 0.0 if over else discount, last["next_obs"]))
            obs, unit, after = (torch.stack([r[k] for r in rows]) for k in (0, 1, 4))
            reward, discount = (torch.tensor([r[k] for r in rows]) for k in (2, 3))
            now, then = units(obs), units(after)
            updates += 1
            eps = A.target_noise * rng.take("normal", A.batch_size, H, D)
            with torch.no_grad():
                moved = mu(slow_actor, then) + eps.clamp(-A.target_noise_clip, A.target_noise_clip)
                kinds += ["edge"] * bool((moved > 1).any() and (moved < -1).any())
                kinds += ["smooth"] * bool((eps > A.target_noise_clip).any() and (eps < -A.target_noise_clip).any())
                q1, q2 = slow(then, moved.clamp(-1, 1))
                y = reward + discount * torch.minimum(q1, q2)
            q1, q2 = critic(now, unit)
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            seen.append((error.item(), (q1.mean() + q2.mean()).item() / 2))
            descend(critic_opt, error)
            if updates % A.policy_delay == 0:
                descend(actor_opt, -critic(now, mu(actor, now))[0].mean())
                with torch.no_grad():
                    for late, net in ((slow, critic), (slow_actor, actor)):
                        for p, q in zip(late.parameters(), net.parameters(), strict=True):
                            p.copy_((1 - A.tau) * p + A.tau * q)
        if seen:
            told |= {"loss/critic": sum(e for e, _ in seen) / len(seen), "q/data": sum(v for _, v in seen) / len(seen)}
        agree(logged[it], told, where=f"row {it}")

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["policy"]["current"], actor.state_dict(), where=f"policy after iteration {it}")
        agree(state["policy"]["sets"]["target"], slow_actor.state_dict(), where=f"slow policy after iteration {it}")
    agree(moments(spy.named["critics.optimizer"]), moments(critic_opt), where="moments of critic_opt")
    agree(moments(spy.named["optimizer"]), moments(actor_opt), where="moments of opt")

    assert made.weights.execute == H, "it serves whole chunks"
    met = set(kinds)
    assert {"end", "cut", "edge", "smooth", "box"} <= met and len(met) >= 8, f"every case was in the batches: {met}"
