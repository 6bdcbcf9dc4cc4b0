"""LeRobot's diffusion policies: ``diffusion_policy(path)`` loads a checkpoint, unmodified."""

from denoiserl.integrations.lerobot.policy import diffusion_policy

__all__ = ["diffusion_policy"]
