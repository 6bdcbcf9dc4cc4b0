"""Flow-GRPO: group-relative fine-tuning of a flow generator on any reward.

paper: arXiv 2505.05470
signal: reward
family: path policy gradient

A deterministic flow is run as an SDE with the same marginals, so that every step has a density. Each prompt is drawn
G times; a sample's advantage is its reward relative to its group; every step of its chain gets that advantage in a
clipped surrogate, with a KL to the pretrained generator a step:

    A_i = (r_i − mean_G r) / std r,    L = mean_k [ −min(ρ_k A, clip(ρ_k, 1 ± ε) A) + β KL(π_θ ‖ π_ref)_k ]

As published: ρ is the geometric mean over dimensions (log-probs divided by ``law.size``), the std is that of the whole
batch, KL and log-probs are per dimension, sampling trains under the SDE and serves under the ODE. ``window`` > 0 is the
fast variant: only the first ``window`` steps are stochastic and trained. Differences: the KL carries its dt factor
(the released code divides by 2g² and not by 2g²|dt|), the whole network is trained rather than LoRA adapters, so the
learning rate is higher, and the clip is 1e-3 because a 432-dimensional picture is not a latent of 16k dimensions.

Expect, with the defaults, strict prompt hits of the ODE on SHAPES from about 40 % to 80 % in two minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.credit import dead_groups, group_relative
from denoiserl.likelihood import assert_on_policy
from denoiserl.objective import clip_fraction, ppo_clip
from denoiserl.policy import Policy
from denoiserl.recipes import _shapes
from denoiserl.rng import Rng
from denoiserl.signal import Reward, ask, score
from denoiserl.train import Keep, adamw, covers, step
from denoiserl.tree import Tree, rows


@dataclass(frozen=True)
class Args:
    seed: int = 0
    iters: int = 40
    """updates of the sampling policy"""
    prompts: int = 16
    """prompts an iteration"""
    group: int = 16
    """samples a prompt"""
    epochs: int = 1
    """passes over each iteration's samples"""
    batch: int = 64
    """chains a gradient step"""
    clip: float = 1e-3
    """range of the geometric-mean ratio"""
    adv_clip: float = 5.0
    """largest advantage, in standard deviations"""
    beta: float = 0.001
    """weight of the KL to the pretrained generator, a dimension and step"""
    lr: float = 3e-4
    """Adam's learning rate"""
    eval_every: int = 10
    """iterations between held-out evaluations"""
    base: _shapes.Base = _shapes.Base()
    """the generator that is improved"""


def improve(policy: Policy, reward: Reward, prompts: Tree, a: Any, rng: Rng, keep: Keep | None = None) -> Iterator[dict]:
    """Improve a flow generator on a reward. ``prompts``: a tree of [P, ...]; every iteration asks some of them."""
    keep = keep or Keep()
    policy.weights.keep("reference")
    opt = adamw(policy.parameters(), a.lr)
    covers(opt, policy.weights.module)
    for it in keep.loop(a.iters, policy=policy, opt=opt, rng=rng):
        asked = ask(prompts, rng.integers(0, rows(prompts), a.prompts), a.group)
        chain = policy.sample(asked, rng)
        scored = score(reward, policy.codec.decode(chain.sample), asked)
        groups = scored.total.reshape(a.prompts, a.group)
        advantage = group_relative(groups, "batch", clip=a.adv_clip).flatten()
        seen = []
        for _ in range(a.epochs):
            for index in rng.permutation(len(advantage)).split(a.batch):
                part = chain.take(index)
                law, y = policy.replay(part)
                with torch.no_grad():
                    reference, _ = policy.replay(part, using="reference")
                logp, old = law.log_prob(y) / law.size, part.log_prob / law.size
                if it == 0 and not seen:
                    assert_on_policy(logp, old, 1e-4)
                surrogate = ppo_clip(logp, old, advantage[index, None].expand_as(logp), a.clip)
                kl = law.kl(reference) / law.size
                told = step(opt, (surrogate + a.beta * kl).mean(), clip=1.0)
                seen.append((told["loss"], float(kl.mean()), float(clip_fraction(logp.detach(), old, a.clip))))
        loss, kl, clipped = torch.tensor(seen).mean(0).tolist()
        row = {"reward": float(groups.mean()), "dead groups": float(dead_groups(groups).float().mean())}
        row |= {k: float(v.mean()) for k, v in scored.parts.items()}
        yield row | {"loss": loss, "kl": kl, "clipped": clipped}


def train(a: Args, keep: Keep | None = None) -> Iterator[dict]:
    """SHAPES: pictures of coloured shapes, rewarded by a parser that reads the prompted scene back."""
    keep = keep or Keep()
    policy = yield from _shapes.pretrain(a.base, a.seed, keep.stage("imitate"))
    rng = Rng(a.seed + 1, keep.device)
    train_prompts, held_out = _shapes.prompts(a.base, a.seed)
    stage = keep.stage("improve")
    for it, row in enumerate(improve(policy, _shapes.reward, train_prompts, a, rng, stage)):
        if (it + 1) % a.eval_every == 0 or it + 1 == a.iters:
            row |= (report := _shapes.evaluate(policy, held_out, Rng(a.seed + 2, keep.device)))
            keep.best(policy, report["held-out strict"])
        yield row
    keep.last(policy)
