"""Language models of transformers, unmodified: masked ones, and left-to-right ones.

``masked_lm(model, mask)`` and ``causal_lm(model)`` are denoisers of tokens; ``masked_policy`` and ``causal_policy``
put a decoder around them. A left-to-right architecture becomes a masked model with ``attend="all"``, which shows it
every position by a 4-d attention mask. Tokenisers stay outside: prompts are lists of ids, see ``canvas``.

Padding is hidden from the model, whichever side of a canvas it fills: a short prompt equals the prompt alone. Models
that see it in spite of their mask (ConvBERT, MobileBERT, Nystromformer, YOSO; RecurrentGemma on the left) refuse it.
Text behind an end is neither drawn nor learned from (``end=``, see ``Masked``). ``vocab=len(tokenizer)`` cuts rows that
belong to no token. A model that recomputes its activations (``model.gradient_checkpointing_enable()``) does so here
too, without dropout.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.integrations.families import plain
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Autoregressive, Masked, TokenDenoiser, time_grid

Attend = Literal["own", "all"]


class Net(nn.Module):
    """A language model as a raw network: tokens [B, L] to logits [B, L, V].

    ``attend``: ``own`` leaves the model's attention as it is; ``all`` shows every position to every other, whatever
    the architecture (a Llama that fills masks). ``fill``: an id that stands in for ids beyond the model's vocabulary,
    the open positions of left-to-right decoding, which a causal model never looks at. A condition is None or a dict of
    the model's own arguments, batch first; ``attention_mask`` [B, L] is 0 at padding, or ``padding`` [B, L] is True
    there. Positions are then counted from the first token that is seen.
    """

    def __init__(self, model: nn.Module, attend: Attend = "own", fill: int | None = None) -> None:
        super().__init__()
        if attend not in ("own", "all"):
            raise RunError(unknown_name_message(attend, ("own", "all"), "attention"))
        base = plain(model)
        self.known = list(inspect.signature(base.forward).parameters)
        if "input_ids" not in self.known or size(model) is None:
            raise RunError(f"a {type(base).__name__} is no language model of transformers: it reads no input_ids")
        if getattr(base.config, "is_encoder_decoder", False):
            raise RunError(f"a {type(base).__name__} reads one text and writes another: give a model of one text")
        self.model, self.attend, self.fill = model.eval(), attend, fill
        self.rows, self.first = _rows(base), _first(base)
        self._leaks: tuple[bool, bool] | None = None
        if attend == "all":
            self._sees_everything()
        elif fill is not None:
            self._sees_the_past()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"model": self.model, "attend": self.attend, "fill": self.fill}

    @torch.no_grad()
    def _sees_everything(self) -> None:
        """Raise RunError if the first position does not see the last, or if the model does not take a 4-d mask."""
        base, weight = plain(self.model), next(self.model.parameters())
        if weight.is_meta:
            return
        x = torch.tensor([[0, 0, 0], [0, 0, 1]], device=weight.device)
        try:
            first = self(x)[:, 0]
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise RunError(
                f"a {type(base).__name__} takes no 4-d attention mask, so not attend='all': {said}"
            ) from error
        if torch.equal(first[0], first[1]):
            raise RunError(
                f"a {type(base).__name__} does not show the first position the last one: attend='all' needs it"
            )

    def _sees_the_past(self) -> None:
        """Raise RunError if a later token changes what the model says before it."""
        base, weight = plain(self.model), next(self.model.parameters())
        if weight.is_meta:
            return
        a, b = self.rows // 3, 2 * self.rows // 3
        try:
            with _asked(self, weight.device):
                one, two = self(torch.tensor([[a, b, a, a], [a, b, a, b]], device=weight.device)).float()
        except (RuntimeError, ValueError, TypeError):
            return  # it wants arguments that come with a canvas, or has no head: its first call says so
        moved = (one - two).abs().amax(-1)
        if bool(moved[:3].max() > _near(weight) * moved[3]):
            raise RunError(
                f"a {type(base).__name__} reads later tokens too, so it cannot write from left to right: make it with "
                "config.is_decoder=True if it was trained so, or take masked_policy"
            )

    def embed_condition(self, cond: Any) -> dict[str, Tensor]:
        """The model's own arguments."""
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
                f"a {type(plain(self.model)).__name__} takes no attention_mask, so padding cannot be hidden from it: "
                "give canvases of the policy's whole length"
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
                f"a {type(plain(self.model)).__name__} takes no position_ids: pad prompts on the right"
            )
        return given

    def _hides(self, mask: Tensor) -> None:
        """Raise InvalidInputError if there is padding on a side where the model sees it, its mask notwithstanding.

        The model is asked once, when the first mask comes.
        """
        if self._leaks is None:
            self._leaks = (False, False)
            self._leaks = (self._leak(left=True), self._leak(left=False))
        for leak, edge, side in zip(self._leaks, (mask[:, 0], mask[:, -1]), ("left", "right"), strict=True):
            if leak and bool((edge == 0).any()):
                raise InvalidInputError(
                    f"a {type(plain(self.model)).__name__} sees padding on the {side} in spite of its attention_mask: "
                    + ("give canvases of the policy's whole length" if all(self._leaks) else "pad on the other side")
                )

    def _leak(self, left: bool) -> bool:
        """Return whether four tokens are read otherwise alone than beside four of padding."""
        weight = next(self.model.parameters())
        if weight.is_meta:
            return False
        x = (torch.arange(4, device=weight.device)[None] + 1) * self.rows // 6
        blank, real = torch.zeros_like(x), torch.ones_like(x)
        seen = torch.cat([blank, real] if left else [real, blank], 1)
        try:
            with _asked(self, weight.device):
                beside = self(x.repeat(1, 2), None, self.embed_condition({"attention_mask": seen}))
                alone = self(x)
        except (RuntimeError, ValueError, TypeError):
            return False  # it wants other arguments, or takes no padding there: said where it is used
        apart = ((beside[:, 4:] if left else beside[:, :4]) - alone).abs().max()
        return bool(apart > 3 * _near(weight) * alone.abs().max())

    def forward(self, x: Tensor, clock: Any = None, context: dict[str, Tensor] | None = None) -> Tensor:
        given: dict[str, Any] = dict(context or {})
        if self.fill is not None:
            x = torch.where(x < self.rows, x, self.fill)
        mask, own = given.get("attention_mask"), counts_from(self.model)
        if own is not None and mask is not None:
            x = torch.where(mask == 0, own, x)  # positions are counted by the model itself, over what is not padding
        if self.attend == "all":
            given["attention_mask"] = _everyone(x, given.get("attention_mask"), next(self.model.parameters()).dtype)
        if "use_cache" in self.known:
            given["use_cache"] = False
        with _recomputed(self.model if torch.is_grad_enabled() else None):
            logits = getattr(self.model(input_ids=x, **given), "logits", None)
        least = size(self.model) or 0
        if logits is None or logits.ndim != 3 or logits.shape[-1] < least:
            raise RunError(
                f"a {type(plain(self.model)).__name__} has no language-model head, logits [B, L, {least}]: load it as "
                "AutoModelForMaskedLM or AutoModelForCausalLM"
            )
        return logits


@contextmanager
def _asked(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, a network answers a small question: in eval mode and full precision, uncompiled, without gradients."""
    training = [m for m in net.modules() if m.training]
    net.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _recomputed(model: nn.Module | None) -> Iterator[None]:
    """Inside, layers of transformers that were told to recompute their activations do so in eval mode too.

    They ask whether they train, and only for that moment they do: what they compute is computed in eval mode.
    """
    layers: list[Any] = [] if model is None else [m for m in model.modules() if _recomputes(m) and not m.training]
    before = [layer._gradient_checkpointing_func for layer in layers]
    for layer, func in zip(layers, before, strict=True):
        layer.training, layer._gradient_checkpointing_func = True, partial(_in_eval, layer, func)
    try:
        yield
    finally:
        for layer, func in zip(layers, before, strict=True):
            layer.training, layer._gradient_checkpointing_func = False, func


def _recomputes(layer: Any) -> bool:
    named = any(c.__name__ == "GradientCheckpointingLayer" for c in type(layer).__mro__)
    return named and layer.gradient_checkpointing


def _in_eval(layer: nn.Module, func: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """``func(forward, *args)``, the checkpoint, with the layer itself in eval mode, now and when it is recomputed."""

    def quiet(*given: Any) -> Any:
        mode, layer.training = layer.training, False
        try:
            return forward(*given)
        finally:
            layer.training = mode

    return func(quiet, *args)


def counts_from(model: nn.Module) -> int | None:
    """Return the id over which a model counts its own positions (RoBERTa and its kin); None for other models."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):  # I-BERT's is no nn.Embedding
            return getattr(module, "padding_idx", None)
    return None


def _everyone(x: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [B, 1, L, L]: 0 between real positions, the least number towards padding."""
    hidden = torch.zeros_like(x, dtype=dtype)
    if real is not None:
        hidden = hidden.masked_fill(real == 0, torch.finfo(dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, x.shape[1], -1)


def _config(model: Any) -> Any:
    """The configuration of a model's text part, or None."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def size(model: Any) -> int | None:
    """The vocabulary's size, mask and special tokens included."""
    return getattr(_config(model), "vocab_size", None)


def _rows(base: Any) -> int:
    """How many ids a model can read: the rows of its embedding, or the vocabulary's size where that is not known."""
    try:
        return base.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return size(base) or 0


def _first(base: nn.Module) -> int:
    """The number of a model's first position: 2 for some (Nystromformer, YOSO, MRA)."""
    own = next((b for name, b in base.named_buffers() if name.endswith("position_ids")), None)
    return 0 if own is None or own.is_meta or own.numel() == 0 else int(own.flatten()[0])


def _near(weight: Tensor) -> float:
    """The relative difference from which two answers are not one and the same, computed differently."""
    return torch.finfo(weight.dtype if weight.is_floating_point() else torch.bfloat16).eps ** 0.5


def tokens(model: nn.Module, vocab: int | None) -> int:
    """Return how many ids are tokens: ``vocab``, or the model's rows. Raise RunError if there are not so many rows."""
    rows = size(model) or 0
    if vocab is None:
        if rows % 64 == 0:
            warnings.warn(
                f"the model has {rows} rows of vocabulary, a multiple of 64, as vocabularies that were filled up have: "
                "say vocab=len(tokenizer), or ids of no token may be drawn",
                stacklevel=3,
            )
        return rows
    if not 0 < vocab <= rows:
        raise RunError(f"vocab={vocab} does not fit the model's vocabulary of {rows} rows: give 1 to {rows}")
    return vocab


def fits(model: nn.Module, length: int) -> None:
    """Raise RunError if sequences of ``length`` have more positions than the model."""
    most, own = getattr(_config(model), "max_position_embeddings", None), counts_from(model)
    most = most if most is None or own is None else most - own - 1
    if most is not None and 0 < most < length:
        raise RunError(
            f"sequences of {length} do not fit a model of {most} positions: make them shorter, or raise its "
            "max_position_embeddings if it was trained to go beyond"
        )


def masked_lm(
    model: nn.Module,
    mask: int,
    banned: Sequence[int] = (),
    shift: bool = False,
    attend: Attend = "own",
    vocab: int | None = None,
) -> TokenDenoiser:
    """An unmodified masked language model as a denoiser; it never predicts its ``mask`` nor the ids ``banned``.

    ``shift``: row i of the model speaks about token i + 1 (models made from left-to-right ones). ``vocab``: how many
    ids are tokens, ``len(tokenizer)``; rows of the model from there on are never predicted (None: it has no such rows).
    """
    net, rows, never = Net(model, attend), size(model), sorted({mask, *banned})
    for token in never:
        if rows is None or not 0 <= token < rows:
            raise RunError(f"id {token} is not in the model's vocabulary of {rows}: resize its embeddings first")
    known = tokens(model, vocab)
    return TokenDenoiser(net, shift, known, tuple(v for v in never if v < known)).eval()  # dropout only inside fit


def causal_lm(model: nn.Module, start: int | None = None, vocab: int | None = None) -> TokenDenoiser:
    """An unmodified left-to-right model as a denoiser for ``Autoregressive``. Raise RunError if it reads later tokens.

    Without ``start`` every sequence begins with a given token (a prompt). With it, the model reads that id first and
    writes the first token too. ``vocab``: see ``masked_lm``.
    """
    net = Net(model, fill=0)
    return TokenDenoiser(net, start is None, tokens(model, vocab), start=start).eval()


def masked_policy(
    model: nn.Module,
    mask: int,
    length: int,
    n: int,
    banned: Sequence[int] = (),
    shift: bool = False,
    attend: Attend = "own",
    vocab: int | None = None,
    pad: int | Literal["model"] | None = "model",
    **decoder: Any,
) -> Policy:
    """A policy that fills canvases [B, length] in n steps; ``decoder``: ``Masked``'s order, tokens, temperature, end.

    ``pad``: the id that fills short canvases up on either side and is hidden from the model (see ``InfillCodec``); by
    default the model's own ``pad_token_id``. Arguments of the model come with a canvas in a dict,
    ``{"canvas": tokens, "attention_mask": mask}``. ``vocab``: see ``masked_lm``.
    """
    denoiser = masked_lm(model, mask, banned, shift, attend, vocab)
    fits(model, length)
    process = Masked(denoiser.vocab or 0, mask_id=mask, **decoder)
    return Policy.of(process, denoiser, (length,), process.steps(time_grid(n)), codec=InfillCodec(_pad(model, pad)))


def causal_policy(
    model: nn.Module,
    length: int,
    n: int,
    start: int | None = None,
    vocab: int | None = None,
    pad: int | Literal["model"] | None = "model",
    **decoder: Any,
) -> Policy:
    """A policy that writes canvases [B, length] from left to right, n tokens; open positions hold the id ``vocab``.

    ``vocab`` is by default the model's own. ``pad``: see ``masked_policy``; ``decoder``: temperature, top_k, end.
    """
    denoiser = causal_lm(model, start, vocab)
    fits(model, length)
    process = Autoregressive(denoiser.vocab or 0, **decoder)
    return Policy.of(process, denoiser, (length,), process.steps(time_grid(n)), codec=InfillCodec(_pad(model, pad)))


def _pad(model: nn.Module, pad: int | str | None) -> Any:
    return getattr(_config(model), "pad_token_id", None) if pad == "model" else pad


def canvas(prompts: Sequence[Sequence[int]], length: int, mask: int, end: Sequence[int] = ()) -> Tensor:
    """Prompts (ids) as canvases [P, length]: the prompt, then masks to write on, then the ids ``end``.

    An ``end`` that is also the padding's id would be hidden: make the policy with ``pad=None`` then.
    """
    rows = []
    for i, ids in enumerate(prompts):
        if isinstance(prompts, str) or isinstance(ids, str | int):
            raise InvalidInputError(
                "prompts are lists of ids, one a row: take tokenizer(texts)['input_ids'], or [ids] for one"
            )
        room = length - len(ids) - len(end)
        if room < 1:
            raise InvalidInputError(
                f"prompt {i} has {len(ids)} tokens: a canvas of {length} leaves no room for an answer"
            )
        if mask in ids:
            raise InvalidInputError(f"prompt {i} contains the mask {mask}: it would be written over")
        rows.append([*ids, *[mask] * room, *end])
    return torch.tensor(rows, dtype=torch.int64)
