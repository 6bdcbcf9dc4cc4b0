"""``doctor --env-info`` says what a report of a bug needs."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from denoiserl.cli import main


def test_it_says_versions_machine_threads_and_what_of_each_extra_is_installed(monkeypatch, capsys):
    asks = [
        "torch>=2.6",
        'numpy>=1; extra == "demo"',
        'no-such-package>=1; extra == "fast"',
        'denoiserl[demo]; extra == "dev"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: asks)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert main(["doctor", "--env-info"]) == 0
    told = {line[:11].strip(): line[11:] for line in capsys.readouterr().out.splitlines()}
    assert platform.python_version() in told["python"] and torch.__version__ in told["torch"]
    assert told["OS"] == platform.platform() and platform.machine() in told["CPU"] and "cpu" in told["devices"]
    assert f"torch {torch.get_num_threads()}" in told["threads"] and "OMP_NUM_THREADS 7" in told["threads"]
    assert told["needed"] == f"torch {metadata.version('torch')}"
    assert told["[demo]"] == f"numpy {metadata.version('numpy')}"
    assert told["[fast]"] == "no-such-package not installed" and "[dev]" not in told


def test_it_stands_alone(capsys):
    assert main(["doctor", "runs/x", "--env-info"]) == 2
    assert "denoiserl doctor --env-info" in capsys.readouterr().err
