"""GoRL beside 2512.02581: PPO of latents and their pull to the prior, the decoder made anew, the switch, the stages."""

from __future__ import annotations

import copy
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
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, linear, time_grid
from denoiserl.recipes.policy_gradient import gorl
from tests.recipes.kit import Heard, Made, Spy, Tape, adam, agree, answer, descend, experience, gae, moments, scaled
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D, CLIP = 3, 2, 0.9
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
A = gorl.Args(
    iterations=4, stage_fractions=(1.0, 0.0, 1.0), num_envs=4, rollout_steps=5, gamma=0.8, gae_lambda=0.7,
    clip_range=0.06, latent_clip_range=0.1, prior_weight=0.3, initial_std=0.8, encoder_width=8, lr=0.02, value_lr=0.004,
    epochs=2, batch_size=6, max_grad_norm=0.7, target_kl=1e9, critic_warmup=1, decoder_rollout_steps=2,
    decoder_updates=103, decoder_batch_size=7, decoder_lr=0.01, max_return_drop=1e9,
)  # fmt: skip
SHORT = replace(A, iterations=2, epochs=1, critic_warmup=0, decoder_updates=3)
CASES = {
    "decoder": A,
    "actions": replace(
        A, first_stage="actions", critic_warmup=0, decoder_updates=3, decoder_rollout_steps=4, target_kl=0.02
    ),
    "taken back": replace(SHORT, max_return_drop=-1e9),
    "actions stay": replace(
        SHORT, first_stage="actions", max_return_drop=-1e9, decoder_rollout_steps=4
    ),  # the second stage still decides actions
    "swallowed": replace(
        SHORT, first_stage="actions", decoder_rollout_steps=7, rollout_steps=6
    ),  # resets are no decisions to imitate
    "unfinished": replace(SHORT, decoder_rollout_steps=1),  # no first episode ends, so rewards per step are compared
}


EXECUTE = dict.fromkeys(CASES, 2) | dict.fromkeys(("actions", "actions stay", "swallowed"), 1)
"""actions of a chunk that are executed"""


def start(running: bool) -> Policy:
    torch.manual_seed(4)
    seen, acts = (
        replace(Normalizer.identity(2), centre=centre, scale=scale) for centre, scale in ((MEAN, STD), (CENTRE, SCALE))
    )
    process = Diffusion(linear, ddim(0.0), CLIP)
    net = GaussianDenoiser(MLP((H, D), 2, 8, 2, 4, activation="tanh"), linear, "v")
    codec = (
        RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE) if running else ActionChunkCodec(seen, acts, LIMIT)
    )
    return Policy.of(process, net, (H, D), process.steps(time_grid(2)), process.steps(time_grid(3)), codec)


def world(a: gorl.Args) -> Any:
    """Copies that end early inside chunks; or those that begin anew by themselves, in a step that is swallowed."""
    make = planned(breaks=False)
    if a.first_stage == "decoder":
        return make
    later = gymnasium.vector.AutoresetMode.NEXT_STEP
    return gymnasium.vector.SyncVectorEnv([make for _ in range(a.num_envs)], autoreset_mode=later)


@pytest.mark.parametrize("case", CASES)
def test_stages_are_those_of_the_paper(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, running = CASES[case], case == "actions"
    if case == "unfinished":
        monkeypatch.setattr(gorl, "MAX_ROLLOUTS", 2)
    execute = EXECUTE[case]
    policy, env, rng = start(running).with_execution_horizon(execute), Heard(world(a), a.num_envs, 1), Made(3)
    spy = Spy(rng)
    logged = list(gorl.improve(policy, env, a, rng, spy))
    episodes, rows = iter(env.episodes), iter(logged)
    decoder = start(running).denoiser
    seen, both, outside, stopped = torch.empty(0, 2), [], [False, False], False

    def standard(obs: Tensor) -> Tensor:
        """What the networks see: standardised by what was seen so far, or by the normaliser; clipped."""
        if running:
            return ((obs - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()).clamp(-LIMIT, LIMIT)
        return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)

    def plan(net: GaussianDenoiser, z: Tensor, cond: Tensor) -> Tensor:
        """G(s, z): three Euler steps of the ODE, x + (s − t) v̂, with a clamped estimate."""
        x = z
        for k in range(3):
            t, s = 1 - k / 3, 1 - (k + 1) / 3
            x0 = (x - t * answer(net.net, x, t, cond)).clamp(-CLIP, CLIP)
            x = (1 - s) * x0 + s * (x - (1 - t) * x0) / t
        return x

    def clamped(x: Tensor) -> Tensor:
        return x if running else x.clamp(-1, 1)

    def law(encoder: Any, cond: Tensor) -> tuple[Tensor, Tensor]:
        """μ(s) and σ = exp θ."""
        mu = answer(encoder.net, torch.zeros(len(cond), H, D), 1.0, cond)
        return mu, encoder.log_std.exp().expand(mu.shape)

    def log_density(z: Tensor, mu: Tensor, sigma: Tensor, live: Tensor) -> Tensor:
        return ((-0.5 * ((z - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)) * live).sum((1, 2))

    @torch.no_grad()
    def played(encoder: Any, net: GaussianDenoiser, through: bool, steps: int) -> tuple[Any, Tensor]:
        """The next episode, whose decisions and actions are those of encoder and decoder; and what they saw."""
        nonlocal seen
        ep, conds = next(episodes), []
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        for t in range(steps):
            seen = torch.cat([seen, ep.obs[t]])
            conds.append(standard(ep.obs[t]))
            mu, sigma = law(encoder, conds[t])
            z = mu + sigma * rng.take("normal", 1, a.num_envs, H, D)[0]
            agree(ep.chain.sample[t], z, where="latents")
            done = CENTRE + SCALE * clamped(plan(net, z, conds[t]) if through else z)
            agree(ep.action[t], done[:, :execute], where="actions")
        return ep, torch.cat(conds)

    def improved(name: str, encoder: Any, net: GaussianDenoiser, through: bool, iters: int) -> None:
        """PPO's updates of the encoder, as if z were the action: see test_ppo."""
        nonlocal stopped
        stage, clip, past = spy.stages[name], a.latent_clip_range if through else a.clip_range, {}
        v = stage.start["baseline.net"]
        opt, value_opt = adam(encoder.parameters(), a.lr), adam(v.parameters(), a.value_lr)
        for group in (*opt.param_groups, *value_opt.param_groups):
            group["eps"] = 1e-5
        for it in range(iters):
            ep, cond = played(encoder, net, through, a.rollout_steps)
            z, alive = ep.chain.sample.flatten(0, 1), ep.executed_mask.any(-1)
            live = torch.ones(len(z), H, D)
            if not through:  # the latent is the plan, of which some is executed
                live[:, :execute] = ep.executed_mask.flatten(0, 1)[..., None].double()
                live[:, execute:] = 0.0
            with torch.no_grad():
                old = log_density(z, *law(encoder, cond), live)
                sees, then = standard(ep.obs.flatten(0, 1)), standard(ep.next_obs.flatten(0, 1))
                now, after = v(sees).view(alive.shape), v(then).view(alive.shape)
                discount = a.gamma ** ep.num_executed.float() * (~ep.terminated).float()
                credit = gae(scaled(ep, a.gamma, past), discount, now, after, ep.done, a.gae_lambda)
                goal = (credit + now).flatten()
            index, told, moves = alive.flatten().nonzero().flatten(), [], it >= a.critic_warmup
            for _ in range(a.epochs):
                for i in index[rng.take("permutation", len(index))].tensor_split(max(1, len(index) // a.batch_size)):
                    descend(value_opt, (0.5 * (v(sees[i]) - goal[i]) ** 2).mean(), a.max_grad_norm)
                    mu, sigma = law(encoder, cond[i])
                    log_rho = log_density(z[i], mu, sigma, live[i]) - old[i]
                    rho = log_rho.exp()
                    kl = (rho - 1 - log_rho).detach().mean()
                    stopped = stopped or (moves and float(kl) > a.target_kl)
                    moves = moves and float(kl) <= a.target_kl
                    if not moves:
                        continue
                    outside[0] |= bool((rho < 1 - clip).any())
                    outside[1] |= bool((rho > 1 + clip).any())
                    adv = credit.flatten()[i]
                    adv = (adv - adv.mean()) / adv.std(correction=0)
                    surrogate = torch.minimum(rho * adv, rho.clamp(1 - clip, 1 + clip) * adv)
                    pull = a.prior_weight * (mu**2 + sigma**2).mean((1, 2))
                    loss = (-surrogate + pull).mean()
                    share = ((rho - 1).abs() > clip).double().mean()
                    told.append([loss.detach(), kl, share, sigma.detach().mean()])
                    descend(opt, loss, a.max_grad_norm)
            state = stage.states[it + 1]
            # Observations and rewards are float32, and Adam divides small gradients by their own size.
            agree(state["policy"]["current"], encoder.state_dict(), 5e-5, f"encoder after iteration {it} of {name}")
            agree(state["baseline.net"], v.state_dict(), where=f"critic after iteration {it} of {name}")
            row = experience(ep, credit) | {"gorl/stage": int(name[-1])}
            if told:
                names = ("loss/policy", "ppo/approx_kl", "ppo/clip_fraction", "policy/std")
                row |= dict(zip(names, torch.tensor(told).mean(0), strict=True))
            agree(next(rows), row, 1e-4, where=f"row {it} of {name}")  # terms of the loss cancel
        agree(moments(stage.named["optimizer"]), moments(opt), 5e-5, where=f"moments of the encoder in {name}")
        agree(
            moments(stage.named["baseline.optimizer"]),
            moments(value_opt),
            5e-5,
            where=f"moments of the critic in {name}",
        )

    def rollouts(encoder: Any, net: GaussianDenoiser, through: bool) -> tuple[list[Any], Tensor, Tensor]:
        """Rollouts until every copy has ended an episode; return of the first one of each copy, NaN without one."""
        parts, cond, most = [], torch.empty(0), 2 if case == "unfinished" else 20
        first, ended = torch.full((a.num_envs,), torch.nan), torch.zeros(a.num_envs, dtype=torch.bool)
        while len(parts) < most and not bool(ended.all()):
            ep, saw = played(encoder, net, through, a.decoder_rollout_steps)
            cond = saw if not parts else cond
            parts.append(ep)
            for t in range(a.decoder_rollout_steps):
                fresh = ep.done[t] & ~ended
                first, ended = torch.where(fresh, ep.info["return"][t].double(), first), ended | fresh
        return parts, first, cond

    encoder = spy.stages["latent-0"].start["policy"].denoiser
    agree(law(encoder, torch.randn(5, 2)), (torch.zeros(5, H, D), torch.full((5, H, D), a.initial_std)))
    through = a.first_stage == "decoder"
    improved("latent-0", encoder, decoder, through, a.iterations // 2)

    before, was, _ = rollouts(encoder, decoder, through)
    alive = before[0].executed_mask.any(-1).flatten()
    z, obs = (x.flatten(0, 1)[alive] for x in (before[0].chain.sample, before[0].obs))
    with torch.no_grad():
        cond = standard(obs)
        plans = clamped(plan(decoder, z, cond) if through else z)
    fresh = next(net for net in rng.made if isinstance(net, GaussianDenoiser))
    opt, mean, losses = adam(fresh.parameters(), 0.0), None, []
    for n in range(a.decoder_updates):
        warm, total = min(100, a.decoder_updates), a.decoder_updates
        rate = (n + 1) / warm if n < warm else 0.5 * (1 + math.cos(math.pi * (n - warm) / (total - warm)))
        opt.param_groups[0]["lr"] = a.decoder_lr * rate
        i, half = rng.take("integers", a.decoder_batch_size), a.decoder_batch_size // 2
        early = (
            torch.arange(half + a.decoder_batch_size % 2) + rng.take("uniform", half + a.decoder_batch_size % 2)
        ) / a.decoder_batch_size
        t = torch.cat([early, 1 - early[:half]])[rng.take("permutation", a.decoder_batch_size)].clamp(1e-5, 1 - 1e-5)
        noise, at = rng.take("normal", a.decoder_batch_size, H, D), t[:, None, None]
        x = (1 - at) * plans[i] + at * noise  # flow matching from N(0, 1), not from the encoder's z
        loss = ((answer(fresh.net, x, t, cond[i]) - (noise - plans[i])) ** 2).mean()
        losses.append(loss.detach())
        descend(opt, loss, 1.0)
        decay, now = 1 - (1 + n) ** -0.75, [p.detach().clone() for p in fresh.parameters()]
        mean = now if mean is None else [decay * m + (1 - decay) * p for m, p in zip(mean, now, strict=True)]
    with torch.no_grad():
        for p, m in zip(fresh.parameters(), mean, strict=True):
            p.copy_(m)
    blank = copy.deepcopy(encoder)
    with torch.no_grad():
        blank.net.leave.weight.zero_(), blank.net.leave.bias.zero_(), blank.log_std.fill_(math.log(a.initial_std))
    after, got, _ = rollouts(blank, fresh, True)
    agree(after[0].obs[0], before[0].obs[0], 0.0)  # both pairs begin at the same states

    ended = was.isfinite() & got.isfinite()
    if bool(ended.any()):
        was, got = was[ended].mean(), got[ended].mean()
        both = [len(before), len(after)]
    else:
        was, got = (
            sum(ep.reward[ep.executed_mask.any(-1)].double().sum() for ep in parts)
            / sum(ep.num_executed.sum() for ep in parts)
            for parts in (before, after)
        )
    taken = bool(got >= was - a.max_return_drop * abs(was))
    told = {
        "loss/decoder": losses[-1],
        "decoder/action_std": plans.std(0).mean(),
        "decoder/return_before": was,
        "decoder/return_after": got,
    }
    agree(next(rows), told | {"decoder/accepted": float(taken)}, where="row of the switch")
    decoder, through = (fresh, True) if taken else (decoder, through)
    state = spy.stages["decoder-0"].states[1]["policy"]["current"]
    agree(state, decoder.state_dict(), where="decoder after the switch")

    begun = spy.stages["latent-1"].start["policy"].denoiser
    if taken:
        agree(law(begun, torch.randn(5, 2)), (torch.zeros(5, H, D), torch.full((5, H, D), a.initial_std)))
        encoder = begun
    else:
        agree(begun.state_dict(), encoder.state_dict(), where="the encoder goes on")
    improved("latent-1", encoder, decoder, through, a.iterations // 2)
    assert next(rows, None) is None and next(episodes, None) is None

    with torch.no_grad():  # it serves the encoder's mean
        obs = torch.tensor([[0.1, 0.4], [-0.3, 0.2]])
        cond = standard(obs)
        mu, _ = law(encoder, cond)
        agree(
            policy.generate(obs, rng),
            CENTRE + SCALE * clamped(plan(decoder, mu, cond) if through else mu),
            where="served",
        )
    assert taken == (a.max_return_drop > 0) and (case == "unfinished") == (not both)
    assert case == "unfinished" or (max(both) > 1) == (case != "swallowed"), "some rollouts had to go on"
    assert bool(alive.all()) == (case != "swallowed"), "some decisions of the rollout did not happen"
    assert stopped == (case == "actions") and (a.epochs == 1 or all(outside)), "the clip was met on both sides"


def test_switch_may_lose_the_drop_and_no_more() -> None:
    def told(drop: float) -> dict:
        a = replace(CASES["taken back"], decoder_updates=1, max_return_drop=drop)
        rows = gorl.improve(start(False), Heard(world(a), a.num_envs, 1), a, Tape(3))
        return next(row for row in rows if "decoder/accepted" in row)

    row = told(0.0)
    lost = (row["decoder/return_before"] - row["decoder/return_after"]) / abs(row["decoder/return_before"])
    assert [told(lost + more)["decoder/accepted"] for more in (1e-3, -1e-3)] == [1.0, 0.0]


def test_switch_is_not_judged_by_episodes_that_a_fault_ended() -> None:
    env = Heard(planned(), A.num_envs, 1)
    env.owner.on_fault = "restart"
    ep = env.collect(lambda obs, rng: torch.ones(A.num_envs, 2, D), 4, Tape(3))
    first = ep.done.int().argmax(0)
    lost = ~ep.valid[first, torch.arange(A.num_envs)]
    assert bool(lost.any()) and not bool(lost.all())
    assert torch.equal(gorl.first_returns([ep]).isnan(), lost)


def test_returns_are_compared_where_both_finished() -> None:
    """Copies 0 and 1 finish before, 1 and 2 after: 1 alone is compared, of which each told a first return."""
    ep = Heard(planned(breaks=False), 3, 1).collect(lambda obs, rng: torch.ones(3, 2, D), 2, Tape(3))

    def finished(done: list[list[bool]], told: list[list[float]]) -> Any:
        return replace(ep, done=torch.tensor(done), info={"return": torch.tensor(told)})

    before = finished([[True, False, False], [True, True, False]], [[-8.0, 0.0, 0.0], [3.0, -2.0, -9.0]])
    after = finished([[False, True, False], [False, True, True]], [[-7.0, -1.0, 0.0], [5.0, 4.0, -6.0]])
    assert gorl.compare_returns([before], [after]) == (-2.0, -1.0)
    assert gorl.compare_returns([after], [before]) == (-1.0, -2.0)
    assert gorl.compare_returns([before], [before]) == (-5.0, -5.0)
