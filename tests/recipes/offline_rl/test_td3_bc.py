"""TD3+BC beside 2106.06860, equations 3 to 5: TD3's critics on logged data, and an actor that stays near them."""

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
from denoiserl.recipes.offline_rl import td3_bc
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments
from tests.recipes.logs import HIGH, LIMIT, LOW, MEAN, STD, Faint, Level, batch, decisions, recording

H, D = 2, 2
LOUD = td3_bc.Args(
    iterations=2, updates_per_iteration=3, batch_size=16, q_weight=1.7, target_noise=0.4, target_noise_clip=0.3,
    policy_delay=2, n_step=2, gamma=0.8, tau=0.3, lr=0.02, critic_width=8, layer_norm=True,
)  # fmt: skip
FAINT = replace(LOUD, iterations=1, updates_per_iteration=2, policy_delay=1, n_step=1, lr=1e-5, layer_norm=False)
"""a critic whose values are below the floor of 1e-3 in both updates"""


def start() -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(3), centre=MEAN, scale=STD)
    net = Actor(MLP((H, D), 3, 8, 2, 0, False, activation="relu", out=(H, 2 * D)))
    with torch.no_grad():  # decisions near the edges of the box: up and back
        net.net.leave.weight.mul_(5)  # type: ignore[union-attr, operator]
        net.net.leave.bias.copy_(torch.tensor([1.2, -1.2, 0.0, 0.0, -1.2, 1.2, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    codec = replace(TanhCodec.from_box(LOW, HIGH, seen), limit=LIMIT)
    return Policy.of(process, net, (H, D), steps, serve, codec)


def mu(net: Denoiser, seen: Tensor) -> Tensor:
    """The decision tanh μ(s) in [−1, 1]."""
    return torch.tanh(answer(net, torch.zeros(len(seen), H, D), 1.0, seen).mean)


@pytest.mark.parametrize(("A", "tape"), [(LOUD, Level), (FAINT, Faint)], ids=["loud", "faint"])
def test_updates_are_those_of_the_paper(A: td3_bc.Args, tape: type[Tape]) -> None:
    made, data, rng = start(), recording(), tape(3)
    spy = Spy(rng)
    logged = list(td3_bc.improve(made, data, A, rng, spy))

    critic, slow, policy = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    actor, slow_actor = policy.weights.module, policy.weights.sets["target"]
    agree([slow.state_dict(), slow_actor.state_dict()], [critic.state_dict(), actor.state_dict()], 0.0)
    assert (critic.config["width"], critic.config["layer_norm"]) == (A.critic_width, A.layer_norm)
    critic_opt, actor_opt = adam(critic.parameters(), A.lr), adam(actor.parameters(), A.lr)
    rows = decisions(data, H, A.n_step, A.gamma)

    updates, kinds = 0, list[str]()
    for it in range(A.iterations):
        seen = []
        index, filler = (
            rng.take("integers", A.updates_per_iteration, A.batch_size),
            rng.take("uniform", A.updates_per_iteration, A.batch_size, H, D),
        )
        for k in range(A.updates_per_iteration):
            s, a, r, discount, after, real = batch(rows, index[k], filler[k])
            updates += 1
            eps = A.target_noise * rng.take("normal", A.batch_size, H, D)
            with torch.no_grad():
                moved = mu(slow_actor, after) + eps.clamp(-A.target_noise_clip, A.target_noise_clip)
                kinds += ["edge"] * bool((moved > 1).any() and (moved < -1).any())
                kinds += ["smooth"] * bool((eps > A.target_noise_clip).any() and (eps < -A.target_noise_clip).any())
                q1, q2 = slow(after, moved.clamp(-1, 1))
                y = r + discount * torch.minimum(q1, q2)
            q1, q2 = critic(s, a)
            value = (q1.mean() + q2.mean()).item() / 2
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            descend(critic_opt, error)
            if updates % A.policy_delay == 0:
                # π = argmax λ Q₁(s, π(s)) − (π(s) − a)²,  λ = α / E|Q₁|: equations 3 and 5
                decision = mu(actor, s)
                q = critic(s, decision)[0]
                pace = q.detach().abs().mean()
                kinds += ["slow" if float(pace) < 1e-3 else "fast"]
                kinds += ["signs"] * bool((q > 0).any() and (q < 0).any())
                far = ((decision - a) ** 2)[real].mean()
                descend(actor_opt, -A.q_weight / max(float(pace), 1e-3) * q.mean() + far)
                with torch.no_grad():
                    for late, net in ((slow, critic), (slow_actor, actor)):
                        for p, q in zip(late.parameters(), net.parameters(), strict=True):
                            p.copy_((1 - A.tau) * p + A.tau * q)
                seen.append((error.item(), value, far.item()))
        told = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
        agree(logged[it], dict(zip(("loss/critic", "q/data", "loss/bc_mse"), told, strict=True)), where="row")

        state = spy.states[it + 1]
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["policy"]["current"], actor.state_dict(), where=f"policy after iteration {it}")
        agree(state["policy"]["sets"]["target"], slow_actor.state_dict(), where=f"slow policy after iteration {it}")
    agree(moments(spy.named["critics.optimizer"]), moments(critic_opt), where="moments of critic_opt")
    agree(moments(spy.named["optimizer"]), moments(actor_opt), where="moments of opt")

    assert made.weights.execute == H, "it serves whole chunks"
    assert set(kinds) - {"signs"} == {"edge", "smooth", "slow" if A is FAINT else "fast"}, kinds
    assert A is FAINT or "signs" in kinds, "the critic's values had both signs"
