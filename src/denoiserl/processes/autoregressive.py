"""Left-to-right generation as a process (language models): one token per step, scored by a single causal pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree
from denoiserl.distributions import Categorical, Delta
from denoiserl.distributions.base import sum_event
from denoiserl.distributions.categorical import invert, token_log_prob
from denoiserl.processes.base import Noised, Process, Step, StepTable
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.tokens import (
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
class Autoregressive(Process):
    """Left to right: step k writes the leftmost position that is still open (``mask_token``).

    The denoiser's row i must predict token i from the tokens before it: for causal networks ``TokenDenoiser(net,
    start=...)``, or ``TokenDenoiser(net, shift=True)`` if the first token is given. States are token sequences
    [*batch, L]; a prompt is the state that a chain starts from. Scoring a whole sequence takes one causal pass, so
    ``rescore`` of a chain calls the network once. Ids from ``vocab`` on are never drawn. ``end``: the id that ends an
    answer; no step writes behind it, and ``finish`` fills open positions there with it (see ``Masked``).
    """

    vocab: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        decodable(self.temperature, self.top_k, self.top_p)
        if self.end is not None and not 0 <= self.end < self.vocab:
            raise InvalidInputError(f"end={self.end} is no token: they are 0 to {self.vocab - 1}")

    @property
    def mask_token(self) -> int:
        """Return the id of a position that is not yet written."""
        return self.vocab

    def steps(self, times: Tensor) -> StepTable:
        """Return the table: one row per token. Only the number of times matters."""
        return StepTable(times.double().cpu(), {}, tuple([True] * (len(times) - 1)))

    def prior(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Delta:
        """Return the sequence of open positions, with certainty."""
        return Delta(torch.full(shape, self.mask_token, dtype=torch.int64, device=device), len(shape) - 1)

    def noise_shape(self, event: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Return one uniform per step, for the token that it writes."""
        return "uniform", (1,)

    def noise(self, x0: Tensor, t: Tensor, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Return clean tokens as x: the network's causal attention hides the token to predict."""
        return Noised(x0, t, x0, None, loss_mask)

    def renoise(self, x0: Tensor, n: int, rng: Rng | int, loss_mask: Tensor | None = None) -> Noised:
        """Return n equal copies: the likelihood is exact, so one is enough."""
        many = x0[:, None].expand(-1, n, x0.shape[-1])
        where = None if loss_mask is None else loss_mask[:, None].expand(many.shape)
        return self.noise(many, torch.ones(many.shape[:2], device=x0.device), rng, where)

    def elbo(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return log p(x₀) = Σ_i log p(x_i | x_<i) over live positions, [*batch]; one causal pass."""
        return self._score(denoise, noised, context, self.top_k, self.top_p)

    def loss(self, denoise: Denoiser, noised: Noised, context: Any) -> Tensor:
        """Return the cross-entropy per live token, [*batch].

        It is without top-k and top-p: a token that they exclude would have an infinite loss.
        """
        size = noised.x.shape[-1] if noised.mask is None else noised.mask.sum(-1).clamp_min(1)
        return -self._score(denoise, noised, context) / size

    def _score(
        self, denoise: Denoiser, noised: Noised, context: Any, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        """Return Σ log p over live positions, [*batch]. Prompt ids are not scored and need not be tokens."""
        written = torch.ones_like(noised.x0, dtype=torch.bool) if noised.mask is None else noised.mask
        self.first_token(denoise, written[..., 0])
        check_tokens(noised.x0, self.vocab, written)
        check_rows(denoise, noised.x0, self.mask_token)
        logits = denoise(noised.x, denoise.embed_time(noised.t), context).mean[..., : self.vocab]
        token = torch.where(written, noised.x0, 0)
        return sum_event(token_log_prob(truncate(logits, self.temperature, top_k, top_p), token), 1, noised.mask)

    def first_token(self, denoise: Denoiser, written: Tensor) -> None:
        """Raise InvalidInputError if a first token that is the network's input is scored (``written`` [*batch])."""
        if isinstance(denoise, TokenDenoiser) and denoise.shift and bool(written.any()):
            raise InvalidInputError(
                "with shift=True the first row sees the first token itself, so that token cannot be scored: start from "
                "a prompt or a start symbol (and leave it out of the mask), or use TokenDenoiser(net, start=...)"
            )

    def condition(self, cond: Tree, start: Tensor) -> Tree:
        """Return the condition with the holes of the canvas if ``end`` needs them: see ``with_holes``."""
        return cond if self.end is None else with_holes(cond, start, self.mask_token)

    def check(self, start: Tensor | None, n: int, event: tuple[int, ...]) -> None:
        """Raise InvalidInputError if a canvas has another length, or more open positions than there are steps."""
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
        """Return the sequence, filled with ``end`` behind its end. Raise InvalidInputError if a position is open."""
        return close(x, start, self.mask_token, self.end)

    def reverse(self, estimate: Estimate, x: Tensor, step: Step) -> NextToken:
        """Return the distribution of the next token.

        The logits are [*batch, L, V], or have one batch axis less: then they are the same for all steps.
        """
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
    """The distribution of the token at the leftmost open position of ``x`` [*batch, L]; finished rows stay as they are.

    ``logits`` [*batch, V]: those of that position. ``is_open`` [*batch, L]: the positions that may be written.
    """

    logits: Tensor
    x: Tensor
    is_open: Tensor

    @property
    def event_dims(self) -> int:
        """Return 1: the sequence."""
        return 1

    @property
    def has_density(self) -> bool:
        """Return True: a probability mass always exists."""
        return True

    @property
    def mask(self) -> Tensor:
        """Return the position that is written, [*batch, L] bool."""
        return self.is_open & (self.is_open.cumsum(-1) == 1)

    @property
    def num_factors(self) -> Tensor:
        """Return 1 per sequence, or 0 for a finished one, [*batch]."""
        return self.mask.sum(-1).float()

    def sample(self, noise: Tensor) -> Tensor:
        """Return the next state, from uniforms [*batch, 1]."""
        mask = self.mask
        token = invert(self.logits, noise[..., 0], mask.any(-1))
        return torch.where(mask, token[..., None], self.x)

    def log_prob(self, x: Tensor, factors: bool = False) -> Tensor:
        """Return log p(token), [*batch]; 0 for a finished sequence. ``factors=True``: [*batch, L]."""
        mask = self.mask
        token = torch.where(mask, x, 0).sum(-1)
        value = torch.where(mask.any(-1), token_log_prob(self.logits, token), 0.0)
        return torch.where(mask, value[..., None], 0.0) if factors else value

    def kl(self, other: NextToken) -> Tensor:
        """Return KL(self ‖ other), [*batch]."""
        return torch.where(self.mask.any(-1), Categorical(self.logits).kl(Categorical(other.logits)), 0.0)
