"""Checks of the training steps: their densities, their noise, and the likelihood ratio before the first update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from denoiserl.core.errors import OffPolicyError
from denoiserl.core.precision import is_low_precision
from denoiserl.core.rng import Rng, as_rng
from denoiserl.distributions.base import NO_DENSITY_HELP
from denoiserl.doctor.finding import Finding
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion

SHIFT = 0.01
"""a small change of a step's mean, as of one careful update, in units of the samples' std"""
FAR = 0.05
"""largest acceptable energy distance between samples of training and eval steps, as a share"""


def densities(chain: Chain) -> Finding:
    """Check which training steps have a density, and the scale of their log-probabilities."""
    name, total = "densities", len(chain.steps)
    if not len(chain):
        return Finding(
            name,
            "error",
            f"none of the {total} training steps has a density: methods that need a likelihood cannot learn",
            f"{NO_DENSITY_HELP[0].upper()}{NO_DENSITY_HELP[1:]}; or use a recipe without likelihoods (see "
            "docs/which.md).",
        )
    logp = chain.log_prob
    if not bool(logp.isfinite().all()):
        said = f"{int((~logp.isfinite()).sum())} of {logp.numel()} recorded log-probabilities are NaN or infinite"
        return Finding(name, "error", said, "Look for NaN in the network, or for a std that underflows.")
    size = math.prod(chain.sample.shape[len(chain.batch) :])
    said = (
        f"{len(chain)} of {total} training steps have one; log-probabilities of a step range from "
        f"{float(logp.min()):.3g} to {float(logp.max()):.3g} over {size} dimensions"
    )
    if len(chain) < total:
        return Finding(name, "note", f"{said}; the others are excluded from training")
    return Finding(name, "ok", said)


def exploration(policy: Policy, spread: Tensor) -> Finding:
    """Compare the noise of the training steps with the scale of the samples: too little makes every update too large.

    A change δ of a step's mean in each of d dimensions changes its distribution by KL = d δ² / (2 std²) nats. Here δ is
    ``SHIFT`` times the samples' std ``spread``; a step with std below δ gets a warning.
    """
    name, d = "noise", math.prod(policy.event_shape)
    if not isinstance(policy.process, Diffusion) or "std" not in policy.train_steps.table:
        return Finding(name, "note", f"the network itself sets the noise of a {type(policy.process).__name__} process")
    std = policy.train_steps.table["std"]
    if not any(policy.train_steps.dense):
        return Finding(name, "note", "no training step has noise")
    least, scale = min(float(v) for v in std if v > 0), float(spread)
    kl = d * (SHIFT * scale) ** 2 / (2 * least**2)
    stds = ", ".join(f"{float(v):.2g}" for v in std)
    said = (
        f"std of the training steps {stds}; √d std of the least noisy one {math.sqrt(d) * least:.2g}, of samples "
        f"{math.sqrt(d) * scale:.2g}; a shift of its mean by {SHIFT:.0%} of the latter has KL {kl:.2g} nats"
    )
    if least < SHIFT * scale:
        return Finding(
            name,
            "warning",
            said,
            f"Train with with_min_std(transition, {5 * SHIFT * scale:.2g}) or so, or exclude steps of low noise "
            "(RecordWindow): their ratios leave any clip range at once.",
        )
    return Finding(name, "ok", said)


def energy(one: Tensor, other: Tensor, rng: Rng | int, draws: int = 200) -> tuple[float, float]:
    """Return the energy distance of samples [n, ...] and [m, ...] as a share in [0, 1], and a permutation p-value.

        (2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖) / 2 E‖X − Y‖

    It is 0 if both have one distribution (Székely and Rizzo 2013). Means within a set exclude the diagonal.
    """
    rng = as_rng(rng)
    both = torch.cat([one.flatten(1), other.flatten(1)]).double().cpu()
    distance, n = torch.cdist(both, both), len(one)

    def share(order: Tensor) -> float:
        d = distance[order][:, order]
        cross = d[:n, n:].mean()
        within = sum(part.sum() / (len(part) * (len(part) - 1)) for part in (d[:n, :n], d[n:, n:]))
        return float((2 * cross - within) / (2 * cross)) if float(cross) > 0 else 0.0

    found = share(torch.arange(len(both)))
    cpu = Rng(int(rng.integers(0, 2**31 - 1, 1)[0]))
    above = sum(share(cpu.permutation(len(both))) >= found for _ in range(draws))
    return found, (1 + above) / (1 + draws)


def train_vs_eval_samples(policy: Policy, train: Tensor, serve: Tensor, rng: Rng | int) -> Finding:
    """Compare samples [n, *event] of training steps with those of eval steps, in model units, for equal conditions."""
    name = "train against eval"
    if policy.train_steps is policy.eval_steps:
        return Finding(name, "ok", "training and eval steps are the same")
    if not train.is_floating_point():
        return Finding(name, "note", "tokens: compare the rewards under both steps instead")
    share, p = energy(train, serve, rng)
    spread = float(train.std(0).mean() / serve.std(0).mean().clamp_min(1e-12))
    said = f"their samples are {max(share, 0.0):.1%} apart (energy distance, p = {p:.2g}); std ratio {spread:.2g}"
    if share > FAR and p < 0.01:
        return Finding(
            name,
            "warning",
            f"{said}: training optimises another distribution than the one of the eval steps",
            "Lower the minimum std or the churn of the training steps, use more steps, or end the noise earlier.",
        )
    return Finding(name, "ok", said)


def first_ratio(policy: Policy, chain: Chain, rng: Rng | int) -> Finding:
    """Check that ``rescore`` returns the recorded log-probabilities, for whole chains and for shuffled rows."""
    rng = as_rng(rng, policy.device)
    name = "first ratio"
    if not len(chain):
        return Finding(name, "note", "no step with a density: there is no ratio")

    def scored() -> Tensor:
        with torch.no_grad():
            law, y = policy.rescore(chain)
            return law.log_prob(y)

    first, again = scored(), scored()
    rows = chain.steps_at(rng.permutation(chain.log_prob.numel()))
    with torch.no_grad():
        law, y = policy.rescore(rows)
        shuffled = law.log_prob(y) - rows.log_prob
    try:
        gap = max(assert_on_policy(first, chain.log_prob), float(shuffled.abs().max()))
        if not gap <= (0.2 if is_low_precision() else 1e-2):
            raise OffPolicyError(f"|log ratio| of shuffled rows is {gap:.3g}")
    except OffPolicyError:
        gap = max(float((first - chain.log_prob).abs().max()), float(shuffled.abs().max()))
        causes = _causes(policy, bool((first == again).all()))
        return Finding(
            name,
            "error",
            f"before any update |log ratio| is {gap:.3g}: rescore uses another distribution than sampling did",
            f"Likely: {'; '.join(causes)}.",
        )
    return Finding(name, "ok", f"before any update |log ratio| is at most {gap:.2g}")


def _causes(policy: Policy, repeats: bool) -> list[str]:
    """Return likely reasons why ``rescore`` differs from sampling, the likeliest first."""
    modules = list(policy.denoiser.modules())
    noisy = sorted({type(m).__name__ for m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.training})
    norms = sorted({type(m).__name__ for m in modules if isinstance(m, nn.modules.batchnorm._NormBase) and m.training})
    low = sorted({str(p.dtype) for p in policy.denoiser.parameters() if p.dtype in (torch.bfloat16, torch.float16)})
    found = [f"{', '.join(noisy)} in train mode (policy.denoiser.eval())"] if noisy else []
    found += [f"{', '.join(norms)} in train mode depends on the batch (policy.denoiser.eval())"] if norms else []
    found += [f"weights in {', '.join(low)}: take old log-probs from rescore without gradients"] if low else []
    found += ["networks run in bf16: take old log-probs from rescore without gradients"] if is_low_precision() else []
    if not repeats and not found:
        found = ["the network draws random numbers of its own: two calls of rescore differ"]
    return found or ["the network's output depends on the other rows of its batch, or on state that it changes"]
