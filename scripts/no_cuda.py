"""Fail when the environment of a machine without a GPU carries CUDA: gigabytes that nothing there can use."""

from __future__ import annotations

import sys
from importlib.metadata import distributions

import torch


def main() -> int:
    found = sorted({d.name for d in distributions() if d.name.lower().replace("_", "-").startswith("nvidia-")})
    if torch.version.cuda is None and not found:
        return 0
    print(
        f"setup: this machine has no GPU, yet torch is {torch.__version__} (CUDA {torch.version.cuda}) "
        f"and {len(found)} CUDA packages are installed{': ' + ', '.join(found) if found else ''}.\n"
        "setup: some dependency replaced the CPU build. Remove .venv, let PIP_FIND_LINKS or UV_FIND_LINKS name a\n"
        "setup: folder with the CPU wheel of constraints/cpu.txt (or leave both empty where the CPU index can be\n"
        "setup: reached), and run again.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
