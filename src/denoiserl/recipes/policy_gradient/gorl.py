"""GoRL: PPO on a Gaussian encoder in the latent space of a generative decoder, which is re-trained after each stage.

paper: arXiv 2512.02581
signal: env
family: latent policy gradient
side: B
base: diffusion
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: flow, diffusion
likelihood: rescore

The policy is a = G(s, z), z ~ N(μ(s), σ²): an encoder, a Gaussian over latents, and a decoder G, the ODE of a flow.
Both learn in stages. Within a stage the decoder is frozen and PPO trains the encoder, with z as the action. At its end
a new decoder imitates the policy, from the prior and not from the encoder,

    min E ‖x̂₀(x_t, t, s) − a‖²,   x_1 ~ N(0, 1),   (s, a) drawn with encoder and decoder

and a fresh encoder starts at N(0, 1), where it behaves as the policy did before. PPO's loss has ``prior_weight`` E[μ² +
σ²], a mean over dimensions, so that latents stay where the decoder was trained. With ``first_stage="actions"`` the
first stage has no decoder (G(s, z) = z): it is PPO, bit for bit.

As published: four stages of 2 : 2 : 1 : 1; PPO's clip 0.15 without a decoder, 0.3 with one; decoders from new weights.

Differences:

- The first decoder is the given policy, a clone of demonstrations (the default, ``first_stage="decoder"``).
- The codec clamps plans, and the decoder imitates the clamped plans. The released code squashes plans by tanh and
  imitates them as they were before it.
- A new decoder that loses more than ``max_return_drop`` of the return is discarded; PPO goes on with the old pair. Both
  pairs are evaluated on the first episodes from the same start states.
- The refit uses all samples (the released code can leave out those of the worse episodes). PPO has no entropy bonus.
- Stages hand over their last pair, not their best. PPO's ratio counts all of a latent, which decides the whole plan.

Sampling a decoder in few Euler steps narrows its distribution, again at every refit: use ten. The encoder's mean
serves, so an untrained encoder serves the plan of zero noise. Compare with it too: it can be better than the clone.

Expect, for a flow cloned from clumsy demonstrations on fork2d, success 1.0 after 18 iterations of 64 x 12 decisions,
from 0.37. It stays there over two refits (one seed). With ``lr=3e-4`` success is 0.67 after 24 iterations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.control import acting
from denoiserl.control.best_of_n import LatentActionEnv, LatentController
from denoiserl.control.noise_steering import decode_noise, decode_noise_to_action
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, OpenFraction, Positive, Settings, Shares
from denoiserl.data.rollout import Rollout
from denoiserl.distributions import Gaussian
from denoiserl.envs import Collector
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianHead, OneStep, time_grid
from denoiserl.processes.steered import require_deterministic
from denoiserl.recipes import check_inputs
from denoiserl.recipes.policy_gradient import ppo
from denoiserl.train import Metrics, Run, fit

MAX_ROLLOUTS = 20
"""rollouts that environments may take to finish their first episodes"""


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 40
    """iterations of the run; collect and update, of all stages together"""
    stage_fractions: Shares = (2.0, 2.0, 1.0, 1.0)
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
    clip_range: OpenFraction = 0.15
    """range ε of the ratio, clipped to 1 ± ε; of actions, without a decoder"""
    latent_clip_range: OpenFraction = 0.3
    """range of the ratio of latents"""
    prior_weight: NonNegative = 0.001
    """weight of E[μ² + σ²], which keeps latents near the prior of the decoder"""
    initial_std: Positive = 1.0
    """std of the encoder at the start"""
    encoder_width: Count = 64
    """width of the encoder"""
    lr: Positive = 1e-3
    """learning rate; of the encoder"""
    value_lr: Positive = 1e-3
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
    decoder_lr: Positive = 1e-3
    """learning rate of the decoder, with warm-up and cosine decay"""
    max_return_drop: float = 0.2
    """largest fraction of the return that a new decoder may lose"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        shares = self.stage_fractions
        self.require_fit(sum(shares) > 0, f"stage_fractions = {shares} has no positive share: give one, such as (2, 1)")
        least = self.iterations * min(share for share in shares if share) / sum(shares)  # of the shortest stage
        problem = f"a stage has {least:.1f} of iterations = {self.iterations}, and critic_warmup = {self.critic_warmup}"
        self.require_fit(least > self.critic_warmup + 0.999, f"{problem}: give more iterations, or fewer stages")


@dataclass
class Stage:
    """The state that one stage hands to the next; saved with the run."""

    has_decoder: bool
    """whether latents are decoded into actions; else they are the actions"""
    accepted: bool = True
    """whether the last new decoder was accepted, so that the encoder starts afresh"""

    def state_dict(self) -> dict[str, bool]:
        """Return both flags."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Restore both flags."""
        vars(self).update(state)


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy that is served as an ODE, or learn one from scratch; it serves through its encoder's mean."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    if not isinstance(policy.process, Diffusion):
        raise InvalidInputError(
            "GoRL's decoder is a flow or diffusion policy, Diffusion(): a Gaussian policy needs ppo"
        )
    require_deterministic(policy.eval_steps)
    acting.require_single_network(policy, "GoRL trains a new decoder")
    run, execute = run or Run(), acting.set_execution_horizon(policy)
    env.discount(args.gamma)
    lengths = [n for n in split_iterations(args.iterations, args.stage_fractions) if n]
    if len(lengths) > 1:
        acting.require_rebuildable_network(policy, "GoRL trains a new decoder")

    stage, encoder = Stage(has_decoder=args.first_stage == "decoder"), None
    for number, iterations in enumerate(lengths):
        # Start a fresh encoder, N(0, σ²), on a new decoder; on the old decoder the old one goes on.
        if encoder is None or stage.accepted:
            encoder = rng.init(make_encoder, policy, env.obs_dim, args)
            encoder.weights.execute = None if stage.has_decoder else execute  # with a decoder z is the whole plan
            assert isinstance(encoder.denoiser, GaussianHead)
            policy.weights.control = LatentController(encoder.denoiser, stage.has_decoder)

        # Improve the encoder by PPO; the decoder is part of the environment.
        world, clip_range = env, args.clip_range
        if stage.has_decoder:
            world, clip_range = latent_env(policy, env), args.latent_clip_range
        settings = ppo_args(args, iterations=iterations, clip_range=clip_range)
        for row in ppo.improve(encoder, world, settings, rng, run.stage(f"latent-{number}"), prior_penalty(args)):
            yield row | {"gorl/stage": float(number)}
        if number + 1 == len(lengths) or run.exhausted_budget():
            return

        # Refit the decoder, evaluate both pairs from the same start states, and accept or revert.
        state = {"policy": policy, "rng": rng, "env": env, "statistics": acting.statistics(policy), "stage": stage}
        for _ in run.stage(f"decoder-{number}").loop(1, **state):
            old_decoder = copy.deepcopy(policy.denoiser.state_dict())
            env.on_checkpoint(0)
            old_rollouts = play_episodes(world, acting.training_actor(encoder, 1), args.decoder_rollout_steps, rng)
            row = refit_decoder(policy, old_rollouts[0], stage.has_decoder, args, rng)
            env.on_checkpoint(0)  # the same start states as before
            act = acting.training_actor(rng.init(make_encoder, policy, env.obs_dim, args), 1)  # a fresh encoder
            new_rollouts = play_episodes(latent_env(policy, env), act, args.decoder_rollout_steps, rng)
            before, after = compare_returns(old_rollouts, new_rollouts)
            stage.accepted = after >= before - args.max_return_drop * abs(before)
            if not stage.accepted:
                policy.denoiser.load_state_dict(old_decoder)
            stage.has_decoder = stage.has_decoder or stage.accepted
            row |= {"decoder/return_before": before, "decoder/return_after": after}
            yield row | {"decoder/accepted": float(stage.accepted)}


def make_encoder(policy: Policy, obs_dim: int, args: Args) -> Policy:
    """Return a fresh encoder as a policy of its own, N(0, σ²) in every state; its sample is a latent [H, d]."""
    net = MLP(policy.event_shape, obs_dim, args.encoder_width, 4, time=0, residual=False, zero=True)
    process, head = OneStep(), GaussianHead(net, policy.event_shape[-1], args.initial_std)
    train_steps, eval_steps = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, head.to(policy.device), policy.event_shape, train_steps, eval_steps, policy.codec)


def latent_env(policy: Policy, env: Collector) -> Any:
    """Return ``env`` with latents as actions: the policy's decoder turns them into actions."""
    execute = acting.resolve_execute_horizon(policy)
    return LatentActionEnv(env, lambda obs, z: decode_noise_to_action(policy, obs, z)[:, :execute])


def ppo_args(args: Args, **changes: Any) -> ppo.Args:
    """Return PPO's settings: the fields of ``args`` that PPO has too, then ``changes``."""
    names = ("num_envs", "rollout_steps", "gamma", "gae_lambda", "clip_range", "lr", "value_lr", "epochs", "batch_size")
    names += ("max_grad_norm", "target_kl", "critic_warmup")
    return ppo.Args(**({name: getattr(args, name) for name in names} | changes))


def prior_penalty(args: Args) -> Callable[[Gaussian], Tensor] | None:
    """Return the penalty ``prior_weight`` (μ² + σ²), a mean over dimensions, [N]; None for a weight of 0."""
    if not args.prior_weight:
        return None
    return lambda law: args.prior_weight * (law.mean.square() + law.std.square()).flatten(1).mean(1)


def refit_decoder(policy: Policy, rollout: Rollout, has_decoder: bool, args: Args, rng: Rng | int) -> Metrics:
    """Train a new decoder, in place, on a rollout's plans; return metrics. Raise InvalidInputError if all are equal."""
    rng = as_rng(rng, policy.device)
    assert rollout.chain is not None
    valid = rollout.valid.flatten().to(policy.device)
    obs, z = (v.flatten(0, 1).to(policy.device)[valid] for v in (rollout.obs, rollout.chain.sample))
    plan = decode_noise(policy, obs, z) if has_decoder else z  # a = G(s, z)
    clamped = policy.codec.decode(plan)
    plan = policy.codec.encode(clamped) if clamped.shape == plan.shape else plan
    std = plan.std(0)
    if float(std.max()) < 1e-3:
        raise InvalidInputError(
            f"all plans are the same (std {float(std.max()):.1e}), so a new decoder could draw no others: raise "
            "initial_std or prior_weight, or end with this stage"
        )
    policy.denoiser.load_state_dict(rng.init(from_config, to_config(policy.denoiser)).state_dict())
    cond, row = policy.codec.condition(obs), {}
    how: dict[str, Any] = {"batch": args.decoder_batch_size, "lr": args.decoder_lr, "warmup": 100}
    for row in fit(policy.process, policy.denoiser, plan, cond, args.decoder_updates, rng, **how):  # noqa: B007
        pass
    return {"loss/decoder": row["loss/denoising"], "decoder/action_std": float(std.mean())}


def play_episodes(world: Any, act: Any, rollout_steps: int, rng: Rng | int) -> list[Rollout]:
    """Return rollouts until every environment has finished its first episode, or ``MAX_ROLLOUTS`` of them."""
    rng = as_rng(rng)
    rollouts = [world.collect(act, rollout_steps, rng)]
    while len(rollouts) < MAX_ROLLOUTS and not bool(torch.stack([r.done.any(0) for r in rollouts]).any(0).all()):
        rollouts.append(world.collect(act, rollout_steps, rng))
    return rollouts


def compare_returns(before: Sequence[Rollout], after: Sequence[Rollout]) -> tuple[float, float]:
    """Return the mean return of each, over first episodes that finished in both.

    If there are none, return the mean reward per environment step, over as many rollouts as both have.
    """
    first_before, first_after = first_returns(before), first_returns(after)
    finished = first_before.isfinite() & first_after.isfinite()
    if bool(finished.any()):
        return float(first_before[finished].mean()), float(first_after[finished].mean())
    n = min(len(before), len(after))
    return_before, return_after = (
        sum(float(r.reward[r.valid].sum()) for r in rollouts[:n]) / sum(int(r.num_executed.sum()) for r in rollouts[:n])
        for rollouts in (before, after)
    )
    return return_before, return_after


def first_returns(rollouts: Sequence[Rollout]) -> Tensor:
    """Return the return of each environment's first episode, [B]; NaN if it did not finish, or a fault ended it."""
    done, valid = (torch.cat([getattr(r, name) for r in rollouts]) for name in ("done", "valid"))
    end = done.int().argmax(0), torch.arange(done.shape[1])
    returns = torch.cat([r.info["return"] for r in rollouts])
    return returns[end].masked_fill(~(done[end] & valid[end]), torch.nan)


def split_iterations(total: int, fractions: Sequence[float]) -> list[int]:
    """Split ``total`` into whole numbers, proportional to ``fractions`` up to rounding."""
    ends = (torch.tensor([0.0, *fractions], dtype=torch.float64).cumsum(0) / sum(fractions) * total).ceil().long()
    return ends.diff().tolist()


SIGNAL = "env"
START = "flow"
DEFAULT_TASK = "env"
