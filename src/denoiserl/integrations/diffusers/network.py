"""A diffusers UNet or transformer as a raw network, and as the denoiser of a Gaussian process."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import tensors, tree_map
from denoiserl.integrations.families import flow_levels, required_arguments, unwrap_adapters
from denoiserl.integrations.schedulers import convert
from denoiserl.processes import GaussianDenoiser, Schedule


class Net(nn.Module):
    """A diffusers model as a raw network: times to its timesteps, a condition to its keyword arguments.

    ``flow``: the model reads ``levels`` · σ(t) (Kσ or Kσ/1000, see ``families.LEVELS``). Otherwise it reads the index t
    · levels − 1 of a discrete level, exact if t is one of them. A condition is one tensor (the model's
    ``encoder_hidden_states``, or the ``class_labels`` of a model without text) or a dict of the model's own arguments,
    batch first. ``fixed`` are arguments without a batch dimension, the same in every call (Flux's ``img_ids``).
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, levels: float, flow: bool, fixed: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        base = unwrap_adapters(model)
        known = list(inspect.signature(base.forward).parameters)
        self.state = next((name for name in ("sample", "hidden_states") if name in known), "")
        self.main = next((name for name in ("encoder_hidden_states", "class_labels") if name in known), "")
        if not self.state or "timestep" not in known:
            raise RunError(
                f"a {type(base).__name__} lacks the arguments (sample | hidden_states, timestep, ...): wrap it"
            )
        self.model, self.schedule, self.levels, self.flow = model.eval(), schedule, levels, flow
        self.needs = required_arguments(model)
        self.known = [name for name in known if name not in (self.state, "timestep", "return_dict")]
        self.fixed = tensors(dict(fixed or {}))
        self._check(self.fixed)
        for name, value in self.fixed.items():
            self.register_buffer(f"fixed_{name}", value, persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """the constructor's arguments"""
        own = {"model": self.model, "schedule": self.schedule, "levels": self.levels, "flow": self.flow}
        return own | {"fixed": self.fixed}

    @property
    def dtype(self) -> torch.dtype:
        """the model's floating-point type"""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def _check(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.known:
                raise InvalidInputError(unknown_name_message(name, self.known, "condition of this model"))

    def embed_condition(self, cond: Any) -> dict[str, Any]:
        """Return the model's keyword arguments, in its precision. Raise InvalidInputError for missing or
        unknown ones.
        """
        given = cond if isinstance(cond, dict) else {} if cond is None else {self.main: cond}
        self._check(given)
        if self.main == "encoder_hidden_states" and self.main not in given:
            raise InvalidInputError(
                "this model needs a condition: embeddings [B, tokens, features], or prompts(pipeline, texts)"
            )
        if missing := [name for name in self.needs if name not in given and name not in self.fixed]:
            raise InvalidInputError(
                f"a {type(unwrap_adapters(self.model)).__name__} also needs {', '.join(missing)}: "
                "give a dict of its arguments"
            )
        return tree_map(self._precise, given)

    def _precise(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InvalidInputError(f"a condition is a {type(value).__name__}: give tensors, batch first")
        return value.to(self.dtype) if value.is_floating_point() else value

    def embed_time(self, t: Tensor) -> Tensor:
        """Return the model's timestep, [*t]."""
        if self.flow:
            return self.levels * self.schedule(t)[1]
        index = t * self.levels - 1
        near = index.round()
        return torch.where((index - near).abs() < 1e-3, near, index).clamp_min(0)

    def forward(self, x: Tensor, clock: Tensor, context: dict[str, Any] | None = None) -> Tensor:
        fixed = {name: getattr(self, f"fixed_{name}") for name in self.fixed}
        seen = {self.state: x.to(self.dtype), "timestep": clock.expand(len(x)), **fixed, **(context or {})}
        return self.model(**seen, return_dict=False)[0]


def denoiser(
    model: nn.Module,
    scheduler: Any,
    tokens: int | None = None,
    fixed: Mapping[str, Tensor] | None = None,
    levels: float | None = None,
) -> GaussianDenoiser:
    """Return an unmodified model, with the scheduler it was trained with, as the denoiser of a Gaussian process.

    ``levels``: the timestep of a flow model of an unknown class, in units of σ (1000 or 1 if the scheduler has 1000
    levels). Other models read the index of a level, and ``levels`` is the scheduler's. Raise RunError if it is unknown.
    """
    if not isinstance(model, nn.Module):
        raise RunError(f"a {type(model).__name__} is no network: give pipeline.unet or pipeline.transformer")
    convention = convert(scheduler, tokens)
    if convention.flow:
        levels = flow_levels(model, bool(scheduler.config.get("use_dynamic_shifting")), levels, convention.levels)
    elif levels not in (None, convention.levels):
        raise RunError(f"the scheduler has {convention.levels} levels: levels={levels} would be wrong, leave it out")
    net = Net(model, convention.schedule, levels or convention.levels, convention.flow, fixed)
    if hasattr(base := unwrap_adapters(model), "peft_config") and hasattr(base, "save_pretrained"):
        forbid_saving_adapters(base)
    return GaussianDenoiser(net, convention.schedule, convention.predicts).eval()


def forbid_saving_adapters(model: Any) -> None:
    """Make ``model.save_pretrained`` raise RunError while adapters are in the model."""
    own, layer = type(model).save_pretrained, require("peft.tuners.tuners_utils", "hub").BaseTunerLayer

    @functools.wraps(own)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(module, layer) for module in self.modules()):
            raise RunError(
                f"this {type(self).__name__} holds adapters, and no library reads its file with them: write the "
                "adapters alone, integrations.adapters.save_lora(policy, folder), or fold them into the weights "
                "first, integrations.adapters.merge(policy)"
            )
        return own(self, *args, **kwargs)

    model.save_pretrained = types.MethodType(save_pretrained, model)
