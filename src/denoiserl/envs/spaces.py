"""Observation and action spaces: which are supported, and the conversion of observations and actions.

    observations   Box and MultiBinary, and dicts of them
    actions        Box of floats and Discrete

Others raise an error by name. The class may be Gymnasium's, the old gym's or one of the same name: no package is
imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng

KINDS = (
    "Box", "Discrete", "MultiBinary", "MultiDiscrete", "Dict", "Tuple", "Text", "Graph", "Sequence", "OneOf",
)  # fmt: skip
"""the spaces of Gymnasium"""

FLAT = "wrap it in gymnasium.wrappers.FlattenObservation"
RNGS = ("rng", "generator", "key")
"""names of a second parameter with a default that takes an rng"""
BOXED = "wrap it in gymnasium.wrappers.TransformAction, with a Box of floats as its action space"


class Spec(NamedTuple):
    """Shapes of one environment: ``obs`` (a shape, or a dict of shapes), the action's shape, and its bounds.

    ``choices`` is the number of actions of a discrete environment, else None.
    """

    obs: Any
    action: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    choices: int | None = None


def kind(space: Any) -> str:
    """Return the name of a space's kind.

    It is one of ``KINDS`` by its class or a parent's, "Box" for other classes with shape and bounds, else the class
    name.
    """
    for cls in type(space).__mro__:
        if cls.__name__ in KINDS:
            return cls.__name__
    bounded = all(hasattr(space, name) for name in ("low", "high", "shape"))
    return "Box" if bounded else type(space).__name__


def _shapes(space: Any, name: str, where: str = "") -> Any:
    found = kind(space)
    if found == "Dict":
        if not space.spaces:
            raise InvalidInputError(f"{name} observes an empty Dict{where}: add at least one space")
        return {k: _shapes(v, name, f" in {k!r}") for k, v in space.spaces.items()}
    if found == "Discrete":
        n = int(space.n)
        raise InvalidInputError(
            f"{name} observes a Discrete({n}){where}, a label and no quantity: {FLAT}, which makes it one-hot"
        )
    if found == "MultiDiscrete":
        raise InvalidInputError(
            f"{name} observes a MultiDiscrete{where}, labels and no quantities: {FLAT}, which makes them one-hot"
        )
    if found not in ("Box", "MultiBinary"):
        cure = f"{FLAT}, or give arrays" if found == "Tuple" else "give arrays, or dicts of arrays"
        raise InvalidInputError(f"{name} observes a {found}{where}, which is no array: {cure}")
    return tuple(int(n) for n in space.shape)


def env_spec(observation: Any, action: Any, name: str = "the environment") -> Spec:
    """Return the ``Spec`` of one environment's spaces. Raise InvalidInputError for an unsupported space."""
    seen, found = _shapes(observation, name), kind(action)
    if found == "Discrete":
        n, first = int(action.n), int(getattr(action, "start", 0))
        return Spec(seen, (), np.array(first), np.array(first + n - 1), n)
    if found != "Box":
        raise InvalidInputError(f"{name} acts in a {found}: only Box and Discrete action spaces are supported; {BOXED}")
    low, high = np.asarray(action.low), np.asarray(action.high)
    declared = np.dtype(str(getattr(action, "dtype", low.dtype)).removeprefix("torch."))
    if declared.kind != "f":
        raise InvalidInputError(
            f"{name} acts in a Box of {declared}, and actions of policies are real numbers: {BOXED}"
        )
    return Spec(seen, tuple(int(n) for n in action.shape), low.astype(declared), high.astype(declared))


def flat_size(seen: Any, name: str) -> int:
    """Return the number of entries of a flat observation of shape ``seen``. Raise InvalidInputError if it is not
    flat."""
    if isinstance(seen, dict):
        raise InvalidInputError(f"{name} observes parts {seen}, and flat numbers are needed here: {FLAT}")
    if len(seen) != 1:
        what = "a single number" if not seen else f"an array {list(seen)}"
        raise InvalidInputError(f"{name} observes {what}, and a flat list of numbers [o] is needed here: {FLAT}")
    return seen[0]


def as_actor(act: Callable[..., Any]) -> Callable[[Any, Rng], Any]:
    """Return a function ``act(obs, rng)`` that calls ``act`` with the arguments that it accepts.

    A function of observations alone gets no rng; neither does a second parameter with a default and another name than
    ``RNGS``, such as ``deterministic=True``. Raise InvalidInputError for anything else.
    """
    if not callable(act):
        cure = ": of a policy it is denoiserl.control.acting.eval_actor(policy)" if hasattr(act, "eval_steps") else ""
        raise InvalidInputError(
            f"act is a {type(act).__name__}, and a function act(obs, rng) -> actions is needed{cure}"
        )
    try:
        signature = inspect.signature(act)
    except (TypeError, ValueError):  # some functions of C have none
        return act
    alone = _takes(signature, 1)
    if _takes(signature, 2) and not (alone and _optional(signature)):
        return act
    if alone:
        return lambda obs, rng: act(obs)
    raise InvalidInputError(
        f"act{signature} cannot be called as act(obs, rng), nor as act(obs): write act(obs, rng) -> actions"
    )


def _optional(signature: inspect.Signature) -> bool:
    """Return whether the second parameter of a function is an option and not an rng."""
    second = [p for p in signature.parameters.values() if p.kind != p.KEYWORD_ONLY][1:2]
    return any(p.default is not p.empty and p.name not in RNGS for p in second)


def _takes(signature: inspect.Signature, n: int) -> bool:
    try:
        signature.bind(*[None] * n)
    except TypeError:
        return False
    return True


def prepare_actions(action: Any, spec: Spec, num_envs: int, name: str) -> tuple[np.ndarray, int]:
    """Return actions as [B, T_a, *shape] NumPy, clipped to the bounds, and T_a.

    Arrays are converted. Raise InvalidInputError for other types, shapes, NaN and infinity.
    """
    numbers = _numbers(action if isinstance(action, Tensor) else _tensor(action, name))
    shape: tuple[int, ...] = numbers.shape
    horizon = shape[1] if len(shape) > 1 else 0
    single, chunk = (num_envs, *spec.action), (num_envs, horizon, *spec.action)
    if spec.choices is not None and shape == (num_envs, 1):
        numbers, shape = numbers[:, 0], (num_envs,)
    if shape != single and (shape != chunk or not horizon):
        raise InvalidInputError(
            f"{name} takes actions {list(single)} or chunks {[num_envs, 'T_a', *spec.action]}; "
            f"the policy gave {list(shape)}"
        )
    if spec.choices is not None:
        if numbers.dtype.kind not in "iub":
            raise InvalidInputError(
                f"{name} takes one of {spec.choices} actions as integers; the policy gave {numbers.dtype}"
            )
        known = numbers.ravel().tolist()  # for a few numbers Python is quicker than four calls of NumPy
        if min(known) < spec.low.item() or max(known) > spec.high.item():
            raise InvalidInputError(f"{name} takes actions {int(spec.low)}..{int(spec.high)}; the policy gave others")
    else:
        if numbers.dtype.kind == "c":
            raise InvalidInputError(f"{name} takes actions that are real numbers; the policy gave {numbers.dtype}")
        if np.count_nonzero(np.isfinite(numbers)) < numbers.size:
            row = int(np.argmax(~np.isfinite(numbers.reshape(num_envs, -1)).all(1)))
            raise InvalidInputError(f"the policy's action for environment {row} of {name} holds NaN or infinity")
        numbers = np.minimum(np.maximum(numbers, spec.low), spec.high).astype(spec.low.dtype, copy=False)
    return (numbers[:, None], 1) if shape == single else (numbers, horizon)


def _numbers(action: Tensor) -> np.ndarray:
    """Return a tensor as NumPy, from any device; further torch calls would cost a microsecond each."""
    try:
        return action.numpy()
    except (RuntimeError, TypeError):  # on another device, with a gradient, or of a type that NumPy lacks
        return (action.double() if action.is_floating_point() else action).numpy(force=True)


def _tensor(action: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(action))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"the policy gave a {type(action).__name__} for {name}, and actions are a tensor or an array of numbers "
            f"({error}): act returns them, alone or first in a tuple"
        ) from error


def tensors(observation: Any, shapes: Any = None, name: str = "the environment") -> Any:
    """Return observations [B, ...] as float32 tensors, images as uint8; with ``shapes`` they are checked."""
    if isinstance(observation, dict) or isinstance(shapes, dict):
        if shapes is not None and _keys(observation) != _keys(shapes):
            raise InvalidInputError(f"{name} declares observations {_keys(shapes)} and returned {_keys(observation)}")
        return {k: tensors(v, None if shapes is None else shapes[k], name) for k, v in observation.items()}
    if shapes is not None and observation.shape[1:] != shapes:
        raise InvalidInputError(
            f"{name} declares observations {list(shapes)} and returned {list(observation.shape[1:])}"
        )
    if observation.dtype.kind not in "fiub":
        raise InvalidInputError(f"{name} returned observations of type {observation.dtype}: return arrays of numbers")
    picture = observation.ndim > 2 and observation.dtype == np.uint8  # as floats it is four times as large
    return torch.from_numpy(np.ascontiguousarray(observation, dtype=np.uint8 if picture else np.float32))


def _keys(tree: Any) -> Any:
    """Return the names of the parts of an observation."""
    return sorted(tree) if isinstance(tree, dict) else "an array"
