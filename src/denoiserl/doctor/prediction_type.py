"""Check the prediction type (ε, x₀, v) and the time convention of a network.

The denoiser is tested on its own samples, noised again. For a posterior mean neither ratio is above 1 in expectation,
at any t:

    score(t)   = E‖x̂₀(x_t, t) − x₀‖² / E‖μ + g_t (x_t − α_t μ) − x₀‖²,    g_t = α_t s² / (α_t² s² + σ_t²)
    excess(t)  = E‖x̂₀(x_t, t) − x₀‖² / min_{a,b,c} E‖a + b x_t + c x̂₀ − x₀‖²

with mean μ and variance s² of every number over the samples. The score compares with the best linear guess: below 1 the
network has learned structure. The excess is 1 if no linear correction of the output helps, as for a posterior mean. A
network with the wrong prediction type or time convention cannot reconstruct its own samples. On Gaussian data every
reading is linear, and only the excess distinguishes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, expand_right, tree_map
from denoiserl.doctor.finding import Finding
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.processes import Diffusion, GaussianDenoiser, Masked, TokenDenoiser, ddim, time_grid
from denoiserl.processes.denoiser import Denoiser
from denoiserl.processes.diffusion import PREDICTIONS

TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""times t to which samples are noised"""
FINE = 0.9
"""with a score below this the reading is right: no other is tried"""
APART = 0.8
"""another reading is preferred if its score is below this share of the declared one's"""
LINEAR = 1.05
"""largest score of a preferred reading: a linear guess, with its estimation error"""
MOST = 1.25
"""largest excess of a reading that counts as a posterior mean; a small network and 64 samples cause less"""
POOR = 1.6
"""an excess above this is too large for a trained network"""
LEVELS = 1000
"""discrete times of most published image models"""


class Clocked(nn.Module):
    """A network that gets the time ``scale · t``, or ``scale · (1 − t)`` with ``reverse``."""

    def __init__(self, net: nn.Module, reverse: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.reverse, self.scale = net, reverse, scale

    def embed_condition(self, cond: Any) -> Any:
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> Any:
        t = self.scale * (1 - t if self.reverse else t)
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Any, clock: Any, context: Any) -> Any:
        return self.net(x, clock, context)


class Fit(NamedTuple):
    """Score and excess as geometric means over ``TIMES``, and the score at each of them."""

    score: float
    excess: float
    at: tuple[float, ...]


@torch.no_grad()
def denoising_error(process: Diffusion, denoise: Denoiser, x0: Tensor, given: Tree, rng: Rng | int) -> Fit:
    """Compute how well ``denoise`` reconstructs samples ``x0`` [n, *event] (model units) given their conditions."""
    rng = as_rng(rng, x0.device)
    mean, var = x0.mean(0), x0.var(0, correction=0)
    context, score, excess = denoise.embed_condition(given), [], []
    for time in TIMES:
        t = torch.full((len(x0),), time, device=x0.device)
        x = process.noise(x0, t, rng).x
        a, s = (expand_right(c, x0) for c in process.schedule(t))
        mean_x0 = denoise(x, denoise.embed_time(t), context).mean
        error = (mean_x0 - x0).square().sum()
        linear = mean + a * var / (a**2 * var + s**2) * (x - a * mean)
        score.append(error / (linear - x0).square().sum())
        excess.append(error / _corrected(x, mean_x0, x0))
    return Fit(_middle(score), _middle(excess), tuple(float(v) for v in score))


def _corrected(x: Tensor, mean_x0: Tensor, x0: Tensor) -> Tensor:
    """Return the minimum over a (one number per dimension), b, c of ‖a + b x + c x̂₀ − x₀‖²."""
    x, mean_x0, x0 = ((v - v.mean(0)).flatten().double().cpu() for v in (x, mean_x0, x0))
    design = torch.stack([x, mean_x0], 1)
    if not bool(design.isfinite().all()):
        return torch.zeros((), dtype=torch.float64)
    best = design @ torch.linalg.lstsq(design, x0[:, None], driver="gelsd").solution
    return (best[:, 0] - x0).square().sum()


def _middle(ratio: list[Tensor]) -> float:
    """Return the geometric mean, with NaN as infinity."""
    found = torch.stack([r.double().cpu() for r in ratio]).nan_to_num(torch.inf, torch.inf)
    return float(found.clamp(1e-6, 1e6).log().mean().exp())


def other_parameterizations(denoise: Denoiser) -> Iterator[tuple[str, Denoiser]]:
    """Yield (name, denoiser) for each other prediction type and time convention of a Gaussian denoiser's network."""
    if not isinstance(denoise, GaussianDenoiser):
        return
    kinds = [k for k in PREDICTIONS if k != "edm"] if denoise.predicts != "edm" else ["edm", "x0", "eps"]
    clocks = {"": {}, ", time reversed": {"reverse": True}, f", times 0 to {LEVELS}": {"scale": float(LEVELS)}}
    for clock, how in clocks.items():
        net = Clocked(denoise.net, **how) if how else denoise.net
        for kind in [denoise.predicts, *(k for k in kinds if k != denoise.predicts)]:
            if how or kind != denoise.predicts:
                try:
                    yield f"{kind!r}{clock}", GaussianDenoiser(net, denoise.schedule, kind, denoise.spread).eval()
                except ValueError:  # this prediction type is not defined for this schedule
                    continue


@torch.no_grad()
def prediction(
    policy: Policy, x0: Tensor, given: Tree, rng: Rng | int, data: tuple[Tensor, Tree] | None = None, rows: int = 64
) -> Finding:
    """Check the prediction type and the direction of time on the policy's own samples ``x0`` or, better, on ``data``.

    Both are in model units, with conditions that the denoiser can embed. If the declared prediction type is poor,
    others are tried. Without ``data`` each draws ``rows`` samples of its own in at most ten steps of the ODE.
    """
    rng = as_rng(rng, policy.device)
    name = "prediction"
    if isinstance(policy.process, Masked):
        return _tokens(policy, x0, given, rng)
    if not isinstance(policy.process, Diffusion):
        return Finding(name, "note", f"a {type(policy.process).__name__} process has no noise levels to read")
    process, denoise = policy.process, policy.denoiser
    pair = (x0, given) if data is None else data
    own = denoising_error(process, denoise, *pair, rng)
    scores = ", ".join(f"{v:.2g} at t={t:g}" for t, v in zip(TIMES, own.at, strict=True))
    noised = "own samples" if data is None else "data"
    said = f"error on noised {noised} relative to a linear baseline (below 1 is good): {scores}"
    kind = f"predicts={denoise.predicts!r}" if isinstance(denoise, GaussianDenoiser) else type(denoise).__name__
    if own.score <= FINE and own.excess <= MOST:
        return Finding(name, "ok", f"{kind} is right; {said}")
    few = tree_map(lambda v: v[:rows], pair[1])
    best, least = "", min(APART * own.score, LINEAR)
    for reading, other in other_parameterizations(denoise):
        if data is None:
            found = _own(process, other, few, policy, min(rows, len(x0)), rng)
        else:
            found = denoising_error(process, other, data[0][:rows], few, rng)
        if found.excess <= MOST and found.score < least:
            best, least = reading, found.score
    if best and own.score > 1:
        return Finding(
            name,
            "error",
            f"{kind} is wrong: its error is {own.score:.2g} of a linear baseline's, with {best} only {least:.2g}",
            f"Wrap it as it was trained, probably {best}: GaussianDenoiser(net, schedule, predicts), with t = 0 at "
            "data.",
        )
    if best:
        return Finding(
            name,
            "warning",
            f"{kind} may be wrong: its error is {own.score:.2g} of a linear baseline's, with {best} only {least:.2g}",
            "Check how it was trained: GaussianDenoiser(net, schedule, predicts), with t = 0 at data.",
        )
    if own.excess > POOR:
        return Finding(
            name,
            "warning",
            f"with {kind} it does not reconstruct its own samples, nor with any other prediction type; {said}",
            "Check that it is trained, with this schedule, on data of about unit scale; check the codec.",
        )
    if own.score > LINEAR:
        return Finding(
            name,
            "note",
            f"with {kind} it is no better than a linear baseline, nor with any other prediction type; {said}",
            "Train it first: the prediction type of a network that has hardly learned cannot be determined.",
        )
    return Finding(name, "ok", f"{kind} fits best of all prediction types; {said}")


def _own(process: Diffusion, denoise: Denoiser, given: Tree, policy: Policy, n: int, rng: Rng) -> Fit:
    """Compute the error of a reading on its own samples; infinite if they are not finite or have no spread."""
    steps = process.steps(time_grid(min(10, max(2, len(policy.eval_steps)))), ddim(0.0))
    x0 = make_sampler(process, denoise, steps, policy.event_shape, record=RecordSample())(given, rng, rows=n).sample
    if not bool(x0.isfinite().all()) or not 1e-2 < float(x0.std(0, correction=0).mean()) < 1e2:
        return Fit(math.inf, math.inf, ())
    return denoising_error(process, denoise, x0, given, rng)


def masked_token_nll(process: Masked, denoise: Denoiser, x0: Tensor, given: Tree, rng: Rng | int) -> Tensor:
    """Return nats per masked token at each of ``TIMES``, [T], divided by the entropy of the token frequencies."""
    rng = as_rng(rng, x0.device)
    open_ = torch.ones_like(x0, dtype=torch.bool)
    if isinstance(denoise, TokenDenoiser) and denoise.shift:
        open_[:, 0] = False  # the network does not predict the first token
    share = torch.bincount(x0[open_], minlength=process.vocab).float()
    entropy = torch.special.entr(share / share.sum()).sum().clamp_min(1e-3)
    context, found = denoise.embed_condition(given), []
    for time in TIMES:
        noised = process.noise(x0, torch.full((len(x0),), time, device=x0.device), rng, open_)
        hidden = noised.x == process.mask_token
        logp = process.token_log_probs(denoise, noised, context)[hidden]
        found.append(-logp.mean() / entropy if bool(hidden.any()) else torch.full((), torch.nan, device=x0.device))
    return torch.stack(found)


def _tokens(policy: Policy, x0: Tensor, given: Tree, rng: Rng) -> Finding:
    """Check that a language model predicts its own masked tokens better than their frequencies do."""
    name, denoise = "prediction", policy.denoiser
    assert isinstance(policy.process, Masked)
    # Decoders sharpen the distribution: use the model's own probabilities, without temperature.
    own = masked_token_nll(policy.process, denoise, x0, given, rng)
    own = own[own.isfinite()]
    ends = f"{float(own[0]):.2g} at small t, {float(own[-1]):.2g} at large t"
    said = f"nats per masked token over the entropy of its tokens: {ends}"
    if float(own.mean()) <= 1.25:
        if float(own[0]) > max(0.9 * float(own[-1]), 0.5):
            remedy = "Check that it is trained and attends to the visible tokens."
            return Finding(name, "note", f"{said}: visible tokens hardly help", remedy)
        return Finding(name, "ok", said)
    if isinstance(denoise, TokenDenoiser) and denoise.start is None:
        other = TokenDenoiser(denoise.net, not denoise.shift, denoise.vocab, denoise.banned).eval()
        tried = make_sampler(policy.process, other, policy.eval_steps, policy.event_shape, record=RecordSample())
        drawn = tried(given, rng, rows=len(x0)).sample
        if not bool((drawn == policy.process.mask_token).any()):
            found = masked_token_nll(policy.process, other, drawn, given, rng)
            if float(found.nanmean()) < 0.7 * float(own.mean()):
                return Finding(
                    name,
                    "error",
                    f"with shift={denoise.shift} it does not reconstruct its own tokens; with shift={other.shift} it "
                    f"does; {said}",
                    f"Row i of the network predicts token i{'' if denoise.shift else ' + 1'}: "
                    f"use TokenDenoiser(net, shift={other.shift}).",
                )
    return Finding(
        name,
        "warning",
        f"it does not reconstruct its own masked tokens; {said}",
        "Check that it is trained on masks with this vocabulary: Masked(mask_id=...) and banned.",
    )
