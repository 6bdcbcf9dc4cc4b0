"""ReinFlow: PPO on a flow policy of few steps, through a learned noise that is thrown away afterwards.

paper: arXiv 2505.22094
signal: env
family: path policy gradient
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: flow, diffusion
likelihood: replay

A flow is deterministic, so its steps have no density. While it learns, a small network beside it adds noise to every
step, and the step becomes a Gaussian:

    x_{k+1} ~ N(x_k + v_θ(x_k, t_k, s) Δt, σ_φ(x_k, t_k, s)²),   σ_φ in [least, most]

θ and φ learn together from *one* clipped ratio a decision, that of the whole path: log π is the sum over steps and
dimensions of the executed actions, divided by how many there are (so ρ is a geometric mean, and ``clip`` is small). The
first state is drawn from N(0, 1) whatever θ is, and cancels in ρ. With Â from GAE over chunks,

    L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â) − c H + b E_z‖a_θ(z) − a_base(z)‖²

H is the entropy a dimension of a step; the last term (``bc``, off by default) is a bound on the squared W₂ distance
from the policy that it started from, both run as ODEs from the same noise z. As published: ``most`` is held for the
first 35 % of the iterations and then falls by a cosine to least + 0.7 (most − least); one optimiser for θ and φ; the
noise net is not saved and the policy is served as an ODE.
Differences: one grid for drawing and scoring, from t = 1 in equal steps (released versions have drawn at times that
include the data's end, and scored at others); the estimate is clamped where the process says so, and not the state
after a step; draws are not cut at three std, nor log-probs clamped to a range (a clamp passes no gradient); σ may
depend on x_k, as in the paper; z is drawn anew (the released code takes z = 0); the approximate KL that stops an update
is that of the joint law.

With one step, only the injected noise explores around a draw of z, and that is enough. One ratio a path averages more
numbers than DPPO's, one a step: the same ``clip`` lets the law move further (an approximate KL of 0.3, not 0.04).

Expect, on the fork2d of the claim ``reinflow`` (``steps=12``, one seed), a flow cloned to a success of 0.36 to be at
0.60, 0.75 and 0.87 after 8, 16 and 24 iterations, served as an ODE; DPPO on the same flow is at 0.50 after 24.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.chain import Sample, sampler
from denoiserl.credit import normalise
from denoiserl.data import Running
from denoiserl.env import Stream
from denoiserl.env.planner import chunked, executed, judged, sight, told
from denoiserl.env.scale import RewardScale
from denoiserl.errors import BadSignal
from denoiserl.law import Gaussian, Law
from denoiserl.likelihood import assert_on_policy
from denoiserl.net import MLP, Value
from denoiserl.objective import approx_kl, clip_fraction, ppo_clip, squared
from denoiserl.policy import Policy
from denoiserl.process import Diffusion, Exploring, ddim, injected
from denoiserl.recipes import _robot, _stages
from denoiserl.recipes.ppo import watching
from denoiserl.rng import Rng
from denoiserl.task import Task
from denoiserl.train import Keep, adamw, covers, step
from denoiserl.weights import Weights


@dataclass(frozen=True)
class Args:
    seed: int = 0
    iters: int = 40
    """collect-and-update rounds"""
    copies: int = 40
    """environments side by side"""
    steps: int = 22
    """chunks each environment plays an iteration"""
    execute: int | None = None
    """actions of a chunk that are executed before the policy plans again (None: all)"""
    gamma: float = 0.99
    """discount a tick"""
    lam: float = 0.95
    """GAE's λ, over chunks"""
    least: float = 0.1
    """least std of the injected noise"""
    most: float = 0.24
    """largest std of the injected noise"""
    hold: float = 0.35
    """share of the iterations in which ``most`` stands"""
    last: float = 0.7
    """where ``most`` ends: this share of the way from ``least`` up to it"""
    clip: float = 0.01
    """range of the geometric-mean ratio of a decision"""
    entropy: float = 0.03
    """weight of the entropy a dimension"""
    bc: float = 0.0
    """weight of the distance from the starting policy; 0 needs no pass of it"""
    lr: float = 3e-4
    """the learning rate of flow and noise"""
    value_lr: float = 1e-3
    """the critic's learning rate"""
    epochs: int = 5
    """most passes over an iteration's decisions"""
    batch: int = 220
    """decisions a gradient step, about"""
    target_kl: float = 1.0
    """stop the update when the approximate KL of a minibatch passes this"""
    warmup: int = 0
    """iterations in which only the critic learns"""
    eval_every: int = 10
    """iterations between held-out evaluations"""
    base: _robot.Base = _robot.Base()
    """the policy that is improved"""


def improve(policy: Policy, env: Stream, a: Any, rng: Rng, keep: Keep | None = None) -> Iterator[dict]:
    """Improve a policy that is served as an ODE; it gets no noise net, and no step more."""
    keep, execute, (see, seen_size) = keep or Keep(), chunked(policy, a.execute), sight(policy, env)
    noisy, explorer = rng.init(exploring, policy, seen_size, a.least, a.most)
    act, k = watching(noisy, execute), len(noisy.train)
    if a.bc > 0:
        policy.weights.keep("base")
    value, scale = rng.init(Value, seen_size, width=256).to(policy.device), RewardScale()
    opt, critic = adamw(noisy.parameters(), a.lr), adamw(value.parameters(), a.value_lr)
    covers([opt, critic], explorer, value)
    seen = policy.codec if isinstance(policy.codec, Running) else None
    named = {"policy": policy, "noise": explorer.noise, "value": value, "opt": opt, "critic": critic, "scale": scale}
    for it in keep.loop(a.iters, **named, rng=rng, env=env, seen=seen):
        explorer.most = ceiling(it / a.iters, a.least, a.most, a.hold, a.last)
        ep = env.collect(act, a.steps, rng)
        assert ep.chain is not None
        chain, alive = executed(ep.chain, execute), ep.alive.to(policy.device).flatten()
        critique = judged(ep, value, see, scale, a.gamma, a.lam)
        credit, index = critique.credit.flatten(), torch.nonzero(alive).flatten()
        with torch.no_grad():
            old, size = path(*noisy.replay(chain), k)
        if it == 0 and chain.live is None:
            assert_on_policy(old, chain.log_prob.sum(-1).flatten() / size)
        parts, updates, moves = max(1, len(index) // a.batch), [], it >= a.warmup
        for i in (i for _ in range(a.epochs) for i in index[rng.permutation(len(index))].tensor_split(parts)):
            step(critic, squared(value(critique.seen[i]), critique.goal[i]).mean(), clip=1.0)
            if not moves:
                continue
            rows = chain.rows((i[:, None] * k + torch.arange(k, device=i.device)).flatten())
            law, y = noisy.replay(rows)
            assert isinstance(law, Gaussian)
            logp, size = path(law, y, k)
            kl = float(approx_kl(logp.detach() * size, old[i] * size))
            if kl > a.target_kl:
                moves = False
                continue
            loss = ppo_clip(logp, old[i], normalise(credit[i]), a.clip).mean()
            loss = loss - a.entropy * (law.entropy() / law.size).mean()
            if a.bc > 0:
                loss = loss + a.bc * apart(policy, rows.cond[::k], rng, execute).mean()
            done = step(opt, loss, clip=1.0)["loss"]
            std = float(law.std.detach().mean())
            updates.append((done, kl, float(clip_fraction(logp.detach(), old[i], a.clip)), std))
        means = torch.tensor(updates).mean(0).tolist() if updates else ()
        yield told(ep, critique) | dict(zip(("loss", "kl", "clipped", "std"), means, strict=bool(updates)))


def exploring(policy: Policy, obs: int, least: float, most: float) -> tuple[Policy, Exploring]:
    """The policy with a noise net beside it, on its own training grid; the denoiser is shared and not copied."""
    if not isinstance(policy.process, Diffusion):
        raise BadSignal("ReinFlow improves flow and diffusion policies, Diffusion(): a Gaussian one needs ppo")
    if any(policy.serve.dense):
        raise BadSignal(
            "ReinFlow trains the ODE of a policy, and this one is served with noise: "
            "serve=process.steps(times, ddim(0.0)), or use dppo"
        )
    net = MLP(policy.event, obs, 64, 2, residual=False, activation="tanh", zero=True)  # a perceptron of (64, 64)
    explorer = Exploring(policy.denoiser, net.to(policy.device), least, most)
    steps = policy.process.steps(policy.train.times, injected())
    return replace(policy, weights=Weights(explorer), train=steps), explorer


def ceiling(done: float, least: float, most: float, hold: float, last: float) -> float:
    """The largest std after a share ``done`` of learning: held, then on a cosine to least + last (most − least)."""
    fallen = 0.0 if done <= hold else 0.5 - 0.5 * math.cos(math.pi * (done - hold) / (1 - hold))
    return most - fallen * (1 - last) * (most - least)


def path(law: Law, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The log-probability of each path of ``k`` steps a number decided, and how many that are: [N] each."""
    logp, size = (v.reshape(-1, k).sum(-1) for v in (law.log_prob(y), law.size))
    return logp / size, size


def apart(policy: Policy, cond: Tensor, rng: Rng, execute: int | None) -> Tensor:
    """‖a_θ(z) − a_base(z)‖² a dimension of the executed actions, [B]: both ODEs run from the same z."""
    assert isinstance(policy.process, Diffusion)
    ode = policy.process.steps(policy.train.times, ddim(0.0))
    shape = (len(cond), *policy.event)
    z = policy.process.prior(shape, policy.device).draw(rng.normal(*shape))
    ends = []
    for name, grad in (("current", len(ode)), ("base", 0)):
        draw = sampler(policy.process, policy.weights.using(name), ode, policy.event, grad, Sample())
        ends.append(draw(cond, rng, start=(z, 0)).sample[:, :execute])
    return (ends[0] - ends[1]).square().flatten(1).mean(-1)


STARTS = "flow"
"""the kind of policy that it starts from"""


def task(a: Args) -> Task:
    """A Meta-World task, cloned from a flawed demonstrator, and the simulator's success."""
    return _robot.task(a.base)


def train(a: Args, keep: Keep | None = None) -> Iterator[dict]:
    """Imitate, then improve."""
    yield from _stages.run(improve, task(a), a, keep, STARTS)
