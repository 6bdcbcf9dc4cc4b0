"""Processes that can be killed: forks of one server that has imported torch already."""

from __future__ import annotations

import multiprocessing
import runpy

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "torch._dynamo", "numpy", "denoiserl.store", "denoiserl.train.run", "denoiserl.train.fit"]
)


@pytest.fixture
def start():
    """``start(script)`` runs a Python file in a new process; what still runs at the end of the test is killed."""
    processes = []

    def begin(script):
        process = SERVER.Process(target=runpy.run_path, args=(str(script),))
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()
