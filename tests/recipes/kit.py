"""What oracles need: to see what a loop names, to hear what it draws and collects, and to compare trees of numbers.

An oracle runs the first two updates of a recipe beside a straight-line reference. The reference is written from the
paper's equations with torch alone. It may call a network, draw from a policy and read what was collected; it calls no
loss, target, sampler or helper of the library.

    spy, rng, env = Spy(), Tape(3), Heard(World, 4, 1)
    rows = list(sac.improve(policy, env, args, rng, spy))
    spy.start["critics.net"]      the network as it was before the first update, a copy
    spy.states[i]["critics.net"]  its state_dict before iteration i; spy.states[-1]: after the last
    rng.take("normal", 8, 2) the next draw of this kind and shape that the recipe made
    env.episodes[i]          what iteration i collected
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from denoiserl.control.twin_critics import TwinCritics
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.rng import Rng
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.policy.policy import Policy
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.train import Run


class Spy(Run):
    """A keep that remembers what its loop names: ``start``, copies of networks; ``states``, one more than iterations;
    ``draws``, how many draws ``tape`` holds before each iteration."""

    def __init__(self, tape: Tape | None = None) -> None:
        super().__init__()
        self.start: dict[str, Any] = {}
        self.named: dict[str, Any] = {}
        self.states: list[dict[str, Any]] = []
        self.stages: dict[str, Spy] = {}
        self.tape, self.draws = tape, list[int]()

    def stage(self, name: str, budget: Any = None) -> Spy:
        """A spy for a part of the run."""
        return self.stages.setdefault(name, Spy(self.tape))

    def loop(self, n: int | None, *, given: Any = None, **named: Any) -> Iterator[int]:
        """As the keep's."""
        for it in super().loop(n, given=given, **named):
            if not self.states:
                self.named = with_parts(named)
                networks = {k: v for k, v in self.named.items() if isinstance(v, torch.nn.Module | Policy)}
                self.start = {k: copy.deepcopy(v) for k, v in networks.items()}
            self._look()
            yield it
        self._look()

    def _look(self) -> None:
        saved = {k: v for k, v in self.named.items() if hasattr(v, "state_dict")}
        self.states.append({k: copy.deepcopy(v.state_dict()) for k, v in saved.items()})
        self.draws.append(0 if self.tape is None else len(self.tape.drawn))


def with_parts(named: dict[str, Any]) -> dict[str, Any]:
    """Return what a loop names, and what its critics and baseline hold: ``critics.net``, ``baseline.scale``."""
    parts = {k: v for k, v in named.items() if isinstance(v, TwinCritics | ValueBaseline)}
    held = {f"{k}.{name}": part for k, v in parts.items() for name, part in vars(v).items()}
    return named | {name: part for name, part in held.items() if hasattr(part, "state_dict")}


class Tape(Rng):
    """A stream that remembers what was drawn from it, in order; ``take`` hands it out once more."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[tuple[str, Tensor]] = []

    def normal(self, *shape: int) -> Tensor:
        return self._heard("normal", super().normal(*shape))

    def uniform(self, *shape: int) -> Tensor:
        return self._heard("uniform", super().uniform(*shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return self._heard("integers", super().integers(low, high, *shape))

    def permutation(self, n: int) -> Tensor:
        return self._heard("permutation", super().permutation(n))

    def take(self, kind: str, *shape: int) -> Tensor:
        """The earliest draw of this kind and shape that was not taken yet."""
        for i, (found, value) in enumerate(self.drawn):
            if found == kind and tuple(value.shape) == shape:
                return self.drawn.pop(i)[1]
        held = [(k, list(v.shape)) for k, v in self.drawn]
        raise AssertionError(f"no {kind} of shape {list(shape)} was drawn; left are {held}")

    def _heard(self, kind: str, value: Tensor) -> Tensor:
        self.drawn.append((kind, value.clone()))
        return value


class Heard(Collector):
    """A stream that remembers what was collected from it: ``episodes``, one for each call of ``collect``."""

    def __init__(self, env: Any, copies: int, seed: int) -> None:
        super().__init__(env, copies, seed)
        self.episodes: list[Rollout] = []

    def collect(self, act: Any, steps: int, rng: Rng) -> Rollout:
        ep = super().collect(act, steps, rng)
        # in the default dtype, so that a comparison in float64 has no rounding of float32 on one side alone
        self.episodes.append(replace(ep, reward=ep.reward.to(torch.get_default_dtype())))
        return self.episodes[-1]


def answer(net: Denoiser, x: Tensor, t: float | Tensor, cond: Any) -> Estimate:
    """What a policy's network answers for x [B, *event] at time t, 0 (data) to 1 (noise), under ``cond`` in its units.

    ``t``: a number, or one for each row [B]."""
    return net(
        x, net.embed_time(torch.as_tensor(t, dtype=torch.get_default_dtype()).reshape(-1)), net.embed_condition(cond)
    )


def adam(params: Any, lr: float, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """torch's own optimiser, for the reference."""
    return torch.optim.AdamW(list(params), lr=lr, betas=betas, weight_decay=decay, foreach=False, fused=False)


def moments(opt: torch.optim.Optimizer) -> list[Tensor]:
    """The first and second moments that an optimiser holds, in the order of its parameters. They tell gradients of any
    scale apart, which the parameters after a step of Adam do not."""
    held = [p for group in opt.param_groups for p in group["params"]]
    return [opt.state[p][k] for p in held if p in opt.state for k in ("exp_avg", "exp_avg_sq")]


def descend(opt: torch.optim.Optimizer, loss: Tensor, clip: float | None = None) -> float:
    """One step down, and the norm of the gradient before it was clipped."""
    opt.zero_grad(set_to_none=True)
    loss.backward()
    held = [p for group in opt.param_groups for p in group["params"] if p.grad is not None]
    norm = sum(float(p.grad.double().square().sum()) for p in held if p.grad is not None) ** 0.5
    if clip is not None and norm > clip:
        for p in held:
            assert p.grad is not None
            p.grad.mul_(clip / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ does
    opt.step()
    return norm


def agree(found: Any, wanted: Any, tolerance: float = 1e-5, where: str = "") -> None:
    """Two trees hold the same numbers: of every tensor the largest difference is within ``tolerance`` of its largest
    entry, or of 1e-3 where that is smaller."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), f"{where}: {sorted(found)} for {sorted(wanted)}"
        for k in wanted:
            agree(found[k], wanted[k], tolerance, f"{where}.{k}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), f"{where}: {len(found)} for {len(wanted)}"
        for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
            agree(x, y, tolerance, f"{where}[{i}]")
    else:
        x, y = (torch.as_tensor(v).detach().double() for v in (found, wanted))
        assert x.shape == y.shape, f"{where}: {list(x.shape)} for {list(y.shape)}"
        if y.numel():
            size = max(float(y.abs().max()), 1e-3)
            apart = float((x - y).abs().max())
            assert apart <= tolerance * size, f"{where}: {apart:.3g} apart, at a size of {size:.3g}"


def drifted(seen: Tensor, chunk: Tensor, ticks: int, gamma: float) -> tuple[float, float, Tensor]:
    """What ``worlds.Drift`` gives for the first ``ticks`` actions of a chunk: Σ γ^k r_k, Σ r_k, and the next state."""
    s, a, whole, plain = seen.double(), chunk.double(), 0.0, 0.0
    for k in range(ticks):
        s = s + 0.5 * (a[k] - 1)
        r = -float(s @ s) - float(a[k] @ a[k]) / 4 - 1
        whole, plain = whole + gamma**k * r, plain + r
    return whole, plain, s.float()


class Words(torch.nn.Module):
    """Logits [B, L, classes] of a few tokens: every position hears all others, its place, the time and the padding.

    It has few parameters, and no gradient that vanishes by a symmetry (as that of an attention's biases of keys does):
    Adam's step of such a one is as large as others and has the sign of rounding."""

    def __init__(self, vocab: int, length: int, width: int = 3, classes: int | None = None) -> None:
        super().__init__()
        self.token, self.place = torch.nn.Embedding(vocab + 1, width), torch.nn.Parameter(torch.randn(length, width))
        self.time, self.reach = torch.nn.Parameter(torch.randn(width)), torch.nn.Parameter(torch.randn(length, length))
        self.mix, self.head = torch.nn.Linear(width, width), torch.nn.Linear(width, classes or vocab)

    def forward(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        h = self.token(x) + self.place + t[:, None, None] * self.time
        if context is not None:
            h = h.masked_fill(context["padding"][..., None], 0.0)
        return 2 * self.head(torch.tanh(h / 2 + self.mix(self.reach @ torch.tanh(h / 2))))


def token_at(logits: Tensor, u: Tensor) -> Tensor:
    """The token at which the cumulative probability of softmax(logits) [*, V] passes u [*] in [0, 1)."""
    total = logits.softmax(-1).cumsum(-1)
    return (total <= u[..., None] * total[..., -1:]).sum(-1)


def gae(reward: Tensor, discount: Tensor, value: Tensor, after: Tensor, done: Tensor, lam: float) -> Tensor:
    """Return Â_t = δ_t + d_t λ (1 − done_t) Â_{t+1} with δ_t = r_t + d_t v(s'_t) − v(s_t), all [T, B] (1506.02438, 16).

    ``discount``: γ to the ticks of a decision, 0 where the episode truly ended; ``after``: v of the true successors.
    """
    credit, later = torch.zeros_like(value), torch.zeros_like(value[0])
    for t in reversed(range(len(value))):
        later = torch.where(done[t], 0.0, later)
        later = reward[t] + discount[t] * after[t] - value[t] + discount[t] * lam * later
        credit[t] = later
    return credit


def scaled(ep: Rollout, gamma: float, past: dict) -> Tensor:
    """Return rewards over the std of all discounted returns so far, R_t = r_t + γ^ticks R_{t−1} along every copy.

    R starts at 0 after an episode's end, and decisions that did not happen count nothing. ``past`` is {} at first.
    """
    running = past.get("running", torch.zeros(ep.reward.shape[1], dtype=torch.float64))
    for t in range(len(ep.reward)):
        running = ep.reward[t] + gamma ** ep.num_executed[t].float() * running
        past.setdefault("returns", []).extend(running[ep.executed_mask[t].any(-1)].tolist())
        running = torch.where(ep.done[t], 0.0, running)
    past["running"], past["std"] = running, torch.tensor(past["returns"], dtype=torch.float64).std(correction=0)
    return ep.reward / past["std"]


def experience(ep: Rollout, credit: Tensor | None = None) -> dict[str, Any]:
    """Return what a row tells of its experience: episodes that finished here, their means, and the mean reward.

    With ``credit`` also the critic's squared error, which is Â², for its goal is Â + v.
    """
    alive = ep.executed_mask.any(-1)
    over = ep.done & alive
    told = {f"rollout/{k}": v[over].double().mean() for k, v in ep.info.items()} if bool(over.any()) else {}
    wrong = {"rollout/num_faults": len(ep.faults)} if ep.faults else {}
    error = {} if credit is None else {"loss/value": credit[alive].double().square().mean()}
    return {
        "rollout/num_episodes": over.sum(),
        **told,
        **wrong,
        "rollout/reward": ep.reward[alive].double().mean(),
        **error,
    }


class Made(Tape):
    """A tape that keeps copies of the networks that were made from it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.made: list[Any] = []

    def init(self, make: Any, *given: Any, **more: Any) -> Any:
        """As the stream's."""
        found = super().init(make, *given, **more)
        self.made.append(copy.deepcopy(found))
        return found


def commit(policy: Tensor, raw: Tensor, among: Tensor, u: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [B, L] that logits ``policy`` [B, L, V] give for u [B, L], and which n [B] of them are committed.

    Those are the most confident ``among`` the open positions [B, L]: log softmax(raw) of a token is its confidence.
    """
    token, chosen = token_at(policy, u), torch.zeros_like(among)
    confidence = raw.log_softmax(-1).gather(-1, token[..., None])[..., 0]
    for b in range(len(token)):
        place = sorted(among[b].nonzero()[:, 0].tolist(), key=lambda i: (-float(confidence[b, i]), i))
        chosen[b, place[: int(n[b])]] = True
    return token, chosen
