"""Controllers of a policy at evaluation: the best of n plans (``BestOfN``), or plans from chosen noise.

The policy itself does not change. A controller is a module with ``config``, so it is saved with the policy, and every
evaluation includes it; ``policy.with_controller(None)`` is the policy without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.control.noise_steering import bound, decode_noise, require_steered
from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import GAMMA, Rng, as_rng
from denoiserl.core.tree import Tree, leaves, tree_map
from denoiserl.core.tree import batch_size as count_rows
from denoiserl.data.rollout import Rollout
from denoiserl.envs.collector import Act, Collector
from denoiserl.envs.spaces import Spec
from denoiserl.nn.coin_flip_network import CoinFlipNetwork
from denoiserl.policy.chain import Chain
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.processes import GaussianHead
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.tokens import check_rows

APART = 1 << 32
"""distance between the random streams of two candidates of a row: more than one sample uses"""


def split_rng(rng: Rng | int, n: int) -> Rng:
    """Return n streams for every row, the row's own first; a batch stream serves any number of rows and is returned as
    is."""
    rng = as_rng(rng)
    if rng.keys is None:
        return rng
    rows = torch.arange(len(rng.keys), device=rng.device).repeat_interleave(n)
    many = rng.take(rows)
    assert many.keys is not None
    many.keys = many.keys + torch.arange(n, device=rng.device).repeat(len(rng.keys)) * APART * GAMMA
    return many


class SharedConditionDenoiser(Denoiser):
    """A denoiser for n candidates of every row, next to each other: the condition is encoded once for all n."""

    def __init__(self, denoiser: Denoiser, n: int) -> None:
        super().__init__()
        self.inner, self.n = denoiser, n

    def embed_condition(self, cond: Any) -> Any:
        """Return the embedding of the first candidate, repeated for all n."""
        own = self.inner.embed_condition(tree_map(lambda v: v[:: self.n], cond))
        return tree_map(lambda v: v.repeat_interleave(self.n, 0), own)

    def embed_time(self, t: Tensor) -> Any:
        """Return the inner denoiser's embedding."""
        return self.inner.embed_time(t)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        """Return the inner denoiser's estimate."""
        return self.inner(x, clock, context)


@torch.no_grad()
def candidates(policy: Policy, cond: Tree, n: int, rng: Rng | int, rows: int | None = None) -> Tensor:
    """Return n plans for every row, [B, n, *event] in model units, by the evaluation steps; ``cond`` in data units.

    With row streams the first of them is the policy's own sample.
    """
    rng = as_rng(rng, policy.device)
    count = count_rows(cond) if rows is None else rows
    repeat: Callable[[Tensor], Tensor] = lambda v: v.repeat_interleave(n, 0)  # noqa: E731
    seen = None if cond is None else tree_map(repeat, policy.codec.condition(cond))
    begin = policy.codec.initial_state(cond)
    draw = make_sampler(
        policy.process,
        SharedConditionDenoiser(policy.denoiser, n),
        policy.eval_steps,
        policy.event_shape,
        record=RecordSample(),
    )
    many = split_rng(rng, n)
    start = None if begin is None else (tree_map(repeat, begin), 0)
    policy.process.check(begin, len(policy.eval_steps), policy.event_shape)
    check_rows(policy.denoiser, begin, getattr(policy.process, "mask_token", None))
    plans = draw(seen, many, start=start, rows=count * n).sample
    plans = policy.process.finish(plans, None if start is None else start[0])
    rng.counter = many.counter
    return plans.unflatten(0, (count, n))


Kind = Literal["activation", "plan"]
KINDS = ("activation", "plan")


@torch.no_grad()
def features(policy: Policy, cond: Tensor, plan: Tensor, kind: Kind = "activation") -> Tensor:
    """Return a verifier's features of conditions [N, ...] (data units) and plans [N, *event] (model units): [N, F].

    ``activation``: the input of the last layer (``leave``) of the policy's network, given the finished plan at the last
    time of its grid. ``plan``: condition and plan themselves, for networks without such a layer.
    """
    if kind not in KINDS:
        raise InvalidInputError(unknown_name_message(kind, KINDS, "kind of features"))
    seen = policy.codec.condition(cond)
    if kind == "plan":
        return torch.cat([v.flatten(1).float() for v in (*leaves(seen), plan)], 1)
    last = getattr(getattr(policy.denoiser, "net", None), "leave", None)
    if not isinstance(last, nn.Module):
        raise InvalidInputError('this network has no last layer named "leave": use features="plan"')
    denoise, caught = policy.denoiser, []
    time = policy.eval_steps.times[-2:-1].float().to(plan.device)
    hook = last.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        denoise(plan, denoise.embed_time(time), denoise.embed_condition(seen))
    finally:
        hook.remove()
    count_usage("denoiser_calls")
    count_usage("denoiser_rows", len(plan))
    return caught[0].flatten(1).float()


class PseudoCountVerifier(nn.Module):
    """A verifier: the pseudo-count of condition and plan, as ``coins`` learned it from demonstrations."""

    def __init__(self, coins: CoinFlipNetwork, kind: Kind = "activation") -> None:
        super().__init__()
        self.config = {"coins": coins, "kind": kind}
        self.coins = coins
        self.kind: Kind = kind

    def forward(self, policy: Policy, cond: Tensor, plan: Tensor) -> Tensor:
        """Return the pseudo-count of each plan, [N]."""
        return self.coins.count(features(policy, cond, plan, self.kind))


class BestOfN(nn.Module):
    """The best of n plans: ``verifier(policy, cond, plan)`` -> [N] scores plans, higher is better.

    n = 1 is the policy itself, bit for bit. Among equal scores the first is taken.
    """

    def __init__(self, verifier: nn.Module, n: int) -> None:
        super().__init__()
        if n < 1:
            raise InvalidInputError(f"n is at least 1 in the best of n plans, not {n}")
        self.config = {"verifier": verifier, "n": n}
        self.verifier, self.n = verifier, n

    @torch.no_grad()
    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """Return the chosen plan of every row, [B, *event] in model units."""
        plans = self.plans(policy, cond, rng, rows)
        if self.n == 1:
            return plans[:, 0]
        many = None if cond is None else tree_map(lambda v: v.repeat_interleave(self.n, 0), cond)
        score = self.verifier(policy, many, plans.flatten(0, 1))
        if score.shape != (len(plans) * self.n,) or not bool(score.isfinite().all()):
            raise InvalidInputError(
                f"a verifier returns one finite number per plan; this one returned {list(score.shape)}, or NaN"
            )
        best = score.view(len(plans), self.n).argmax(1)
        return plans[torch.arange(len(plans), device=plans.device), best]

    def plans(self, policy: Policy, cond: Tree, rng: Rng | int, rows: int | None) -> Tensor:
        """Return the candidates, [B, n, *event] in model units."""
        rng = as_rng(rng, policy.device)
        if self.n == 1:
            return policy.sample_chain(cond, rng, rows, RecordSample(), use_eval_steps=True).sample[:, None]
        return candidates(policy, cond, self.n, rng, rows)


class BestOfNNoise(BestOfN):
    """The best of n plans of a steered policy's base, G(s, z_i) with z_i ~ N(0, I), whatever the policy would decide.

    n = 1 is the base alone (its noise M z where the map is not full).
    """

    def plans(self, policy: Policy, cond: Tree, rng: Rng | int, rows: int | None) -> Tensor:
        """Return the base's candidates, [B, n, *event] in model units."""
        rng = as_rng(rng, policy.device)
        count, many = count_rows(cond), split_rng(rng, self.n)
        z = many.normal(count * self.n, require_steered(policy).rows, policy.event_shape[1]) / (bound(policy) or 1.0)
        rng.counter = many.counter
        return decode_noise(policy, tree_map(lambda v: v.repeat_interleave(self.n, 0), cond), z).unflatten(
            0, (count, self.n)
        )


class LatentController(nn.Module):
    """Plans from the latent policy's mean, z = μ(s). ``through=False``: z is the plan itself."""

    def __init__(self, head: GaussianHead, through: bool = True) -> None:
        super().__init__()
        self.config = {"head": head, "through": through}
        self.head, self.through = head, through

    @torch.no_grad()
    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """Return the plan of every row, [B, *event] in model units; the rng is not used."""
        seen = policy.codec.condition(cond)
        x = torch.zeros(count_rows(seen), *policy.event_shape, device=policy.device)
        z = self.head(x, self.head.embed_time(x.new_ones(1)), self.head.embed_condition(seen)).mean
        return decode_noise(policy, cond, z) if self.through else z


class LatentActionEnv:
    """A ``Collector`` whose actions are latents.

    ``act`` samples latents z; ``decode(obs, z)`` returns the executed actions, [B, T_a, d] in the environment's units.
    Chains, and so all log-probabilities, are those of the latents; ``action`` of a rollout is the decoded one.
    """

    def __init__(self, env: Collector, decode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.env, self.decode = env, decode

    @property
    def spec(self) -> Spec:
        """the collector's spec"""
        return self.env.spec

    @property
    def obs_dim(self) -> int:
        """numbers per flat observation"""
        return self.env.obs_dim

    def on_checkpoint(self, iteration: int) -> None:
        """Reset the collector's environments."""
        self.env.on_checkpoint(iteration)

    def may_restart(self) -> bool:
        """Return True if a reset of the collector loses little experience: see ``Collector.may_restart``."""
        return self.env.may_restart()

    def discount(self, gamma: float) -> None:
        """Set the collector's discount inside a chunk."""
        self.env.discount(gamma)

    def collect(self, act: Act, steps: int, rng: Rng | int) -> Rollout:
        """Return a rollout of ``steps`` decisions per environment.

        A latent decides the whole plan, so all of it counts as executed in every valid decision.
        """

        def through(obs: Any, rng: Rng) -> tuple[Tensor, Chain | None]:
            _, chain = act(obs, rng)
            if chain is None:
                raise InvalidInputError(
                    "a latent is the sample of a chain, and act returned none: use an actor that records chains"
                )
            return self.decode(obs, chain.sample), chain

        ep = self.env.collect(through, steps, rng)
        assert ep.chain is not None
        return replace(ep, executed_mask=ep.valid[..., None].expand(*ep.valid.shape, ep.chain.sample.shape[-2]))
