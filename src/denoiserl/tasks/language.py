"""A user's masked language model: a model of transformers, a verifier and prompts.

    denoiserl run tracerl --model my_model --reward my.py:score --prompts prompts.jsonl --lora 16

Every prompt is padded on the left to one length, and followed by ``answer_length`` masks that the model fills. Trials
answer held-out prompts, and report their mean reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.core.progress import say, track
from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, Positive, Settings
from denoiserl.policy.policy import Policy
from denoiserl.tasks.base import Task
from denoiserl.tasks.prompts_and_rewards import (
    PromptList,
    load_prompts,
    load_reward,
    quiet_hub,
    split_prompts,
    trial_rewards,
)
from denoiserl.train import Run


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the model, its decoder, its verifier and its prompts."""

    model: str
    """model to improve; one of transformers with its tokenizer, its folder or its name on the hub"""
    reward: str
    """reward, my_file.py:score; a function (answers, prompts) -> one number each, gets fields of prompts by name"""
    prompts: str
    """prompts.txt (one per line), prompts.jsonl, or my_file.py:prompts; rows {"prompt": ...}"""
    answer_length: Count = 32
    """tokens of an answer"""
    tokens_per_step: Count = 1
    """tokens revealed per step"""
    order: Literal["confidence", "left", "random", "margin", "entropy"] = "confidence"
    """order in which positions are revealed"""
    block: Count | None = None
    """length of the blocks that are decoded from left to right (None: all at once)"""
    decoder_temperature: Positive = 1.0
    """temperature of the decoder, a part of the policy"""
    chat: bool = False
    """write prompts as a user's turn, by the tokenizer's chat template"""
    mask_token: str | None = None
    """token of the mask (None: the tokenizer's)"""
    stop_token: str | None = None
    """token that ends an answer (None: answers have their full length)"""
    attention: Literal["own", "all"] = "own"
    """positions that the model reads; all: a left-to-right architecture that fills masks"""
    shift_logits: bool = False
    """row i of the logits predicts token i + 1, as in Dream"""
    trust_remote_code: bool = False
    """run code that comes with the model, as LLaDA and Dream need"""
    lora: CountOrZero = 0
    """rank of LoRA adapters; 0: all weights learn"""
    lora_targets: str = "all-linear"
    """layers with adapters; all-linear, or a regular expression of their names"""
    held_out_fraction: Fraction = 0.2
    """share that is held out for trials; of the prompts, if there are 5 or more"""
    sample_batch_size: Count = 32
    """samples that trials generate at a time; answers"""
    num_eval_trials: Count = 64
    """trials per evaluation during training; answers"""


def load_model(base: Args) -> Any:
    """Return the model: a masked one, one of a left-to-right architecture, or one that comes with its code."""
    hf = require("transformers", "hub")
    say(f"Loading the model {base.model} ...")
    kind = hf.AutoModelForMaskedLM
    config = _loaded(base, hf.AutoConfig)
    if type(config) not in kind._model_mapping:
        kind = hf.AutoModelForCausalLM if type(config) in hf.AutoModelForCausalLM._model_mapping else hf.AutoModel
    if kind is hf.AutoModelForCausalLM and base.attention == "own" and not base.trust_remote_code:
        raise RunError(
            f"{base.model} is a left-to-right model ({type(config).__name__}): if it was trained to fill masks, give "
            "--attention all; other ones have no masks to fill"
        )
    return _loaded(base, kind).eval()


def _loaded(base: Args, kind: Any) -> Any:
    """Return what a class of transformers loads for the model. Raise RunError with the remedy."""
    if Path(base.model).exists() and not (Path(base.model) / "config.json").is_file():
        raise RunError(f"{base.model} is no model of transformers (it has no config.json): name the folder of one")
    try:
        with quiet_hub(require("transformers", "hub")):
            return kind.from_pretrained(base.model, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        raise RunError(f"{base.model} cannot be loaded as {kind.__name__} ({what}): check the path or name") from error


@lru_cache(maxsize=2)
def load_tokenizer(base: Args) -> Any:
    """Return the tokenizer. Raise RunError if it knows no mask."""
    tokenizer = _loaded(base, require("transformers", "hub").AutoTokenizer)
    token_id(tokenizer, base.mask_token, tokenizer.mask_token, "mask_token")
    return tokenizer


def token_id(tokenizer: Any, given: str | None, usual: str | None, name: str) -> int:
    """Return the id of a token. Raise RunError if there is none, or if it is not one token."""
    token = given or usual
    if token is None:
        raise RunError(f"the tokenizer has no {name}: give --{name.replace('_', '-')}, one of its tokens")
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise RunError(f"{token!r} is no token of this tokenizer: give --{name.replace('_', '-')}, one that it has")
    return int(found)


@dataclass(frozen=True)
class Canvases:
    """Prompts as canvases [P, length]: padding, the prompt's tokens, and masks for the answer."""

    prompts: PromptList
    tokens: Tensor
    answer_length: int

    def find(self, rows: Tensor) -> list[int]:
        """Return the numbers of the prompts of canvases [B, length], by their tokens before the answer."""
        known = {tuple(row): i for i, row in enumerate(self.tokens[:, : -self.answer_length].tolist())}
        return [known[tuple(row)] for row in rows[:, : -self.answer_length].tolist()]


@lru_cache(maxsize=2)
def canvases(base: Args) -> Canvases:
    """Return the prompts as canvases. Raise RunError for prompts that the tokenizer cannot write."""
    prompts, tokenizer = load_prompts(base.prompts), load_tokenizer(base)
    mask = token_id(tokenizer, base.mask_token, tokenizer.mask_token, "mask_token")
    if base.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise RunError("the tokenizer has no chat template: leave --chat out")
        turns = [[{"role": "user", "content": text}] for text in prompts.texts]
        texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    else:
        texts = list(prompts.texts)
    ids = [list(tokenizer(text, add_special_tokens=not base.chat)["input_ids"]) for text in texts]
    if not base.chat and tokenizer.sep_token_id is not None:
        ids = [row[:-1] if row and row[-1] == tokenizer.sep_token_id else row for row in ids]  # the answer follows
    pad = tokenizer.pad_token_id
    longest = max(map(len, ids))
    if pad is None and min(map(len, ids)) < longest:
        raise RunError("the prompts differ in length and the tokenizer has no padding: set tokenizer.pad_token")
    for text, row in zip(texts, ids, strict=True):
        if mask in row:
            raise RunError(f"the prompt {text!r} contains the mask token, which would be filled: remove it")
    rows = [[pad] * (longest - len(row)) + row + [mask] * base.answer_length for row in ids]
    found = torch.tensor(rows, dtype=torch.int64)
    if len({tuple(row) for row in rows}) < len(rows):
        raise RunError("some prompts have the same tokens: their answers could not be told apart; leave one out")
    return Canvases(prompts, found, base.answer_length)


def make_policy(base: Args, model: Any) -> Policy:
    """Return the policy of a model: as many steps as fill every mask of an answer."""
    from denoiserl.integrations.adapters import lora
    from denoiserl.integrations.transformers import masked_policy

    tokenizer = load_tokenizer(base)
    mask = token_id(tokenizer, base.mask_token, tokenizer.mask_token, "mask_token")
    end = None if base.stop_token is None else token_id(tokenizer, base.stop_token, None, "stop_token")
    special = {i for i in tokenizer.all_special_ids if i not in (mask, end)}
    block = min(base.block or base.answer_length, base.answer_length)
    whole, rest = divmod(base.answer_length, block)
    steps = whole * -(-block // base.tokens_per_step) + -(-rest // base.tokens_per_step)
    decoder: dict[str, Any] = {"order": base.order, "tokens": base.tokens_per_step, "end": end}
    decoder |= {"temperature": base.decoder_temperature, "block": base.block and block}
    policy = masked_policy(
        model,
        mask,
        canvases(base).tokens.shape[1],
        steps,
        banned=sorted(special),
        shift=base.shift_logits,
        attend=base.attention,
        vocab=len(tokenizer),
        pad=tokenizer.pad_token_id,
        **decoder,
    )
    if base.lora:
        policy = lora(policy, base.lora, base.lora_targets)
        policy.weights.base = base.model  # saved policies and states hold the adapters alone
    return policy


def start(base: Args, seed: int, run: Run) -> Policy:
    """Return the starting policy, on the run's device."""
    torch.manual_seed(seed)
    return make_policy(base, load_model(base)).to(run.device)


def restore(base: Args, path: Path, device: torch.device) -> Policy:
    """Load a policy that a run has saved, around a fresh copy of the model."""
    from denoiserl.integrations.adapters.layers import find_nets

    net = find_nets(make_policy(base, load_model(base)))[0]
    return Policy.load(path, net.model, device)


def decode(base: Args, answers: Tensor) -> list[str]:
    """Return the answers of filled canvases [B, length] as texts, without special tokens."""
    return load_tokenizer(base).batch_decode(answers[:, -base.answer_length :], skip_special_tokens=True)


def reward_function(base: Args) -> Any:
    """Return the reward (filled canvases [B, length], canvases) -> numbers [B] of the user's function."""
    score = load_reward(base.reward, canvases(base).prompts, "answers")

    def reward(sample: Tensor, prompt: Tensor) -> Any:
        return score(decode(base, sample), canvases(base).find(prompt))

    reward.__name__ = base.reward.rpartition(":")[2]
    return reward


def parts(base: Args) -> tuple[list[int], list[int]]:
    """Return the numbers of the training prompts and of the held-out ones."""
    return split_prompts(len(canvases(base).prompts), base.held_out_fraction)


def answer(policy: Policy, base: Args, seed: int, n: int) -> tuple[Tensor, list[int]]:
    """Return n filled canvases [n, length] of held-out prompts, and the numbers of the prompts.

    Answer i has its own random stream, so the same seed gives the same answers for any ``sample_batch_size``.
    """
    held_out, found = parts(base)[1], []
    index = [held_out[i % len(held_out)] for i in range(n)]
    with track("answers", n) as advance:
        for rows in torch.arange(n).split(base.sample_batch_size):
            some = canvases(base).tokens[[index[i] for i in rows.tolist()]].to(policy.device)
            streams = Rng.rows([(seed * 1_000_003 + i) % 2**63 for i in rows.tolist()], policy.device)
            found.append(policy.generate(some, streams).cpu())
            advance(len(rows))
    return torch.cat(found), index


def outcomes(policy: Policy, base: Args, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return the reward of n answers to held-out prompts, [n], and its named parts if it has any."""
    filled, index = answer(policy, base, seed, n)
    return trial_rewards(reward_function(base), filled, canvases(base).tokens[index])


def render(policy: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """Return answers to held-out prompts as a text."""
    filled, index = answer(policy, base, seed, n)
    texts = [canvases(base).prompts.texts[i] for i in index]
    pairs = zip(texts, decode(base, filled), strict=True)
    return {"answers.txt": "\n\n".join(f"{prompt}\n  -> {text}" for prompt, text in pairs)}


def task(base: Args) -> Task:
    """Return the task: learn from a user's reward of answers."""
    train, held_out = parts(base)
    if train == held_out:
        say(f"All {len(train)} prompts are trained on and evaluated on: give 5 or more to hold some out.")
    return Task(
        "language",
        {"model": partial(start, base)},
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        {"reward": ("reward of answers to held-out prompts" if train != held_out else "reward of answers", "")},
        reward=reward_function(base),
        prompts=lambda seed: canvases(base).tokens[train],
        render=lambda policy, seed, n: render(policy, base, seed, n),
        restore=lambda path, device: restore(base, path, device),
        caption="Answers to held-out prompts.",
        num_eval_trials=base.num_eval_trials,
    )
