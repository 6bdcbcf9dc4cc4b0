"""Recordings in files, whatever the format: ``read`` finds out which it is.

    a folder with metadata.json             Minari                          (hub.minari)
    a folder with meta/info.json            LeRobot                         (hub.lerobot_dataset)
    a folder of ``Recording.save``          our own; of ``Demos.save``, demonstrations alone
    one flat HDF5 file                      D4RL's layout, rows of all episodes one after another:
        observations [N, o], actions [N, d], rewards [N], terminals [N]; timeouts [N], next_observations [N, o],
        infos/success [N], action_low [d], action_high [d] where they are known

``write_as`` writes any of them, ``write`` a flat file. Needs h5py (``pip install 'denoiserl[data]'``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from denoiserl.data.collect import Recording, numbers, whole
from denoiserl.data.demos import Demos
from denoiserl.errors import BadRun, BadSignal, nearest, need
from denoiserl.hub import lerobot_dataset, minari
from denoiserl.tree import tree_map

NEEDED = ("observations", "actions", "rewards", "terminals")
ENDINGS = (".hdf5", ".h5", ".hdf")
Kind = Literal["minari", "lerobot", "hdf5", "denoiserl"]


def kind(path: str | Path) -> Kind:
    """Which format it is, by the files: what is none of the others may be our own."""
    path = Path(path)
    if not path.exists():
        raise BadRun(f"there is no {path}: name a Minari or LeRobot folder, a recording of ours, or an HDF5 file")
    if path.is_dir() or path.name == minari.FILE:
        folder = path.parent if path.is_file() else path
        if any((f / minari.METADATA).is_file() for f in (folder, folder / "data")):
            return "minari"
        if (folder / "meta" / "info.json").is_file():
            return "lerobot"
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise BadRun(f"{path} is no dataset known here: one file is HDF5 and ends in {' or '.join(ENDINGS[:2])}")
        return "hdf5"
    return "denoiserl"


def read(path: str | Path, outside: minari.Outside = "refuse", parts: Sequence[str] | None = None) -> Recording:
    """The recording in ``path``.

    ``outside``: actions beyond a box that the file tells are refused, or clipped to it. ``parts``: the observations to
    keep, where there are several. Refused: what is none of the formats, and bad episodes by number and row.
    """
    path, found = Path(path), kind(path)
    if found == "minari":
        return minari.recording(path, outside=outside, parts=parts)
    if found == "lerobot":
        return lerobot_dataset.recording(path, parts=parts)
    if found == "hdf5":
        return _flat(path, outside)
    try:
        return Recording.load(path)
    except (BadRun, OSError) as error:
        raise BadRun(
            f"{path} is no dataset known here: no {minari.METADATA} (Minari), no meta/info.json (LeRobot) in it, and "
            f"it holds no demonstrations of ours ({str(error).rstrip('.')})"
        ) from None


def _flat(path: Path, outside: minari.Outside) -> Recording:
    """D4RL's layout, episodes cut apart where a row is terminal, a timeout, or not followed by its successor.

    Without ``next_observations`` nobody knows what a cut episode saw last: as D4RL's own reader does, its last row is
    given up for its observation.
    """
    h5py = need("h5py", "data")
    try:
        with h5py.File(path, "r") as file:
            known = [str(k) for k in file]
            for column in NEEDED:
                if column not in file:
                    raise BadSignal(
                        f"{path} is no flat dataset: {nearest(column, known, 'column')} Convert it, or name a folder "
                        "of Minari or LeRobot"
                    )
            columns = {k: np.asarray(file[k]) for k in (*NEEDED, "timeouts", "next_observations") if k in file}
            box = [np.asarray(file[k], np.float32) if k in file else None for k in ("action_low", "action_high")]
            success = np.asarray(file["infos/success"]).ravel() if "infos/success" in file else None
    except OSError as error:
        raise BadRun(f"{path} cannot be read as HDF5 ({error}): copy it again") from None
    observations, actions = columns["observations"], columns["actions"]
    actions = actions.reshape(len(actions), -1)
    rewards, terminal = np.asarray(columns["rewards"], np.float64).ravel(), columns["terminals"].ravel().astype(bool)
    n, d = actions.shape
    for what, value in {**columns, **({} if success is None else {"infos/success": success})}.items():
        if len(value) != n:
            raise BadSignal(f"{path} holds {n} actions and {len(value)} of {what}: it is not whole, copy it again")
    if n == 0:
        raise BadSignal(f"{path} holds no row")
    after = columns.get("next_observations")
    cut = columns["timeouts"].ravel().astype(bool) if "timeouts" in columns else np.zeros(n, bool)
    if after is not None and "timeouts" not in columns:
        cut[:-1] |= (after[:-1] != observations[1:]).reshape(n - 1, -1).any(1)
    if after is None and n > 1 and not (terminal[:-1] | cut[:-1]).any():
        warnings.warn(f"{path} tells of no end: its {n} rows are read as one episode; store timeouts", stacklevel=3)
    low, high = (np.full(d, s, np.float32) if b is None else b for b, s in zip(box, (-np.inf, np.inf), strict=True))
    if outside == "clip":
        actions = np.where(np.isnan(actions), actions, np.clip(actions, low, high))
    stop = np.flatnonzero(terminal | cut)
    stop = stop if len(stop) and stop[-1] == n - 1 else np.append(stop, n - 1)
    episodes, last, gains, over, won = [], [], [], [], []
    for i, (a, b) in enumerate(zip(np.append(0, stop[:-1] + 1), stop, strict=True)):
        given_up = after is None and not terminal[b]
        rows = slice(a, b if given_up else b + 1)
        if rows.stop == a:
            continue
        whole(path.name, i, observations[rows], actions[rows], low, high, rewards=rewards[rows])
        seen = observations[b] if after is None else after[b]
        if not np.isfinite(np.asarray(seen, np.float64)).all():
            raise BadSignal(f"what episode {i} of {path.name} saw last holds NaN or infinity: leave its rows out")
        episodes.append((numbers(observations[rows]), numbers(actions[rows])))
        last.append(numbers(seen))
        gains.append(numbers(rewards[rows]))
        over.append(bool(terminal[b]))
        won.append(success is not None and bool(np.nan_to_num(success[a : b + 1].astype(float)).any()))
    if not episodes:
        raise BadSignal(f"{path} holds no episode of two rows")
    told = None if success is None else won
    demos = Demos.of(episodes, told, [float(g.sum()) for g in gains], path.stem)
    ends = (torch.from_numpy(np.array(v, np.float32)) for v in (low, high))
    return Recording(demos, torch.cat(gains), torch.stack(last), torch.tensor(over), *ends)


def write_as(path: str | Path, data: Recording, how: Kind, name: str, fps: int = 0) -> None:
    """Store a recording in a format, whole or not at all. ``name``: what Minari and LeRobot are told it is of."""
    if how == "hdf5":
        write(path, data)
    elif how == "minari":
        word = "".join(c if c.isalnum() else "-" for c in name).strip("-") or "recorded"
        minari.write(path, data, f"denoiserl/{word}-v0")
    elif how == "lerobot":
        lerobot_dataset.write(path, data, fps, name)
    else:
        data.save(path)


def write(path: str | Path, data: Recording) -> Path:
    """Store a recording with flat observations as one new HDF5 file, whole or not at all, without losing anything:
    ``read`` gives it back."""
    path, demos = Path(path), data.demos
    if path.exists():
        raise BadRun(f"{path} exists already: name another file, or remove it")
    if path.suffix.lower() not in ENDINGS:
        raise BadRun(f"a flat dataset is one HDF5 file: {path.name} should end in {ENDINGS[0]}")
    if data.rewards is None or data.terminated is None or data.last is None:
        raise BadSignal("a flat dataset needs a reward a tick and how episodes ended: record them with data.collect")
    if not isinstance(demos.observations, torch.Tensor) or not isinstance(data.last, torch.Tensor):
        raise BadSignal("a flat dataset takes flat observations: concatenate the parts first")
    h5py, n, at = need("h5py", "data"), len(demos.actions), demos.ends - 1
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
