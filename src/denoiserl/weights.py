"""Named parameter sets over one module: current, reference, ema, old, teachers.

Only trainable tensors are copied; frozen ones are shared, so a LoRA-tuned model keeps a reference for the price of its
adapters, and with adapters that can be switched off the reference costs nothing at all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.denoiser import Denoiser, Estimate
from denoiserl.errors import BadRun, nearest


class AdapterOff(Denoiser):
    """The same denoiser with its adapters switched off: the pretrained model, without a copy."""

    def __init__(self, denoiser: Denoiser, adapted: nn.Module) -> None:
        super().__init__()
        self._inner = (denoiser, adapted)  # a tuple: not registered as children, so nothing is saved twice

    def encode(self, cond: Any) -> Any:
        """As the inner denoiser, adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0].encode(cond)

    def clock(self, t: Tensor) -> Any:
        """As the inner denoiser, adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0].clock(t)

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        """As the inner denoiser, adapters off."""
        with self._inner[1].disable_adapter():  # type: ignore[operator]
            return self._inner[0](x, clock, context)


def _adapted(module: nn.Module) -> nn.Module | None:
    """The submodule whose adapters can be switched off, if any (a peft model)."""
    return next((m for m in module.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")), None)


class Weights:
    """Named parameter sets of one denoiser. ``current`` is the module itself and the only one that learns.

    ``control``: what chooses for the policy when it serves (``denoiserl.policy.Control``), where anything does.
    ``execute``: how many actions of a chunk are executed before the policy plans again (None: all that it decodes);
    ``env.planner.serving`` obeys it.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.module = denoiser
        self.control: nn.Module | None = None
        self.execute: int | None = None
        self.sets: dict[str, Denoiser] = {}
        self.version = 0

    def keep(self, name: str) -> Denoiser:
        """Copy the current weights to the set ``name`` (made or overwritten) and return its denoiser, frozen.

        A model with adapters keeps ``reference`` as "adapters off", for free, if nothing else of it learns.
        """
        if name == "current":
            raise ValueError("current is the module itself: choose another name")
        adapted = _adapted(self.module)
        if name == "reference" and adapted is not None and not self._beside(adapted):
            self.sets[name] = AdapterOff(self.module, adapted)
        elif name in self.sets and not isinstance(self.sets[name], AdapterOff):
            self._blend(name, 0.0)
        else:
            shared: dict[int, Any] = {id(p): p for p in self.module.parameters() if not p.requires_grad}
            fresh = copy.deepcopy(self.module, shared)
            for p, q in zip(self.module.parameters(), fresh.parameters(), strict=True):
                if p is not q:
                    q.requires_grad_(False)
            self.sets[name] = fresh
        return self.sets[name]

    def _beside(self, adapted: nn.Module) -> bool:
        """Does anything learn beside the adapters?"""
        inside = {id(p) for p in adapted.parameters()}
        return any(p.requires_grad and id(p) not in inside for p in self.module.parameters())

    def using(self, name: str = "current") -> Denoiser:
        """The denoiser that computes with the set ``name``."""
        if name == "current":
            return self.module
        if name not in self.sets:
            raise BadRun(nearest(name, ["current", *self.sets], "set of weights"))
        return self.sets[name]

    def follow(self, name: str, decay: float) -> None:
        """θ_name ← decay · θ_name + (1 − decay) · θ, for every trainable tensor, in place."""
        if not 0 <= decay <= 1:
            raise ValueError(f"decay lies in [0, 1], not {decay}")
        if name not in self.sets:
            self.keep(name)
        self._blend(name, decay)

    @torch.no_grad()
    def _blend(self, name: str, decay: float) -> None:
        own = self._copy(name)
        pairs = [(q, p) for q, p in zip(own.parameters(), self.module.parameters(), strict=True) if p is not q]
        if pairs:
            torch._foreach_lerp_([q for q, _ in pairs], [p for _, p in pairs], 1 - decay)
        for q, p in zip(own.buffers(), self.module.buffers(), strict=True):
            q.copy_(p)

    def _copy(self, name: str) -> Denoiser:
        """The set ``name``, which must hold tensors of its own."""
        own = self.using(name)
        if isinstance(own, AdapterOff):
            raise BadRun(f"{name!r} is the model with its adapters off and holds no weights: keep() under another name")
        return own

    @torch.no_grad()
    def load(self, name: str) -> None:
        """Copy the set ``name`` into the current weights (go back to the best, or to the average)."""
        own = self._copy(name)
        for p, q in zip(self.module.parameters(), own.parameters(), strict=True):
            if p is not q:
                p.copy_(q)
        for p, q in zip(self.module.buffers(), own.buffers(), strict=True):
            p.copy_(q)
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """All sets, by name. Frozen tensors are stored once, under current."""
        named = {name: self._own(module) for name, module in self.sets.items() if not isinstance(module, AdapterOff)}
        free = [name for name, module in self.sets.items() if isinstance(module, AdapterOff)]
        state = {"current": dict(self.module.state_dict()), "sets": named, "free": free, "version": self.version}
        return state if self.control is None else {**state, "control": dict(self.control.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every set; shapes and names must agree."""
        fit(self.module, state["current"])
        for name in [*state["sets"], *state["free"]]:
            self.keep(name)
        for name in state["free"]:
            if not isinstance(self.sets[name], AdapterOff):
                raise BadRun(f"{name!r} was saved as 'adapters off': put the same adapters on the network first")
        for name, tensors in state["sets"].items():
            agree(self._own(self._copy(name)), tensors, f"the set {name!r}")
            self.sets[name].load_state_dict(tensors, strict=False)
        if "control" in state and self.control is None:
            raise BadRun("these weights belong to a policy that is controlled: give this one the same control first")
        if self.control is not None and "control" in state:
            fit(self.control, state["control"])
        self.version = int(state["version"])

    def _own(self, module: nn.Module) -> dict[str, Tensor]:
        """A set's own tensors: those of frozen parameters are the current module's."""
        frozen = {n for n, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {k: v for k, v in module.state_dict().items() if k not in frozen}


def fit(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a state dict, refusing with names and shapes when it belongs to another network."""
    agree(module.state_dict(), tensors, "the network")
    module.load_state_dict(tensors)


def agree(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes differ from ``own``."""
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k}: {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape
    ]
    if missing or surplus or shapes:
        raise BadRun(
            f"these weights belong to another network, or other parts of it are frozen ({what}): missing "
            f"{missing[:5]}, surplus {surplus[:5]}, other shapes {shapes[:5]}"
        )
