"""DQL beside 2208.06193, equations 1 to 5: twin critics, K-step decisions, imitation, the paced climb, the choice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, linear, time_grid, with_min_std
from denoiserl.recipes.offline_rl import dql
from tests.recipes.kit import Spy, Tape, adam, agree, descend, moments
from tests.recipes.logs import CENTRE, HALF, Faint, Level, batch, decisions, recording, robot, units

H, D, K = 2, 2, 3
VP = dql.Args(
    iterations=2, updates_per_iteration=3, batch_size=22, q_weight=0.8, num_backup_samples=3, num_candidates=4,
    choice_temperature=0.7, n_step=2, gamma=0.8, tau=0.3, lr=0.01, max_grad_norm=0.4, critic_width=8, layer_norm=True,
)  # fmt: skip
FLOW = replace(
    VP,
    q_weight=1.7,
    num_backup_samples=2,
    num_candidates=5,
    choice_temperature=0.0,
    n_step=1,
    tau=0.1,
    max_grad_norm=0.6,
)
FAINT = replace(
    VP,
    iterations=1,
    updates_per_iteration=2,
    num_backup_samples=1,
    num_candidates=1,
    lr=1e-5,
    max_grad_norm=50.0,
    layer_norm=False,
)
"""critics whose values are below the floor of 1e-3"""


def start(kind: str) -> Policy:
    torch.manual_seed(4)
    schedule, eta = (linear, 0.0) if kind == "flow" else (cosine, 1.0)
    process = Diffusion(schedule, with_min_std(ddim(eta), 0.1), clip=1.0)
    net = GaussianDenoiser(MLP((H, D), 3, 8, 2, 4, layer_norm=True), schedule, "v")
    times = time_grid(K)
    return Policy.of(process, net, (H, D), process.steps(times), process.steps(times, ddim(eta)), robot())


def levels(kind: str, t: float) -> tuple[float, float]:
    """α and σ at t: rectified flow, or √ᾱ = cos((t + s)/(1 + s) π/2) / cos(s/(1 + s) π/2) with s = 0.008."""
    if kind == "flow":
        return 1 - t, t
    a = math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    a = min(max(a, 1e-4), 1.0)
    return a, math.sqrt(1 - a * a)


def velocity(net: torch.nn.Module, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """What the network inside says of x [B, H, D] at times t [B]."""
    raw = net.net
    return raw(x, raw.embed_time(t), raw.embed_condition(s))  # type: ignore[operator, union-attr]


def decide(kind: str, net: torch.nn.Module, s: Tensor, first: Tensor, noise: Tensor) -> Tensor:
    """a₀ [B, H, D] of K steps from ``first``, each with ``noise`` [K, B, H, D]: posterior steps, or an ODE's."""
    x = levels(kind, 1.0)[1] * first
    for k in range(K):
        t, u = 1 - k / K, 1 - (k + 1) / K
        (a_t, s_t), (a_u, s_u) = levels(kind, t), levels(kind, u)
        v = velocity(net, x, torch.full((len(x),), t), s)
        if kind == "flow":
            clean = (x - t * v).clamp(-1, 1)
            x = x - (t - u) * (x - clean) / t
        else:  # q(x_u | x_t, x₀) of 2006.11239, equations 6 and 7, for any two levels
            clean = (a_t * x - s_t * v).clamp(-1, 1)
            beta = s_t**2 - (a_t / a_u) ** 2 * s_u**2
            mean = a_u * beta / s_t**2 * clean + a_t / a_u * s_u**2 / s_t**2 * x
            x = mean + math.sqrt(beta) * s_u / s_t * noise[k]
    return x


CASES = [(VP, "vp", Level), (FLOW, "flow", Level), (FAINT, "vp", Faint)]


@pytest.mark.parametrize(("A", "kind", "tape"), CASES, ids=["vp", "flow", "faint"])
def test_updates_are_those_of_the_paper(A: dql.Args, kind: str, tape: type[Tape]) -> None:
    made, data, rng = start(kind), recording(), tape(3)
    spy = Spy(rng)
    logged = list(dql.improve(made, data, A, rng, spy))

    critic, slow, policy = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    actor, slow_actor = policy.weights.module, policy.weights.sets["target"]
    agree([slow.state_dict(), slow_actor.state_dict()], [critic.state_dict(), actor.state_dict()], 0.0)
    assert (critic.config["width"], critic.config["layer_norm"]) == (A.critic_width, A.layer_norm)
    critic_opt, actor_opt = adam(critic.parameters(), A.lr), adam(actor.parameters(), A.lr)
    rows = decisions(data, H, A.n_step, A.gamma)

    kinds = list[str]()
    for it in range(A.iterations):
        seen = []
        index, filler = (
            rng.take("integers", A.updates_per_iteration, A.batch_size),
            rng.take("uniform", A.updates_per_iteration, A.batch_size, H, D),
        )
        for k in range(A.updates_per_iteration):
            s, a, r, discount, after, real = batch(rows, index[k], filler[k])
            B, many = A.batch_size, A.batch_size * A.num_backup_samples
            # y = r + γ^n min_i max over proposals of Q̄_i(s', a'),  a' ~ π̄
            with torch.no_grad():
                proposals = torch.cat([after[i : i + 1] for i in range(B) for _ in range(A.num_backup_samples)])
                first, noise = rng.take("normal", many, H, D), rng.take("normal", K, many, H, D)
                q = slow(proposals, decide(kind, slow_actor, proposals, first, noise)).reshape(
                    2, B, A.num_backup_samples
                )
                kinds += ["ranked"] * bool((q[0].argmax(-1) != q[1].argmax(-1)).any())
                y = r + discount * torch.minimum(q[0].max(-1).values, q[1].max(-1).values)
            q1, q2 = critic(s, a)
            value = (q1.mean() + q2.mean()).item() / 2
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            kinds += ["critic clipped"] * (descend(critic_opt, error, A.max_grad_norm) > A.max_grad_norm)

            # L_d: the velocity v = α ε − σ a (of the flow ε − a) at one of the K levels of the chain
            t = torch.tensor([1 - i / K for i in rng.take("integers", B).tolist()])
            eps = rng.take("normal", B, H, D)
            alpha, sigma = (torch.tensor([levels(kind, float(x))[i] for x in t])[:, None, None] for i in (0, 1))
            wanted = eps - a if kind == "flow" else alpha * eps - sigma * a
            apart = (velocity(actor, alpha * a + sigma * eps, t, s) - wanted) ** 2
            imitation = torch.stack([apart[b][real[b]].mean() for b in range(B)]).mean()

            # − η E[Q_i(s, a₀)] / E|Q_j(s, a₀)|, a₀ ~ π through all K steps
            first, noise = rng.take("normal", B, H, D), rng.take("normal", K, B, H, D)
            both = critic(s, decide(kind, actor, s, first, noise))
            heads = float(rng.take("uniform", 1)) < 0.5
            up, other = (both[0], both[1]) if heads else (both[1], both[0])
            pace = float(other.detach().abs().mean())
            kinds += ["heads" if heads else "tails", "slow" if pace < 1e-3 else "fast"]
            kinds += ["signs"] * bool((other > 0).any() and (other < 0).any())
            loss = imitation - A.q_weight * up.mean() / max(pace, 1e-3)
            kinds += ["actor clipped"] * (descend(actor_opt, loss, A.max_grad_norm) > A.max_grad_norm)
            with torch.no_grad():
                for late, net in ((slow, critic), (slow_actor, actor)):
                    for p, q in zip(late.parameters(), net.parameters(), strict=True):
                        p.copy_((1 - A.tau) * p + A.tau * q)
            seen.append((imitation.item(), error.item(), value, up.mean().item()))
        told = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        names = ("loss/bc", "loss/critic", "q/data", "q/policy")
        agree(logged[it], dict(zip(names, told, strict=True)), where=f"row {it}")

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["policy"]["current"], actor.state_dict(), where=f"policy after iteration {it}")
        agree(state["policy"]["sets"]["target"], slow_actor.state_dict(), where=f"slow policy after iteration {it}")
    agree(moments(spy.named["critics.optimizer"]), moments(critic_opt), where="moments of critic_opt")
    agree(moments(spy.named["optimizer"]), moments(actor_opt), where="moments of opt")

    # what it serves: one of n decisions, the best or drawn ∝ exp(min Q̄ / temperature)
    obs, rng, n = data.demos.observations, Tape(7), A.num_candidates
    with torch.no_grad():
        served = made.generate(obs, rng)
        s = torch.cat([units(obs[i : i + 1]) for i in range(23) for _ in range(n)])
        plans = decide(kind, actor, s, rng.take("normal", 23 * n, H, D), rng.take("normal", K, 23 * n, H, D))
        q = slow(s, plans.clamp(-1, 1)).min(0).values.reshape(23, n)
        plans = plans.reshape(23, n, H, D)
        u = rng.take("uniform", 23, 1) if n > 1 and A.choice_temperature > 0 else None
        for i in range(23):
            at = int(q[i].argmax())
            if u is not None:
                weight = (q[i] / A.choice_temperature).softmax(0)
                at = next(j for j in range(n) if float(weight[: j + 1].sum()) > float(u[i]) or j == n - 1)
            agree(served[i], CENTRE + HALF * plans[i, at].clamp(-1, 1), where=f"served {i}")
    assert made.weights.execute == H, "it serves whole chunks"
    if A is FAINT:
        assert set(kinds) & {"slow", "fast", "critic clipped", "actor clipped"} == {"slow"}, kinds
    else:
        assert set(kinds) == {"heads", "tails", "signs", "fast", "ranked", "critic clipped", "actor clipped"}, kinds
