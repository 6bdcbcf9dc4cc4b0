"""``upsample``: what it writes, that it goes on where it was stopped, what it refuses before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from denoiserl.cli import main
from denoiserl.core.rng import Rng
from denoiserl.data.formats import any as recordings
from denoiserl.data.formats import lerobot as lerobot_dataset
from denoiserl.data.formats import minari
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.transitions import to_transitions, transitions
from denoiserl.train.progress import LoopProgress

pytest.importorskip("h5py")
pytest.importorskip("matplotlib")
QUICK = ["--num-updates", "30", "--batch-size", "32", "--width", "16", "--depth", "2", "--sampling-steps", "6"]


def body(n: int = 200):
    """A clock's hand and its speed; actions in a box; some episodes end."""
    rng = Rng(0)
    turn, v, a = 6 * rng.uniform(n), rng.normal(n), 4 * rng.uniform(n) - 2
    obs = torch.stack([turn.cos(), turn.sin(), v], 1)
    after = torch.stack([(turn + v).cos(), (turn + v).sin(), v + a], 1)
    return transitions(obs, a[:, None], -(v**2), after, v > 1, torch.tensor([-2.0]), torch.tensor([2.0]), "body")


@pytest.fixture
def data(tmp_path) -> Path:
    return recordings.write(tmp_path / "small.hdf5", body())


def test_a_flat_file_becomes_a_larger_one_with_a_report(data, tmp_path, capsys) -> None:
    out = tmp_path / "big.hdf5"
    assert main(["upsample", str(data), "--out", str(out), "--num-rows", "300", *QUICK]) == 0
    said = capsys.readouterr()
    assert "300 transitions, HDF5" in said.out and "180 rows" in said.out and "below 1000" in said.err
    made = to_transitions(recordings.read(out))
    assert len(made) == 300 and bool((made.action.abs() <= 2).all())
    torch.testing.assert_close(made.obs[:, :2].square().sum(1), torch.ones(300))
    told = json.loads((tmp_path / "big.fidelity.json").read_text())
    assert told["rows"] == {"generated": 300, "training": 180, "held out": 20} and "reward" in told["ks"]
    assert (tmp_path / "big.fidelity.png").read_bytes()[1:4] == b"PNG"
    assert not (tmp_path / "big.hdf5.part").exists()
    assert main(["upsample", str(data), "--out", str(out), *QUICK]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_same_seed_makes_the_same_rows_also_when_it_was_stopped(data, tmp_path, capsys, monkeypatch) -> None:
    def run(name: str, *more: str) -> int:
        return main(["upsample", str(data), "--out", str(tmp_path / name), "--num-rows", "50", "--json", *QUICK, *more])

    assert run("whole.hdf5") == 0

    class Pressed(KeyboardInterrupt):
        """Ctrl-C."""

    def press(self, at) -> None:
        if at.iteration == 12:
            raise Pressed

    with monkeypatch.context() as patch:
        patch.setattr(LoopProgress, "update", press)
        assert run("half.hdf5") == 130
    assert (tmp_path / "half.hdf5.part").is_dir() and not (tmp_path / "half.hdf5").exists()
    capsys.readouterr()
    assert run("half.hdf5", "--seed", "1") == 2 and "other settings" in capsys.readouterr().err
    assert run("half.hdf5") == 0
    whole, half = (to_transitions(recordings.read(tmp_path / name)) for name in ("whole.hdf5", "half.hdf5"))
    assert torch.equal(whole.obs, half.obs) and torch.equal(whole.next_obs, half.next_obs)


def test_minari_stays_minari(tmp_path, capsys) -> None:
    source = minari.write(tmp_path / "small", body(60), "denoiserl/small-v0")
    out = tmp_path / "big"
    assert main(["upsample", str(source), "--out", str(out), "--num-rows", "40", "--json", *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "minari" and told["rows"]["generated"] == 40
    made = minari.read_recording(out)
    assert len(made.demos) == 40 and made.low.tolist() == [-2.0] and (out / "fidelity.png").is_file()


def test_our_own_format_stays_ours(tmp_path, capsys) -> None:
    source, out = body(60).save(tmp_path / "small"), tmp_path / "big"
    assert main(["upsample", str(source), "--out", str(out), "--num-rows", "40", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "denoiserl"
    made = EpisodeDataset.load(out)
    assert len(made.demos) == 40 and made.rewards is not None and made.low.tolist() == [-2.0]


def test_what_cannot_be_done_is_refused_before_training(data, tmp_path, capsys) -> None:
    def said(*given: str) -> str:
        code = main(["upsample", *QUICK, *given])
        assert code in (1, 2) and not list(tmp_path.glob("*.part"))
        return capsys.readouterr().err

    assert "There is no" in said(str(tmp_path / "none.hdf5"), "--out", str(tmp_path / "a.hdf5"))
    assert "--out a.hdf5" in said(str(data), "--out", str(tmp_path / "a"))
    assert "--num-rows = 0 is out of range" in said(str(data), "--out", str(tmp_path / "a.hdf5"), "--num-rows", "0")
    assert "--out a.npz.hdf5" in said(str(data), "--out", str(tmp_path / "a.npz")), "which is read and not written"
    lerobot_dataset.write(tmp_path / "theirs", body(30), 10)
    assert "add --format hdf5" in said(str(tmp_path / "theirs"), "--out", str(tmp_path / "b"))
    assert "give --batch-size" in said(str(data), "--out", str(tmp_path / "c.hdf5"), "--batch-size", "181")
    assert "wrapped angle" in said(str(data), "--out", str(tmp_path / "c.hdf5"), "--angle-columns", "2")
    few = recordings.write(tmp_path / "few.hdf5", body(9))
    assert "too few for a model" in said(str(few), "--out", str(tmp_path / "c.hdf5"))
    import h5py

    with h5py.File(data, "r+") as file:
        file["rewards"][3] = float("nan")  # type: ignore[index]
    assert "NaN" in said(str(data), "--out", str(tmp_path / "d.hdf5"))


def test_a_folder_that_is_in_the_way_stays_as_it_is(data, tmp_path, capsys) -> None:
    (tmp_path / "big.hdf5.part").mkdir()
    (tmp_path / "big.hdf5.part" / "mine.txt").write_text("the only copy")
    assert main(["upsample", *QUICK, str(data), "--out", str(tmp_path / "big.hdf5")]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "big.hdf5.part" / "mine.txt").read_text() == "the only copy"
