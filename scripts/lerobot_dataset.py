"""Does LeRobot read what is written here, and is what it writes read here? Both ways, with LeRobot itself.

    python scripts/lerobot_dataset.py [--venv FOLDER] [--write tests/data/formats/fixtures/lerobot_dataset]

Uses the environment of ``scripts/lerobot_parity.py`` and makes it where it is missing. ``--write`` keeps what
LeRobot wrote as the tests' fixture.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lerobot_parity import environment, importable


def theirs(out: Path) -> None:
    """Inside LeRobot's environment: read ``ours``, and write ``theirs``."""
    importable()
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ours = LeRobotDataset("us/ours", root=out / "ours")
    told = {k: np.stack([np.asarray(ours[i][k]) for i in range(len(ours))]) for k in ours.features}
    assert ours.num_episodes == 3 and ours.fps == 10 and ours[0]["task"] == "push it home"
    ends = list(ours.meta.episodes["dataset_to_index"])
    stats = {f"stats {k}": ours.meta.stats[k]["max"] for k in ("observation.state", "action")}
    np.savez(out / "told.npz", ends=ends, **told, **stats)
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "observation.goal": {"dtype": "float32", "shape": (2, 2), "names": None},
        "observation.eye": {"dtype": "image", "shape": (8, 6, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (1,), "names": None},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    made = LeRobotDataset.create("us/theirs", 10, features, root=out / "theirs", use_videos=False)
    for episode in range(2):
        for frame in range(3 + episode):
            n = 10 * episode + frame
            made.add_frame(
                {
                    "observation.state": np.full(3, n, np.float32),
                    "observation.goal": np.arange(4, dtype=np.float32).reshape(2, 2) + n,
                    "observation.eye": np.full((8, 6, 3), n, np.uint8),
                    "action": np.array([-n], np.float32),
                    "next.reward": np.array([0.5], np.float32),
                    "next.success": np.array([episode == 1 and frame == 3]),
                    "task": "count",
                }
            )
        made.save_episode()
    made.finalize()


def main() -> int:
    """Write, let LeRobot read and write, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "denoiserl-lerobot")
    parser.add_argument("--write", type=Path, default=None)
    parser.add_argument("--inside", type=Path, default=None, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside is not None:
        theirs(a.inside)
        return 0
    import numpy as np
    import torch

    from denoiserl.data import Demonstrations
    from denoiserl.data.formats import lerobot as lerobot_dataset
    from denoiserl.data.recordings import EpisodeDataset

    python = environment(a.venv)
    with tempfile.TemporaryDirectory() as scratch:
        out, lengths = Path(scratch), (4, 6, 5)
        parts = [(torch.randn(n, 3), torch.rand(n, 2)) for n in lengths]
        demos = Demonstrations.of(parts, [True, False, True], [4.0, 6.0, 5.0], "ours")
        wide = torch.full((2,), torch.inf)
        recorded = EpisodeDataset(demos, torch.ones(15), None, None, -wide, wide)
        lerobot_dataset.write(out / "ours", recorded, 10, "push it home")
        subprocess.run([python, __file__, "--inside", out], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        told = np.load(out / "told.npz")
        assert np.array_equal(told["observation.state"], demos.observations.numpy())
        assert np.array_equal(told["action"], demos.actions.numpy())
        assert told["ends"].tolist() == demos.ends.tolist()
        assert told["next.success"].ravel().nonzero()[0].tolist() == [3, 14]
        assert np.allclose(told["stats action"], demos.actions.amax(0).numpy())
        back = lerobot_dataset.read_recording(out / "theirs")
        assert back.demos.ends.tolist() == [3, 7] and back.demos.success.tolist() == [False, True]
        counted = [0, 1, 2, 10, 11, 12, 13]
        assert back.demos.observations["observation.state"][:, 1].tolist() == counted
        assert back.demos.observations["observation.eye"][:, 7, 5, 2].tolist() == counted
        assert back.demos.observations["observation.goal"][:, 1, 0].tolist() == [n + 2 for n in counted]
        assert (-back.demos.actions[:, 0]).tolist() == counted and back.demos.returns.tolist() == [1.5, 2.0]
        if a.write is not None:
            shutil.rmtree(a.write, ignore_errors=True)
            shutil.copytree(out / "theirs", a.write)
    print("LeRobot reads what is written here, and what it writes is read here")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
