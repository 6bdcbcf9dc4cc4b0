"""Ordinary policies as processes: one step (robots, bandits) and left to right (language models).

They have no noise schedule, and everything above the kernel treats them like the rest: a Gaussian policy is a chain
of one step, a left-to-right model a chain of one token a step whose replay is a single causal pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.precision import run_in_precision
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree, expand_right
from denoiserl.distributions import Categorical, Delta, Distribution, Gaussian
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.categorical import invert, token_log_prob
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.masked import (
    TokenDenoiser,
    answer,
    check_canvas,
    check_rows,
    check_tokens,
    close,
    decodable,
    truncate,
    with_holes,
)


@final
@dataclass(frozen=True)
class OneStep(Process):
    """Ordinary reinforcement learning: one decision, drawn from the network's own law.

    ``law``: ``gaussian`` (mean; std from ``extra["std"]`` or the fixed ``std``) or ``categorical`` (logits). The
    state before the decision says nothing: zeros.
    """

    law: Literal["gaussian", "categorical"] = "gaussian"
    std: float | None = None

    def __post_init__(self) -> None:
        if self.law not in ("gaussian", "categorical"):
            raise ValueError(unknown_name_message(self.law, ["gaussian", "categorical"], "law"))

    def steps(self, times: Tensor, spread: float = 1.0) -> StepTable:
        """A table of one step. ``spread`` scales a Gaussian's std: 0 is its mean, what a robot is served."""
        if len(times) != 2:
            raise ValueError(f"a one-step process has the grid time_grid(1), not {len(times) - 1} steps")
        if spread < 0 or (spread != 1 and self.law != "gaussian"):
            raise ValueError(f"a spread of {spread} is for Gaussians and not negative: leave it at 1")
        table = {} if spread == 1 else {"spread": torch.tensor([spread], dtype=torch.float64)}
        return StepTable(times.double().cpu(), table, (spread > 0,))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Zeros: nothing has been decided."""
        dtype = torch.float32 if self.law == "gaussian" else torch.int64
        return Delta(torch.zeros(shape, dtype=dtype, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Normals or uniforms shaped like the decision."""
        return ("normal" if self.law == "gaussian" else "uniform"), event

    def noise(self, x0: Tensor, t: Tensor, rng: Rng, live: Tensor | None = None) -> Noised:
        """Nothing is left of x₀."""
        return Noised(torch.zeros_like(x0), t, x0, None, live)

    def renoise(self, x0: Tensor, n: int, rng: Rng, live: Tensor | None = None) -> Noised:
        """n copies: the likelihood is exact, so one is enough."""
        many = x0[:, None].expand(-1, n, *x0.shape[1:])
        where = None if live is None else live[:, None].expand(many.shape)
        return self.noise(many, torch.ones(many.shape[:2], device=x0.device), rng, where)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """log p(x₀) itself, [*batch]."""
        estimate = denoise(noised.x, denoise.embed_time(noised.t), context)
        return self._law(estimate, noised.x, noised.t.ndim, noised.mask).log_prob(noised.x0)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """−log p(x₀), [*batch]: behaviour cloning by maximum likelihood."""
        return -self.elbo(denoise, noised, context)

    def _law(
        self, estimate: Estimate, x: Tensor, batch: int, live: Tensor | None = None, step: Step | None = None
    ) -> Distribution:
        mean = estimate.mean
        if self.law == "categorical":
            return Categorical(mean, x.ndim - batch, live)
        std = estimate.extra.get("std")
        if std is None:
            if self.std is None:
                raise ValueError("a Gaussian policy needs a std: from the network (extra['std']) or OneStep(std=...)")
            std = torch.tensor(self.std, device=mean.device)
        if step is None or "spread" not in step.table:
            return Gaussian(mean, std, x.ndim - batch, has_density=True, mask=live)
        spread = step.table["spread"]  # a number, or one a row
        std = std * (expand_right(spread, x) if isinstance(spread, Tensor) and spread.ndim else spread)
        return Gaussian(mean, std, x.ndim - batch, has_density=step.dense, mask=live)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> Distribution:
        """The network's law."""
        batch = step.t.ndim if isinstance(step.t, Tensor) else 1
        return self._law(estimate, x, max(batch, 1), step=step)


class GaussianHead(Denoiser):
    """A Gaussian policy: ``net`` says the mean, and the std of each of ``size`` last axes is learned beside it.

        a ~ N(net(c), diag(σ²)),   σ² = least² + exp(2 θ),   θ [size] does not depend on the state

    The floor ``least`` keeps exploration and ratios alive, and is smooth, so the gradient never vanishes abruptly.
    ``std`` is where σ starts. Perceptrons need no time: ``MLP(..., time=0)``; ``zero=True`` starts at the mean 0.
    """

    def __init__(self, net: nn.Module, size: int, std: float = 1.0, least: float = 0.0) -> None:
        super().__init__()
        if not 0 <= least < std:
            raise ValueError(f"std starts above its floor: 0 <= least < std, not least={least} and std={std}")
        self.config = {"net": net, "size": size, "std": std, "least": least}
        self.net, self.least = net, least
        self.log_std = nn.Parameter(torch.full((size,), 0.5 * math.log(std**2 - least**2)))

    @property
    def std(self) -> Tensor:
        """σ [size]."""
        return (self.least**2 + (2 * self.log_std).exp()).sqrt()

    def embed_condition(self, cond: Any) -> Any:
        """The network's own encoding of the condition."""
        return self.net.embed_condition(cond) if hasattr(self.net, "embed_condition") else cond  # type: ignore[operator]

    def embed_time(self, t: Tensor) -> Any:
        """The network's clock."""
        return self.net.embed_time(t) if hasattr(self.net, "embed_time") else t  # type: ignore[operator]

    def forward(self, x: Tensor, clock: Any, context: Any) -> Estimate:
        """The mean, and ``extra["std"]`` spread over the event."""
        mean = run_in_precision(self.net, x, clock, context).float()
        if mean.shape[-1] != len(self.log_std):
            raise InvalidInputError(
                f"the net decides {mean.shape[-1]} numbers on its last axis, the head has {len(self.log_std)}"
            )
        return Estimate(mean, {"std": self.std.float().expand(mean.shape)})


@final
@dataclass(frozen=True)
class Autoregressive(Process):
    """Left to right: step k decides the leftmost position that is still open (``mask``).

    The denoiser's row i must speak about token i given the tokens before it: for causal networks ``TokenDenoiser(net,
    start=...)``, or ``TokenDenoiser(net, shift=True)`` where the first token is given. States are token sequences
    [*batch, L]; a prompt is given by starting from it. Scoring a whole sequence takes one causal pass: ``replay`` of a
    chain evaluates the network once. Ids of ``vocab`` and above are never drawn. ``end``: the id that ends an answer;
    nothing is decided behind it, and ``finish`` fills what is open there with it (see ``Masked``).
    """

    vocab: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        decodable(self.temperature, self.top_k, self.top_p)
        if self.end is not None and not 0 <= self.end < self.vocab:
            raise ValueError(f"end={self.end} is no token: they are 0 to {self.vocab - 1}")

    @property
    def mask_token(self) -> int:
        """The id of a position that is not yet written."""
        return self.vocab

    def steps(self, times: Tensor) -> StepTable:
        """One row a token; times are only counted."""
        return StepTable(times.double().cpu(), {}, tuple([True] * (len(times) - 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Nothing is written."""
        return Delta(torch.full(shape, self.mask_token, dtype=torch.int64, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """One uniform a step, for the token that it writes."""
        return "uniform", (1,)

    def noise(self, x0: Tensor, t: Tensor, rng: Rng, live: Tensor | None = None) -> Noised:
        """The network sees clean tokens; causality hides what it must not see."""
        return Noised(x0, t, x0, None, live)

    def renoise(self, x0: Tensor, n: int, rng: Rng, live: Tensor | None = None) -> Noised:
        """n copies: the likelihood is exact, so one is enough."""
        many = x0[:, None].expand(-1, n, x0.shape[-1])
        where = None if live is None else live[:, None].expand(many.shape)
        return self.noise(many, torch.ones(many.shape[:2], device=x0.device), rng, where)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """log p(x₀) = Σ_i log p(x_i | x_<i) over live positions, [*batch]; one causal pass."""
        return self._score(denoise, noised, context, self.top_k, self.top_p)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Cross-entropy a live token, [*batch], before top-k and top-p: what they rule out would cost infinity."""
        size = noised.x.shape[-1] if noised.mask is None else noised.mask.sum(-1).clamp_min(1)
        return -self._score(denoise, noised, context) / size

    def _score(
        self, denoise: Denoiser, noised: Noised, context: Any, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        """Σ log p over live positions, [*batch]. A prompt may hold ids that are no token and are never scored."""
        written = torch.ones_like(noised.x0, dtype=torch.bool) if noised.mask is None else noised.mask
        self.first_token(denoise, written[..., 0])
        check_tokens(noised.x0, self.vocab, written)
        check_rows(denoise, noised.x0, self.mask_token)
        logits = denoise(noised.x, denoise.embed_time(noised.t), context).mean[..., : self.vocab]
        token = torch.where(written, noised.x0, 0)
        return sum_event(token_log_prob(truncate(logits, self.temperature, top_k, top_p), token), 1, noised.mask)

    def first_token(self, denoise: Denoiser, written: Tensor) -> None:
        """Refuse to score first tokens (where ``written`` [*batch]) that the network would be shown as its input."""
        if isinstance(denoise, TokenDenoiser) and denoise.shift and bool(written.any()):
            raise ValueError(
                "with shift=True the first row sees the first token itself, so that token cannot be scored: start from "
                "a prompt or a start symbol (and leave it out of live), or use TokenDenoiser(net, start=...)"
            )

    def condition(self, cond: Tree, start: Tensor) -> Tree:
        """Return the condition with the holes of the canvas, where ends need them: see ``with_holes``."""
        return cond if self.end is None else with_holes(cond, start, self.mask_token)

    def check(self, start: Tensor | None, n: int, event: tuple[int, ...]) -> None:
        """Raise InvalidInputError if a canvas is of another length, or has more open positions than there are steps."""
        if start is None:
            start = torch.full((1, *event), self.mask_token)
        check_canvas(start, event)
        needed = (start == self.mask_token).sum(-1)
        if bool((needed > n).any()):
            i = int(needed.argmax())
            raise InvalidInputError(
                f"canvas {i} has {int(needed[i])} open positions; this decoder takes {n} steps of one token: give it "
                f"{int(needed[i])} steps"
            )

    def finish(self, x: Tensor, start: Tensor | None) -> Tensor:
        """The sequence with ``end`` everywhere behind its end. Raises InvalidInputError if a position is still open."""
        return close(x, start, self.mask_token, self.end)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> NextToken:
        """The law of the next token. Logits [*batch, L, V], or one axis fewer in front: the same for all steps."""
        logits = estimate.mean[..., : self.vocab]
        opened = x == self.mask_token
        opened = opened & answer(x, estimate.extra.get("hole", torch.ones_like(opened)), self.end)
        at = opened.int().argmax(-1, keepdim=True)
        if logits.ndim == x.ndim:  # a causal pass: [*batch, L, V] for states [*batch, S, L]
            at = at[..., 0]
        row = logits.gather(-2, at[..., None].expand(*at.shape, logits.shape[-1]))
        row = row if logits.ndim == x.ndim else row[..., 0, :]
        return NextToken(truncate(row, self.temperature, self.top_k, self.top_p), x, opened)


@dataclass(frozen=True, eq=False)
class NextToken:
    """The law of writing the leftmost open position of ``x`` [*batch, L]; nothing is decided where none is open.

    ``logits`` [*batch, V]: those of that position. ``open`` [*batch, L]: the positions that may be written.
    """

    logits: Tensor
    x: Tensor
    open: Tensor

    @property
    def event_dims(self) -> int:
        """One axis: the sequence."""
        return 1

    @property
    def has_density(self) -> bool:
        """A probability mass always exists."""
        return True

    @property
    def mask(self) -> Tensor:
        """[*batch, L] bool: the one position that is written."""
        return self.open & (self.open.cumsum(-1) == 1)

    @property
    def num_factors(self) -> Tensor:
        """[*batch]: 1, or 0 for a finished sequence."""
        return self.mask.sum(-1).float()

    def sample(self, noise: Tensor) -> Tensor:
        """The next state, from uniforms [*batch, 1]."""
        live = self.mask
        token = invert(self.logits, noise[..., 0], live.any(-1))
        return torch.where(live, token[..., None], self.x)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """log p(token), [*batch]; 0 for a finished sequence. ``factors=True``: [*batch, L]."""
        live = self.mask
        token = torch.where(live, x, 0).sum(-1)
        value = torch.where(live.any(-1), token_log_prob(self.logits, token), 0.0)
        return torch.where(live, value[..., None], 0.0) if factors else value

    def kl(self, other: NextToken) -> Tensor:
        """KL of the two next-token laws, [*batch]."""
        return torch.where(self.mask.any(-1), Categorical(self.logits).kl(Categorical(other.logits)), 0.0)
