"""What fails outside the library is one sentence with a remedy: the system, closed streams, a user's own code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from denoiserl.cli import main
from denoiserl.cli.failures import os_error_message, user_error_message

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
COMMAND = [sys.executable, "-m", "denoiserl"]

RECIPE = '''
"""Wait: a recipe that takes its time.

signal: reward
"""
import time
from dataclasses import dataclass

SIGNAL = "reward"

@dataclass(frozen=True)
class Args:
    iterations: int = 200
    """naps"""
    fails: bool = False
    """raise an error of this file"""

def improve(policy, signal, args, rng, run=None):
    for it in run.loop(args.iterations, policy=policy):
        time.sleep(0.05)
        if args.fails:
            raise ValueError("no simulator")
        yield {"rollout/reward": float(it)}
'''


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(list(argv))
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Loading", "Writing"))]
    return code, err[-1] if err else ""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DENOISERL_DEBUG", raising=False)
    Path("wait.py").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "give another place with --out"),
        (errno.EACCES, "check its permissions"),
        (errno.EISDIR, "give the path of a file"),
        (errno.ENOTDIR, "give another path"),
        (errno.ENOENT, "check the path"),
        (errno.ECONNREFUSED, "--debug shows where"),
    ],
)
def test_an_error_of_the_system_has_a_remedy(number: int, words: str) -> None:
    message = os_error_message(OSError(number, os.strerror(number), "runs/x"))
    assert message.startswith(f"runs/x: {os.strerror(number)}: ") and words in message
    assert os_error_message(OSError(number, os.strerror(number))).startswith(os.strerror(number))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "wait.py", "--task", "shapes", "--quick", "--out", "/proc/nope"], "/proc/nope"),
        (["run", "wait.py", "--task", "shapes", "--quick", "--out", "wait.py"], "wait.py is a file"),
        (["run", "wait.py", "--task", "shapes", "--quick", "--out", "wait.py/x"], "Not a directory"),
        (["upsample", "folder", "--out", "x.hdf5"], "folder"),
        (["collect", "--env", "pusht", "--num-episodes", "2", "--out", "/proc/nope/x"], "/proc/nope"),
        (["run", "broken.py", "--task", "shapes"], "broken.py, line 2: invalid syntax: correct it there"),
        (["run", "fails.py", "--task", "shapes"], "fails.py, line 1: division by zero: correct it there"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    Path("folder").mkdir()
    Path("broken.py").write_text("x = 1\ndef f(:\n")
    Path("fails.py").write_text("1 / 0\n")
    code, line = said(capsys, *argv)
    assert code in (1, 2) and line.startswith("denoiserl: ") and words in line and len(line) < 300


def test_an_error_of_a_users_code_names_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "run", "wait.py", "--task", "shapes", "--quick", "--fails")
    assert code == 1 and line.startswith("denoiserl: wait.py, line 22 in improve: ValueError: no simulator.")
    with pytest.raises(ValueError, match="no simulator"):
        main(["run", "wait.py", "--task", "shapes", "--quick", "--fails", "--debug"])


def test_an_error_of_the_library_itself_is_no_users() -> None:
    try:
        os_error_message(3)  # type: ignore[arg-type]
    except AttributeError as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None  # without this file
        assert user_error_message(error) is None


def run(words: list[str], **how: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *words], env=ENV, stderr=subprocess.PIPE, **how)  # type: ignore[call-overload]


def test_a_full_or_closed_output_is_no_traceback() -> None:
    with open("/dev/full", "w") as full:
        process = run(["list"], stdout=full)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and err.startswith("denoiserl: No space left on device: free some space")
    assert err.count("\n") == 1
    for close in (">&-", "2>&-", "| head -1"):
        line = f"{' '.join(COMMAND)} list {close}"
        done = subprocess.run(["bash", "-c", line], env=ENV, capture_output=True, timeout=60, text=True)
        assert "Traceback" not in done.stderr and done.returncode in (0, 141), (close, done.stderr)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_save_and_say_what_was_saved(number: signal.Signals, code: int) -> None:
    words = ["run", "wait.py", "--task", "shapes", "--quick", "--out", "here", "--iterations", "200"]
    process = run(words, stdout=subprocess.DEVNULL)
    rows = Path("here/metrics.jsonl")
    wait_for(lambda: rows.is_file() and '"improve"' in rows.read_text())
    process.send_signal(number)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code and "iterations of improve are saved. Run the same command again" in err
    assert Path("here/improve/state").is_dir() and "Traceback" not in err


def test_a_signal_before_the_first_save_is_said() -> None:
    process = run(["run", "wait.py", "--task", "shapes", "--out", "here"], stdout=subprocess.DEVNULL)
    assert process.stderr is not None and process.stderr.readline().startswith(b"Loading")
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1].decode()
    assert (process.returncode == 143 and "interrupted" in err.lower()) or "Stopped" in err
    assert "Traceback" not in err
