"""IQL beside 2110.06169, equations 5 to 7: the expectile of the slow twins, critics, weighted likelihood or loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

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
from denoiserl.recipes.offline_rl import iql
from tests.recipes.kit import Spy, adam, agree, answer, descend, moments
from tests.recipes.logs import Level, batch, decisions, recording, robot

H, D = 3, 2
GAUSSIAN = iql.Args(
    iterations=2, updates_per_iteration=2, batch_size=22, expectile=0.8, inverse_temperature=0.2, max_weight=1.5,
    n_step=2, gamma=0.8, tau=0.3, lr=0.01, critic_width=8, layer_norm=True,
)  # fmt: skip
FLOW = replace(
    GAUSSIAN,
    iterations=1,
    updates_per_iteration=2,
    expectile=0.3,
    inverse_temperature=0.1,
    max_weight=1.2,
    n_step=3,
    tau=0.1,
    critic_width=6,
    layer_norm=False,
)


def start(kind: str) -> Policy:
    torch.manual_seed(4)
    if kind == "gaussian":
        one, event = OneStep(), (H, D)
        head = GaussianHead(MLP(event, 3, 8, 2, 0, layer_norm=True), D, 0.5, 0.1)
        with torch.no_grad():
            head.log_std.add_(torch.tensor([0.2, -0.3]))
        return Policy.of(one, head, event, one.steps(time_grid(1)), one.steps(time_grid(1), std_scale=0.0), robot())
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.1), clip=1.0), time_grid(3)
    net = GaussianDenoiser(MLP((H, D), 3, 8, 2, 4, layer_norm=True), linear, "v")
    return Policy.of(process, net, (H, D), process.steps(times), process.steps(times, ddim(0.0)), robot())


@pytest.mark.parametrize(("A", "kind"), [(GAUSSIAN, "gaussian"), (FLOW, "flow")], ids=["gaussian", "flow"])
def test_updates_are_those_of_the_paper(A: iql.Args, kind: str) -> None:
    made, data, rng = start(kind), recording(), Level(3)
    spy = Spy(rng)
    logged = list(iql.improve(made, data, A, rng, spy))

    critic, slow, value = (spy.start[k] for k in ("critics.net", "critics.target_net", "value"))
    actor = spy.start["policy"].weights.module
    agree(slow.state_dict(), critic.state_dict(), 0.0)
    for net in (critic, value):
        assert (net.config["width"], net.config["layer_norm"], net.config["depth"]) == (A.critic_width, A.layer_norm, 2)
    assert spy.named.keys() >= {"lr_schedule", "rng"} and spy.named["data"] is None
    critic_opt, value_opt, actor_opt = (adam(net.parameters(), A.lr) for net in (critic, value, actor))
    rows, B, total = decisions(data, H, A.n_step, A.gamma), A.batch_size, A.iterations * A.updates_per_iteration

    kinds, n = list[str](), 0
    for it in range(A.iterations):
        seen = []
        index, filler = (
            rng.take("integers", A.updates_per_iteration, B),
            rng.take("uniform", A.updates_per_iteration, B, H, D),
        )
        for k in range(A.updates_per_iteration):
            s, a, r, discount, after, real = batch(rows, index[k], filler[k])
            with torch.no_grad():
                q1, q2 = slow(s, a)
                best = torch.minimum(q1, q2)
                y = r + discount * value(after)
            # L_V = |τ − 1{Q̄ < V}| (Q̄ − V)²
            V = value(s)
            A_ = best - V.detach()
            kinds += ["over"] * bool((A_ > 0).any()) + ["under"] * bool((A_ < 0).any())
            side = torch.tensor([abs(A.expectile - (1.0 if float(x) < 0 else 0.0)) for x in A_])
            off = (side * (best - V) ** 2).mean()
            descend(value_opt, off)
            # L_Q = ½ (Q − r − γ^n V(s'))²
            q1, q2 = critic(s, a)
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            descend(critic_opt, error)
            # L_π = min(exp(β A), cap) ℓ(a | s)
            w = torch.tensor([min(math.exp(A.inverse_temperature * float(x)), A.max_weight) for x in A_])
            kinds += ["capped"] * bool((w == A.max_weight).any()) + ["free"] * bool((w < A.max_weight).any())
            if kind == "gaussian":
                out = answer(actor, torch.zeros(B, H, D), 1.0, s)
                mu, sigma = out.mean, (0.1**2 + (2 * actor.log_std).exp()).sqrt()
                density = -0.5 * ((a - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
                each = torch.stack([-density[b][real[b]].sum() for b in range(B)])
            else:  # |v(x_t, t) − (ε − a)|² at times one in each of B / 2 strata, and their mirror images
                u, order = rng.take("uniform", B // 2), rng.take("permutation", B)
                t = (torch.arange(B // 2) + u) / B
                t = torch.cat([t, 1 - t])[order]
                eps = rng.take("normal", B, H, D)
                x = (1 - t)[:, None, None] * a + t[:, None, None] * eps
                apart = (velocity(actor, x, t, s) - (eps - a)) ** 2
                each = torch.stack([apart[b][real[b]].mean() for b in range(B)])
            loss = (w * each).mean()
            for group in actor_opt.param_groups:  # a cosine from lr to 0
                group["lr"] = A.lr * 0.5 * (1 + math.cos(math.pi * n / total))
            descend(actor_opt, loss)
            n += 1
            with torch.no_grad():
                for p, q in zip(slow.parameters(), critic.parameters(), strict=True):
                    p.copy_((1 - A.tau) * p + A.tau * q)
            share = float(w.sum()) ** 2 / (B * float((w * w).sum()))
            seen.append((loss.item(), error.item(), off.item(), V.mean().item(), share))
        told = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        names = ("loss/policy", "loss/critic", "loss/value", "v/data", "awr/ess_fraction")
        agree(logged[it], dict(zip(names, told, strict=True)), where=f"row {it}")

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["value"], value.state_dict(), where=f"value after iteration {it}")
        agree(state["policy"]["current"], actor.state_dict(), where=f"policy after iteration {it}")
    opts = {"critics.optimizer": critic_opt, "value_optimizer": value_opt, "optimizer": actor_opt}
    for name, opt in opts.items():
        agree(moments(spy.named[name]), moments(opt), where=f"moments of {name}")
    assert made.weights.execute == H, "it serves whole chunks"
    assert set(kinds) == {"over", "under", "capped", "free"}, kinds


def velocity(net: torch.nn.Module, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """v(x, t; s): what the network inside says of x [B, H, D] at times t [B]."""
    raw = net.net
    return raw(x, raw.embed_time(t), raw.embed_condition(s))  # type: ignore[operator, union-attr]
