"""Read the answers of environments: Gymnasium's interface, with the harmless variants of it in use.

Numbers may be Python's, NumPy's or arrays of one element. Success may be reported at any step or only when an episode
ends, at the top of ``info`` or in its ``episode``. Anything else raises a clear error.

This module imports only NumPy, as ``chunk`` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from denoiserl.core.errors import DenoiseRLError, InvalidInputError

KEYS = ("success", "is_success", "success_once", "success_at_end")
"""names of success in ``info``"""
INNER = ("episode", "final_info")
"""dicts in ``info`` that may hold it, at the end of an episode"""

OLD = (
    "that is the interface of the old gym: inherit from gymnasium.Env, or wrap it: pip install shimmy, then "
    "gymnasium.make('GymV21Environment-v0', env=env) (GymV26Environment-v0 for gym 0.26)"
)


def said_success(info: dict[str, Any]) -> bool | None:
    """Return the success that ``info`` reports, or None.

    The keys are ``success``, ``is_success``, ``success_once`` and ``success_at_end``, in ``info``, then in its
    ``episode`` and ``final_info``. None and NaN report nothing.
    """
    for key in KEYS:
        if key in info:
            return _truth(info[key])
    for name in INNER:
        if name in info and isinstance(info[name], dict):
            said = said_success(info[name])
            if said is not None:
                return said
    return None


def _truth(value: Any) -> bool | None:
    if value is True or value is False:
        return value
    found = np.asarray(value)
    if found.size != 1:
        raise InvalidInputError(f"info reports success as {found.size} values: report one, True or False")
    one = found.item()
    if one is not None and not isinstance(one, bool | int | float):
        raise InvalidInputError(f"info reports success as {_short(value)}: report True or False")
    return None if one is None or one != one else bool(one)


def said_by_all(info: Any, rows: np.ndarray) -> np.ndarray | None:
    """Return the success [B] that a vector environment reports for its ``rows`` [B]: 1, 0, or -1 for no report.

    Return None if it reports none at all.
    """
    if isinstance(info, np.ndarray | list):  # one info per environment, as older vector environments give final infos
        said = [said_success(one) if isinstance(one, dict) else None for one in info]
        return np.array([-1 if one is None or not row else one for one, row in zip(said, rows, strict=True)], np.int8)
    found = None
    for source in (info, info["episode"]) if isinstance(info.get("episode"), dict) else (info,):
        for key in KEYS:
            if key in source:
                value, known = np.asarray(source[key]).reshape(-1), rows
                if len(value) != len(rows):
                    raise InvalidInputError(
                        f"info reports success {list(value.shape)}: report one value per environment, {[len(rows)]}"
                    )
                if f"_{key}" in source:
                    known = known & np.asarray(source[f"_{key}"], bool).reshape(-1)
                if value.dtype.kind not in "bi":  # None and NaN report nothing
                    said = [_truth(v) if here else None for v, here in zip(value, known, strict=True)]
                    known, value = np.array([v is not None for v in said]), np.array([bool(v) for v in said])
                known = known if found is None else known & (found < 0)
                found = np.where(known, value.astype(bool), -1 if found is None else found)
    return found


def solved_at_start(info: Any, count: int) -> np.ndarray:
    """Return which of ``count`` environments report success in the info of their reset, bool [B]."""
    said = said_by_all(info or {}, np.ones(count, bool))
    return np.zeros(count, bool) if said is None else said > 0


def answer(result: Any, env: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Return the result of ``step`` as Gymnasium's five values. Raise InvalidInputError if it cannot be read."""
    name = type(env).__name__
    if not isinstance(result, tuple | list) or len(result) != 5:
        many = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        more = OLD if isinstance(result, tuple | list) and len(result) == 4 else "return those five"
        raise InvalidInputError(
            f"step of {name} returns {many}, not (observation, reward, terminated, truncated, info): {more}"
        )
    observation, reward, terminated, truncated, info = result
    gain = _one(reward, name, "a reward")
    ends = [
        v is not None and _one(v, name, what)
        for v, what in ((terminated, "terminated as"), (truncated, "truncated as"))
    ]
    if info is not None and not isinstance(info, dict):
        raise InvalidInputError(f"{name} gives an info of type {type(info).__name__}: return a dict")
    return observation, gain, bool(ends[0]), bool(ends[1]), info or {}


def _one(value: Any, name: str, what: str) -> float:
    """Return one number, from a number or an array of one."""
    try:
        found = np.asarray(value)
        if found.size == 1 and found.dtype.kind in "fiub":
            return float(found.item())
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InvalidInputError(f"{name} gives {what} {_short(value)}: return one number")


def _short(value: Any) -> str:
    """Return a short description of a value."""
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {list(shape)}" if shape else repr(value)[:60]


def reset_env(env: Any, **seed: int) -> tuple[Any, bool]:
    """Reset ``env``; return its first observation, and whether it reports success already (see ``restart``)."""
    observation, info = restart(env, **seed)
    return observation, bool(said_success(info))


def restart(env: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Return the observation and info of ``env.reset(**given)``.

    Raise InvalidInputError if ``reset`` takes no seed or does not return (observation, info).
    """
    name = type(env).__name__
    try:
        result = env.reset(**given)
    except TypeError as error:
        if "unexpected keyword argument 'seed'" not in str(error):
            raise
        raise InvalidInputError(
            f"reset of {name} takes no seed: write reset(self, *, seed=None, options=None); {OLD}"
        ) from error
    if not isinstance(result, tuple) or len(result) != 2 or not (result[1] is None or isinstance(result[1], dict)):
        raise InvalidInputError(f"reset of {name} does not return (observation, info): return both; {OLD}")
    return result[0], result[1] or {}


def close_env(env: Any) -> None:
    """Close ``env`` if it has ``close``. Raise InvalidInputError if that fails."""
    close = getattr(env, "close", None)
    if close is not None:
        try:
            close()
        except DenoiseRLError:
            raise
        except Exception as error:
            raise InvalidInputError(
                f"close of {type(env).__name__} raised {type(error).__name__}: {error}: repair it, or leave it out"
            ) from error


def check_env(env: Any, name: str) -> Any:
    """Return a single environment unchanged. Raise InvalidInputError that says what it lacks."""
    for needed in ("reset", "step", "observation_space", "action_space"):
        if getattr(env, needed, None) is None:
            what = f"{name} made a {type(env).__name__}, which" if type(env).__name__ != name else name
            raise InvalidInputError(
                f"{what} has no {needed}: an environment has reset, step, observation_space and action_space, as "
                "gymnasium.Env does"
            )
    return env


def vector(env: Any) -> Any:
    """Return a vector environment unchanged. Raise InvalidInputError that says what to use instead."""
    parents = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(env).__mro__]
    name = type(env).__name__
    if "stable_baselines3" in dict(parents) or "VecEnv" in dict(reversed(parents)).values():
        raise InvalidInputError(
            f"{name} is a VecEnv of stable-baselines3, which does not return true successors: give the function that "
            "makes one environment, Collector(make_env, num_envs=8)"
        )
    for needed in ("num_envs", "single_action_space", "single_observation_space"):
        if not hasattr(env, needed) and not (needed.startswith("single") and hasattr(env, needed[7:])):
            raise InvalidInputError(f"{env!r} is no vector environment (no {needed}): give an id or a factory instead")
    return env
