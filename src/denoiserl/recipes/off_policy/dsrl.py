"""DSRL: steer a frozen diffusion policy by learning the noise that it starts from

paper: arXiv 2506.15799
signal: env
family: noise steering
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: diffusion, flow
likelihood: none

The base is a deterministic function a = G(s, w) of its first noise, and may be a black box. A small policy π_W decides
w inside the box [−b, b], w = b tanh u, by SAC on decisions of noise. Noise-aliased (``aliased``), two kinds of critics
keep what was learned about actions apart from which noise produced them:

    Q_A(s, a)  ←  r + γ^n min Q̄_A(s', G(s', w')),   w' ~ π_W(s')
    Q_W(s, w)  ←  Q_A(s, G(s, w)),   w ~ N(0, I)
    L_π = α log π_W(w | s) − min Q_W(s, w)

so that ``demos``, actions whose noise nobody knows, teach Q_A too. Without, Q_W learns from rewards itself, with the
entropy in its target: plain SAC on noise, which never calls the base while it learns. No gradient passes through G. As
published: b = 1.5, targets that follow with τ = 0.005, a target entropy of 0, first decisions from the base alone (w ~
N(0, I)), layer norm in the critics. The paper's tables say 20 updates a decision and 10 of Q_W for each; what is
released makes 2.5 to 5 updates a decision, by task, and half an update of Q_W for each. Here there are 2, and one of
Q_W for each, at a higher learning rate, so that it runs on a laptop. Further differences: perceptrons of GELUs; the
bound holds for the aliased variant too; ticks of the environment are counted, not chunks; a decision of noise makes the
whole plan, so nothing is masked where an episode ends inside a chunk (there is no ratio, and Q_A sees the plan);
``min_temperature`` keeps π_W exploring: released runs dip below the base where the temperature falls under 0.1 before
the critics know enough, and ``demos`` or a longer ``learning_starts`` help as well. Rewards are scaled and shifted by
``reward_scale`` and ``reward_shift`` (a decision); −1 with success as the end makes a sparse reward dense.

Start from ``control.noise_steering.steer(policy, obs=...)``; ``spread=1`` there and no training is the baseline *narrow
noise*. ``eval_with="best"`` is the baseline that never steers: all data come from the base alone, everything learns
from them as above (π_W only says which noise follows in the target of Q_A), and the base's best of ``num_candidates``
plans by Q_A is served.

Expect, with the defaults, Meta-World's drawer-open from a success of 0.54 (the base by its ODE; 0.55 with narrow noise,
0.24 with no noise at all, where learning begins) to 0.98 in 10 iterations of 480 ticks and 1.00 from 20 on (50 held-out
starts; one seed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.control.acting import carry, rollout_metrics
from denoiserl.control.best_of_n import BestOfNNoise
from denoiserl.control.noise_steering import (
    bound,
    check_noise_effect,
    decode_noise,
    decode_noise_to_action,
    noise_distribution,
    require_steered,
)
from denoiserl.control.squashed_actions import due_minibatches, to_unit_box
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.data import ReplayBuffer, TanhCodec
from denoiserl.data.rollout import Rollout
from denoiserl.distributions import Squashed
from denoiserl.envs import Collector
from denoiserl.losses import half_squared_error
from denoiserl.nn import Critics, Temperature, frozen, polyak_update, target_copy
from denoiserl.policy.policy import Policy
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step
from denoiserl.train.metric_means import MetricMeans

SERVES = ("steered", "best")


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 60
    """iterations of the run; collect and update"""
    num_envs: Count = 8
    """parallel environments"""
    rollout_steps: Count = 12
    """decisions per environment and iteration"""
    learning_starts: CountOrZero = 400
    """decisions before learning starts; taken by the base alone; a full batch is needed too"""
    aliased: bool = True
    """learn two kinds of critics, of actions and of noise"""
    eval_with: Literal["steered", "best"] = "steered"
    """what the policy is served with; the learned noise, or as a baseline the best of the base's own plans by the
    critics of actions"""
    num_candidates: Count = 16
    """candidates that the served action is chosen from; only where "best" is what it is served with"""
    noise_critic_updates: Count = 1
    """updates of the critic of noise per update of the critic of actions; 10 in the paper, a half as released"""
    utd: NonNegative = 2.0
    """updates per decision; 20 in the paper, 2.5 to 5 as released"""
    batch_size: Count = 128
    """items per gradient step; decisions (256 as published)"""
    buffer_size: Count = 1_000_000
    """size of the replay buffer, in decisions"""
    n_step: Count = 1
    """decisions per return"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    reward_scale: float = 5.0
    """factor of the rewards"""
    reward_shift: float = 0.0
    """constant that is added to the reward of a decision"""
    tau: Fraction = 0.005
    """Polyak rate of the target networks"""
    lr: NonNegative = 1e-3
    """learning rate; of all networks (3e-4 as published)"""
    temperature_init: Positive = 0.1
    """entropy temperature at the start"""
    min_temperature: NonNegative = 0.0
    """lower bound of the entropy temperature"""
    target_entropy: float = 0.0
    """entropy that the temperature is tuned to; of the noise, in units of its box"""
    num_critics: Count = 2
    """number of critics, whose minimum is the target; of each kind"""
    critic_width: Count = 128
    """width of the critics"""


def improve(
    policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None, demos: Rollout | None = None
) -> Iterator[Metrics]:
    """Improve a steered policy in an environment; ``demos``: decisions of anybody's, of ``execute`` actions each."""
    rng = as_rng(rng, policy.device)
    run, net, execute = run or Run(), require_steered(policy), carry(policy)
    env.discount(args.gamma)
    if (b := bound(policy)) is None:
        raise InvalidInputError("DSRL decides noise inside a box: steer(policy, ..., bound=1.5)")
    if demos is not None and not args.aliased:
        raise InvalidInputError(
            "nobody knows the noise behind demonstrations: only the aliased variant learns from them"
        )
    if args.eval_with not in SERVES:
        raise InvalidInputError(unknown_name_message(args.eval_with, SERVES, "way to serve"))
    if args.eval_with == "best" and not args.aliased:
        raise InvalidInputError("only critics of actions can choose among the base's plans: aliased=True")
    shape, (low, high) = (net.rows, policy.event_shape[1]), (env.spec.low, env.spec.high)
    box = TanhCodec.from_box(torch.as_tensor(low, device=policy.device), torch.as_tensor(high, device=policy.device))
    size = {"count": args.num_critics, "width": args.critic_width, "depth": 3, "activation": "gelu", "layer_norm": True}
    critic = rng.init(Critics, env.obs_dim, shape, **size).to(policy.device)
    decided = (execute, policy.event_shape[1])
    judge = rng.init(Critics, env.obs_dim, decided, **size).to(policy.device) if args.aliased else critic
    if args.eval_with == "best":
        policy.weights.control = BestOfNNoise(ActionValue(judge, box, execute), args.num_candidates)
    slow, heat = target_copy(judge), Temperature(args.temperature_init, args.min_temperature).to(policy.device)
    learners = {"latent": net.latent, "critic": critic, "heat": heat, **({"judge": judge} if args.aliased else {})}
    opts = {f"{name} opt": adamw(module.parameters(), args.lr) for name, module in learners.items()}
    check_optimizer_covers(list(opts.values()), net, critic, heat, judge)
    replay, chosen = ReplayBuffer(args.buffer_size, policy.device, run.folder and run.folder / "replay"), []
    begin = args.learning_starts + (
        0 if demos is None else store_rollout(replay, demos, box, args, torch.zeros(*demos.reward.shape, *shape))
    )

    def decide(cond: Tensor) -> tuple[Tensor, Tensor]:
        law = noise_distribution(policy, cond)
        assert isinstance(law, Squashed)
        return law.sample_with_log_prob(rng.normal(len(cond), *shape))

    @torch.no_grad()
    def act(obs: Tensor, rng: Rng) -> tuple[Tensor, None]:
        obs = obs.to(policy.device)
        alone = args.eval_with == "best" or replay.count < begin
        chosen.append(rng.normal(len(obs), *shape) / b if alone else decide(policy.codec.condition(obs))[0])
        return decode_noise_to_action(policy, obs, chosen[-1])[:, :execute], None

    def q(obs: Tensor, z: Tensor, critics: Critics) -> Tensor:
        """min Q(s, G(s, z)) by critics of actions."""
        return ActionValue(critics, box, execute)(policy, obs, decode_noise(policy, obs, z))

    named = {**learners, **opts, "slow": slow, "policy": policy, "replay": replay, "rng": rng, "env": env}
    for it in run.loop(args.iterations, **named):
        row = (
            {} if it else {"policy/noise_sensitivity": check_noise_effect(policy, env.obs[:16].to(policy.device), rng)}
        )
        before, metrics = replay.count, MetricMeans()
        ep = env.collect(act, args.rollout_steps, rng)
        store_rollout(replay, ep, box, args, torch.stack(chosen))
        chosen.clear()
        for rows in due_minibatches(replay, before, args.utd, args.batch_size, begin, args.gamma, args.n_step, rng):
            cond, alpha = policy.codec.condition(rows["obs"]), heat.alpha
            with torch.no_grad():
                after = policy.codec.condition(rows["next_obs"])
                z, logp = decide(after)
                future = q(rows["next_obs"], z, slow) if args.aliased else slow(after, z).amin(0) - alpha * logp
                y = (rows["reward"] + rows["discount"] * future).expand(args.num_critics, -1)
            guess = judge(cond, rows["action" if args.aliased else "z"])
            error = optimizer_step(
                opts["judge opt" if args.aliased else "critic opt"], half_squared_error(guess, y).sum(0).mean()
            )["loss"]
            for _ in range(args.noise_critic_updates if args.aliased else 0):
                z = rng.normal(len(cond), *shape) / b
                with torch.no_grad():
                    y = q(rows["obs"], z, judge).expand(args.num_critics, -1)
                optimizer_step(opts["critic opt"], half_squared_error(critic(cond, z), y).sum(0).mean())
            with frozen(critic):
                z, logp = decide(cond)
                value = critic(cond, z).amin(0)
                optimizer_step(opts["latent opt"], (alpha * logp - value).mean())
            optimizer_step(opts["heat opt"], heat.loss(logp.detach(), args.target_entropy).mean())
            polyak_update(slow, judge, args.tau)
            update = {"loss/critic": error, "q/policy": value.detach().mean(), "policy/entropy": -logp.detach().mean()}
            metrics.add(update | {"policy/temperature": alpha})
        yield rollout_metrics(ep) | row | metrics.mean()


class ActionValue(nn.Module):
    """A verifier: min Q_A(s, a) by ``critics`` of the first ``execute`` actions of a plan, as numbers in their box."""

    def __init__(self, critics: Critics, box: TanhCodec, execute: int) -> None:
        super().__init__()
        self.config = {"critics": critics, "box": box, "execute": execute}
        self.critics, self.box, self.execute = critics, box, execute

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """The value of each plan (in model units) under its condition (in data units), [N]."""
        action = to_unit_box(self.box, policy.codec.decode(plan)[:, : self.execute]).to(plan.device)
        return self.critics(policy.codec.condition(cond), action).amin(0)


def store_rollout(replay: ReplayBuffer, ep: Rollout, box: TanhCodec, args: Args, z: Tensor) -> int:
    """Take in decisions with their noise ``z`` [T, B, r, d] in units of the bound; say how many there were."""
    return replay.add(
        ep, reward=args.reward_scale * ep.reward + args.reward_shift, action=to_unit_box(box, ep.action), z=z
    )


SIGNAL = "env"
START = "steered"
DEFAULT_TASK = "env"
GROWS: dict[str, Any] = {}
