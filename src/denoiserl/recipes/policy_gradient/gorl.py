"""GoRL: reinforcement learning of a Gaussian over the noise of a generator, which is made anew now and then.

paper: arXiv 2512.02581
signal: env
family: latent policy gradient
side: B
base: diffusion
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: flow, diffusion
likelihood: replay

The policy is a = G(s, z), z ~ N(μ(s), σ²): an encoder, a Gaussian over latents, and a decoder G, the ODE of a flow. Two
time scales, in stages: within a stage the decoder is frozen and PPO learns the encoder, as if z were the action; at its
end the decoder is made anew, from the prior and not from the encoder,

    min E ‖x̂₀(x_t, t, s) − a‖²,   x_1 ~ N(0, 1),   (s, a) drawn with encoder and decoder

and a fresh encoder starts at N(0, 1), where it behaves as the policy did before. PPO's loss has ``prior_weight`` E[μ² +
σ²], a number each dimension, so that latents stay where the decoder was trained. With ``first_stage="actions"`` the
first stage has no decoder (G(s, z) = z): it is PPO, bit for bit. As published: four stages of 2 : 2 : 1 : 1, PPO's clip
0.15 without a decoder and 0.3 with one, a decoder that is trained from new weights. Differences: by default it begins
with the decoder that it is given, a clone of demonstrations (``first_stage="decoder"``); the released code squashes
plans by tanh and imitates them as they were before it; here the codec clamps them, and the clamped plans are imitated.
A switch that loses more than ``max_return_drop`` of the return is taken back, and PPO goes on with the old pair; both
pairs are judged by the first episodes from the same start states. No samples are left out of the refit (the released
code can leave out those of the worse episodes), no entropy is rewarded, and stages hand over their last pair and not
their best. A latent decides the whole plan, so all of it counts in PPO's ratio whatever was executed.

G is what ``dsrl`` steers by (``control.noise_steering.plan``), and no more is shared: a decoder that is made anew, or
missing, is no part of the policy whose chain it would be.

A decoder of few Euler steps draws narrower than what it imitated, and narrower again at every switch: give it ten. It
serves the encoder's mean, so before anything is learned it serves the plan of no noise, which may be much better (or
worse) than the clone's draws: compare with that too.

Expect, for a flow cloned from clumsy demonstrations on fork2d, a success of 0.37 to become 1.0 in 18 iterations of
64 x 12 decisions and to stay there over two switches (one seed); with ``lr=3e-4`` it is at 0.67 after 24.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.control.acting import carry, renewable, resolve_execute_horizon, statistics, training_actor, whole
from denoiserl.control.best_of_n import LatentActionEnv, LatentController
from denoiserl.control.noise_steering import decode_noise, decode_noise_to_action
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.data.rollout import Rollout
from denoiserl.distributions import Gaussian
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianHead, OneStep, time_grid
from denoiserl.processes.steered import require_deterministic
from denoiserl.recipes.policy_gradient import ppo
from denoiserl.train import Metrics, Run, fit

FIRST_STAGES = ("decoder", "actions")


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 40
    """iterations of the run; collect and update, of all stages together"""
    stage_fractions: tuple[float, ...] = (2.0, 2.0, 1.0, 1.0)
    """fractions of the iterations, one per stage; they are scaled to sum to one"""
    first_stage: Literal["decoder", "actions"] = "decoder"
    """how the first stage acts; through the given policy, or without a decoder"""
    num_envs: Count = 40
    """parallel environments"""
    rollout_steps: Count = 22
    """decisions per environment and iteration"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    gae_lambda: Fraction = 0.95
    """λ of GAE, over decisions"""
    clip_range: Positive = 0.15
    """range ε of the ratio, clipped to 1 ± ε; of actions, without a decoder"""
    latent_clip_range: Positive = 0.3
    """range of the ratio of latents"""
    prior_weight: NonNegative = 0.001
    """weight of E[μ² + σ²], which keeps latents near the prior of the decoder"""
    initial_std: Positive = 1.0
    """std of the encoder at the start"""
    encoder_width: Count = 64
    """width of the encoder"""
    lr: NonNegative = 1e-3
    """learning rate; of the encoder"""
    value_lr: NonNegative = 1e-3
    """learning rate of the value function"""
    epochs: Count = 10
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 220
    """items per gradient step; decisions"""
    max_grad_norm: Positive = 0.5
    """largest norm of the gradient"""
    target_kl: Positive = 0.1
    """approximate KL of a minibatch at which the policy stops learning for this iteration"""
    critic_warmup: CountOrZero = 1
    """iterations in which only the critic learns; of each stage"""
    decoder_rollout_steps: Count = 44
    """decisions per environment at the end of a stage, which the next decoder imitates"""
    decoder_updates: Count = 2000
    """gradient steps of a decoder"""
    decoder_batch_size: Count = 512
    """decisions per gradient step of a decoder"""
    decoder_lr: NonNegative = 1e-3
    """learning rate of the decoder, with warm-up and cosine decay"""
    max_return_drop: float = 0.2
    """largest fraction of the return that a new decoder may lose"""


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy that is served as an ODE, or learn one from nothing; it serves through its encoder's mean."""
    rng = as_rng(rng, policy.device)
    if not isinstance(policy.process, Diffusion):
        raise InvalidInputError(
            "GoRL's decoder is a flow or diffusion policy, Diffusion(): a Gaussian policy needs ppo"
        )
    if args.first_stage not in FIRST_STAGES:
        raise InvalidInputError(unknown_name_message(args.first_stage, FIRST_STAGES, "beginning"))
    require_deterministic(policy.eval_steps)
    whole(policy, "GoRL makes its decoder anew")
    execute = carry(policy)
    env.discount(args.gamma)
    run, through, encoder, taken = run or Run(), args.first_stage == "decoder", None, SwitchState()
    parts = [n for n in split_iterations(args.iterations, args.stage_fractions) if n]
    if len(parts) > 1:
        renewable(policy, "GoRL makes its decoder anew")
    for i, iters in enumerate(parts):
        if encoder is None or taken.value:
            encoder = rng.init(make_encoder, policy, env.obs_dim, args)
            encoder.weights.execute = None if through else execute  # the world decodes a whole latent
            head = encoder.denoiser
            assert isinstance(head, GaussianHead)
            policy.weights.control = LatentController(head, through)
        world, settings = (latent_env(policy, env, args), args_with_decoder(args)) if through else (env, args)
        settings = replace(ppo_args(settings), iterations=iters)
        stage = run.stage(f"latent-{i}")
        for row in ppo.improve(encoder, world, settings, rng, stage, prior_penalty(args)):
            yield row | {"gorl/stage": float(i)}
        if i + 1 == len(parts) or run.exhausted_budget():
            return
        named = {"policy": policy, "rng": rng, "env": env, "seen": statistics(policy), "taken": taken}
        for _ in run.stage(f"decoder-{i}").loop(1, **named):
            yield refit_decoder(policy, encoder, world, env, args, rng, taken)
        through = through or taken.value


def make_encoder(policy: Policy, obs: int, args: Args) -> Policy:
    """A fresh encoder as a policy of its own, N(0, std²) whatever it sees; its sample is a latent [H, d]."""
    net = MLP(policy.event_shape, obs, args.encoder_width, 4, time=0, residual=False, zero=True)
    process, head = OneStep(), GaussianHead(net, policy.event_shape[-1], args.initial_std)
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, head.to(policy.device), policy.event_shape, steps, serve, policy.codec)


def latent_env(policy: Policy, env: Collector, args: Args) -> Any:
    """The environment whose actions are latents."""
    execute = resolve_execute_horizon(policy)
    return LatentActionEnv(env, lambda obs, z: decode_noise_to_action(policy, obs, z)[:, :execute])


def args_with_decoder(args: Args) -> Any:
    """Return the settings of stages with a decoder."""
    return replace(args, clip_range=args.latent_clip_range)


def ppo_args(args: Args) -> ppo.Args:
    """PPO's part of the settings."""
    names = ("num_envs", "rollout_steps", "gamma", "gae_lambda", "clip_range", "lr", "value_lr", "epochs", "batch_size")
    return ppo.Args(**{name: getattr(args, name) for name in (*names, "max_grad_norm", "target_kl", "critic_warmup")})


def prior_penalty(args: Args) -> Callable[[Gaussian], Tensor] | None:
    """The penalty ``prior`` (μ² + σ²), a mean over dimensions, [N]."""
    if not args.prior_weight:
        return None
    return lambda law: args.prior_weight * (law.mean.square() + law.std.square()).flatten(1).mean(1)


class SwitchState:
    """Whether the last switch was taken; it remembers."""

    value = True

    def state_dict(self) -> dict[str, bool]:
        """The answer."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """The saved answer."""
        self.value = state["value"]


def refit_decoder(
    policy: Policy, encoder: Policy, world: Any, env: Collector, args: Args, rng: Rng, taken: SwitchState
) -> dict:
    """A new decoder, in place, that imitates encoder and decoder; the old one again if the new one is worse."""
    control, old = policy.weights.control, copy.deepcopy(policy.denoiser.state_dict())
    assert isinstance(control, LatentController)
    act = training_actor(encoder, 1)
    env.on_checkpoint(0)
    before, rest = play_episodes(world, act, args.decoder_rollout_steps, rng)
    assert before.chain is not None
    alive = before.valid.flatten().to(policy.device)
    obs, z = (v.flatten(0, 1).to(policy.device)[alive] for v in (before.obs, before.chain.sample))
    made = decode_noise(policy, obs, z) if control.through else z
    inside = policy.codec.decode(made)
    made = policy.codec.encode(inside) if inside.shape == made.shape else made
    spread = made.std(0)
    if float(spread.max()) < 1e-3:
        raise InvalidInputError(
            f"all plans are the same (std {float(spread.max()):.1e}), so a new decoder could draw nothing else: raise "
            "initial_std or prior_weight, or end with this stage"
        )
    policy.denoiser.load_state_dict(rng.init(from_config, to_config(policy.denoiser)).state_dict())
    seen = policy.codec.condition(obs)
    told: dict[str, float] = {}
    for row in fit(
        policy.process,
        policy.denoiser,
        made,
        seen,
        args.decoder_updates,
        rng,
        batch=args.decoder_batch_size,
        lr=args.decoder_lr,
        warmup=100,
    ):
        told = row
    env.on_checkpoint(0)  # the same start states as before
    blank = rng.init(make_encoder, policy, env.obs_dim, args)
    after = play_episodes(latent_env(policy, env, args), training_actor(blank, 1), args.decoder_rollout_steps, rng)
    was, now = compare_returns([before, *rest], [after[0], *after[1]])
    taken.value = now >= was - args.max_return_drop * abs(was)
    if not taken.value:
        policy.denoiser.load_state_dict(old)
    return {
        "loss/decoder": told["loss/denoising"],
        "decoder/action_std": float(spread.mean()),
        "decoder/return_before": was,
        "decoder/return_after": now,
        "decoder/accepted": float(taken.value),
    }


LONGEST = 20
"""rollouts that copies may take to finish their first episodes"""


def play_episodes(world: Any, act: Any, steps: int, rng: Rng) -> tuple[Rollout, list[Rollout]]:
    """Return a rollout of ``steps`` decisions, and more rollouts, until every copy has finished its first episode or
    there are ``LONGEST``."""
    parts = [world.collect(act, steps, rng)]
    while len(parts) < LONGEST and not bool(torch.stack([p.done.any(0) for p in parts]).any(0).all()):
        parts.append(world.collect(act, steps, rng))
    return parts[0], parts[1:]


def compare_returns(before: Sequence[Rollout], after: Sequence[Rollout]) -> tuple[float, float]:
    """Return the mean return of both: over the first episodes of the copies that finished one in both. Where there is
    none, the mean reward a tick of both, over as many decisions as both played."""
    one, two = first_returns(before), first_returns(after)
    both = one.isfinite() & two.isfinite()
    if bool(both.any()):
        return float(one[both].mean()), float(two[both].mean())
    most = min(len(before), len(after))
    was, now = (
        sum(float(p.reward[p.valid].sum()) for p in parts[:most]) / sum(int(p.num_executed.sum()) for p in parts[:most])
        for parts in (before, after)
    )
    return was, now


def first_returns(parts: Sequence[Rollout]) -> Tensor:
    """Return the return of each copy's first episode, [B]; NaN where it did not finish, or a fault ended it."""
    done, alive, told = (
        torch.cat(v) for v in ([p.done for p in parts], [p.valid for p in parts], [p.info["return"] for p in parts])
    )
    at = done.int().argmax(0), torch.arange(done.shape[1])
    return told[at].masked_fill(~(done[at] & alive[at]), torch.nan)


def split_iterations(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` in whole parts of about these shares."""
    if not shares or min(shares) < 0 or sum(shares) <= 0:
        raise InvalidInputError(f"stages are positive shares, not {list(shares)}")
    ends = (torch.tensor([0.0, *shares], dtype=torch.float64).cumsum(0) / sum(shares) * total).ceil().long()
    return ends.diff().tolist()


SIGNAL = "env"
START = "flow"
DEFAULT_TASK = "env"
