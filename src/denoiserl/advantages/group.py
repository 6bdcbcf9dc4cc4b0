"""Advantages within a group: the samples of a prompt are the baseline. Groups are an axis, ``[*, P, G]``."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from denoiserl.advantages.checks import as_float, boolean, finite, resolution, same_shape
from denoiserl.core.errors import InvalidInputError, unknown_name_message

Scale = Literal["std", "sample_std", "batch", "none"]


class Screened(NamedTuple):
    """Rewards with every bad value set to NaN (code without ``valid`` then fails), and the number of bad values."""

    reward: Tensor
    valid: Tensor
    count: int


def mask_invalid_rewards(
    reward: Tensor, invalid_rewards: Literal["error", "drop"] = "error", max_invalid_share: float = 0.5
) -> Screened:
    """Find rewards that are NaN or infinite, of any shape.

    ``"error"`` raises InvalidInputError with the samples; ``"drop"`` marks them in ``valid`` and counts them. More than
    a share ``max_invalid_share`` of bad rewards is an error either way, because then the reward is at fault.
    """
    if invalid_rewards not in ("error", "drop"):
        raise InvalidInputError(unknown_name_message(invalid_rewards, ("error", "drop"), "invalid_rewards"))
    reward = as_float(reward)
    if invalid_rewards == "error":
        finite(reward=reward)
    valid = torch.isfinite(reward)
    count = reward.numel() - int(valid.sum())
    if count > max_invalid_share * reward.numel():
        raise InvalidInputError(
            f"{count} of {reward.numel()} rewards are not finite, more than the allowed share {max_invalid_share}."
        )
    return Screened(reward.masked_fill(~valid, torch.nan), valid, count)


def dead_groups(reward: Tensor, spread: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Find groups without a preference: ``max − min ≤ spread``, a tie, or fewer than two valid samples.

    ``[*, P, G]`` -> bool ``[*, P]``. Rewards within 4 units in the last place of the largest one are a tie. Such groups
    have no gradient (``group_relative`` gives them exactly 0); log their share, ``.float().mean()``.
    """
    reward, valid = _groups(reward, valid)
    _, above, _ = _centred(reward, valid, -1)
    return above.amax(-1) <= spread


def group_relative(
    reward: Tensor, scale: Scale = "std", clip: float | None = None, spread: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Return the advantages of samples over their group. ``[*, P, G]`` -> ``[*, P, G]``, zero mean in every group.

        Âᵢ = (rᵢ − mean_group r) / scale,   then clamped to ±clip

    | scale | divides by | used by |
    |---|---|---|
    | ``"std"`` | the group's population std (1/G): a group of two gets ±1 | GRPO, DDPO |
    | ``"sample_std"`` | the group's sample std (1/(G−1)) | implementations that call ``torch.std`` |
    | ``"batch"`` | the population std of all rewards in ``[P, G]`` | Flow-GRPO's global std |
    | ``"none"`` | 1 | Dr. GRPO, d1 |

    No ε is added. A group is tied if its rewards differ by at most ``spread``, or by less than 4 units in the last
    place of the largest one. It gets exactly 0 instead of amplified noise. Samples outside ``valid`` get 0 and do not
    count. Raise InvalidInputError for rewards without a group axis, groups of one, and rewards that are not finite.
    GRPO arXiv 2402.03300; Flow-GRPO 2505.05470.
    """
    if scale not in get_args(Scale):
        raise InvalidInputError(unknown_name_message(str(scale), get_args(Scale), "scale"))
    if clip is not None and not clip > 0:
        raise InvalidInputError(f"clip must be positive, got {clip}.")
    reward, valid = _groups(reward, valid)
    centred, above, count = _centred(reward, valid, -1)
    advantage = centred
    if scale in ("std", "sample_std"):
        advantage = _standard(centred, centred, count - int(scale == "sample_std"), -1)
    elif scale == "batch":
        whole, _, total = _centred(reward, valid, (-2, -1))
        advantage = _standard(centred, whole, total, (-2, -1))
    advantage = advantage.masked_fill((above.amax(-1) <= spread).unsqueeze(-1), 0.0)
    return advantage if clip is None else advantage.clamp(-clip, clip)


def leave_one_out(reward: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return REINFORCE leave-one-out advantages: an unbiased baseline, the mean of the *others*. ``[*, P, G]`` -> same.

        Âᵢ = rᵢ − 1/(G−1) Σ_{j≠i} rⱼ = G/(G−1) (rᵢ − mean_group r)

    Kool et al. 2019; Ahmadian et al., arXiv 2402.14740.
    """
    reward, valid = _groups(reward, valid)
    centred, _, count = _centred(reward, valid, -1)
    return centred * count / (count - 1).clamp_min(1)


def _groups(reward: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rewards as ``[*, P, G]`` with G > 1, and which of them count."""
    if reward.ndim < 2:
        raise InvalidInputError(f"A group is an axis: reshape the reward {list(reward.shape)} to [prompts, group].")
    if reward.shape[-1] < 2:
        raise InvalidInputError("A group of one has no baseline: draw at least two samples per prompt.")
    reward = as_float(reward)
    if valid is None:
        finite(reward=reward)
        return reward, torch.ones_like(reward, dtype=torch.bool)
    same_shape(reward=reward, valid=valid)
    boolean(valid=valid)
    finite(valid, reward=reward)
    return reward, valid


def _centred(reward: Tensor, valid: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards minus their mean over ``dim``, rewards above the least one, and the number that count.

    Measured from the least reward, so ties give exact zeros and a large common offset costs no digits.
    """
    least = reward.masked_fill(~valid, torch.inf).amin(dim, keepdim=True)
    above = torch.where(valid, reward - least, 0.0)
    largest = torch.where(valid, reward.abs(), 0.0).amax(dim, keepdim=True)
    above = torch.where(above.amax(dim, keepdim=True) < resolution(largest), 0.0, above)
    count = valid.sum(dim, keepdim=True)
    mean = above.sum(dim, keepdim=True) / count.clamp_min(1)
    return torch.where(valid, above - mean, 0.0), above, count


def _standard(x: Tensor, reference: Tensor, count: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return x over the root mean square of ``reference``, without underflow of tiny rewards. 0/0 is 0."""
    peak = reference.abs().amax(dim, keepdim=True)
    peak = torch.where(peak > 0, peak, 1.0)
    rms = ((reference / peak).square().sum(dim, keepdim=True) / count.clamp_min(1)).sqrt()
    return x / peak / torch.where(rms > 0, rms, 1.0)
