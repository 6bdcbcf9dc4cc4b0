"""OFQL beside 2508.13904 and 2505.13447: mean-flow imitation, one-step decisions, twin critics, the paced climb."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from denoiserl.nn import MLP, TwoTimeNet
from denoiserl.policy.policy import Policy
from denoiserl.processes import MeanFlow, MeanVelocityDenoiser, time_grid
from denoiserl.recipes.offline_rl import ofql
from tests.recipes.kit import Spy, Tape, adam, agree, descend, moments
from tests.recipes.logs import CENTRE, HALF, Faint, Level, batch, decisions, recording, robot, units

D = 2
LOUD = ofql.Args(
    iterations=2, updates_per_iteration=3, batch_size=22, q_weight=0.8, num_candidates=4, choice_temperature=0.3,
    n_step=2, gamma=0.8, tau=0.3, lr=0.01, max_grad_norm=0.4, critic_width=8, layer_norm=True,
)  # fmt: skip
GREEDY = replace(LOUD, q_weight=1.7, num_candidates=5, choice_temperature=0.0, n_step=3, tau=0.1)
FAINT = replace(
    LOUD, iterations=1, updates_per_iteration=2, num_candidates=1, lr=1e-5, max_grad_norm=50.0, layer_norm=False
)
"""critics whose values are below the floor of 1e-3"""
PAIRS = {"same": 0.4, "ends": 0.2, "mean": -0.4, "std": 1.0}
"""shares of pairs r = t and (0, 1), and the law of the logit of a time"""
NO_ENDS = {"same": 0.2, "ends": 0.0, "mean": 0.3, "std": 0.7}
SAME = {"same": 1.0, "ends": 0.0, "mean": -0.4, "std": 1.0}


def start(pairs: dict[str, float], H: int) -> Policy:
    torch.manual_seed(4)
    process = MeanFlow(**pairs)
    net = MeanVelocityDenoiser(TwoTimeNet(MLP((H, D), 3, 8, 2, 0, layer_norm=True), 4))
    return Policy.of(process, net, (H, D), process.steps(time_grid(1), 0.1), process.steps(time_grid(1)), robot())


def average(net: torch.nn.Module, x: Tensor, r: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u(x, r, t; s): what the network inside says of x [B, H, D] and times [B]."""
    raw = net.net
    return raw(x, raw.embed_time(t, r), raw.embed_condition(s))  # type: ignore[operator, union-attr]


def decide(net: torch.nn.Module, s: Tensor, eps: Tensor) -> Tensor:
    """a = ε − u(ε, 0, 1; s)."""
    return eps - average(net, eps, torch.zeros(len(s)), torch.ones(len(s)), s)


CASES = [
    pytest.param(LOUD, PAIRS, 1, Level, id="loud"),
    pytest.param(GREEDY, NO_ENDS, 1, Level, id="greedy"),
    pytest.param(GREEDY, SAME, 2, Level, id="chunks"),
    pytest.param(FAINT, PAIRS, 1, Faint, id="faint"),
    pytest.param(LOUD, PAIRS, 2, Level, id="chunks and pairs"),
]


@pytest.mark.parametrize(("A", "pairs", "H", "tape"), CASES)
def test_updates_are_those_of_the_paper(A: ofql.Args, pairs: dict[str, float], H: int, tape: type[Tape]) -> None:
    made, data, rng = start(pairs, H), recording(), tape(3)
    spy = Spy(rng)
    logged = list(ofql.improve(made, data, A, rng, spy))

    critic, slow, policy = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    actor, slow_actor = policy.weights.module, policy.weights.sets["target"]
    agree([slow.state_dict(), slow_actor.state_dict()], [critic.state_dict(), actor.state_dict()], 0.0)
    assert (critic.config["width"], critic.config["layer_norm"]) == (A.critic_width, A.layer_norm)
    critic_opt, actor_opt = adam(critic.parameters(), A.lr), adam(actor.parameters(), A.lr)
    rows, B = decisions(data, H, A.n_step, A.gamma), A.batch_size

    kinds = list[str]()
    for it in range(A.iterations):
        seen = []
        index = rng.take("integers", A.updates_per_iteration, B)
        filler = (
            rng.take("uniform", A.updates_per_iteration, B, H, D)
            if H > 1
            else torch.zeros(A.updates_per_iteration, B, H, D)
        )
        for k in range(A.updates_per_iteration):
            s, a, reward, discount, after, real = batch(rows, index[k], filler[k])
            # y = r + γ^n min Q̄(s', a'),  a' by the slow policy, clipped to the box
            with torch.no_grad():
                decided = decide(slow_actor, after, rng.take("normal", B, H, D))
                kinds += ["target clipped"] * bool((decided.abs() > 1).any())
                q1, q2 = slow(after, decided.clamp(-1, 1))
                y = reward + discount * torch.minimum(q1, q2)
            q1, q2 = critic(s, a)
            value = (q1.mean() + q2.mean()).item() / 2
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            kinds += ["critic clipped"] * (descend(critic_opt, error, A.max_grad_norm) > A.max_grad_norm)

            # pairs r ≤ t: the smaller and the larger of two draws with logit ~ N(mean, std²), r = t, or (0, 1).
            # P(larger < t) = F(t)², so t = F⁻¹(√p) for p even in (0, 1); given t, F(r) is even in (0, F(t)).
            u, order = rng.take("uniform", B // 2).double(), rng.take("permutation", B)
            p = (torch.arange(B // 2) + u) / B  # one in each of B / 2 strata, and their mirror images
            p = torch.cat([p, 1 - p])[order].sqrt()
            kind, below = rng.take("uniform", B), rng.take("uniform", B)
            t, r = ((pairs["mean"] + pairs["std"] * torch.special.ndtri(v)).sigmoid() for v in (p, p * below))
            same, whole = kind < pairs["same"], (kind >= pairs["same"]) & (kind < pairs["same"] + pairs["ends"])
            r = torch.where(same, t, r)
            t, r = (torch.where(whole, end, v).float() for end, v in ((1.0, t), (0.0, r)))
            kinds += ["same"] * bool(same.any()) + ["ends"] * bool(whole.any())
            kinds += ["pairs"] * bool((~same & ~whole).any())
            # L = |u(x_t, r, t) − sg[v − (t − r) (v · ∂_x u + ∂_t u)]|²
            eps = rng.take("normal", B, H, D)
            t3, r3 = t[:, None, None], r[:, None, None]
            x, v = (1 - t3) * a + t3 * eps, eps - a
            tangents = (v, torch.zeros(B), torch.ones(B))
            u_of = partial(average, actor, s=s)
            slope = torch.autograd.functional.jvp(u_of, (x, r, t), tangents)[1].detach()
            apart = (u_of(x, r, t) - (v - (t3 - r3) * slope)) ** 2
            imitation = torch.stack([apart[b][real[b]].mean() for b in range(B)]).mean()

            # − η E[Q_i(s, a)] / E|Q_j(s, a)|,  a of one step, clipped to the box
            own = decide(actor, s, rng.take("normal", B, H, D))
            kinds += ["clipped"] * bool((own.abs() > 1).any())
            both = critic(s, own.clamp(-1, 1))
            heads = float(rng.take("uniform", 1)) < 0.5
            up, other = (both[0], both[1]) if heads else (both[1], both[0])
            pace = float(other.detach().abs().mean())
            kinds += ["heads" if heads else "tails", "slow" if pace < 1e-3 else "fast"]
            kinds += ["signs"] * bool((other > 0).any() and (other < 0).any())
            loss = imitation - A.q_weight * up.mean() / max(pace, 1e-3)
            kinds += ["actor clipped"] * (descend(actor_opt, loss, A.max_grad_norm) > A.max_grad_norm)
            with torch.no_grad():
                for late, net in ((slow, critic), (slow_actor, actor)):
                    for w, q in zip(late.parameters(), net.parameters(), strict=True):
                        w.copy_((1 - A.tau) * w + A.tau * q)
            seen.append((imitation.item(), error.item(), value, up.mean().item()))
        told = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        names = ("loss/bc", "loss/critic", "q/data", "q/policy")
        own_value = logged[it].pop(names[-1])
        agree(own_value, told[-1], 1e-4, f"value of its own in row {it}")  # its terms cancel
        agree(logged[it], dict(zip(names[:-1], told[:-1], strict=True)), where=f"row {it}")

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
        plans = decide(actor, s, rng.take("normal", 23 * n, H, D))
        q = slow(s, plans.clamp(-1, 1)).min(0).values.reshape(23, n)
        plans = plans.reshape(23, n, H, D)
        chance = rng.take("uniform", 23, 1) if n > 1 and A.choice_temperature > 0 else None
        for i in range(23):
            at = int(q[i].argmax())
            if chance is not None:
                weight = (q[i] / A.choice_temperature).softmax(0)
                at = next(j for j in range(n) if float(weight[: j + 1].sum()) > float(chance[i]) or j == n - 1)
            agree(served[i], CENTRE + HALF * plans[i, at].clamp(-1, 1), where=f"served {i}")
    assert made.weights.execute == H, "it serves whole chunks"
    met = set(kinds)
    if A is FAINT:
        assert met & {"slow", "fast", "critic clipped", "actor clipped"} == {"slow"}, met
    else:
        wanted = {"heads", "tails", "signs", "fast", "critic clipped", "actor clipped", "target clipped", "clipped"}
        wanted |= {"same"} | ({"pairs"} if pairs is not SAME else set()) | ({"ends"} if pairs is PAIRS else set())
        assert met == wanted, met
