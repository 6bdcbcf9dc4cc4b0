"""Flat files: rows of all episodes one after another, in one HDF5 or one NumPy file.

    observations [N, o], actions [N, d], rewards [N], terminals [N]; timeouts [N], next_observations [N, o],
    infos/success [N], action_low [d], action_high [d] if they are known

is D4RL's layout: ``terminals`` are true ends. With ``masks`` [N], or in a NumPy file without rewards, it is OGBench's:
``terminals`` end a trajectory, and a row with ``masks`` 0 is a true end. Time limits may have other names (``LIMITS``).
They may also be last rows (``LASTS``) or ``dones`` beside D4RL's ``terminals``, where these are 0. Other columns are
not read, and named in a warning. HDF5 needs h5py (``pip install 'denoiserl[data]'``).
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.ends import as_flags, split_episodes
from denoiserl.data.formats import foreign
from denoiserl.data.formats.minari import Outside, column
from denoiserl.data.formats.numbers import check
from denoiserl.data.recordings import EpisodeDataset, to_stored_tensor, validate_episode

NUMPY = ".npz"
WRITTEN = (".hdf5", ".h5", ".hdf")
ENDINGS = (*WRITTEN, NUMPY)
LIMITS = ("timeouts", "timeout", "truncations", "truncateds", "truncated")
"""names of time limits, D4RL's first"""
LASTS = ("is_last", "episode_terminals")
"""names of a trajectory's last rows: time limits where ``terminals`` are 0"""
ENDS = ("terminals", "dones", *LIMITS, *LASTS)
COLUMNS = ("observations", "actions", "rewards", "next_observations", "masks", *ENDS)
WON = "infos/success"
MORE = ("action_low", "action_high", WON)
ASIDE = ("infos", "metadata", "qpos", "qvel", "button_states")
"""columns of D4RL and OGBench about the simulator, which are not needed"""


def read(
    path: Path, exclude_episodes: Collection[int] = (), out_of_bounds_actions: Outside = "error"
) -> EpisodeDataset:
    """Return the episode data set of a flat file, cut into episodes by ``data.ends.split_episodes``.

    Stored ``next_observations`` are used. They may be missing, or be the start of the next episode. Then the last row
    of an episode that a time limit cut gives only its observation, as in D4RL's own reader.
    """
    found = _numpy(path) if path.suffix.lower() == NUMPY else _hdf5(path)
    columns = {k: np.asarray(v) for k, v in found.items() if k in COLUMNS}
    ended, cut = _ends(path, columns, found.get(WON))
    observations = columns["observations"]
    n = len(columns["actions"])
    observations = observations.reshape(n, 1) if observations.ndim == 1 else observations
    actions = columns["actions"].reshape(n, -1)
    after = columns.get("next_observations")
    if after is not None and after.size != observations.size:
        raise InvalidInputError(
            f"next_observations of {path} are {list(after.shape)}, observations {list(observations.shape)}"
        )
    after = None if after is None else after.reshape(observations.shape)
    rewards = column(columns["rewards"], np.float64, "rewards", str(path)) if "rewards" in columns else None
    success = column(found[WON], np.float64, WON, str(path)) if WON in found else None
    low, high = _box(path, found, actions.shape[1])
    if out_of_bounds_actions == "clip":
        actions = np.where(np.isnan(actions), actions, np.clip(actions, low, high))
    stop, over, known = split_episodes(path.name, observations, ended, cut, after)
    check(path.name, exclude_episodes, range(len(stop)))
    start = np.append(0, stop[:-1] + 1)
    length = stop - start + (known | over)  # without its last row where the successor is not known
    taken = np.flatnonzero((length > 0) & ~np.isin(np.arange(len(stop)), list(exclude_episodes)))
    if len(taken) == 0:
        raise InvalidInputError(f"{path} holds no episode of two rows")
    checked = {} if rewards is None else {"rewards": rewards}
    if not _sound(observations, actions, low, high, **checked):  # find the row, and whether its episode is used
        for i in taken:
            rows = slice(start[i], start[i] + length[i])
            named = {k: v[rows] for k, v in checked.items()}
            validate_episode(path.name, int(i), observations[rows], actions[rows], low, high, **named)
    last = observations[stop]
    if after is not None:
        last = last.astype(np.result_type(last, after))
        last[known] = after[stop[known]]
    for i in taken[~np.isfinite(last[taken].reshape(len(taken), -1)).all(1)]:
        raise InvalidInputError(
            f"the last observation of episode {i} of {path.name} holds NaN or infinity: use exclude_episodes=({i},)"
        )
    ends = length[taken].cumsum()
    kept: Any = slice(None)
    if ends[-1] < n:
        kept = np.arange(ends[-1]) + np.repeat(start[taken] - (ends - length[taken]), length[taken])
    gains = None if rewards is None else to_stored_tensor(rewards[kept])
    returns = None if gains is None else torch.segment_reduce(gains, "sum", lengths=torch.from_numpy(length[taken]))
    won = None if success is None else np.logical_or.reduceat(np.nan_to_num(success) != 0, start)[taken]
    demos = Demonstrations(
        to_stored_tensor(observations[kept]),
        to_stored_tensor(actions[kept]),
        torch.from_numpy(ends),
        None if won is None else torch.from_numpy(won),
        returns,
        path.stem,
    )
    box = (torch.from_numpy(np.array(v, np.float32)) for v in (low, high))
    return EpisodeDataset(demos, gains, to_stored_tensor(last[taken]), torch.from_numpy(over[taken]), *box)


def _sound(observations: np.ndarray, actions: np.ndarray, low: np.ndarray, high: np.ndarray, **columns: Any) -> bool:
    """Return whether all columns are finite and all actions inside their bounds, as ``validate_episode`` checks."""
    finite = all(v.dtype.kind != "f" or np.isfinite(v).all() for v in (observations, actions, *columns.values()))
    return finite and bool((actions.min(0) >= low - 1e-5).all() and (actions.max(0) <= high + 1e-5).all())


def _box(path: Path, found: dict[str, Any], d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high [d] of the actions, infinite if they are not stored."""
    ends = [np.ravel(np.asarray(found.get(k, s))) for k, s in zip(MORE, (-np.inf, np.inf), strict=False)]
    if any(v.dtype.kind not in "fiu" for v in ends):
        raise InvalidInputError(
            f"action_low and action_high of {path} are {[str(v.dtype) for v in ends]}: store numbers"
        )
    ends = [v.astype(np.float32) for v in ends]
    if any(v.size not in (1, d) for v in ends):
        raise InvalidInputError(
            f"action_low and action_high of {path} have {[v.size for v in ends]} numbers, actions {d}"
        )
    if any(np.isnan(v).any() for v in ends):
        raise InvalidInputError(
            f"action_low or action_high of {path} holds NaN: store infinity where there is no bound"
        )
    return np.broadcast_to(ends[0], d), np.broadcast_to(ends[1], d)


def _hdf5(path: Path) -> dict[str, Any]:
    h5py = require("h5py", "data")
    try:
        with h5py.File(path, "r") as file:
            known = _known(path, [*map(str, file), *([WON] if WON in file else [])], foreign.hdf5(file))
            parts = [k for k in ("observations", "next_observations") if isinstance(file.get(k), h5py.Group)]
            if parts:
                raise InvalidInputError(
                    f"{path}: {parts[0]} has parts ({', '.join(file[parts[0]])}), and a flat file holds numbers [N, o]:"
                    " concatenate them, or write Minari's format"
                )
            if groups := [k for k in known if isinstance(file[k], h5py.Group)]:
                raise InvalidInputError(
                    f"{groups[0]} of {path} has parts ({', '.join(file[groups[0]])}), and a flat file holds numbers: "
                    "store it as one array"
                )
            return {k: np.asarray(file[k]) for k in known}
    except OSError as error:
        raise RunError(f"{path} cannot be read as HDF5 ({error}): copy it again") from None


def _numpy(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in _known(path, list(file), foreign.arrays(file))}
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        if isinstance(error, InvalidInputError | RunError):
            raise
        raise RunError(f"{path} cannot be read as arrays of numpy ({error}): copy it again") from None


def _known(path: Path, keys: list[str], other: str | None) -> list[str]:
    """Return the columns to read, and warn of others by name.

    Raise an error if this is no flat data set: naming what it is, else the missing column.
    """
    if other is not None:
        raise RunError(f"{path} is {other}")
    lacks = [c for c in ("observations", "actions", "terminals") if c not in keys]
    lacks += ["rewards"] if "rewards" not in keys and path.suffix.lower() != NUMPY else []
    alone = lacks == ["terminals"] and "dones" in keys
    if alone and not set(LIMITS) & set(keys):
        raise InvalidInputError(
            f"{path} stores dones, which mix true ends and time limits: store terminals (true ends) and timeouts"
        )
    if lacks and not alone:
        raise InvalidInputError(
            f"{path} is no flat dataset: {unknown_name_message(lacks[0], keys, 'column')} Convert it, or name a "
            "folder of Minari or "
            "LeRobot"
        )
    masked = "masks" in keys or "rewards" not in keys
    unclear = "masks" if alone else "dones" if masked else None  # no layout says what it means there
    known = [k for k in (*COLUMNS, *MORE) if k in keys and k != unclear]
    if unread := [k for k in keys if k not in known and k.split("/")[0] not in ASIDE]:
        warnings.warn(
            f"{path.name} stores {', '.join(unread)}, which {'is' if len(unread) == 1 else 'are'} not read: store "
            "true ends as terminals and time limits as timeouts",
            stacklevel=5,
        )
    return known


def _ends(path: Path, columns: dict[str, np.ndarray], won: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return true ends [N], and time limits [N] or None."""
    name = path.name
    for what, value in columns.items():
        if value.ndim == 0:
            raise InvalidInputError(f"{what} of {path} is a single value: store one value per row")
    n = len(columns["actions"])
    for what, value in {**columns, **({} if won is None else {WON: np.asarray(won)})}.items():
        if len(value) != n:
            raise InvalidInputError(
                f"{path} holds {n} actions and {len(value)} of {what}: it is not whole, copy it again"
            )
        if value.dtype.kind not in "biuf":
            raise InvalidInputError(f"{what} of {path} are {value.dtype}, not numbers: convert them")
    if n == 0:
        raise InvalidInputError(f"{path} holds no row")
    told = {k: as_flags(name, k, columns[k], n) for k in ENDS if k in columns}
    if "terminals" not in told:
        ended = told["dones"] & ~next(told[k] for k in LIMITS if k in told)
        return ended, _cut(path, told, ended)
    ended = told["terminals"]
    cut = _cut(path, told, ended)
    if "masks" in columns:
        true = ~as_flags(name, "masks", columns["masks"], n)
    elif "rewards" not in columns:
        true = np.zeros(n, bool)
    else:
        return ended, cut
    return true, ended if cut is None else ended | cut


def _cut(path: Path, told: dict[str, np.ndarray], ended: np.ndarray) -> np.ndarray | None:
    """Return time limits [N] of the stored columns, where no episode ``ended``; None if there are none.

    Raise InvalidInputError if two columns contradict each other.
    """
    limits = {k: told[k] & ~ended for k in (*LIMITS, *LASTS) if k in told}
    over = told.get("dones", ended)
    if (wrong := ended & ~over).any():
        raise InvalidInputError(
            f"row {int(wrong.argmax())} of terminals of {path} is 1 and of dones 0: store terminals (true ends) and "
            "timeouts, and no dones"
        )
    more = over & ~ended
    cut = next(iter(limits.values()), more if more.any() else None)  # repeated true ends are no limits
    if cut is None:
        return None
    for k, v in {**limits, "dones": more | cut}.items():  # dones may leave limits out, and may not add others
        if (differ := (v != cut)[:-1]).any():  # the last row is the last of its episode anyway
            raise InvalidInputError(
                f"{next(iter(limits))} and {k} of {path} mark different time limits, first in row "
                f"{int(differ.argmax())}: store the right ones as timeouts, alone"
            )
    return cut


def write(path: str | Path, data: EpisodeDataset) -> Path:
    """Save a data set with flat observations as one new HDF5 file, atomically and without loss: ``read`` returns it."""
    path, demos = Path(path), data.demos
    if path.exists():
        raise RunError(f"{path} exists already: name another file")
    if path.suffix.lower() not in WRITTEN:
        raise RunError(f"a flat dataset is one HDF5 file: {path.name} should end in {ENDINGS[0]}")
    if data.rewards is None or data.terminated is None or data.last is None:
        raise InvalidInputError(
            "a flat data set needs a reward per step and how episodes ended: record them with envs.record"
        )
    if not isinstance(demos.observations, torch.Tensor) or not isinstance(data.last, torch.Tensor):
        raise InvalidInputError("a flat dataset takes flat observations: concatenate the parts first")
    h5py, n, at = require("h5py", "data"), len(demos.actions), demos.ends - 1
    after = torch.cat([demos.observations[1:], demos.observations[-1:]])
    after[at] = data.last
    terminal, cut = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    terminal[at], cut[at] = data.terminated, ~data.terminated
    columns: dict[str, Any] = {
        "observations": demos.observations, "actions": demos.actions, "rewards": data.rewards, "terminals": terminal,
        "timeouts": cut, "next_observations": after, "action_low": data.low, "action_high": data.high,
    }  # fmt: skip
    if demos.success is not None:
        columns["infos/success"] = torch.repeat_interleave(demos.success.bool(), demos.lengths)
    new = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(new, "w") as file:
        for name, value in tree_map(lambda v: v.cpu().numpy(), columns).items():
            file.create_dataset(name, data=value)
    os.replace(new, path)
    return path
