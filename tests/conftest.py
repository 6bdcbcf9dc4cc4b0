"""Settings that must hold before torch or a simulator is imported, and the devices that tests run on."""

from __future__ import annotations

import importlib.util
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each are slower than one thread, up to 90x
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an accidental download is an immediate error
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # the default asks for a display

import pytest
import torch

CUDA = torch.cuda.is_available()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


if importlib.util.find_spec("hypothesis") is not None:  # the same examples in every run
    from hypothesis import settings

    settings.register_profile("steady", derandomize=True)
    settings.load_profile("steady")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if CUDA else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine: a test that takes it runs on the CPU, and on the GPU where there is one."""
    return request.param


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Networks initialise from torch's global generator: start each test from the same one, whatever ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not CUDA:
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
