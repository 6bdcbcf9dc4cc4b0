"""SAC beside 1812.05905, equations 5 to 9 and 18: acting, targets, critics, actor, temperature, slow critics, rows."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from denoiserl.data import Normalizer, TanhCodec
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.off_policy import sac
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, drifted, moments
from tests.recipes.worlds import Drift

H, D = 2, 2
MEAN, STD = torch.tensor([0.3, -0.2]), torch.tensor([0.7, 1.4])
CENTRE, HALF = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0])
A = sac.Args(
    iterations=3, num_envs=3, rollout_steps=4, learning_starts=12, warmup_policy="random", utd=0.1, batch_size=20,
    n_step=2, gamma=0.8, tau=0.3, lr=0.02, temperature_init=0.7, min_temperature=0.1, target_entropy=-1.3,
    num_critics=3, critic_width=8, layer_norm=True,
)  # fmt: skip


def start() -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(D), centre=MEAN, scale=STD)
    net = Actor(MLP((H, D), 2, 8, 2, 0, False, activation="relu", out=(H, 2 * D)))
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, net, (H, D), steps, serve, TanhCodec.from_box([-1.0, 0.0], [3.0, 2.0], seen))


def test_the_policy_aims_at_minus_its_dimensions_by_default() -> None:
    """Temperature's first loss is −α (log π + H̄) with H̄ = −H d: seen in its gradient, −α times the mean over rows."""
    made, spy = start(), Spy()
    rows = list(sac.improve(made, Heard(Drift, 3, 1), replace(A, target_entropy=None, iterations=2), Tape(3), spy))
    alpha, entropy = rows[-1]["policy/temperature"], rows[-1]["policy/entropy"]
    gradient = -(alpha - A.min_temperature) * (-entropy - H * D)
    agree(moments(spy.named["temperature_optimizer"])[0], 0.1 * gradient)


def test_two_updates_are_those_of_the_paper() -> None:
    """The first decisions are even in the box, the later ones tanh u with u ~ N(μ(s), σ(s)²) of the policy so far."""
    made, env, rng = start(), Heard(Drift, A.num_envs, 1), Tape(3)
    spy = Spy(rng)
    logged = list(sac.improve(made, env, A, rng, spy))

    critic, slow, actor = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    agree(slow.state_dict(), critic.state_dict(), 0.0)
    normed = A.num_critics * 2 * 2 * A.critic_width  # scales and shifts of layer norm, before each of two activations
    assert sum(p.numel() for p in critic.parameters()) == normed + A.num_critics * (6 * 8 + 8 + 8 * 8 + 8 + 8 + 1)
    theta = torch.nn.Parameter(torch.tensor(math.log(A.temperature_init - A.min_temperature)))
    agree(spy.states[0]["temperature"]["log"], theta)
    assert made.weights.execute == H
    theta_opt, critic_opt = adam([theta], A.lr), adam(critic.parameters(), A.lr)
    actor_opt = adam(actor.weights.module.parameters(), A.lr)

    def decide(seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """a = tanh u and log π(a | s) = log N(u) − Σ log (1 − tanh² u)."""
        out = answer(actor.denoiser, torch.zeros(len(seen), H, D), 1.0, seen)
        mu, sigma = out.mean, out.extra["std"]
        u = mu + sigma * noise
        density = -0.5 * ((u - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
        volume = torch.log(1 - torch.tanh(u.double()) ** 2).float()  # in float32 the difference has two digits left
        return torch.tanh(u), (density - volume).sum((1, 2))

    memory: list[dict] = []
    discounts = set[float]()
    for it in range(A.iterations):
        ep = env.episodes[it]
        for t in range(A.rollout_steps):
            if len(memory) < A.learning_starts:
                unit = 2 * rng.take("uniform", A.num_envs, H, D) - 1
            else:
                with torch.no_grad():
                    unit, _ = decide((ep.obs[t] - MEAN) / STD, rng.take("normal", A.num_envs, H, D))
            agree(ep.action[t], CENTRE + HALF * unit, where=f"action {t} of iteration {it}")
            for b in range(A.num_envs):
                row = {
                    k: getattr(ep, k)[t, b] for k in ("obs", "next_obs", "reward", "terminated", "done", "num_executed")
                }
                agree(row["reward"], drifted(row["obs"], ep.action[t, b], int(row["num_executed"]), A.gamma)[0])
                memory.append({**row, "unit": unit[b], "copy": b})
        assert (
            int(0.1 * max(0, len(memory) - A.learning_starts)) == it
        )  # one update in the second iteration, one in the third
        if it == 0:
            agree(spy.states[1]["critics.net"], critic.state_dict(), 0.0)
            agree(spy.states[1]["critics.target_net"], slow.state_dict(), 0.0)
            assert logged[0].keys().isdisjoint({"loss/critic", "q/policy", "policy/entropy", "policy/temperature"})
            continue

        rows = []
        for i in rng.take("integers", 1, A.batch_size)[0].tolist():
            first, last = memory[i], memory[i]
            reward, discount = float(first["reward"]), A.gamma ** int(first["num_executed"])
            later = [r for r in memory[i + 1 :] if r["copy"] == first["copy"]]
            if not bool(first["done"]) and later:  # a return of two decisions
                last = later[0]
                reward, discount = (
                    reward + discount * float(last["reward"]),
                    discount * A.gamma ** int(last["num_executed"]),
                )
            over = bool(last["terminated"])
            rows.append((first["obs"], first["unit"], reward, 0.0 if over else discount, last["next_obs"]))
            discounts.add(0.0 if over else round(discount, 6))
        obs, unit, after = (torch.stack([r[k] for r in rows]) for k in (0, 1, 4))
        reward, discount = (torch.tensor([r[k] for r in rows]) for k in (2, 3))
        now, then = ((v - MEAN) / STD for v in (obs, after))

        alpha = A.min_temperature + theta.detach().exp()
        with torch.no_grad():
            action, logp = decide(then, rng.take("normal", A.batch_size, H, D))
            y = reward + discount * (slow(then, action).min(0).values - alpha * logp)
        q = critic(now, unit)
        error, known = sum((0.5 * (one - y) ** 2).mean() for one in q), q.detach().mean()
        descend(critic_opt, error)
        action, logp = decide(now, rng.take("normal", A.batch_size, H, D))
        value = critic(now, action).min(0).values
        descend(actor_opt, (alpha * logp - value).mean())
        descend(theta_opt, (-(A.min_temperature + theta.exp()) * (logp.detach() + A.target_entropy)).mean())
        with torch.no_grad():
            for p, q in zip(slow.parameters(), critic.parameters(), strict=True):
                p.copy_((1 - A.tau) * p + A.tau * q)

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["policy"], actor.state_dict(), where=f"policy after iteration {it}")
        agree(state["temperature"]["log"], theta, where=f"temperature after iteration {it}")
        told = {
            "loss/critic": error,
            "q/data": known,
            "q/policy": value.mean(),
            "policy/entropy": -logp.mean(),
            "policy/temperature": alpha,
        }
        agree({k: logged[it][k] for k in told}, told, where="row")

    opts = {"critics.optimizer": critic_opt, "optimizer": actor_opt, "temperature_optimizer": theta_opt}
    for name, opt in opts.items():
        agree(moments(spy.named[name]), moments(opt), where=f"moments of {name}")
    assert 0.0 in discounts and len(discounts) > 2, "true ends, and returns of several lengths, were in the batches"
