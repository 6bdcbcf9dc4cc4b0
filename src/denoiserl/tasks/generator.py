"""A user's image generator: a pipeline of diffusers, a reward function and prompts.

    denoiserl run flow_grpo --model my_pipeline --reward my.py:score --prompts prompts.txt --lora 16

The pipeline is sampled without classifier-free guidance, in training and in trials: the conditional model learns.
Trials generate pictures of held-out prompts, and report their mean reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.core.progress import say, track
from denoiserl.core.rng import Rng
from denoiserl.core.serialization import store
from denoiserl.core.settings import Count, CountOrZero, Fraction, Settings
from denoiserl.core.tree import tree_map
from denoiserl.policy.policy import Policy
from denoiserl.report import image_grid
from denoiserl.tasks.base import Task
from denoiserl.tasks.prompts_and_rewards import (
    PromptList,
    load_prompts,
    load_reward,
    quiet_hub,
    split_prompts,
    to_pictures,
    trial_rewards,
)
from denoiserl.train import Run

INDEX = "index"
"""the part of a condition that holds the number of its prompt"""


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the generator, its reward and its prompts."""

    model: str
    """model to improve; a pipeline of diffusers, its folder or its name on the hub"""
    reward: str
    """reward, my_file.py:score; a function (pictures, prompts) -> one number each"""
    prompts: str = ""
    """prompts.txt (one per line), prompts.jsonl, or my_file.py:prompts; none if the generator takes none"""
    reward_input: Literal["pil", "tensor"] = "pil"
    """pictures for the reward; a list of PIL pictures, or a tensor [B, 3, H, W] in [0, 1]"""
    sampling_steps: Count = 20
    """denoising steps"""
    image_size: Count | None = None
    """height and width of the pictures in pixels (None: the model's)"""
    lora: CountOrZero = 0
    """rank of LoRA adapters; 0: all weights learn"""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """layers with adapters; their names"""
    held_out_fraction: Fraction = 0.2
    """share that is held out for trials; of the prompts, if there are 5 or more"""
    sample_batch_size: Count = 16
    """samples that trials generate at a time; pictures"""
    num_eval_trials: Count = 32
    """trials per evaluation during training; pictures"""


@lru_cache(maxsize=1)
def load_pipeline(model: str) -> Any:
    """Return a pipeline, in float32 on the CPU. Raise RunError if there is none."""
    diffusers = require("diffusers", "hub")
    say(f"Loading the pipeline {model} ...")
    index = Path(model) / "model_index.json"
    if Path(model).exists() and not index.is_file():
        raise RunError(f"{model} is no pipeline of diffusers (it has no model_index.json): name the folder of one")
    listed = store.read_json(index) if index.is_file() else {}
    absent = dict.fromkeys(k for k, v in listed.items() if v == [None, None])  # diffusers wants them said
    try:
        with quiet_hub(diffusers, require("transformers", "hub")):
            return diffusers.DiffusionPipeline.from_pretrained(model, **absent)
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise RunError(f"the pipeline {model} cannot be loaded ({what}): check the path or the name") from error


def take_pipeline(model: str) -> Any:
    """Return a pipeline that is held nowhere else, because training changes its model in place."""
    pipeline = load_pipeline(model)
    load_pipeline.cache_clear()
    return pipeline


def make_policy(base: Args, pipeline: Any) -> Policy:
    """Return the policy of a pipeline, with adapters if they are asked for."""
    from denoiserl.integrations.adapters import lora
    from denoiserl.integrations.diffusers import from_pipeline

    size = None if base.image_size is None else (base.image_size, base.image_size)
    policy = from_pipeline(pipeline, base.sampling_steps, size)
    if base.lora:
        policy = lora(policy, base.lora, list(base.lora_targets))
        policy.weights.base = base.model  # saved policies and states hold the adapters alone
    return policy


def start(base: Args, seed: int, run: Run) -> Policy:
    """Return the starting policy, on the run's device."""
    torch.manual_seed(seed)
    return make_policy(base, take_pipeline(base.model)).to(run.device)


def restore(base: Args, path: Path, device: torch.device) -> Policy:
    """Load a policy that a run has saved, around a fresh copy of the pipeline."""
    from denoiserl.integrations.adapters.layers import find_nets
    from denoiserl.integrations.diffusers import load

    pipeline = take_pipeline(base.model)
    model = find_nets(make_policy(base, pipeline))[0].model if base.lora else None
    return load(path, pipeline, model).to(device)


@lru_cache(maxsize=2)
def conditions(base: Args) -> tuple[PromptList, Any]:
    """Return the prompts and their encodings, a tree of [P, ...]; (one empty prompt, None) without prompts."""
    from denoiserl.integrations.diffusers import prompts

    if not base.prompts and hasattr(load_pipeline(base.model), "encode_prompt"):
        raise RunError(f"the pipeline {base.model} reads texts, and there are none: give --prompts prompts.txt")
    if not base.prompts:
        return PromptList(("",)), None
    texts = load_prompts(base.prompts)
    with track("encode prompts"):
        return texts, tree_map(lambda v: v.cpu(), prompts(load_pipeline(base.model), texts.texts))


def parts(base: Args) -> tuple[list[int], list[int]]:
    """Return the numbers of the training prompts and of the held-out ones."""
    return split_prompts(len(conditions(base)[0]), base.held_out_fraction)


def select(cond: Any, index: Sequence[int]) -> Any:
    """Return rows of the conditions; None without prompts."""
    return None if cond is None else tree_map(lambda v: v[list(index)], cond)


def reward_function(base: Args) -> Any:
    """Return the reward (pictures [B, C, H, W] in [0, 1], conditions) -> numbers [B] of the user's function."""
    score = load_reward(base.reward, conditions(base)[0], "pictures")

    def reward(sample: Tensor, cond: Any) -> Any:
        index = [0] * len(sample) if cond is None else cond[INDEX].tolist()
        return score(to_pictures(sample) if base.reward_input == "pil" else sample, index)

    reward.__name__ = base.reward.rpartition(":")[2]
    return reward


def generate(policy: Policy, base: Args, seed: int, n: int) -> tuple[Tensor, Any, list[int]]:
    """Return n pictures [n, C, H, W] of held-out prompts, their conditions, and the numbers of the prompts.

    Picture i has its own noise, so the same seed gives the same pictures whatever ``sample_batch_size`` is.
    """
    held_out = parts(base)[1]
    index = [held_out[i % len(held_out)] for i in range(n)]
    cond, found = select(conditions(base)[1], index), []
    with track("pictures", n) as advance:
        for rows in torch.arange(n).split(base.sample_batch_size):
            some = None if cond is None else tree_map(lambda v, r=rows: v[r].to(policy.device), cond)
            streams = Rng.rows([(seed * 1_000_003 + i) % 2**63 for i in rows.tolist()], policy.device)
            found.append(policy.generate(some, streams, len(rows)).cpu())
            advance(len(rows))
    return torch.cat(found), cond, index


def outcomes(policy: Policy, base: Args, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return the reward of n pictures of held-out prompts, [n], and its named parts if it has any."""
    pictures, cond, _ = generate(policy, base, seed, n)
    return trial_rewards(reward_function(base), pictures, cond)


def render(policy: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """Return a grid of pictures of held-out prompts, and the prompts as a text."""
    pictures, _, index = generate(policy, base, seed, n)
    levels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    texts = conditions(base)[0].texts
    shown = {"pictures.png": image_grid(np.repeat(levels, 3, -1) if levels.shape[-1] == 1 else levels)}
    return shown | ({"prompts.txt": "\n".join(texts[i] for i in index)} if base.prompts else {})


def task(base: Args) -> Task:
    """Return the task: learn from a user's reward of pictures."""
    train, held_out = parts(base)
    reward = reward_function(base)
    if base.prompts and train == held_out:
        say(f"All {len(train)} prompts are trained on and evaluated on: give 5 or more to hold some out.")
    return Task(
        "generator",
        {"pipeline": partial(start, base)},
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        {"reward": ("reward of pictures of held-out prompts" if train != held_out else "reward of pictures", "")},
        reward=reward,
        prompts=lambda seed: select(conditions(base)[1], train),
        render=lambda policy, seed, n: render(policy, base, seed, n),
        restore=lambda path, device: restore(base, path, device),
        caption="Pictures of held-out prompts.",
        num_eval_trials=base.num_eval_trials,
        num_denoising_steps=base.sampling_steps,
    )
