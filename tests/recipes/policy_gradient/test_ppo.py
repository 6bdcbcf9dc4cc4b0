"""PPO beside 1707.06347, equations 6, 7 and 9: ratio of executed actions, clip, entropy, GAE, statistics, schedules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.control.acting import AdvantageEstimate, rollout_metrics
from denoiserl.data import RunningNormCodec
from denoiserl.distributions import Gaussian
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import GaussianHead, OneStep, time_grid
from denoiserl.recipes.policy_gradient import ppo
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, gae, moments, scaled
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D, DONE = 3, 2, 2
LEAST, LIMIT, PULL = 0.2, 1.3, 0.4
SCALE, CENTRE = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2])
A = ppo.Args(
    iterations=3, num_envs=4, rollout_steps=5, gamma=0.8, gae_lambda=0.7, clip_range=0.1, entropy_coef=0.3, lr=0.02,
    value_lr=0.004, final_lr_fraction=0.4, epochs=2, batch_size=5, max_grad_norm=2.0, target_kl=1e9, critic_warmup=1,
)  # fmt: skip


def start() -> Policy:
    torch.manual_seed(4)
    process = OneStep()
    net = GaussianHead(MLP((H, D), 2, 8, 2, 0, False, activation="tanh"), D, 0.7, LEAST)
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, net, (H, D), steps, serve, RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE))


def penalty(law: Gaussian) -> Tensor:
    return PULL * (law.mean - 0.5).square().flatten(1).sum(1)


@pytest.mark.parametrize(
    "more",
    [{}, {"target_kl": 0.05, "clip_range": 0.03, "batch_size": 1, "critic_warmup": 0, "epochs": 1}],
    ids=["minibatches", "stopped"],
)
def test_two_updates_are_those_of_the_paper(more: dict[str, Any]) -> None:
    a = replace(A, **more)
    made, env, rng = start().with_execution_horizon(DONE), Heard(planned(), a.num_envs, 1), Tape(3)
    env.owner.on_fault = "restart"
    spy = Spy(rng)
    logged = list(ppo.improve(made, env, a, rng, spy, penalty))

    actor, v = spy.start["policy"].denoiser, spy.start["baseline.net"]
    actor_opt, value_opt = adam(actor.parameters(), a.lr), adam(v.parameters(), a.value_lr)

    def law(z: Tensor) -> tuple[Tensor, Tensor]:
        """μ(s) and σ, σ² = least² + exp(2 θ)."""
        mu = answer(actor.net, torch.zeros(len(z), H, D), 1.0, z)
        return mu, (LEAST**2 + (2 * actor.log_std).exp()).sqrt().expand(mu.shape)

    def log_density(x: Tensor, mu: Tensor, sigma: Tensor, live: Tensor) -> Tensor:
        """log π(a | s), over the executed actions."""
        return ((-0.5 * ((x - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)) * live).sum((1, 2))

    seen, past, low, high, ends, moved = torch.empty(0, 2), {}, 0, 0, [0, 0, 0], []
    norms: dict[str, list[float]] = {"actor": [], "value": []}
    for it in range(a.iterations):
        ep = env.episodes[it]
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        conds = []
        for t in range(a.rollout_steps):  # what is seen is taken in before it is standardised
            seen = torch.cat([seen, ep.obs[t]])
            mean, std = seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()
            conds.append(((ep.obs[t] - mean) / std).clamp(-LIMIT, LIMIT))
            with torch.no_grad():
                mu, sigma = law(conds[t])
                x = mu + sigma * rng.take("normal", 1, a.num_envs, H, D)[0]
            agree(ep.chain.sample[t], x, where="decisions")
            agree(ep.action[t], CENTRE + SCALE * x[:, :DONE], where="actions")
        cond, x = torch.cat(conds), ep.chain.sample.flatten(0, 1)
        live = torch.zeros(len(x), H, D)
        live[:, :DONE] = ep.executed_mask.flatten(0, 1)[..., None].float()
        alive = ep.executed_mask.any(-1)
        with torch.no_grad():
            old = log_density(x, *law(cond), live)
            sees, then = (((o - mean) / std).clamp(-LIMIT, LIMIT) for o in (ep.obs, ep.next_obs))
            now, after = v(sees.flatten(0, 1)).view(alive.shape), v(then.flatten(0, 1)).view(alive.shape)
            discount = a.gamma ** ep.num_executed.float() * (~ep.terminated).float()
            credit = gae(scaled(ep, a.gamma, past), discount, now, after, ep.done, a.gae_lambda)
            goal = (credit + now).flatten()

        for opt, lr in ((actor_opt, a.lr), (value_opt, a.value_lr)):
            opt.param_groups[0].update(lr=lr * (1 - (1 - a.final_lr_fraction) * it / a.iterations), eps=1e-5)
        index, rows, moves, done = alive.flatten().nonzero().flatten(), [], it >= a.critic_warmup, 0
        for _ in range(a.epochs):
            order = index[rng.take("permutation", len(index))]
            for i in order.tensor_split(max(1, len(index) // a.batch_size)):
                error = 0.5 * ((v(sees.flatten(0, 1)[i]) - goal[i]) ** 2).mean()
                norms["value"].append(descend(value_opt, error, a.max_grad_norm))
                mu, sigma = law(cond[i])
                log_rho = log_density(x[i], mu, sigma, live[i]) - old[i]
                rho = log_rho.exp()
                kl = (rho.double() - 1 - log_rho.double()).mean()
                moves = moves and float(kl.detach()) <= a.target_kl
                done += moves
                if not moves:
                    continue
                adv = credit.flatten()[i]
                if len(i) > 1:
                    adv = (adv - adv.mean()) / adv.std(correction=0)
                surrogate = torch.minimum(rho * adv, rho.clamp(1 - a.clip_range, 1 + a.clip_range) * adv)
                entropy = ((sigma.log() + 0.5 * math.log(2 * math.pi * math.e)) * live[i]).sum((1, 2))
                pull = PULL * ((mu - 0.5) ** 2).sum((1, 2))
                loss = -surrogate.mean() - a.entropy_coef * entropy.mean() + pull.mean()
                below, above = (rho < 1 - a.clip_range).sum(), (rho > 1 + a.clip_range).sum()
                low, high = low + int(below), high + int(above)
                rows.append([loss.detach(), kl.detach(), (below + above) / len(i), sigma.detach().mean()])
                norms["actor"].append(descend(actor_opt, loss, a.max_grad_norm))

        state = spy.states[it + 1]
        agree(state["policy"], spy.start["policy"].state_dict(), where=f"policy after iteration {it}")
        agree(state["baseline.net"], v.state_dict(), where=f"critic after iteration {it}")
        kept = {"mean": seen.mean(0), "variance": seen.var(0, correction=0), "count": len(seen)}
        agree(state["statistics"], kept, where=f"statistics after iteration {it}")
        returns = torch.tensor(past["returns"]).double()
        squares = ((returns - returns.mean()) ** 2).sum()
        agree(
            state["baseline.scale"], {"count": len(returns), "mean": returns.mean(), "squares": squares}, where="scale"
        )
        row = experience(ep, credit)
        if rows:
            row |= dict(
                zip(
                    ("loss/policy", "ppo/approx_kl", "ppo/clip_fraction", "policy/std"),
                    torch.tensor(rows).mean(0),
                    strict=True,
                )
            )
        agree(logged[it], row, 1e-4, where=f"row {it}")  # terms of the loss cancel
        kinds = (ep.terminated, ep.done & alive & ~ep.terminated, ~alive)
        ends = [n + int(kind.sum()) for n, kind in zip(ends, kinds, strict=True)]
        moved.append(done / (a.epochs * max(1, len(index) // a.batch_size)))

    agree(moments(spy.named["optimizer"]), moments(actor_opt), where="moments of the actor")
    agree(moments(spy.named["baseline.optimizer"]), moments(value_opt), where="moments of the critic")
    assert min(ends) > 0, "true ends, time limits and lost decisions were in the batches"
    assert low > 0 and high > 0, "the clip was met on both sides"
    for what, found in norms.items():
        assert min(found) < a.max_grad_norm < max(found), f"some gradients of the {what} were clipped"
    assert moved == [0.0, 1.0, 1.0] if a.critic_warmup else any(0 < share < 1 for share in moved)


def test_the_std_of_a_row_is_the_mean_over_dimensions() -> None:
    """Of σ = (0.5, 2) it is 1.25, where the geometric mean is 1."""
    made = start().with_execution_horizon(DONE)
    with torch.no_grad():
        made.denoiser.log_std.copy_(torch.tensor([0.25 - LEAST**2, 4 - LEAST**2]).log() / 2)
    a = replace(A, iterations=1, epochs=1, batch_size=1000, critic_warmup=0)
    (row,) = ppo.improve(made, Heard(planned(breaks=False), a.num_envs, 1), a, Tape(3))
    agree(row["policy/std"], 1.25)


def test_value_error_is_of_decisions_that_happened() -> None:
    ep = Heard(planned(), A.num_envs, 1).collect(lambda obs, rng: torch.ones(A.num_envs, DONE, D), 1, Tape(3))
    ep = replace(
        ep, executed_mask=ep.executed_mask & (torch.arange(A.num_envs) > 0)[:, None]
    )  # the first copy lost its decision
    goal = (~ep.valid.flatten()).double()
    assert rollout_metrics(
        ep, AdvantageEstimate(ep.obs.flatten(0, 1), torch.zeros(ep.valid.shape), torch.zeros(ep.valid.shape), goal)
    )["loss/value"] == pytest.approx(0.0)
