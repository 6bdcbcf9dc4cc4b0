"""What environments answer: Gymnasium's interface, with the harmless variants that people's environments have.

Numbers may come as Python's, as NumPy's or as arrays of one element. Success may be reported at any tick or only when
an episode ends, at the top of ``info`` or in its ``episode``. What cannot be read is refused by a sentence.

Only numpy here, as in ``chunk``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from denoiserl.core.errors import DenoiseRLError, InvalidInputError

KEYS = ("success", "is_success", "success_once", "success_at_end")
"""how environments spell success in ``info``"""
INNER = ("episode", "final_info")
"""where some put it, at the end of an episode"""

OLD = (
    "that is the interface of the old gym: inherit from gymnasium.Env, or wrap it: pip install shimmy, then "
    "gymnasium.make('GymV21Environment-v0', env=env) (GymV26Environment-v0 for gym 0.26)"
)


def said_success(info: dict[str, Any]) -> bool | None:
    """Return the success that ``info`` reports, or None if it reports none.

    Read are ``success``, ``is_success``, ``success_once`` and ``success_at_end``, in ``info``, then in ``episode`` and
    ``final_info`` within it. None and NaN report nothing.
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
    """Return the success [B] that a vector environment reports for its ``rows`` [B]: 1, 0, or -1 where none is; None
    where it reports none at all."""
    if isinstance(info, np.ndarray | list):  # one info a copy, as older vector environments give final infos
        said = [said_success(one) if isinstance(one, dict) else None for one in info]
        return np.array([-1 if one is None or not row else one for one, row in zip(said, rows, strict=True)], np.int8)
    found = None
    for source in (info, info["episode"]) if isinstance(info.get("episode"), dict) else (info,):
        for key in KEYS:
            if key in source:
                value, told = np.asarray(source[key]).reshape(-1), rows
                if len(value) != len(rows):
                    raise InvalidInputError(
                        f"info reports success {list(value.shape)}: report one value a copy, {[len(rows)]}"
                    )
                if f"_{key}" in source:
                    told = told & np.asarray(source[f"_{key}"], bool).reshape(-1)
                if value.dtype.kind not in "bi":  # None and NaN report nothing
                    said = [_truth(v) if here else None for v, here in zip(value, told, strict=True)]
                    told, value = np.array([v is not None for v in said]), np.array([bool(v) for v in said])
                told = told if found is None else told & (found < 0)
                found = np.where(told, value.astype(bool), -1 if found is None else found)
    return found


def begun(info: Any, count: int) -> np.ndarray:
    """Return which of ``count`` copies report success in the info of their reset, bool [B]."""
    said = said_by_all(info or {}, np.ones(count, bool))
    return np.zeros(count, bool) if said is None else said > 0


def answer(told: Any, env: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Return what ``step`` gave as Gymnasium's five values, or raise InvalidInputError if it cannot be read."""
    name = type(env).__name__
    if not isinstance(told, tuple | list) or len(told) != 5:
        many = f"{len(told)} values" if isinstance(told, tuple | list) else f"a {type(told).__name__}"
        more = OLD if isinstance(told, tuple | list) and len(told) == 4 else "return those five"
        raise InvalidInputError(
            f"step of {name} gives {many}, not (observation, reward, terminated, truncated, info): {more}"
        )
    observation, reward, terminated, truncated, info = told
    gain = _one(reward, name, "a reward")
    ends = [
        v is not None and _one(v, name, what)
        for v, what in ((terminated, "terminated as"), (truncated, "truncated as"))
    ]
    if info is not None and not isinstance(info, dict):
        raise InvalidInputError(f"{name} gives an info of type {type(info).__name__}: return a dict")
    return observation, gain, bool(ends[0]), bool(ends[1]), info or {}


def _one(value: Any, name: str, what: str) -> float:
    """One number, from a number or an array of one."""
    try:
        found = np.asarray(value)
        if found.size == 1 and found.dtype.kind in "fiub":
            return float(found.item())
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InvalidInputError(f"{name} gives {what} {_short(value)}: return one number")


def _short(value: Any) -> str:
    """Return what a value looks like, in a few words."""
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {list(shape)}" if shape else repr(value)[:60]


def begin(env: Any, **seed: int) -> tuple[Any, bool]:
    """Reset ``env`` and return its first observation, and whether it reports success already; see ``restart``."""
    observation, info = restart(env, **seed)
    return observation, bool(said_success(info))


def restart(env: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Return the observation and info of ``env.reset(**given)``.

    Raise InvalidInputError if ``reset`` takes no seed or does not give (observation, info).
    """
    name = type(env).__name__
    try:
        told = env.reset(**given)
    except TypeError as error:
        if "unexpected keyword argument 'seed'" not in str(error):
            raise
        raise InvalidInputError(
            f"reset of {name} takes no seed: write reset(self, *, seed=None, options=None); {OLD}"
        ) from error
    if not isinstance(told, tuple) or len(told) != 2 or not (told[1] is None or isinstance(told[1], dict)):
        raise InvalidInputError(f"reset of {name} does not give (observation, info): return both; {OLD}")
    return told[0], told[1] or {}


def shut(env: Any) -> None:
    """Close ``env`` where it has anything to close. Raise InvalidInputError if that fails."""
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
    """Return one copy of an environment as it is, or raise InvalidInputError that says what it lacks."""
    for needed in ("reset", "step", "observation_space", "action_space"):
        if getattr(env, needed, None) is None:
            what = f"{name} made a {type(env).__name__}, which" if type(env).__name__ != name else name
            raise InvalidInputError(
                f"{what} has no {needed}: an environment has reset, step, observation_space and action_space, as "
                "gymnasium.Env does"
            )
    return env


def vector(env: Any) -> Any:
    """Return a vector environment as it is, or raise InvalidInputError that says what drives it instead."""
    parents = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(env).__mro__]
    name = type(env).__name__
    if "stable_baselines3" in dict(parents) or "VecEnv" in dict(reversed(parents)).values():
        raise InvalidInputError(
            f"{name} is a VecEnv of stable-baselines3, which does not tell true successors: give the function that "
            "makes one copy, Collector(make_env, copies=8)"
        )
    for needed in ("num_envs", "single_action_space", "single_observation_space"):
        if not hasattr(env, needed) and not (needed.startswith("single") and hasattr(env, needed[7:])):
            raise InvalidInputError(f"{env!r} is no vector environment (no {needed}): give an id or a factory instead")
    return env
