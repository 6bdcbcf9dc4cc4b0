"""Checks of cost: memory of a gradient step, and time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, leaves, tree_map
from denoiserl.doctor.finding import Finding
from denoiserl.policy.chain import Chain
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy

STATES = 3
"""tensors that Adam needs beside each trainable one: the gradient and two moments"""


def footprint(policy: Policy, chain: Chain, rows: int, try_rows: int = 64) -> tuple[int, int, int]:
    """Return bytes of (activations per row, weights with Adam's state, the chain) for a gradient step of ``rows``.

    It counts what autograd saves for the backward pass of ``try_rows`` rescored rows: each storage once, without
    parameters. On CUDA the measured peak is used where it is larger. On a CPU forward scratch memory is not counted.
    """
    n = min(rows, try_rows, chain.log_prob.numel())
    held = {p.untyped_storage().data_ptr() for p in policy.weights.module.parameters()}
    seen: dict[int, int] = {}

    def pack(v: Tensor) -> Tensor:
        storage = v.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(v)  # so that no address is reused
        return v

    kept: list[Tensor] = []
    part = chain.steps_at(torch.arange(n, device=chain.log_prob.device))
    given = sum(v.untyped_storage().nbytes() for v in leaves((part.x, part.y)))
    peak: int | None = None
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
        peak = torch.cuda.memory_allocated(policy.device)
    with saved_tensors_hooks(pack, lambda v: v):
        law, y = rescore(policy.process, policy.weights.module, part)
        logp = law.log_prob(y)
    if peak is not None:  # the backward pass and the library's workspaces need memory too
        torch.autograd.grad(logp[logp.isfinite()].sum(), policy.parameters(), allow_unused=True)
        peak = torch.cuda.max_memory_allocated(policy.device) - peak
    weights = sum(
        p.numel() * p.element_size() * (1 + STATES * p.requires_grad) for p in policy.weights.module.parameters()
    )
    record = sum(v.numel() * v.element_size() for v in leaves((chain.states, chain.cond)))
    return max(sum(seen.values()) + given, peak or 0) // n, weights, record


def memory(policy: Policy, chain: Chain, rows: int, free: int | None = None) -> Finding:
    """Compare the memory of a gradient step over ``rows`` rows with what is ``free`` (None: measured)."""
    name = "memory"
    if not len(chain):
        return Finding(name, "note", "no step with a density: nothing was rescored to measure")
    row, weights, record = footprint(policy, chain, rows)
    need = row * rows + weights + record
    free = available(policy.device) if free is None else free
    parts = f"{_bytes(row)} per row, {_bytes(weights)} of weights with Adam"
    said = f"a gradient step of {rows} rows takes about {_bytes(need)} ({parts})"
    if free is None:
        return Finding(name, "note", f"{said}; the free memory of this machine is not known")
    said += f"; {_bytes(free)} are free"
    if need > 0.8 * free:
        fits = int((0.8 * free - weights - record) / max(row, 1))
        remedy = (
            f"Use at most {fits} rows per gradient step (--batch-size; to sum smaller pieces: train.accumulate), and "
            "set micro_batch_size in passes without gradients."
            if fits >= 1
            else "Not even one row fits beside weights and Adam: train adapters (integrations.adapters.lora), "
            "or use a device with more memory."
        )
        return Finding(name, "warning", said, remedy)
    return Finding(name, "ok", said)


def available(device: torch.device) -> int | None:
    """Return the free bytes of a device; None where they cannot be measured."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def measure_speed(
    policy: Policy, cond: Tree, chain: Chain, rng: Rng | int, clock: Callable[[], float] = time.perf_counter
) -> Finding:
    """Measure milliseconds per sample of the eval steps: network, overhead, codec; and seconds of a training pass."""
    rng = as_rng(rng, policy.device)
    name, calls, n = "speed", len(policy.eval_steps), len(chain.sample)
    sample = policy.sample_chain(cond, rng, n, use_eval_steps=True).sample
    times = policy.eval_steps.times[:-1].float().to(policy.device)
    denoise, given = policy.denoiser, policy.codec.condition(cond)

    def bare() -> None:
        with torch.inference_mode():
            context, clocks = denoise.embed_condition(given), denoise.embed_time(times)
            for k in range(calls):
                denoise(sample, tree_map(lambda v, k=k: v[k : k + 1], clocks), context)

    net = _took(bare, policy.device, clock)
    whole = _took(lambda: policy.sample_chain(cond, rng, n, use_eval_steps=True), policy.device, clock)
    decode = _took(lambda: policy.codec.decode(sample), policy.device, clock)
    ms = 1000 / n
    said = (
        f"{(whole + decode) * ms:.2g} ms per sample in batches of {n}: network {net * ms:.2g} ({calls} calls), "
        f"overhead {max(whole - net, 0) * ms:.2g}, decoding {decode * ms:.2g}"
    )
    if len(chain) and policy.parameters():
        learn = _took(lambda: _learn(policy, chain), policy.device, clock)
        said += f"; one training pass over {n} samples {learn:.2g} s"
    if decode > whole:
        return Finding(
            name, "warning", said, "Decoding costs more than denoising: batch it, or compute the reward in model units."
        )
    if whole > 3 * net:
        remedy = "Python dominates for small networks: sample more rows at once, or use make_sampler(compile=True)."
        return Finding(name, "note", said, remedy)
    return Finding(name, "ok", said)


def _learn(policy: Policy, chain: Chain) -> None:
    """Run a forward and backward pass over every recorded step; discard the gradients."""
    law, y = rescore(policy.process, policy.weights.module, chain)
    logp = law.log_prob(y)
    torch.autograd.grad(logp[logp.isfinite()].sum(), policy.parameters(), allow_unused=True)


def _took(work: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the median seconds of three calls, after one warm-up call."""
    found = []
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - begin)
    return statistics.median(found[1:])
