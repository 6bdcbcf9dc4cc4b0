"""Does a LeRobot checkpoint act here as it does there? Runs LeRobot's own class on the same noise and compares.

    python scripts/lerobot_parity.py [--venv FOLDER] [--write tests/integrations/fixtures/lerobot]

LeRobot pins an older torch, so it is installed without its dependencies into an environment of its own (made at
``--venv``, kept there), beside the torch of ``constraints/cpu.txt``. That environment makes small random checkpoints
with LeRobot's own ``save_pretrained``, draws actions from noise that is written down, and stores both; this one loads
the checkpoints with ``integrations.lerobot`` and draws from the same noise. ``--write`` keeps all of it as the
tests' fixture.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEROBOT = "lerobot==0.4.4"
BESIDE = (
    "accelerate av datasets<5 deepdiff diffusers<0.43 draccus==0.10.0 einops gymnasium huggingface_hub<2 imageio "
    "jsonlines packaging pandas pillow pyarrow pyserial safetensors termcolor tqdm"
).split()
CASES: dict[str, dict[str, Any]] = {
    "states": {"n_obs_steps": 2, "n_action_steps": 4},
    "ddim": {
        "n_obs_steps": 1, "n_action_steps": 5, "noise_scheduler_type": "DDIM", "prediction_type": "sample",
        "clip_sample": False, "num_inference_steps": 5, "use_film_scale_modulation": False,
        "normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    },
    "clipped": {"n_obs_steps": 2, "n_action_steps": 4, "noise_scheduler_type": "DDIM", "num_inference_steps": 10},
    "pictures": {
        "n_obs_steps": 2, "n_action_steps": 4, "crop_shape": (32, 36), "spatial_softmax_num_keypoints": 4,
        "use_separate_rgb_encoder_per_camera": True,
    },
}  # fmt: skip
SMALL = {"horizon": 8, "down_dims": (8, 16), "n_groups": 4, "kernel_size": 3, "diffusion_step_embed_dim": 8}
STATES, SURROUNDINGS, ACTIONS, ROWS, LEVELS = 3, 4, 2, 5, 20
CAMERAS, PICTURE = ("observation.images.front", "observation.images.wrist"), (3, 43, 48)


def formula(name: str, shape: Sequence[int]) -> Any:
    """Numbers that the name of a tensor determines: eyes are too large for a fixture."""
    import torch

    drawn = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1 and name.endswith("weight"):
        return drawn * math.sqrt(2 / math.prod(shape[1:]))
    return 1 + 0.1 * drawn if name.endswith("weight") else 0.1 * drawn


def looked(rows: int, history: int) -> dict[str, Any]:
    """What the cameras of the case ``pictures`` see, in [0, 1]."""
    return {name: formula(name, (rows, history, *PICTURE)).mul(3).sigmoid() for name in CAMERAS}


def environment(venv: Path) -> Path:
    """The interpreter of an environment that has LeRobot."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [python, "-m", "pip", "install", "-q"]
        constraint = ["-c", str(ROOT / "constraints" / "cpu.txt")]
        subprocess.run([*pip, *constraint, "torch", "numpy<2.4"], check=True)
        subprocess.run([*pip, "--no-deps", LEROBOT, "torchvision"], check=True)
        subprocess.run([*pip, *constraint, *BESIDE], check=True)
    return python


def importable() -> None:
    """Let torchvision be imported beside a torch that it was not built for: only its Python layers are used."""
    import torch

    where = Path(next(iter(importlib.util.find_spec("torchvision").submodule_search_locations or [])))  # type: ignore
    text = (where / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r"(?:@register_meta\(\"|register_fake\(\"torchvision::)(\w+)", text))):
        library.define(f"{name}(Tensor a) -> Tensor")
    sys.modules[__name__].__dict__["_kept"] = library  # its declarations live as long as it does


def theirs(out: Path) -> None:
    """Inside LeRobot's environment: checkpoints, noise, and what LeRobot does with it."""
    importable()
    import diffusers.schedulers.scheduling_ddpm as ddpm
    import torch
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
    from safetensors.torch import save_file

    for number, (name, given) in enumerate(CASES.items()):
        torch.manual_seed(number)
        given = dict(given)
        if "normalization_mapping" in given:
            modes = given["normalization_mapping"]
            given["normalization_mapping"] = {k: NormalizationMode[v] for k, v in modes.items()}
        shapes = {"observation.state": STATES, "observation.environment_state": SURROUNDINGS}
        kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
        cameras = {k: PolicyFeature(type=FeatureType.VISUAL, shape=PICTURE) for k in CAMERAS if name == "pictures"}
        config = DiffusionConfig(
            input_features={k: PolicyFeature(type=kinds[k], shape=(n,)) for k, n in shapes.items()} | cameras,
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(ACTIONS,))},
            device="cpu", num_train_timesteps=LEVELS, **SMALL, **given,
        )  # fmt: skip
        policy = DiffusionPolicy(config).eval()
        stats = {}
        for key, n in {**shapes, "action": ACTIONS}.items():
            low = torch.randn(n)
            stats[key] = {"min": low, "max": low + 0.5 + torch.rand(n), "mean": low, "std": 0.5 + torch.rand(n)}
        stats["observation.state"]["max"][1] = stats["observation.state"]["min"][1]  # a sensor that never moves
        for key in cameras:
            low = torch.rand(3, 1, 1)
            stats[key] = {"min": low, "max": low + 1, "mean": low, "std": 0.2 + torch.rand(3, 1, 1)}
        if cameras:
            with torch.no_grad():
                for key, value in policy.state_dict().items():
                    if not key.endswith("pos_grid"):
                        value.copy_(formula(key, value.shape))
        before, after = make_diffusion_pre_post_processors(config, stats)
        folder = out / name
        policy.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        seen = {}
        for key, n in shapes.items():
            low, high = stats[key]["min"], stats[key]["max"]
            seen[key] = low + (high - low) * torch.rand(ROWS, config.n_obs_steps, n)
        pictures = looked(ROWS, config.n_obs_steps) if cameras else {}
        steps = config.num_inference_steps or LEVELS
        noise = torch.randn(steps + 1, ROWS, config.horizon, ACTIONS)
        told = {}
        for precision in ("float32", "float64"):
            # the table of noise levels in float64: 1 - (ratio of two levels) cancels in float32
            scheduler = policy.diffusion.noise_scheduler
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(getattr(torch, precision))
            rest = iter(noise[1:])
            ddpm.randn_tensor = lambda *_, rest=rest, **__: next(rest)
            batch = before({k: v.clone() for k, v in {**seen, **pictures}.items()})
            told_of = {k: batch[k] for k in seen}
            if cameras:
                told_of["observation.images"] = torch.stack([batch[k] for k in cameras], -4)
            with torch.no_grad():
                chosen = policy.diffusion.generate_actions(told_of, noise=noise[0].clone())
            told[precision] = after(chosen).float().contiguous()
        save_file({"noise": noise, **told, **seen}, folder / "expected.safetensors")


def ours(folder: Path) -> tuple[float, float]:
    """The largest difference from LeRobot's actions, with its noise levels in float64 and as it computes them."""
    from safetensors.torch import load_file

    from denoiserl.integrations.lerobot.policy import diffusion_policy

    told, policy = load_file(folder / "expected.safetensors"), diffusion_policy(folder)
    made = drawn(policy, told)
    return tuple(float((made - told[name]).abs().max()) for name in ("float64", "float32"))  # type: ignore[return-value]


def drawn(policy: Any, told: dict[str, Any]) -> Any:
    """Actions from written noise: the starting state and one draw per step, in LeRobot's order of the chunk."""
    import torch

    past = policy.codec.history - 1
    noise = told["noise"].roll(-past, 2)
    seen = {k: told[k] if past else told[k][:, 0] for k in policy.codec.sizes}
    seen |= looked(len(noise[0]), past + 1) if policy.codec.pictures else {}
    with torch.no_grad():
        denoise, x = policy.denoiser, noise[0]
        context = denoise.embed_condition(policy.codec.condition(seen))
        clock = denoise.embed_time(policy.eval_steps.times[:-1].float())
        for k in range(len(policy.eval_steps)):
            row = {name: v[k : k + 1] for name, v in clock.items()}
            x = policy.process.reverse(denoise(x, row, context), x, policy.eval_steps[k]).sample(noise[k + 1])
        return policy.codec.decode(x)


def main() -> int:
    """Make, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "denoiserl-lerobot")
    parser.add_argument("--write", type=Path, default=None)
    parser.add_argument("--inside", type=Path, default=None, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside is not None:
        theirs(a.inside)
        return 0
    from safetensors.torch import load_file

    python = environment(a.venv)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "lerobot"
        subprocess.run([python, __file__, "--inside", out], check=True)
        worst = 0.0
        for folder in sorted(out.iterdir()):
            exact, as_it_is = ours(folder)
            worst = max(worst, exact)
            print(f"{folder.name}: {exact:.1e} with noise levels in float64, {as_it_is:.1e} in LeRobot's float32")
        if a.write is not None:
            shutil.rmtree(a.write, ignore_errors=True)
            shutil.copytree(out, a.write)
            large = a.write / "pictures" / "model.safetensors"  # 90 MB, and ``formula`` makes it again
            shapes = {k: list(v.shape) for k, v in load_file(large).items()}
            (large.parent / "shapes.json").write_text(json.dumps(shapes))
            large.unlink()
    print("agree to 1e-5" if worst < 1e-5 else "DO NOT AGREE to 1e-5")
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
