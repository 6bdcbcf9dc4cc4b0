"""Policies that are controlled when they serve: the best of n plans (``BestOfN``), or plans from chosen noise.

The policy underneath stays as it is, bit for bit. A control is a module with ``config``, so it is saved with the
policy, and every evaluation judges what it chooses; ``policy.with_controller(None)`` is the policy without it.
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
"""numbers between the streams of two candidates of a row: more than one draw uses"""


def split_rng(rng: Rng, n: int) -> Rng:
    """n streams for every row, a row's own first; a batch stream serves any number of rows and stays as it is."""
    if rng.keys is None:
        return rng
    rows = torch.arange(len(rng.keys), device=rng.device).repeat_interleave(n)
    many = rng.take(rows)
    assert many.keys is not None
    many.keys = many.keys + torch.arange(n, device=rng.device).repeat(len(rng.keys)) * APART * GAMMA
    return many


class SharedConditionDenoiser(Denoiser):
    """A denoiser for n candidates of every row, n next to n: the condition is encoded once for all of them."""

    def __init__(self, denoiser: Denoiser, n: int) -> None:
        super().__init__()
        self.inner, self.n = denoiser, n

    def embed_condition(self, cond: Any) -> Any:
        """Of the first candidate, for all n."""
        own = self.inner.embed_condition(tree_map(lambda v: v[:: self.n], cond))
        return tree_map(lambda v: v.repeat_interleave(self.n, 0), own)

    def embed_time(self, t: Tensor) -> Any:
        """The inner clock."""
        return self.inner.embed_time(t)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        """The inner estimate."""
        return self.inner(x, clock, context)


@torch.no_grad()
def candidates(policy: Policy, cond: Tree, n: int, rng: Rng | int, rows: int | None = None) -> Tensor:
    """n plans for every row, [B, n, *event], as the policy serves them, in model units; ``cond`` in data units.

    With row streams the first of them is the one that the policy itself would have drawn.
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
    """What a verifier sees of conditions [N, ...] (in data units) and plans [N, *event] (in model units): [N, F].

    ``activation``: what enters the last layer (``leave``) of the policy's network when it is shown the finished plan
    at the last time of its grid. ``plan``: condition and plan themselves, for networks that cannot be looked into.
    """
    if kind not in KINDS:
        raise InvalidInputError(unknown_name_message(kind, KINDS, "kind of features"))
    seen = policy.codec.condition(cond)
    if kind == "plan":
        return torch.cat([v.flatten(1).float() for v in (*leaves(seen), plan)], 1)
    last = getattr(getattr(policy.denoiser, "net", None), "leave", None)
    if not isinstance(last, nn.Module):
        raise InvalidInputError('this network has no last layer named "leave" to look into: take features="plan"')
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
        """The pseudo-count of each, [N]."""
        return self.coins.count(features(policy, cond, plan, self.kind))


class BestOfN(nn.Module):
    """The best of n plans: ``verifier(policy, cond, plan)`` -> [N] says how good plans are, higher is better.

    n = 1 is the policy itself, bit for bit. Of equals the first is taken.
    """

    def __init__(self, verifier: nn.Module, n: int) -> None:
        super().__init__()
        if n < 1:
            raise InvalidInputError(f"the best of {n} plans does not exist: n is at least 1")
        self.config = {"verifier": verifier, "n": n}
        self.verifier, self.n = verifier, n

    @torch.no_grad()
    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """The plan that is chosen for every row, [B, *event] in model units."""
        plans = self.plans(policy, cond, rng, rows)
        if self.n == 1:
            return plans[:, 0]
        many = None if cond is None else tree_map(lambda v: v.repeat_interleave(self.n, 0), cond)
        score = self.verifier(policy, many, plans.flatten(0, 1))
        if score.shape != (len(plans) * self.n,) or not bool(score.isfinite().all()):
            raise InvalidInputError(
                f"a verifier gives one finite number a plan; this one gave {list(score.shape)}, or NaN"
            )
        best = score.view(len(plans), self.n).argmax(1)
        return plans[torch.arange(len(plans), device=plans.device), best]

    def plans(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """What is chosen from, [B, n, *event] in model units."""
        if self.n == 1:
            return policy.sample_chain(cond, rng, rows, RecordSample(), use_eval_steps=True).sample[:, None]
        return candidates(policy, cond, self.n, rng, rows)


class BestOfNNoise(BestOfN):
    """The best of n plans of a steered policy's base, G(s, z_i) with z_i ~ N(0, I), whatever the policy would decide.

    n = 1 is the base alone (its noise M z where the map is not full).
    """

    def plans(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """Of the base."""
        count, many = count_rows(cond), split_rng(rng, self.n)
        z = many.normal(count * self.n, require_steered(policy).rows, policy.event_shape[1]) / (bound(policy) or 1.0)
        rng.counter = many.counter
        return decode_noise(policy, tree_map(lambda v: v.repeat_interleave(self.n, 0), cond), z).unflatten(
            0, (count, self.n)
        )


class LatentController(nn.Module):
    """Plans from the noise that ``head`` thinks best, z = μ(s). ``through=False``: z is the plan itself."""

    def __init__(self, head: GaussianHead, through: bool = True) -> None:
        super().__init__()
        self.config = {"head": head, "through": through}
        self.head, self.through = head, through

    @torch.no_grad()
    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tensor:
        """The plan of every row, [B, *event] in model units; the generator is not touched."""
        seen = policy.codec.condition(cond)
        x = torch.zeros(count_rows(seen), *policy.event_shape, device=policy.device)
        z = self.head(x, self.head.embed_time(x.new_ones(1)), self.head.embed_condition(seen)).mean
        return decode_noise(policy, cond, z) if self.through else z


class LatentActionEnv:
    """A ``Collector`` that is acted in through a decoder.

    What ``act`` draws are latents z; ``decode(obs, z)`` says what is done, [B, T_a, d] in the environment's units.

    Chains, and so all log-probabilities, are those of the latents; ``action`` of the episodes is what was done.
    """

    def __init__(self, env: Collector, decode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.env, self.decode = env, decode

    @property
    def spec(self) -> Spec:
        """What copies see and do: the stream's own."""
        return self.env.spec

    @property
    def obs_dim(self) -> int:
        """Numbers in one flat observation."""
        return self.env.obs_dim

    def on_checkpoint(self, iteration: int) -> None:
        """The stream's own."""
        self.env.on_checkpoint(iteration)

    def may_restart(self) -> bool:
        """The stream's own."""
        return self.env.may_restart()

    def discount(self, gamma: float) -> None:
        """The stream's own."""
        self.env.discount(gamma)

    def collect(self, act: Act, steps: int, rng: Rng) -> Rollout:
        """``steps`` decisions of every copy.

        A latent decides the whole plan, whatever part of it is executed: all of it is live in a step that happened.
        """

        def through(obs: Any, rng: Rng) -> tuple[Tensor, Chain | None]:
            _, chain = act(obs, rng)
            if chain is None:
                raise InvalidInputError("a latent is the sample of a chain: act returned none")
            return self.decode(obs, chain.sample), chain

        ep = self.env.collect(through, steps, rng)
        assert ep.chain is not None
        return replace(ep, executed_mask=ep.valid[..., None].expand(*ep.valid.shape, ep.chain.sample.shape[-2]))
