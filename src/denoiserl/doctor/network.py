"""Checks of the network: its output depends on state, time and condition, and gradients reach its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, leaves, tree_map
from denoiserl.doctor.finding import Finding
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, Masked
from denoiserl.processes.denoiser import Denoiser


@torch.no_grad()
def check_conditions(policy: Policy, x0: Tensor, cond: Tree, given: Tree, rng: Rng | int) -> Finding:
    """Check that the output depends on the condition (at t = 0.7), and look for an unconditional branch."""
    name = "condition"
    if given is None:
        said = "the prompt is part of the state" if cond is not None else "unconditional: no condition was given"
        return Finding(name, "note", said)
    if not any(bool((v != v[:1]).any()) for v in leaves(given)):
        return Finding(name, "note", "all conditions are equal: their effect was not measured")
    denoise = policy.denoiser
    t = torch.full((len(x0),), 0.7, device=x0.device)
    x = policy.process.noise(x0, t, rng).x
    clock = denoise.embed_time(t)
    one = denoise(x, clock, denoise.embed_condition(given)).mean
    other = denoise(x, clock, denoise.embed_condition(tree_map(lambda v: v.roll(1, 0), given))).mean
    finite = one.isfinite() & other.isfinite()
    one, other = one[finite], other[finite]  # banned tokens are −∞ under every condition
    effect = float((one - other).square().mean().sqrt() / one.std().clamp_min(1e-12))
    try:
        free = denoise.embed_condition(None)
        denoise(x, clock, free)
        branch = "it also runs without a condition"
    except Exception as error:  # a user's network may raise any error for None
        branch = f"it has no unconditional branch ({type(error).__name__}), so guidance is not possible"
    if effect < 1e-3:
        return Finding(
            name,
            "error" if effect == 0 else "warning",
            f"another condition changes the output by {effect:.1g} of its std: the condition is ignored; {branch}",
            "Pass it on in codec.condition and the network's embed_condition, and scale it to about unit size.",
        )
    return Finding(name, "ok", f"another condition changes the output by {effect:.0%} of its std; {branch}")


@torch.no_grad()
def check_alive(policy: Policy, x0: Tensor, given: Tree, rng: Rng | int) -> Finding:
    """Check that the raw output of the network depends on the state and on the time."""
    rng = as_rng(rng, policy.device)
    name, denoise = "network", policy.denoiser
    if isinstance(policy.process, Diffusion):
        t = torch.full((len(x0),), 0.5, device=x0.device)
        x = policy.process.noise(x0, t, rng).x
    elif isinstance(policy.process, Masked):
        t = torch.full((len(x0),), 0.5, device=x0.device)
        x = policy.process.noise(x0, t, rng).x
    else:
        return Finding(name, "note", "a chain has one step: there is no noisy state for the output to depend on")
    raw = _raw(denoise)
    context = raw.embed_condition(given)
    first = raw(x, raw.embed_time(t), context).mean
    if bool((first.isnan() | first.isposinf()).any()):  # −∞ is the logit of a banned token
        return Finding(name, "error", "the network's output is NaN or infinite", "Check its weights and inputs.")
    moved = raw(x.roll(1, 0), raw.embed_time(t), context).mean
    later = raw(x, raw.embed_time(torch.full_like(t, 0.9)), context).mean
    if bool((first == moved).all()):
        what = "0" if bool((first == 0).all()) else "the same"
        return Finding(
            name,
            "error",
            f"the network's output is {what} for every state: untrained, zero-initialised, or dead",
            "Train it first, or load its weights: RL cannot start from a network that does not denoise.",
        )
    still = bool((first == later).all()) and isinstance(policy.process, Diffusion)
    if still:
        return Finding(name, "note", "the output does not depend on the time", "Use the time embedding in the network.")
    return Finding(name, "ok", "the output depends on the state" + (" and the time" if not still else ""))


def _raw(denoise: Denoiser) -> Denoiser:
    """Return the raw network of a Gaussian denoiser, read as x₀: its output without the conversion."""
    return GaussianDenoiser(denoise.net, denoise.schedule, "x0") if isinstance(denoise, GaussianDenoiser) else denoise


def gradients(policy: Policy, chain: Chain, rng: Rng | int, rows: int = 16) -> Finding:
    """Check that all trainable tensors get a gradient from rescored steps (without densities: the training loss)."""
    name = "gradients"
    named = [(k, p) for k, p in policy.weights.module.named_parameters() if p.requires_grad]
    if not named:
        return Finding(
            name, "error", "no parameter is trainable", "Unfreeze some, or add adapters (integrations.adapters.lora)."
        )
    part = chain.take(slice(0, rows))
    if len(chain):
        law, y = rescore(policy.process, policy.weights.module, part)
        logp = law.log_prob(y) / law.num_factors.clamp_min(1)
        loss, what = -logp[logp.isfinite()].mean(), "log-probability of recorded steps"
    else:
        t = torch.full((len(part.sample),), 0.5, device=part.sample.device)
        noised = policy.process.noise(part.sample.clone(), t, rng)
        given = None if part.cond is None else tree_map(Tensor.clone, part.cond)
        loss = policy.process.loss(policy.weights.module, noised, policy.weights.module.embed_condition(given)).mean()
        what = "training loss"
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    none = [k for (k, _), g in zip(named, found, strict=True) if g is None]
    bad = [k for (k, _), g in zip(named, found, strict=True) if g is not None and not bool(g.isfinite().all())]
    zero = [k for (k, _), g in zip(named, found, strict=True) if g is not None and not bool(g.any())]
    if bad:
        said = f"the gradient of the {what} is NaN or infinite in {_listed(bad)}"
        return Finding(name, "error", said, "Look for 0/0, log 0 or √0 there, and for a std close to zero.")
    if len(none) == len(named) or len(zero) + len(none) == len(named):
        return Finding(name, "error", f"no trainable tensor gets a gradient from the {what}", "Look for detach().")
    if none:
        said = f"{len(none)} of {len(named)} trainable tensors get no gradient from the {what}: {_listed(none)}"
        return Finding(name, "warning", said, "Freeze unused tensors (requires_grad_(False)), or connect them.")
    if zero:
        said = f"{len(zero)} of {len(named)} trainable tensors have a gradient of exactly zero: {_listed(zero)}"
        return Finding(name, "note", said, "Expected where layers start at zero (adapters, gates) or units are dead.")
    norm = float(torch.stack([g.norm() for g in found if g is not None]).norm())
    return Finding(name, "ok", f"all {len(named)} trainable tensors get one from the {what} (norm {norm:.2g})")


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
