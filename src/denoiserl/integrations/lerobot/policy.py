"""Diffusion policies of LeRobot: a checkpoint's folder as a ``Policy``, without the package.

``diffusion_policy(folder)`` reads ``config.json``, ``model.safetensors`` and the normalisers' statistics. These are in
the weights (before LeRobot 0.4) or in the files of its processors (since). Its U-Net is ``nn.UNet1D`` with LeRobot's
time embedding; weights are mapped by name. The condition is the last T_o observations: robot state, environment state,
and features of pictures from ``integrations.lerobot.vision``.

Data sets of LeRobot are in ``data.formats.lerobot``. Both formats are read as files: the package would replace torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError, require, unknown_name_message
from denoiserl.core.tree import require_tensor
from denoiserl.data.codecs.normalize import Normalizer
from denoiserl.integrations.lerobot.checkpoint import Config, Norms, read_config, read_norms, read_tensors
from denoiserl.integrations.lerobot.unet import Net, fill
from denoiserl.integrations.lerobot.vision import VisionEncoder
from denoiserl.integrations.schedulers import convert, steps_like
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim
from denoiserl.processes.transition import Transition

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"


@dataclass(frozen=True)
class LeRobotCodec:
    """The codec of a LeRobot policy with ``history`` T_o observations; ``execute`` T_a actions per chunk are executed.

    A condition is [B, ..., T_o, o], oldest first (or flat, [..., T_o·o]; [..., o] if T_o is 1), or a dict with
    ``observation.state`` and ``observation.environment_state`` in these shapes, ``sizes`` of each. Environments stack
    observations with Gymnasium's ``FlattenObservation(FrameStackObservation(env, T_o))``. Chunks [..., H, d] are
    encoded in LeRobot's order, where entry T_o − 1 is now (as ``data.windows`` cuts them), and decoded to the T_a
    actions from now on. Nothing is clipped, as in LeRobot.

    ``pictures``: normalisers of the policy's cameras. Then a condition is a dict with all parts. Pictures are [...,
    T_o, C, H, W] in [0, 1] or in bytes, or [..., T_o, H, W, C] from 0 to 255, as environments return them.
    """

    observation: Normalizer
    action: Normalizer
    sizes: dict[str, int]
    history: int
    execute: int
    pictures: dict[str, Normalizer] = field(default_factory=dict)

    def encode(self, data: Tensor) -> Tensor:
        """Convert chunks to model units, with the current step first."""
        return self.action.normalize(data).roll(1 - self.history, -2)

    def decode(self, sample: Tensor) -> Tensor:
        """Return the actions to execute, [..., T_a, d]."""
        return self.action.denormalize(sample[..., : self.execute, :])

    def condition(self, cond: Any) -> Any:
        """Return observations in model units, flat: [..., T_o·o]; with pictures, a dict of numbers and pictures."""
        if self.pictures and not isinstance(cond, dict):
            raise InvalidInputError(f"this policy reads {', '.join(self.pictures)}: give observations as a dict")
        given = cond
        if isinstance(cond, dict):
            for name in (*self.sizes, *self.pictures):
                if name not in cond:
                    raise InvalidInputError(
                        f"the observation has no {name!r}; it has {', '.join(sorted(cond)) or 'nothing'}"
                    )
            cond = torch.cat([self._frames(cond[name], size) for name, size in self.sizes.items()], -1)
        cond = require_tensor(cond, f"[B, {self.observation.dim}]")
        seen = self.observation.normalize(self._frames(cond, self.observation.dim))
        if not self.pictures:
            return seen.flatten(-2) if self.history > 1 else seen
        looks = [self._looked(given[name], normal) for name, normal in self.pictures.items()]
        return {"numbers": seen.unsqueeze(-2) if self.history == 1 else seen, "pictures": torch.stack(looks, -4)}

    def _looked(self, x: Tensor, normal: Normalizer) -> Tensor:
        """Return pictures [..., T_o, C, H, W], normalised per channel."""
        x = x.unsqueeze(-4) if self.history == 1 else x
        if x.shape[-4] != self.history:
            raise InvalidInputError(f"this policy reads its last {self.history} pictures; got {_shape(x)}")
        last = x.shape[-1] == normal.dim != x.shape[-3]
        x = x if last else x.movedim(-3, -1)
        if last or not x.is_floating_point():
            x = x.float() / 255
        elif x.numel() and float(x.max()) > 2:
            raise InvalidInputError(
                f"pictures [..., C, H, W] of floats lie in [0, 1], and these reach {float(x.max()):g}: divide them by "
                "255, or give bytes"
            )
        return normal.normalize(x).movedim(-1, -3)

    def _frames(self, x: Tensor, size: int) -> Tensor:
        """Return [..., T_o, size], or [..., size] if there is a single observation."""
        if not require_tensor(x, f"[B, {size}]").ndim:
            raise InvalidInputError(f"this policy reads {size} numbers per observation; got a single number")
        if x.shape[-1] == size and (self.history == 1 or (x.ndim > 2 and x.shape[-2] == self.history)):
            return x  # [B, o] is B single observations, also where B is T_o
        if self.history > 1 and x.shape[-1] == self.history * size:
            return x.unflatten(-1, (self.history, size))
        raise InvalidInputError(
            f"this policy reads its last {self.history} observations of {size} numbers each; got {_shape(x)}: stack "
            "them with denoiserl.envs.frame_stack.with_policy_history(env, policy), --obs-horizon on the command "
            "line, or Gymnasium's FrameStackObservation and FlattenObservation"
        )

    def is_batch(self, obs: Any) -> bool:
        """Return whether observations have a batch axis.

        A single observation is [T_o, o], flat [T_o·o], or [o] if T_o is 1.
        """
        name = next(iter(self.sizes))
        if isinstance(obs, dict) and name not in obs:
            return True  # ``condition`` raises and names what is missing
        numbers, size = (obs[name], self.sizes[name]) if isinstance(obs, dict) else (obs, self.observation.dim)
        frames = self.history > 1 and require_tensor(numbers, f"[B, {size}]").shape[-1:] != (self.history * size,)
        return numbers.ndim > 1 + frames

    def initial_state(self, cond: Any) -> None:
        """Return None: chunks start from noise."""
        return None


def diffusion_policy(folder: str | Path, n: int | None = None, transition: Transition | None = None) -> Policy:
    """Load a LeRobot ``DiffusionPolicy`` checkpoint (a folder with ``config.json`` and ``model.safetensors``).

    ``n`` denoising steps (default: the checkpoint's). ``generate`` samples as LeRobot does: DDPM's posterior or DDIM
    without noise; the same noise gives the same actions. Training samples with ``transition`` (default: the posterior,
    ``ddim(1.0)``, whose last step has no density; with ``with_min_std(ddim(1.0), std)`` every step has one). A
    checkpoint without scale in its FiLM gets scales of one, which can be trained. Mixed precision (``use_amp``) is
    ignored: the policy computes in float32. Raise RunError if the checkpoint has unsupported settings.
    """
    folder = Path(folder)
    config = read_config(folder)
    sizes, cameras, d = _features(config, folder)
    history, horizon = int(config["n_obs_steps"]), int(config["horizon"])
    scheduler = _scheduler(config)
    convention = convert(scheduler)
    n = int(n or config.get("num_inference_steps") or convention.levels)
    eyes = _eyes(config, cameras) if cameras else None
    width = sum(sizes.values()) + (0 if eyes is None else eyes.width)
    net = Net(
        (horizon, d), history * width, config["down_dims"], config["kernel_size"], config["n_groups"],
        config["diffusion_step_embed_dim"], convention.levels, history - 1, eyes, sizes[STATE],
    )  # fmt: skip
    left = fill(net, read_tensors(folder / "model.safetensors"), bool(config["use_film_scale_modulation"]))
    seen, done = read_norms(folder, config, left)
    parts = [_normalizer(seen, name, size) for name, size in sizes.items()]
    observation = Normalizer(*(torch.cat([getattr(p, f) for p in parts]) for f in FIELDS))
    weight = "noise" if convention.predicts == "eps" else "data"
    process = Diffusion(convention.schedule, ddim(1.0), convention.clip, weight, clip_noise=convention.clip_noise)
    train = steps_like(scheduler, process, n, transition or ddim(1.0))
    serve = steps_like(scheduler, process, n, convention.transition)
    looks = {name: _normalizer(seen, name, shape[0]) for name, shape in cameras.items()}
    codec = LeRobotCodec(
        observation, _normalizer(done, ACTION, d), sizes, history, int(config["n_action_steps"]), looks
    )
    denoiser = GaussianDenoiser(net, convention.schedule, convention.predicts)
    return Policy.of(process, denoiser, (horizon, d), train, serve, codec)


FIELDS = ("centre", "scale", "constant", "low", "high")


def _shape(x: Any) -> Any:
    return None if x is None else list(x.shape)


def _features(config: Config, folder: Path) -> tuple[dict[str, int], dict[str, list[int]], int]:
    """Return {observation: its size} in the order of the condition, {camera: its shape}, and the action's size."""
    seen = config["input_features"]
    cameras = {k: list(v["shape"]) for k, v in seen.items() if v["type"] == "VISUAL"}
    if STATE not in seen:
        raise RunError(
            f"{folder} does not read {STATE}, which LeRobot's diffusion policy needs: give another checkpoint"
        )
    for name, what in seen.items():
        if name not in (STATE, ENVIRONMENT, *cameras):
            raise RunError(
                unknown_name_message(
                    name, (STATE, ENVIRONMENT), f"observation of type {what['type']} of a LeRobot policy"
                )
            )
    if list(config["output_features"]) != [ACTION]:
        raise RunError(f"{folder} predicts {', '.join(config['output_features'])}: only {ACTION!r} alone is supported")
    sizes = {name: math.prod(seen[name]["shape"]) for name in (STATE, ENVIRONMENT) if name in seen}
    return sizes, cameras, math.prod(config["output_features"][ACTION]["shape"])


def _eyes(config: Config, cameras: dict[str, list[int]]) -> VisionEncoder:
    if config.get("resize_shape") is not None:
        raise RunError("this policy resizes its pictures, which is not supported: retrain it on pictures of that size")
    if not config["use_group_norm"]:
        raise RunError(
            "this policy normalises pictures over batches, which is not supported: retrain it with use_group_norm=True"
        )
    shapes = list(cameras.values())
    if any(shape != shapes[0] for shape in shapes):
        raise RunError(f"config.json has cameras of shapes {shapes}: retrain the policy with one shape for all cameras")
    points, depth = config["spatial_softmax_num_keypoints"], config["vision_backbone"]
    separate = bool(config["use_separate_rgb_encoder_per_camera"]) and len(cameras) > 1
    return VisionEncoder(len(cameras), shapes[0], config.get("crop_shape"), points, depth, separate)


def _scheduler(config: Config) -> Any:
    """Return diffusers' scheduler with the name and numbers of the checkpoint."""
    made = {"DDPM": "DDPMScheduler", "DDIM": "DDIMScheduler"}
    if config["noise_scheduler_type"] not in made:
        raise RunError(unknown_name_message(config["noise_scheduler_type"], made, "noise scheduler"))
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "clip_sample_range",
             "prediction_type")  # fmt: skip
    diffusers = require("diffusers", "hub")
    return getattr(diffusers, made[config["noise_scheduler_type"]])(**{name: config[name] for name in names})


def _normalizer(norms: Norms, name: str, size: int) -> Normalizer:
    """Return LeRobot's normalisation of a feature; a constant dimension gives −1 (ranges) or 0 (MEAN_STD)."""
    found = norms.pair(name, size)
    if not found:
        return Normalizer.identity(size)
    one, two = found
    if norms.modes[name] == "MEAN_STD":
        constant, wide = two == 0, torch.full_like(one, math.inf)
        scale = two if name == ACTION else two + norms.eps
        return Normalizer(one, torch.where(constant, torch.ones_like(two), scale), constant, -wide, wide)
    constant = one == two
    if norms.modes[name] != "MIN_MAX" and name != ACTION and norms.varies(name, constant):
        raise RunError(
            f"{norms.source}: the quantiles of {name} are equal in dimension(s) "
            f"{constant.nonzero().flatten().tolist()}, but it varies there: LeRobot divides by {norms.eps:g}. "
            "Retrain with MIN_MAX or MEAN_STD, or leave these dimensions out"
        )
    # a constant observation becomes −1; a constant action keeps its value
    centre = torch.where(constant, one + (0 if name == ACTION else 1), (one + two) / 2)
    scale = torch.where(constant, torch.ones_like(one), (two - one) / 2)
    return Normalizer(centre, scale, constant & (name == ACTION), one, two)
