"""Likelihoods of chains and of clean data, [*batch, steps].

``rescore`` scores recorded steps under other weights. ``renoise`` and ``elbo`` score clean data; a policy and its
reference share one draw of noise, which reduces the variance of their difference.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, OffPolicyError
from denoiserl.core.precision import is_low_precision
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, cat, first, tree_map
from denoiserl.distributions import Distribution
from denoiserl.policy.chain import Chain, ChainSteps, flatten
from denoiserl.processes.autoregressive import Autoregressive
from denoiserl.processes.base import Noised, Process, Step
from denoiserl.processes.denoiser import Denoiser, Estimate

MICRO = 1024
"""rows per network call of ``rescore`` on a CPU. Measured on one core (``python -m benchmarks.run --micro``): a 3 x 512
perceptron scores 10,000 rows in 0.67 of the time of one call for all, and with gradients in 0.90. The reason is that
activations stay in the cache; 256 to 2048 are as good. For a U-Net over chunks any number from 200 on is equally
fast."""


def rescore(
    process: Process, denoise: Denoiser, record: Chain | ChainSteps, micro_batch_size: int | None = None
) -> tuple[Distribution, Tree]:
    """Return (law, y): the distribution of every recorded step under this denoiser, and the state after the step.

    ``law.log_prob(y)`` is [*b, S] for a ``Chain`` and [N] for ``ChainSteps``. Differentiable. ``micro_batch_size``:
    rows per network call. A chain is scored step by step in its order. So ``micro_batch_size`` equal to the number of
    chains repeats the calls of the run exactly. The ratio before an update is then bitwise 1 in float32. By default an
    accelerator takes all rows in one call, and a CPU about ``MICRO`` rows, in whole steps of a chain.
    """
    if isinstance(record, ChainSteps):
        return _replay_rows(process, denoise, record, micro_batch_size), record.y
    if isinstance(process, Autoregressive):
        return _replay_causal(process, denoise, record, micro_batch_size), record.y
    axes, s = len(record.batch), len(record)
    x = record.x
    b = math.prod(record.batch)
    stacked = tree_map(lambda v: v.flatten(0, axes - 1).transpose(0, 1).flatten(0, 1), x)
    cond = flatten(record.cond, axes)
    chain_of = torch.arange(b, device=record.step.device).repeat(s)
    micro_batch_size = (
        b * max(1, MICRO // max(b, 1))
        if micro_batch_size is None and chain_of.device.type == "cpu"
        else micro_batch_size
    )
    estimate = _call(
        denoise, stacked, record.steps.times, record.step.repeat_interleave(b), cond, chain_of, micro_batch_size
    )

    def back(v: Tensor) -> Tensor:
        return v.unflatten(0, (s, b)).transpose(0, 1).unflatten(0, record.batch)

    shaped = Estimate(tree_map(back, estimate.mean), {k: back(v) for k, v in estimate.extra.items()})
    step = record.steps.gather(record.step)
    step = step._replace(dense=True, t=step.t.expand(*record.batch, s), s=step.s.expand(*record.batch, s))
    step = step._replace(table={k: v.expand(*record.batch, s) for k, v in step.table.items()})
    return _with_mask(process.reverse(shaped, x, step), record.mask, 1), record.y


def _replay_rows(process: Process, denoise: Denoiser, rows: ChainSteps, micro_batch_size: int | None) -> Distribution:
    estimate = _call(denoise, rows.x, rows.steps.times, rows.step, rows.cond, None, micro_batch_size)
    step: Step = rows.steps.gather(rows.step)._replace(dense=True)
    return _with_mask(process.reverse(estimate, rows.x, step), rows.mask, 0)


def _replay_causal(
    process: Autoregressive, denoise: Denoiser, chain: Chain, micro_batch_size: int | None
) -> Distribution:
    """Score every step by one causal pass over the finished sequences; a row of ``micro_batch_size`` is a whole
    sequence."""
    axes, x = len(chain.batch), chain.x
    process.first_token(denoise, x[..., 0] == process.mask_token)
    final = flatten(chain.sample, axes)
    first = torch.zeros(len(final), dtype=torch.int64, device=chain.step.device)
    cond = flatten(chain.cond, axes)
    estimate = _call(denoise, final, chain.steps.times, first, cond, None, micro_batch_size)
    logits = estimate.mean.unflatten(0, chain.batch)
    extra = {k: v.unflatten(0, chain.batch).unsqueeze(axes) for k, v in estimate.extra.items()}  # equal for all steps
    return _with_mask(process.reverse(Estimate(logits, extra), x, chain.steps.gather(chain.step)), chain.mask, 1)


def _with_mask(law: Distribution, mask: Tensor | None, axes: int) -> Distribution:
    """Return the distribution with the mask of a record. Raise InvalidInputError if it has no such field."""
    if mask is None:
        return law
    if "mask" not in {f.name for f in fields(law)}:  # type: ignore[arg-type]
        raise InvalidInputError(f"{type(law).__name__} has its own mask: leave out the mask of the chain")
    mask = mask.unsqueeze(mask.ndim - law.event_dims) if axes else mask
    return replace(law, mask=mask)  # type: ignore[type-var]


def _call(
    denoise: Denoiser,
    x: Any,
    times: Tensor,
    step: Tensor,
    cond: Any,
    owner: Tensor | None,
    micro_batch_size: int | None,
) -> Estimate:
    """Call the network on flattened rows, ``micro_batch_size`` at a time; times are embedded once per grid and
    gathered.

    The condition is embedded once and gathered by ``owner`` (None: row by row). Without a condition, all rows share one
    context, as in the run.
    """
    context = denoise.embed_condition(cond)
    clock = denoise.embed_time(times[:-1].float().to(step.device))
    n = len(step)
    count_usage("denoiser_rows", n)
    if micro_batch_size is None:
        micro_batch_size = MICRO if step.device.type == "cpu" else n
    if micro_batch_size < 1:
        raise InvalidInputError(
            f"micro_batch_size is a number of rows per network call, at least 1, not {micro_batch_size}"
        )
    own = cond is not None and owner is None and micro_batch_size < n
    # Split, not sliced: every slice would have a gradient as large as the whole.
    cuts = tree_map(lambda v: v.split(micro_batch_size), context) if own else None
    means, extras = [], []
    for k, low in enumerate(range(0, n, micro_batch_size)):
        part = slice(low, low + micro_batch_size)
        got = tree_map(lambda v, part=part: v.index_select(0, step[part]), clock)
        own_context = context
        if cond is not None and owner is not None:
            own_context = tree_map(lambda v, part=part: v.index_select(0, owner[part]), context)
        elif own:
            own_context = tree_map(lambda v, cut, k=k: cut[k].clone(), context, cuts)
        # Cloned: matrix libraries round by the alignment of their input, and a run's states are aligned.
        estimate = denoise(tree_map(lambda v, part=part: v[part].clone(), x), got, own_context)
        for name, value in estimate.extra.items():
            if value.ndim == 0 or len(value) != len(step[part]):
                raise InvalidInputError(
                    f"extra[{name!r}] is {list(value.shape)} for {len(step[part])} rows: extras lead with the "
                    "rows (expand a number that all rows share)"
                )
        means.append(estimate.mean)
        extras.append(estimate.extra)
    return Estimate(cat(means), cat(extras) if extras[0] else {})


def renoise(
    process: Process, x0: Tree, n: int, rng: Rng | int, mask: Tensor | None = None, uniform: bool = False
) -> Noised:
    """Noise every row of clean data n times, leading axes [batch, n]; a policy and its reference share the result.

    The times are stratified and give ``elbo`` little variance; with ``uniform`` they are those of the training loss,
    for ``denoising_losses``.
    """
    rng = as_rng(rng, first(x0).device)
    if n < 1:
        raise InvalidInputError(f"n is the number of noisings per row, at least 1, not {n}")
    return (process.renoise_uniform if uniform else process.renoise)(x0, n, rng, mask)


def _over_draws(process: Process, denoise: Denoiser, noised: Noised, context: Any, what: str) -> Tensor:
    batch, n = noised.t.shape
    flat = Noised(*(tree_map(lambda v: v.flatten(0, 1), part) for part in noised))
    spread = tree_map(lambda v: v if len(v) < batch else v.repeat_interleave(n, 0), context)  # a shared one stays
    count_usage("denoiser_rows", batch * n)
    return getattr(process, what)(denoise, flat, spread).unflatten(0, (batch, n))


def elbo(process: Process, denoise: Denoiser, noised: Noised, context: Any = None) -> Tensor:
    """Return one ELBO term for each draw of ``renoise``, [batch, n]; the mean over n estimates the ELBO."""
    return _over_draws(process, denoise, noised, context, "elbo")


def denoising_losses(process: Process, denoise: Denoiser, noised: Noised, context: Any = None) -> Tensor:
    """Return the training loss of each draw of ``renoise``, [batch, n], for weighted regression and FPO-like ratios."""
    return _over_draws(process, denoise, noised, context, "loss")


def tolerance_of(denoise: nn.Module | None = None) -> float:
    """Return the tolerance between log-probs of one policy from calls of different shapes.

    Float32: 1e-3. Matrix products in TF32, or weights in float16: 0.03. Weights or networks in bf16: 0.2.
    """
    kinds = set() if denoise is None else {p.dtype for p in denoise.parameters()}
    if is_low_precision() or torch.bfloat16 in kinds:
        return 0.2
    coarse = torch.float16 in kinds or torch.get_float32_matmul_precision() != "highest"
    return 0.03 if coarse else 1e-3


def assert_on_policy(
    log_prob: Tensor, recorded: Tensor, tolerance: float | None = None, denoise: nn.Module | None = None
) -> float:
    """Check that rescored log-probs before the first update equal the recorded ones; return max |log ratio|.

    By default the tolerance is that of the precision of ``denoise`` (``tolerance_of``). Raise OffPolicyError, with the
    usual causes, if the gap is larger: then the trained policy is not the one that drew.
    """
    if not log_prob.numel():
        return 0.0
    tolerance = tolerance_of(denoise) if tolerance is None else tolerance
    gap = float((log_prob - recorded).detach().abs().max())
    if not gap <= tolerance:
        raise OffPolicyError(
            f"before the first update |log ratio| is {gap:.3g}, above {tolerance:g}: the steps are scored under "
            "another distribution than they were drawn from. Usual causes: the net is in train mode (dropout, batch "
            "norm); guidance or clipping in the run but not in rescore; EMA weights drew and raw weights are trained; "
            "another grid or transition; low precision (take the old log-probs from rescore without gradients); a "
            "condition that is built differently; noise drawn again instead of kept."
        )
    return gap
