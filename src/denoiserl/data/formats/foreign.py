"""Recognise files of other programs that are not read here, by name and content, and say what to do.

Nothing is unpickled, and no message advises to delete files of another program.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

WRITE = "convert it to one flat HDF5 file (its columns: denoiserl.data.formats.hdf5), to Minari or to LeRobot"
RLDS = "an RLDS data set in TFRecords (Open X, DROID, Bridge): convert it to LeRobot with its own scripts"
TORCH = "a checkpoint of torch: pickles are not opened, load it with the program that wrote it"
ENDS = {
    (".zarr.zip",): f"a zarr file, such as diffusion_policy's replay buffers: {WRITE}",
    (".pkl", ".pickle", ".p"): f"a pickle, which may run any program and is not opened: {WRITE}",
    (".pt", ".pth", ".ckpt", ".bin"): TORCH,
    (".safetensors",): "a file of weights: data are a folder or file of recorded episodes",
    (".csv", ".tsv", ".json", ".jsonl"): f"a table of text: {WRITE}",
    (".parquet",): "a single Parquet file: of a LeRobot data set name the folder with meta/ and data/ in it",
    (".arrow",): "a single Arrow file: of a Minari data set name the folder with metadata.json in it",
    (".bag", ".db3", ".mcap"): f"a rosbag or MCAP log: {WRITE}",
    (".npy",): "a single array of numpy: store all columns by name, np.savez(path, observations=..., actions=...)",
    (".mp4", ".avi", ".mkv", ".webm", ".gif"): "a video: it holds no actions and observations",
    (".zip", ".tar", ".gz", ".tgz", ".zst", ".xz", ".7z"): "an archive: unpack it, and name what is in it",
}
"""suffixes of names, and what such files are"""
ROBOMIMIC = (
    "a robomimic HDF5 file (LIBERO, MimicGen and RoboCasa write the same): demonstrations lie in data/demo_*, which is "
    f"not read here: {WRITE}"
)
ALOHA = f"an ALOHA episode (observations/qpos, action), one HDF5 file each: convert the folder to LeRobot, or {WRITE}"
MANISKILL = f"a ManiSkill HDF5 file: trajectories lie in traj_*, which are not read here: {WRITE}"
EXORL = f"an episode of ExORL (observation, action, reward, discount), one numpy file each: {WRITE}"
ZARR = f"a zarr folder, such as diffusion_policy's replay buffers (data/, meta/episode_ends): {WRITE}"
CHECKPOINT = (
    "a checkpoint of LeRobot or transformers (config.json): improve it with run RECIPE --start, or make a policy of it "
    "with denoiserl.integrations.lerobot.diffusion_policy(path).save(FOLDER)"
)
PIPELINE = (
    "a pipeline of diffusers (model_index.json): make a policy of it with "
    "denoiserl.integrations.diffusers.from_pipeline"
)


def hdf5(file: Any) -> str | None:
    """Describe an open HDF5 file of a known foreign layout; return None for any other."""
    keys = list(file)
    if "data" in keys and hasattr(file["data"], "keys") and any(str(k).startswith("demo_") for k in file["data"]):
        return ROBOMIMIC
    if any(str(k).startswith("traj_") for k in keys):
        return MANISKILL
    if "action" in keys and "observations" in keys and hasattr(file["observations"], "keys"):
        return ALOHA
    if any(str(k).startswith("episode_") and str(k)[8:].isdigit() for k in keys):
        return "the data of a Minari data set without its metadata.json: copy that too, beside it"
    return None


def arrays(keys: Collection[str]) -> str | None:
    """Describe a NumPy file of a known foreign layout by the names of its arrays; return None for any other."""
    if {"observation", "action", "reward"} <= set(keys):
        return EXORL
    return None


def file(path: Path) -> str | None:
    """Describe a file that is not a data set, by its suffix; return None for unknown suffixes."""
    name = path.name.lower()
    if ".tfrecord" in name:
        return RLDS
    for ends, said in ENDS.items():
        if name.endswith(ends):
            return said
    return None


def folder(path: Path) -> str | None:
    """Describe a folder that is not a data set, by its content; return None if the content is unknown."""
    names = sorted(p.name for p in path.iterdir())
    has = set(names)
    if has & {".zgroup", ".zattrs", ".zarray", "zarr.json", ".zmetadata"} or path.suffix.lower() == ".zarr":
        return ZARR
    if any(".tfrecord" in p.name for p in _near(path)) or {"features.json", "dataset_info.json"} <= has:
        return RLDS
    if "run.json" in has:
        return "the folder of a run, not data: run collect --policy with it, or improve it with --start"
    if "config.json" in has or {"pretrained_model", "training_state"} & has:
        return CHECKPOINT
    if "model_index.json" in has:
        return PIPELINE
    if "meta_data" in has:
        return "a LeRobot data set of version 1: convert it with LeRobot's own scripts"
    if {"state.json", "dataset_info.json"} <= has:
        return f"a data set that Hugging Face's datasets saved, without LeRobot's meta/info.json: {WRITE}"
    if any(n.startswith("episode_") and n.endswith((".hdf5", ".h5")) for n in names):
        return ALOHA
    if any(n.startswith("episode_") and n.endswith(".npz") for n in names):
        return EXORL
    inner = [p for p in _near(path) if p.suffix.lower() in (".hdf5", ".h5", ".npz", ".metadata")]
    sets = [p.name for p in path.iterdir() if p.is_dir() and ((p / "meta").is_dir() or any(p.glob("**/metadata.json")))]
    if sets:
        return f"a folder of data sets: name one of them ({', '.join(sorted(sets)[:5])})"
    if inner:
        return f"a folder of files: name one of them ({', '.join(p.name for p in inner[:5])})"
    if not names:
        return "an empty folder: name the one with the data in it"
    said = [f for f in (file(p) for p in path.iterdir() if p.is_file()) if f]
    return f"a folder with {said[0]}" if said else None


def _near(path: Path) -> list[Path]:
    """Return files in a folder and one level below, a few of them: folders of data can be large."""
    found: list[Path] = []
    for p in sorted(path.iterdir())[:200]:
        found += [p] if p.is_file() else [q for q in sorted(p.iterdir())[:50] if q.is_file()] if p.is_dir() else []
    return found


def policy(path: Path) -> str | None:
    """Describe a path that holds no policy of this library; return None if it may hold one."""
    if path.is_file():
        told = file(path)
        return told if told == TORCH else _no_policy(told or "a file")
    if not path.is_dir() or (path / "run.json").is_file() or (path / "tree.json").is_file():
        return None
    if any((path / name).is_file() for name in ("meta/info.json", "metadata.json", "data/metadata.json")):
        return "a data set, not a policy: learn from it with run RECIPE --data"
    told = folder(path)
    return told if told in (None, CHECKPOINT, PIPELINE) else _no_policy(told)


def _no_policy(told: str) -> str:
    """Return the message that ``told``, without its advice on data, is not a policy."""
    return f"{told.partition(':')[0]}, and a policy is a folder, that of a run or one that Policy.save wrote: name it"
