"""The steps that learning runs: their densities, their noise, and the ratio before the first update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from denoiserl.core.errors import OffPolicyError
from denoiserl.core.precision import is_low_precision
from denoiserl.core.rng import Rng
from denoiserl.distributions.base import NO_DENSITY_HELP
from denoiserl.doctor.finding import Finding
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import assert_on_policy
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion

SHIFT = 0.01
"""a small change of a step's mean, in units of the samples' std: what one careful update does"""
FAR = 0.05
"""largest share of the distance between samples that training may put between its own and the served ones"""


def densities(chain: Chain) -> Finding:
    """Which training steps have a density, and the scale of their log-probabilities."""
    name, total = "densities", len(chain.steps)
    if not len(chain):
        return Finding(
            name,
            "error",
            f"none of the {total} training steps has a density: no method that needs a likelihood can learn",
            f"{NO_DENSITY_HELP[0].upper()}{NO_DENSITY_HELP[1:]}; or take a recipe without likelihoods (see "
            "docs/which.md).",
        )
    logp = chain.log_prob
    if not bool(logp.isfinite().all()):
        said = f"{int((~logp.isfinite()).sum())} of {logp.numel()} recorded log-probabilities are NaN or infinite"
        return Finding(name, "error", said, "Look for NaN in the network, or for a std that underflows.")
    size = math.prod(chain.sample.shape[len(chain.batch) :])
    said = (
        f"{len(chain)} of {total} training steps have one; log-probabilities of a step from {float(logp.min()):.3g} to "
        f"{float(logp.max()):.3g} over {size} numbers"
    )
    if len(chain) < total:
        return Finding(name, "note", f"{said}; the others are left out of learning")
    return Finding(name, "ok", said)


def exploration(policy: Policy, spread: Tensor) -> Finding:
    """The noise of the training steps against the scale of what they decide: too little, and every update is too much.

    A change δ of a step's mean in each of d numbers changes its law by KL = d δ² / (2 std²) nats. With δ = ``SHIFT``
    times the samples' std ``spread``, a step with less noise than δ has a law that forgets where it was.
    """
    name, d = "noise", math.prod(policy.event_shape)
    if not isinstance(policy.process, Diffusion) or "std" not in policy.train_steps.table:
        return Finding(name, "note", f"the noise of a {type(policy.process).__name__} process is the network's own")
    std = policy.train_steps.table["std"]
    if not any(policy.train_steps.dense):
        return Finding(name, "note", "no training step has noise")
    least, scale = min(float(v) for v in std if v > 0), float(spread)
    kl = d * (SHIFT * scale) ** 2 / (2 * least**2)
    told = ", ".join(f"{float(v):.2g}" for v in std)
    ends = f"√d std of the quietest {math.sqrt(d) * least:.2g}, of samples {math.sqrt(d) * scale:.2g}"
    said = f"std of the training steps {told}; {ends}; a shift of its mean by {SHIFT:.0%} of that costs {kl:.2g} nats"
    if least < SHIFT * scale:
        return Finding(
            name,
            "warning",
            said,
            f"Train under with_min_std(transition, {5 * SHIFT * scale:.2g}) or so, or leave quiet "
            "steps out of learning (a "
            "window): ratios there leave any clipping range at once.",
        )
    return Finding(name, "ok", said)


def energy(one: Tensor, other: Tensor, rng: Rng, draws: int = 200) -> tuple[float, float]:
    """The energy distance of two sets of samples [n, ...] and [m, ...] as a share in [0, 1], and a permutation p-value.

        (2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖) / 2 E‖X − Y‖

    It is 0 where the two have one distribution (Székely and Rizzo 2013); within-set means leave out the diagonal.
    """
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


def train_vs_eval_samples(policy: Policy, train: Tensor, serve: Tensor, rng: Rng) -> Finding:
    """Do training steps draw what users are served? Samples [n, *event] in model units, whose conditions are alike."""
    name = "train against serve"
    if policy.train_steps is policy.eval_steps:
        return Finding(name, "ok", "one table of steps trains and serves")
    if not train.is_floating_point():
        return Finding(name, "note", "tokens: compare the rewards of the two instead")
    share, p = energy(train, serve, rng)
    spread = float(train.std(0).mean() / serve.std(0).mean().clamp_min(1e-12))
    said = f"their samples are {max(share, 0.0):.1%} apart (energy distance, p = {p:.2g}); std ratio {spread:.2g}"
    if share > FAR and p < 0.01:
        return Finding(
            name,
            "warning",
            f"{said}: learning improves a distribution that nobody is served",
            "Lower the floor or the churn of the training steps, take more of them, or stop noise before the end.",
        )
    return Finding(name, "ok", said)


def first_ratio(policy: Policy, chain: Chain, rng: Rng) -> Finding:
    """Does replay before any update give back the recorded log-probabilities, in whole chains and in shuffled rows?"""
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
            f"before any update |log ratio| is {gap:.3g}: replay scores another law than the one that drew",
            f"Likely: {'; '.join(causes)}.",
        )
    return Finding(name, "ok", f"before any update |log ratio| is at most {gap:.2g}")


def _causes(policy: Policy, repeats: bool) -> list[str]:
    """Why replay may differ from the run, the likeliest first."""
    modules = list(policy.denoiser.modules())
    noisy = sorted({type(m).__name__ for m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.training})
    norms = sorted({type(m).__name__ for m in modules if isinstance(m, nn.modules.batchnorm._NormBase) and m.training})
    low = sorted({str(p.dtype) for p in policy.denoiser.parameters() if p.dtype in (torch.bfloat16, torch.float16)})
    found = [f"{', '.join(noisy)} in train mode (policy.denoiser.eval())"] if noisy else []
    found += [f"{', '.join(norms)} in train mode looks at the batch (policy.denoiser.eval())"] if norms else []
    found += [f"weights in {', '.join(low)}: take old log-probs from a no-grad replay"] if low else []
    found += ["networks run in bf16: take old log-probs from a no-grad replay"] if is_low_precision() else []
    if not repeats and not found:
        found = ["the network draws random numbers of its own: two replays differ"]
    return found or ["the network's answer depends on the other rows of its batch, or on state that it changes"]
