"""Named parameter sets over one module: current, reference, ema, old, teachers.

Only trainable tensors are copied; frozen ones are shared, so the reference of a LoRA model is as small as its adapters.
Before LoRA has learned, "adapters off" is that reference and needs no memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.averages import update_average
from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.policy.state_dicts import check_same_shapes, load_checked, strip_prefix
from denoiserl.processes.denoiser import Denoiser, Estimate


class AdapterOff(Denoiser):
    """A denoiser with its adapters switched off: the model before they learned, without a copy."""

    def __init__(self, denoiser: Denoiser, adapted: nn.Module) -> None:
        super().__init__()
        self._inner = (denoiser, adapted)  # a tuple: not registered as children, so nothing is saved twice

    def embed_condition(self, cond: Any) -> Any:
        """Call the inner denoiser with adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0].embed_condition(cond)

    def embed_time(self, t: Tensor) -> Any:
        """Call the inner denoiser with adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0].embed_time(t)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        """Call the inner denoiser with adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0](x, clock, context)


LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
"""names of the matrices of 2106.09685 in peft"""


def _adapted(module: nn.Module) -> list[nn.Module]:
    """Return the submodules whose adapters can be switched off (peft models)."""
    return [m for m in module.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")]


def _switch(module: nn.Module) -> nn.Module | None:
    """Return the peft model that with adapters off will always compute as ``module`` does now; or None.

    That holds for LoRA at its start: every B is zero, and only A and B of the active adapters learn. No layer may be
    merged or of another kind, and there may be no floating-point buffers.
    """
    adapted = _adapted(module)
    layers: list[Any] = [m for m in module.modules() if getattr(m, "adapter_layer_names", ())]
    learns = {id(p) for p in module.parameters() if p.requires_grad}
    own, kept = set(), module.state_dict(keep_vars=True)
    for layer in layers:
        parts = {name: _named(layer, name) for name in (*LORA, *layer.adapter_layer_names)}
        other = any(parts[name] for name in parts if name not in LORA) or getattr(layer, "lora_variant", None)
        off = {name for name in LORA if not any(bool(p.any()) for p in parts[name].values())}
        if other or getattr(layer, "merged", True) or "lora_B" not in off or not off & {LORA[2], LORA[3]}:
            return None
        own |= {id(p) for name in LORA for key, p in parts[name].items() if key.split(".")[0] in layer.active_adapters}
    moves = any(v.is_floating_point() and not isinstance(v, nn.Parameter) for v in kept.values())
    return adapted[0] if len(adapted) == 1 and learns and learns == own and not moves else None


def _named(layer: Any, part: str) -> dict[str, Any]:
    """Return the tensors of a part of a layer with adapters, by the adapter's name."""
    held = getattr(layer, part, None)
    return dict(held.named_parameters()) if isinstance(held, nn.Module) else {} if held is None else {part: held}


class Weights:
    """Named parameter sets of one denoiser. ``current`` is the module itself and the only one that learns.

    ``control``: the controller of samples (``denoiserl.policy.controller.Controller``), or None. ``execute``:
    the execution horizon, actions of a chunk that are executed before the next decision (None: all). ``base``: the
    folder of the model that the frozen tensors come from; saved states then leave these tensors out. None: nothing is
    left out.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.module = denoiser
        self.control: nn.Module | None = None
        self.execute: int | None = None
        self.base: str | None = None
        self.sets: dict[str, Denoiser] = {}
        self.shared: dict[str, list[nn.Parameter]] = {}
        """per set, the parameters that it shares with the module: those that were frozen at its snapshot"""
        self.averages: dict[str, dict[str, Tensor]] = {}
        """per set that is averaged in bf16 or fp16: its tensors in float32, which keep small updates"""
        self.version = 0

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        learns = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return f"Weights({', '.join(['current', *self.sets])}: {parameters:,} parameters, {learns:,} trainable)"

    def snapshot(self, name: str) -> Denoiser:
        """Copy the current weights to the set ``name`` (new or overwritten) and return its denoiser, frozen.

        ``reference`` is "adapters off", without a copy, if that is the current model: LoRA that has not learned yet,
        and nothing else that learns. Otherwise it is a copy too.
        """
        if name == "current":
            raise InvalidInputError("current is the module itself: choose another name")
        if name == "reference" and (adapted := _switch(self.module)) is not None:
            self._switched(name, adapted)
        else:
            self._renew(name)
        return self.sets[name]

    def _switched(self, name: str, adapted: nn.Module) -> None:
        self.sets[name] = AdapterOff(self.module, adapted)
        self.shared[name] = [p for p in self.module.parameters() if not p.requires_grad]

    def _renew(self, name: str) -> None:
        """Copy the current weights to ``name``, in place if it has its own tensors for all that learns."""
        own = self.sets.get(name)
        if own is not None and not isinstance(own, AdapterOff):
            ours, theirs = dict(self.module.named_parameters()), dict(own.named_parameters())
            if ours.keys() == theirs.keys() and not any(p is theirs[n] and p.requires_grad for n, p in ours.items()):
                self._blend(name, 1.0)
                self.shared[name] = [p for n, p in ours.items() if p is theirs[n]]
                return
        shared: dict[int, Any] = {id(p): p for p in self.module.parameters() if not p.requires_grad}
        fresh = copy.deepcopy(self.module, shared)
        for p, q in zip(self.module.parameters(), fresh.parameters(), strict=True):
            if p is not q:
                q.requires_grad_(False)
        self.sets[name], self.shared[name] = fresh, [p for p in self.module.parameters() if not p.requires_grad]

    def using(self, name: str = "current") -> Denoiser:
        """Return the denoiser of the set ``name``. Raise RunError if a part that it shares learns now."""
        if name == "current":
            return self.module
        if name not in self.sets:
            raise RunError(unknown_name_message(name, ["current", *self.sets], "set of weights"))
        if any(p.requires_grad for p in self.shared.get(name, ())):
            raise RunError(
                f"{name!r} shares what was frozen at its snapshot, and a part of that learns now: set requires_grad of "
                f"all parts first, and then snapshot({name!r})"
            )
        return self.sets[name]

    def ema_update(self, name: str, decay: float) -> None:
        """Update θ_name ← decay · θ_name + (1 − decay) · θ in place, for every trainable tensor; copy buffers.

        Averages of bf16 and fp16 are kept in float32; the set holds them rounded.
        """
        if name not in self.sets:
            self.snapshot(name)
        self._copy(name)
        self._blend(name, 1 - decay)

    @torch.no_grad()
    def _blend(self, name: str, rate: float) -> None:
        own, source = self.sets[name], dict(self.module.named_parameters())
        average = {n: q for n, q in own.named_parameters() if q is not source[n]}
        update_average(average, source, rate, self.averages.setdefault(name, {}))
        if not self.averages[name]:
            del self.averages[name]
        for q, p in zip(own.buffers(), self.module.buffers(), strict=True):
            q.copy_(p)

    def _copy(self, name: str) -> Denoiser:
        """Return the set ``name``. Raise RunError if it has no tensors of its own."""
        own = self.using(name)
        if isinstance(own, AdapterOff):
            raise RunError(
                f"{name!r} is the model with its adapters off and has no weights: snapshot() under another name"
            )
        return own

    @torch.no_grad()
    def load(self, name: str) -> None:
        """Copy the set ``name`` into the current weights (back to the best, or to the average)."""
        own = self._copy(name)
        for p, q in zip(self.module.parameters(), own.parameters(), strict=True):
            if p is not q:
                p.copy_(q)
        for p, q in zip(self.module.buffers(), own.buffers(), strict=True):
            p.copy_(q)
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all sets, by name. Frozen tensors are stored once, under current, or not at all: see ``base``."""
        kept = {name: module for name, module in self.sets.items() if not isinstance(module, AdapterOff)}
        named = {name: self.trainable_tensors(module) for name, module in kept.items()}
        free = [name for name, module in self.sets.items() if isinstance(module, AdapterOff)]
        current = dict(self.module.state_dict()) if self.base is None else self.trainable_tensors(self.module)
        state = {"current": current, "sets": named, "free": free, "version": self.version}
        if self.averages:
            state["averages"] = {name: dict(mean) for name, mean in self.averages.items()}
        return state if self.control is None else {**state, "control": dict(self.control.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every set; shapes, names and precisions must agree."""
        own = self.module.state_dict()
        if other := [k for k, v in state["current"].items() if k in own and own[k].dtype != v.dtype]:
            was, now = state["current"][other[0]].dtype, own[other[0]].dtype
            raise RunError(f"{other[0]} was saved in {was} and is {now} here: give the network the precision it had")
        load_checked(self.module, state["current"] if self.base is None else self.with_frozen(state["current"]))
        for name in state["free"]:  # not _switch(): B is no longer zero
            if not (adapted := _adapted(self.module)):
                raise RunError(f"{name!r} was saved as 'adapters off': put the same adapters on the network first")
            self._switched(name, adapted[0])
        for name, tensors in state["sets"].items():
            self._renew(name)
            own = self.trainable_tensors(self._copy(name))
            tensors = strip_prefix(tensors, own)
            check_same_shapes(own, tensors, f"the set {name!r}")
            self.sets[name].load_state_dict(tensors, strict=False)
        self.averages = {
            name: {n: v.to(self.sets[name].get_parameter(n).device, copy=True) for n, v in mean.items()}
            for name, mean in state.get("averages", {}).items()
        }
        if "control" in state and self.control is None:
            raise RunError("these weights come with a controller: give this policy the same controller first")
        if self.control is not None and "control" in state:
            load_checked(self.control, state["control"])
        self.version = int(state["version"])

    def with_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the ``trainable_tensors`` of a saved state with the frozen tensors of the current module."""
        own, learns = self.module.state_dict(), self.trainable_tensors(self.module)
        return {k: v for k, v in own.items() if k not in learns} | strip_prefix(tensors, learns)

    def trainable_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the state of a set without the parameters that are frozen, which are those of the current module."""
        frozen = {n for n, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {k: v for k, v in module.state_dict().items() if k not in frozen}
