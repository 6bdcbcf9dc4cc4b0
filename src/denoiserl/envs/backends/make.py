"""Make the backend that steps an environment, from an id, a factory or an environment."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np

from denoiserl.core.errors import DenoiseRLError, InvalidInputError
from denoiserl.envs import ids
from denoiserl.envs.backends.answer import check_env, close_env, vector
from denoiserl.envs.backends.batched import BatchedBackend
from denoiserl.envs.backends.chunk import ChunkResult
from denoiserl.envs.backends.envpool import PREFIX, EnvPool
from denoiserl.envs.backends.faults import OnFault, describe_exception
from denoiserl.envs.backends.subproc import SubprocBackend
from denoiserl.envs.backends.sync import SyncBackend, require_separate_envs
from denoiserl.envs.backends.vector import VectorEnvBackend
from denoiserl.envs.spaces import Spec, env_spec


class VectorBackend(Protocol):
    """A backend that steps environments: Sync-, Subproc-, VectorEnv- or BatchedBackend."""

    name: str

    @property
    def count(self) -> int: ...
    @property
    def solved(self) -> np.ndarray: ...
    def reset(self, seeds: list[int]) -> Any: ...
    def step_chunk(
        self, actions: np.ndarray, active: np.ndarray, gamma: float, restart: bool = True, on_step: Any = None
    ) -> ChunkResult: ...
    def close(self) -> None: ...


def _called(make: Any) -> str:
    """Return the name of the environment that a factory makes."""
    return getattr(make, "__name__", None) or getattr(getattr(make, "func", make), "__name__", "the environment")


def make_backend(
    env: Any,
    num_envs: int | None = None,
    processes: int = 1,
    on_fault: OnFault | None = "error",
    timeout: float | None = None,
) -> tuple[VectorBackend, Spec]:
    """Return the backend that steps ``env``, and its spec. ``env``: an id, a factory, a vector or batched environment.

    ``on_fault=None`` is "restart" where one environment can be made again, and "error" for a vector environment. Of
    a ``Collector``, return its own backend: the episodes in progress are lost, so it starts afresh at a checkpoint.
    """
    if hasattr(env, "owner"):  # a Collector
        return env.owner, env.spec
    if timeout is not None and (processes == 1 or not timeout > 0):
        raise InvalidInputError(
            f"timeout={timeout}: a hanging environment is noticed only from another process, after a positive time: "
            "give an environment id or a factory, and processes=2 or more"
        )
    if not callable(env) and not isinstance(env, str):
        vector(env)
        if num_envs not in (None, env.num_envs):
            raise InvalidInputError(
                f"the vector environment has {env.num_envs} environments, not {num_envs}: leave num_envs out"
            )
        name = getattr(getattr(env, "spec", None), "id", None) or type(env).__name__
        seen = getattr(env, "single_observation_space", None) or env.observation_space
        acts = getattr(env, "single_action_space", None) or env.action_space
        if getattr(env, "steps_some", False):
            return BatchedBackend(env, name, on_fault or "restart"), env_spec(seen, acts, name)
        owner = VectorEnvBackend(env, name, on_fault or "error")
        return owner, env_spec(seen, acts, name)
    num_envs = 1 if num_envs is None else num_envs
    if num_envs < 1 or processes < 1:
        raise InvalidInputError(f"num_envs and processes start at 1; they are {num_envs} and {processes}")
    if isinstance(env, str) and env.startswith(PREFIX):
        if timeout is not None:
            raise InvalidInputError("envpool's threads have no timeout: leave timeout out, or give a Gymnasium id")
        pool = EnvPool(env.removeprefix(PREFIX), num_envs, processes)
        return BatchedBackend(pool, env, on_fault or "restart"), env_spec(
            pool.single_observation_space, pool.single_action_space, env
        )
    name = env if isinstance(env, str) else _called(env)
    make: Any = partial(ids.make, env) if isinstance(env, str) else env
    try:
        probe: Any = make()
    except DenoiseRLError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{name} cannot be made ({describe_exception(error)}): make one alone to see where (or use --debug)"
        ) from error
    if hasattr(probe, "num_envs"):
        return make_backend(probe, on_fault=on_fault)
    check_env(probe, name)
    found = env_spec(probe.observation_space, probe.action_space, name)
    close_env(probe)
    if processes == 1:
        made = SyncBackend(make, num_envs, name, on_fault=on_fault or "restart")
        require_separate_envs([probe, made.envs[0]], name)
        return made, found
    return SubprocBackend(make, num_envs, processes, name, on_fault or "restart", timeout), found
