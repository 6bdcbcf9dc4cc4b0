"""Settings that must hold before torch or a simulator is imported, and the devices that tests run on."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import runpy
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each are slower than one thread, up to 90x
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an accidental download is an immediate error
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
if kind := os.environ.get("ATEN_CPU_CAPABILITY"):  # code that was compiled for other vectors gives other numbers
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchinductor-{kind}"))
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # the default asks for a display

import pytest
import torch

from tests import margins, seeds

CUDA = torch.cuda.is_available()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


if importlib.util.find_spec("hypothesis") is not None:  # the same examples in every run
    from hypothesis import settings

    settings.register_profile("steady", derandomize=True)
    settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed-shift", type=int, default=0, metavar="N", help="run all tests with other seeds")
    parser.addoption("--margins", default=None, metavar="FILE", help="append what every comparison of numbers compared")


def pytest_configure(config: pytest.Config) -> None:
    seeds.apply(config.getoption("--seed-shift"))
    if (path := config.getoption("--margins")) is not None:
        config.pluginmanager.register(margins.Recorder(path, config.getoption("--seed-shift")))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if CUDA else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine: a test that takes it runs on the CPU, and on the GPU where there is one."""
    return request.param


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Networks initialise from torch's global generator: start each test from the same one, whatever ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {} if CUDA else {"gpu": "needs a CUDA device"}
    if config.getoption("--seed-shift"):
        reasons["fixed_seed"] = "compares with numbers of another process or of a file, whose seeds are not shifted"
    for item in items:
        for name in reasons.keys() & item.keywords.keys():
            item.add_marker(pytest.mark.skip(reason=reasons[name]))


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "numpy",
        "denoiserl.core.serialization.store",
        "denoiserl.experiments.runner",
        "denoiserl.train.fit",
    ]
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
