"""FQL beside 2502.02538, algorithm 1: a flow that imitates, a student of one step, mean critics, the paced climb."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, linear, time_grid, with_min_std
from denoiserl.recipes.offline_rl import fql
from tests.recipes.kit import Spy, Tape, adam, agree, descend, moments
from tests.recipes.logs import CENTRE, HALF, Faint, Level, batch, decisions, recording, robot, units

H, D = 2, 2
LOUD = fql.Args(
    iterations=2,
    updates_per_iteration=2,
    batch_size=22,
    bc_weight=0.6,
    flow_steps=3,
    n_step=2,
    gamma=0.8,
    tau=0.3,
    lr=0.01,
    max_grad_norm=0.4,
    critic_width=8,
    layer_norm=True,
)
FAINT = replace(
    LOUD, iterations=1, bc_weight=1.7, flow_steps=2, n_step=3, lr=1e-5, max_grad_norm=50.0, layer_norm=False
)
"""critics whose values are below the floor of 1e-3"""


def start() -> Policy:
    torch.manual_seed(4)
    process = Diffusion(linear, with_min_std(ddim(0.0), 0.1))
    net = GaussianDenoiser(MLP((H, D), 3, 8, 2, 4, layer_norm=True), linear, "v")
    with torch.no_grad():
        net.net.leave.weight.mul_(4)  # type: ignore[union-attr, operator]  # one step and several end far apart
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), ddim(0.0))
    return Policy.of(process, net, (H, D), steps, serve, robot())


def velocity(net: torch.nn.Module, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """v(x, t; s): what the network inside says of x [B, H, D] at times t [B], from noise (1) to data (0)."""
    raw = net.net
    return raw(x, raw.embed_time(t), raw.embed_condition(s))  # type: ignore[operator, union-attr]


def walk(net: torch.nn.Module, z: Tensor, s: Tensor, K: int) -> Tensor:
    """Where the flow's ODE ends that starts at z, in K Euler steps; of the student, K = 1."""
    for k in range(K):
        z = z - velocity(net, z, torch.full((len(z),), 1 - k / K), s) / K
    return z


@pytest.mark.parametrize(("A", "tape"), [(LOUD, Level), (FAINT, Faint)], ids=["loud", "faint"])
def test_updates_are_those_of_the_paper(A: fql.Args, tape: type[Tape]) -> None:
    made, data, rng = start(), recording(), tape(3)
    spy = Spy(rng)
    logged = list(fql.improve(made, data, A, rng, spy))

    critic, slow, teacher = (spy.start[k] for k in ("critics.net", "critics.target_net", "teacher"))
    student = spy.start["policy"].weights.module
    agree([slow.state_dict(), teacher.state_dict()], [critic.state_dict(), student.state_dict()], 0.0)
    assert (critic.config["width"], critic.config["layer_norm"]) == (A.critic_width, A.layer_norm)
    nets = (critic, teacher, student)
    critic_opt, teacher_opt, student_opt = (adam(net.parameters(), A.lr) for net in nets)
    rows, B = decisions(data, H, A.n_step, A.gamma), A.batch_size

    kinds = list[str]()
    for it in range(A.iterations):
        seen = []
        index, filler = (
            rng.take("integers", A.updates_per_iteration, B),
            rng.take("uniform", A.updates_per_iteration, B, H, D),
        )
        for k in range(A.updates_per_iteration):
            s, a, r, discount, after, real = batch(rows, index[k], filler[k])
            # y = r + γ^n mean Q̄(s', π(s', z'))
            with torch.no_grad():
                decided = walk(student, rng.take("normal", B, H, D), after, 1)
                kinds += ["target clipped"] * bool((decided.abs() > 1).any())
                y = r + discount * slow(after, decided.clamp(-1, 1)).sum(0) / 2
            q1, q2 = critic(s, a)
            value = (q1.mean() + q2.mean()).item() / 2
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            kinds += ["critic clipped"] * (descend(critic_opt, error, A.max_grad_norm) > A.max_grad_norm)

            # L_flow = |v(x_t, t) − (ε − a)|², times one in each of B / 2 strata, and their mirror images
            u, order = rng.take("uniform", B // 2), rng.take("permutation", B)
            t = (torch.arange(B // 2) + u) / B
            t = torch.cat([t, 1 - t])[order]
            eps = rng.take("normal", B, H, D)
            x = (1 - t)[:, None, None] * a + t[:, None, None] * eps
            apart = (velocity(teacher, x, t, s) - (eps - a)) ** 2
            imitation = torch.stack([apart[b][real[b]].mean() for b in range(B)]).mean()
            kinds += ["teacher clipped"] * (descend(teacher_opt, imitation, A.max_grad_norm) > A.max_grad_norm)

            # L_π = α |π(s, z) − sg G(s, z)|² − E[Q(s, π(s, z))] / E|Q|
            z = rng.take("normal", B, H, D)
            with torch.no_grad():
                goal = walk(teacher, z, s, A.flow_steps)
                kinds += ["goal clipped"] * bool((goal.abs() > 1).any())
            own = walk(student, z, s, 1)
            kinds += ["clipped"] * bool((own.abs() > 1).any())
            far = ((own - goal.clamp(-1, 1)) ** 2).mean()
            q = critic(s, own.clamp(-1, 1)).sum(0) / 2
            pace = float(q.detach().abs().mean())
            kinds += ["slow" if pace < 1e-3 else "fast"] + ["signs"] * bool((q > 0).any() and (q < 0).any())
            norm = descend(student_opt, A.bc_weight * far - q.mean() / max(pace, 1e-3), A.max_grad_norm)
            kinds += ["student clipped"] * (norm > A.max_grad_norm)
            with torch.no_grad():
                for p, w in zip(slow.parameters(), critic.parameters(), strict=True):
                    p.copy_((1 - A.tau) * p + A.tau * w)
            seen.append((imitation.item(), far.item(), error.item(), value, q.mean().item()))
        told = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        names = ("loss/bc", "loss/distill", "loss/critic", "q/data", "q/policy")
        agree(logged[it], dict(zip(names, told, strict=True)), where=f"row {it}")

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["teacher"], teacher.state_dict(), where=f"teacher after iteration {it}")
        agree(state["policy"]["current"], student.state_dict(), where=f"student after iteration {it}")
    opts = {"critics.optimizer": critic_opt, "teacher_optimizer": teacher_opt, "optimizer": student_opt}
    for name, opt in opts.items():
        agree(moments(spy.named[name]), moments(opt), where=f"moments of {name}")

    # what it serves: one decision of the student
    obs, rng = data.demos.observations, Tape(7)
    with torch.no_grad():
        served, plan = made.generate(obs, rng), walk(student, rng.take("normal", len(obs), H, D), units(obs), 1)
    agree(served, CENTRE + HALF * plan.clamp(-1, 1), where="served")
    assert made.weights.execute == H, "it serves whole chunks"
    met = {"target clipped", "goal clipped", "clipped"}
    if A is FAINT:
        assert set(kinds) - {"signs"} == met | {"slow"}, kinds
    else:
        assert set(kinds) == met | {"fast", "signs", "critic clipped", "teacher clipped", "student clipped"}, kinds
