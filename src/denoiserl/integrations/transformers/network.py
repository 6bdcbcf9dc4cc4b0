"""A language model of transformers as a raw network: tokens to logits, with padding hidden."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.integrations.families import unwrap_adapters
from denoiserl.integrations.transformers.modes import checkpoint_in_eval, evaluation
from denoiserl.integrations.transformers.sizes import counts_from, first_position, input_rows, size, tolerance

Attend = Literal["own", "all"]


class Net(nn.Module):
    """A language model as a raw network: tokens [B, L] to logits [B, L, V].

    ``attend``: ``own`` keeps the model's attention; ``all`` shows every position to every other for any architecture (a
    Llama that fills masks). ``fill``: the id that replaces ids beyond the model's vocabulary, which are the open
    positions of left-to-right decoding; a causal model never attends to them. A condition is None or a dict of the
    model's own arguments, batch first; ``attention_mask`` [B, L] is 0 at padding, or ``padding`` [B, L] is True there.
    Positions are then counted from the first token that is not padding.
    """

    def __init__(self, model: nn.Module, attend: Attend = "own", fill: int | None = None) -> None:
        super().__init__()
        if attend not in ("own", "all"):
            raise RunError(unknown_name_message(attend, ("own", "all"), "attention"))
        base = unwrap_adapters(model)
        self.known = list(inspect.signature(base.forward).parameters)
        if "input_ids" not in self.known or size(model) is None:
            raise RunError(
                f"a {type(base).__name__} is no language model of transformers: give one that reads input_ids"
            )
        if getattr(base.config, "is_encoder_decoder", False):
            raise RunError(f"a {type(base).__name__} is an encoder-decoder: give a model of one text")
        self.model, self.attend, self.fill = model.eval(), attend, fill
        self.rows, self.first = input_rows(base), first_position(base)
        self._leaks: tuple[bool, bool] | None = None
        if attend == "all":
            self._sees_everything()
        elif fill is not None:
            self._sees_the_past()

    @property
    def config(self) -> dict[str, Any]:
        """the constructor's arguments"""
        return {"model": self.model, "attend": self.attend, "fill": self.fill}

    @torch.no_grad()
    def _sees_everything(self) -> None:
        """Raise RunError if the first position does not attend to the last, or the model takes no 4-d mask."""
        base, weight = unwrap_adapters(self.model), next(self.model.parameters())
        if weight.is_meta:
            return
        x = torch.tensor([[0, 0, 0], [0, 0, 1]], device=weight.device)
        try:
            first = self(x)[:, 0]
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunError(
                f"a {type(base).__name__} takes no 4-d attention mask, so not attend='all': {reason}"
            ) from error
        if torch.equal(first[0], first[1]):
            raise RunError(
                f"a {type(base).__name__} does not show the first position the last one: attend='all' needs it"
            )

    def _sees_the_past(self) -> None:
        """Raise RunError if a later token changes the model's earlier outputs."""
        base, weight = unwrap_adapters(self.model), next(self.model.parameters())
        if weight.is_meta:
            return
        a, b = self.rows // 3, 2 * self.rows // 3
        try:
            with evaluation(self, weight.device):
                one, two = self(torch.tensor([[a, b, a, a], [a, b, a, b]], device=weight.device)).float()
        except (RuntimeError, ValueError, TypeError):
            return  # it needs arguments of a canvas, or has no head: its first call raises
        moved = (one - two).abs().amax(-1)
        if bool(moved[:3].max() > tolerance(weight) * moved[3]):
            raise RunError(
                f"a {type(base).__name__} reads later tokens too, so it cannot write from left to right: make it with "
                "config.is_decoder=True if it was trained so, or use masked_policy"
            )

    def embed_condition(self, cond: Any) -> dict[str, Tensor]:
        """Return the model's own arguments. Raise InvalidInputError for unknown ones, or padding it cannot hide."""
        if cond is not None and not isinstance(cond, dict):
            raise InvalidInputError(
                "the condition of a language model is a dict of its arguments, such as attention_mask"
            )
        given = dict(cond or {})
        padding = given.pop("padding", None)
        if padding is not None and "attention_mask" in self.known:
            given["attention_mask"] = (~padding.bool()).long()
        elif padding is not None and bool(padding.any()):
            raise InvalidInputError(
                f"a {type(unwrap_adapters(self.model)).__name__} takes no attention_mask, so padding cannot be "
                "hidden from it: give canvases of the policy's whole length"
            )
        for name in given:
            if name not in self.known or name == "input_ids":
                raise InvalidInputError(unknown_name_message(name, self.known, "argument of this model"))
        mask = given.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return given
        self._hides(mask)
        if "position_ids" in given or counts_from(self.model) is not None:
            return given
        if "position_ids" in self.known:
            given["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0) + self.first
        elif bool((mask[:, 0] == 0).any()):
            raise InvalidInputError(
                f"a {type(unwrap_adapters(self.model)).__name__} takes no position_ids: pad prompts on the right"
            )
        return given

    def _hides(self, mask: Tensor) -> None:
        """Raise InvalidInputError if there is padding on a side where the model reads it in spite of its mask.

        The model is checked once, at the first mask.
        """
        if self._leaks is None:
            self._leaks = (False, False)
            self._leaks = (self._leak(left=True), self._leak(left=False))
        for leak, edge, side in zip(self._leaks, (mask[:, 0], mask[:, -1]), ("left", "right"), strict=True):
            if leak and bool((edge == 0).any()):
                raise InvalidInputError(
                    f"a {type(unwrap_adapters(self.model)).__name__} sees padding on the {side} in spite of its "
                    "attention_mask: "
                    + ("give canvases of the policy's whole length" if all(self._leaks) else "pad on the other side")
                )

    def _leak(self, left: bool) -> bool:
        """Return whether four tokens give other outputs alone than beside four of padding."""
        weight = next(self.model.parameters())
        if weight.is_meta:
            return False
        x = (torch.arange(4, device=weight.device)[None] + 1) * self.rows // 6
        blank, real = torch.zeros_like(x), torch.ones_like(x)
        mask = torch.cat([blank, real] if left else [real, blank], 1)
        try:
            with evaluation(self, weight.device):
                beside = self(x.repeat(1, 2), None, self.embed_condition({"attention_mask": mask}))
                alone = self(x)
        except (RuntimeError, ValueError, TypeError):
            return False  # it needs other arguments, or takes no padding there: its first call raises
        apart = ((beside[:, 4:] if left else beside[:, :4]) - alone).abs().max()
        return bool(apart > 3 * tolerance(weight) * alone.abs().max())

    def forward(self, x: Tensor, clock: Any = None, context: dict[str, Tensor] | None = None) -> Tensor:
        given: dict[str, Any] = dict(context or {})
        if self.fill is not None:
            x = torch.where(x < self.rows, x, self.fill)
        mask, own = given.get("attention_mask"), counts_from(self.model)
        if own is not None and mask is not None:
            x = torch.where(mask == 0, own, x)  # the model itself counts positions, without padding
        if self.attend == "all":
            given["attention_mask"] = additive_mask(x, given.get("attention_mask"), next(self.model.parameters()).dtype)
        if "use_cache" in self.known:
            given["use_cache"] = False
        with checkpoint_in_eval(self.model if torch.is_grad_enabled() else None):
            logits = getattr(self.model(input_ids=x, **given), "logits", None)
        least = size(self.model) or 0
        if logits is None or logits.ndim != 3 or logits.shape[-1] < least:
            raise RunError(
                f"a {type(unwrap_adapters(self.model)).__name__} has no language-model head, logits [B, L, "
                f"{least}]: load it as AutoModelForMaskedLM or AutoModelForCausalLM"
            )
        return logits


def additive_mask(x: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the term of attention scores, [B, 1, L, L]: 0 between real positions, the least number towards padding."""
    hidden = torch.zeros_like(x, dtype=dtype)
    if real is not None:
        hidden = hidden.masked_fill(real == 0, torch.finfo(dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, x.shape[1], -1)
