"""DPPO in plain torch: the floor of the learning loop.

The method of ``recipes.policy_gradient.dppo``, for one kind of policy and without records, checks or counts: the
network is the same object class and is called on the same rows, everything else is arithmetic on tensors. Random
numbers come from the same generator in the same order, so floor and recipe learn the same thing
(``tests/speed/test_loop.py``) and the ratio of their times compares equal work.

Two of them. ``cut=None`` calls the network once for a whole minibatch, as one writes it first. ``cut=1024`` takes a
minibatch in pieces, each through its own backward pass: the fastest plain loop known here, because activations stay in
the cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from denoiserl import Policy, Rng
from denoiserl.core.precision import is_low_precision
from denoiserl.nn import Value

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Moved(NamedTuple):
    """What a chunk did to B copies: the true next observation, the one to act on, and how it went."""

    after: np.ndarray
    start: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    length: np.ndarray


class World(Protocol):
    """Copies that take chunks of actions: ``Ticks``, or an owner of a ``Collector``."""

    def step_chunk(self, actions: np.ndarray, alive: np.ndarray, gamma: float) -> Any:
        """A chunk [B, T_a, d] in every copy."""
        ...


class Ticks:
    """A world that steps all copies by a tick, as a ``World``."""

    def __init__(self, world: Any) -> None:
        self.world = world

    def reset(self, seeds: list[int]) -> np.ndarray:
        """New episodes."""
        return np.asarray(self.world.reset(seed=seeds)[0])

    def step_chunk(self, actions: np.ndarray, alive: np.ndarray, gamma: float) -> Moved:
        """A chunk stops where its episode ends; a new one begins after the chunk."""
        n = len(actions)
        going, reward, length = alive.copy(), np.zeros(n), np.zeros(n, np.int64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        after, weight = None, 1.0
        for i in range(actions.shape[1]):
            seen, gain, over, late, _ = self.world.step(actions[:, i], going)
            seen = np.asarray(seen)
            after = seen if after is None else np.where(going[:, None], seen, after)
            reward += np.where(going, weight * gain, 0.0)
            weight *= gamma
            length += going
            terminated |= np.asarray(over) & going
            truncated |= np.asarray(late) & going
            going &= ~(terminated | truncated)
            if not going.any():
                break
        assert after is not None
        ended, start = terminated | truncated, after
        if ended.any():
            fresh = np.asarray(self.world.reset(options={"reset_mask": ended})[0])
            start = np.where(ended[:, None], fresh, after)
        return Moved(after, start, reward, terminated, truncated, length)


@dataclass(frozen=True)
class Table:
    """The numbers of K steps, [K] each: x̂₀ = clamp(p x + q F, ±clip), mean = c_0 x̂₀ + c_x x, std."""

    times: Tensor
    p: Tensor
    q: Tensor
    c_0: Tensor
    c_x: Tensor
    std: Tensor
    clip: float

    def __len__(self) -> int:
        return len(self.times)

    def at(self, index: Any) -> Table:
        """Some of the steps, or one number each."""
        names = ("times", "p", "q", "c_0", "c_x", "std")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def across(self) -> Table:
        """For rows of steps: as they multiply chunks [N, H, d]."""
        return self.at((slice(None), None, None))

    def mean(self, out: Tensor, x: Tensor) -> Tensor:
        """Where a step goes from x, given the network's answer."""
        return (x * self.p + out.float() * self.q).clamp(-self.clip, self.clip) * self.c_0 + x * self.c_x


def table(policy: Policy) -> Table:
    """The numbers of a policy that predicts v under a variance-preserving schedule and clips its estimate."""
    steps, denoiser, process = policy.train_steps, policy.denoiser, policy.process
    times = steps.times[:-1].float()
    a, s = denoiser.schedule(times)  # type: ignore[operator]
    c_0, c_x, std = (steps.table[name].float() for name in ("c_0", "c_x", "std"))
    return Table(times, a, -s, c_0, c_x, std, process.clip)  # type: ignore[attr-defined]


def called(net: Any, x: Tensor, clock: Tensor, context: Tensor) -> Tensor:
    """The network, in the precision that the library would call it in."""
    if not is_low_precision():
        return net(x, clock, context)
    with torch.autocast("cpu", torch.bfloat16):
        return net(x, clock, context)


def run(net: Any, steps: Table, clock: Tensor, x: Tensor, cond: Tensor, rng: Rng) -> list[Tensor]:
    """The states of a chain of all ``steps`` from x, x included."""
    states, context, noise = [x], net.embed_condition(cond), rng.normal(len(steps), *x.shape)
    for j in range(len(steps)):
        row = steps.at(j)
        x = row.mean(called(net, x, clock[j : j + 1], context), x) + row.std * noise[j]
        states.append(x)
    return states


def score(net: Any, steps: Table, x: Tensor, y: Tensor, j: Tensor, cond: Tensor, ticks: Tensor) -> Tensor:
    """log p(y | x) of steps j [N], a number of the chunk's first ``ticks`` [N] actions: [N]."""
    row = steps.at(j).across()
    mean = row.mean(called(net, x, net.embed_time(steps.times)[j], net.embed_condition(cond)), x)
    each = -0.5 * ((y - mean) / row.std) ** 2 - (row.std.log() + HALF_LOG_2PI)
    each = each.masked_fill((torch.arange(x.shape[1]) >= ticks[:, None])[..., None], 0.0)
    return each.flatten(1).sum(-1) / (ticks * x.shape[2])


class Scale:
    """Rewards over the running std of their discounted return."""

    def __init__(self, copies: int) -> None:
        self.running, self.n, self.mean, self.squares = torch.zeros(copies), 0.0, 0.0, 0.0

    def __call__(self, reward: Tensor, discount: Tensor, done: Tensor) -> Tensor:
        """[T, B] scaled."""
        seen = torch.empty_like(reward)
        for t in range(len(reward)):
            seen[t] = reward[t] + discount[t] * self.running
            self.running = seen[t] * ~done[t]
        n, mean, gap = seen.numel(), float(seen.double().mean()), float(seen.double().mean()) - self.mean
        self.squares += float((seen.double() - mean).square().sum()) + gap**2 * self.n * n / (self.n + n)
        self.mean, self.n = self.mean + gap * n / (self.n + n), self.n + n
        return reward / max((self.squares / self.n) ** 0.5, 1e-3)


def advantages(reward: Tensor, discount: Tensor, v: Tensor, after: Tensor, done: Tensor, lam: float) -> Tensor:
    """GAE, [T, B]."""
    delta, gate = reward + discount * after - v, discount * lam * ~done
    out, running = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gate[t] * running
        out[t] = running
    return out


def ranges(a: Any, steps: int) -> Tensor:
    """The clip range of every step that learns, [steps], from the noisiest."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    least, rate = a.clip_range_noisiest, a.clip_range_rate
    return (least + (a.clip_range - least) * torch.expm1(rate * t) / np.expm1(rate)).float()


def learn(policy: Policy, world: World, obs: Tensor, a: Any, rng: Rng, cut: int | None = 1024) -> Iterator[dict]:
    """``dppo.improve``, plainly: one dict per iteration. ``obs`` [B, o]: where the copies stand."""
    net: Any = policy.denoiser.net
    codec, event, k, copies = policy.codec, policy.event_shape, len(policy.train_steps), len(obs)
    tuned = k if a.finetune_denoising_steps is None else a.finetune_denoising_steps
    first, last = table(policy).at(slice(0, k - tuned)), table(policy).at(slice(k - tuned, k))
    frozen: Any = copy.deepcopy(net).requires_grad_(False)
    value = rng.init(Value, obs.shape[-1], width=256)
    opt = torch.optim.AdamW(net.parameters(), lr=a.lr, weight_decay=0.0, fused=True)
    critic = torch.optim.AdamW(value.parameters(), lr=a.value_lr, weight_decay=0.0, fused=True)
    clips, scale = ranges(a, tuned), Scale(copies)
    decay = torch.tensor([a.denoising_discount ** (tuned - 1 - j) for j in range(tuned)])
    alive = np.ones(copies, bool)
    for _ in range(a.iterations):
        seen, after = torch.empty(a.rollout_steps, *obs.shape), torch.empty(a.rollout_steps, *obs.shape)
        states = torch.empty(a.rollout_steps, copies, tuned + 1, *event)
        reward, length = torch.empty(a.rollout_steps, copies), torch.empty(a.rollout_steps, copies)
        over, done = torch.empty(2, a.rollout_steps, copies, dtype=torch.bool)
        with torch.inference_mode():
            early, late = frozen.embed_time(first.times), net.embed_time(last.times)
            for t in range(a.rollout_steps):
                cond, x = codec.condition(obs), rng.normal(copies, *event)
                if tuned < k:
                    x = run(frozen, first, early, x, cond, rng)[-1]
                states[t] = torch.stack(run(net, last, late, x, cond, rng), 1)
                action = codec.decode(states[t, :, -1]).numpy()
                moved = world.step_chunk(action, alive, a.gamma)
                seen[t], after[t] = cond, codec.condition(torch.from_numpy(moved.after.astype(np.float32)))
                reward[t], length[t] = torch.from_numpy(moved.reward), torch.from_numpy(moved.length)
                over[t] = torch.from_numpy(moved.terminated)
                done[t] = torch.from_numpy(moved.terminated | moved.truncated)
                obs = torch.from_numpy(moved.start.astype(np.float32))
        gained = float(reward.mean())
        with torch.no_grad():
            v, then = value(seen.flatten(0, 1)).view_as(reward), value(after.flatten(0, 1)).view_as(reward)
            gamma = a.gamma**length
            credit = advantages(scale(reward, gamma, done), gamma * ~over, v, then, done, a.gae_lambda)
            goal = (credit + v).flatten()
            credit = (credit - credit.mean()) / credit.std(correction=0)
            share = (credit[..., None] * decay).flatten()
        cond, states = seen.flatten(0, 1), states.flatten(0, 1)
        rows, ticks = torch.arange(len(states) * tuned), length.flatten()

        def scored(i: Tensor, cond: Tensor = cond, states: Tensor = states, ticks: Tensor = ticks) -> Tensor:
            owner, j = i // tuned, i % tuned
            return score(net, last, states[owner, j], states[owner, j + 1], j, cond[owner], ticks[owner])

        with torch.no_grad():
            old = torch.cat([scored(i) for i in rows.split(cut or len(rows))])
        losses, moves = [], True
        for i in (i for _ in range(a.epochs) for i in rows[rng.permutation(len(rows))].split(a.batch_size)):
            owner = i // tuned
            critic.zero_grad()
            (0.5 * (value(cond[owner]) - goal[owner]).square()).mean().backward()
            torch.nn.utils.clip_grad_norm_(value.parameters(), 1.0)
            critic.step()
            if not moves:
                continue
            opt.zero_grad()
            loss, kl = torch.zeros(()), torch.zeros(())
            for piece in i.split(cut or len(i)):
                gap = scored(piece) - old[piece]
                ratio, gain, room = gap.clamp(-20, 20).exp(), share[piece], clips[piece % tuned]
                part = -torch.minimum(ratio * gain, ratio.clamp(1 - room, 1 + room) * gain).sum() / len(i)
                part.backward()
                far = gap.detach().clamp(-20, 20)
                loss, kl = loss + part.detach(), kl + (far.expm1() - far).sum() / len(i)
            if float(kl) > a.target_kl:
                moves = False
                continue
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            losses.append(float(loss))
        yield {"rollout/reward": gained, "loss/policy": float(np.mean(losses)), "updates": len(losses)}
