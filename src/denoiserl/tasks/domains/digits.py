"""DIGITS: scikit-learn's 1797 handwritten digits of 8 x 8 pixels, with rewards that can and cannot be hacked.

The data are split in two halves. A ``DigitClassifier`` trained on one half is the reward model. A held-out judge,
trained on the other half, tests whether images with a high reward are still digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, require
from denoiserl.core.rng import Rng, as_rng

CLASSES = 10
EVENT = (1, 8, 8)


@lru_cache(maxsize=1)
def _load() -> tuple[Tensor, Tensor]:
    data: Any = require("sklearn.datasets", "demo").load_digits()
    image = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return image, torch.as_tensor(data.target, dtype=torch.int64)


def digits() -> tuple[Tensor, Tensor]:
    """Return all images [1797, 1, 8, 8] in [-1, 1] and their labels [1797]."""
    image, label = _load()
    return image.clone(), label.clone()


def split_halves(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the data in two random halves: (images, labels) twice."""
    image, label = digits()
    order = Rng(seed).permutation(len(image))
    first, second = order.chunk(2)
    return (image[first], label[first]), (image[second], label[second])


def one_hot(label: Tensor) -> Tensor:
    """Return prompts [*batch, 10] of labels."""
    return nn.functional.one_hot(label, CLASSES).float()


class DigitClassifier(nn.Module):
    """A small classifier, used as a reward: log p(label | image). Differentiable in the image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.GELU(), nn.Linear(width, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 10] of images [B, 1, 8, 8]."""
        return self.net(image)

    def reward(self, image: Tensor, prompts: Tensor) -> Tensor:
        """Return log p(label | image) for one-hot prompts [B, 10]: [B]."""
        return (self(image).log_softmax(-1) * prompts).sum(-1)

    def accuracy(self, image: Tensor, label: Tensor) -> float:
        """Return the fraction of images [B, 1, 8, 8] that are classified as their labels [B]."""
        return float((self(image).argmax(-1) == label).float().mean())


def train_judge(image: Tensor, label: Tensor, rng: Rng | int, steps: int = 100, noise: float = 0.1) -> DigitClassifier:
    """Train a judge on one split by full-batch Adam; ``noise`` on the pixels prevents overconfidence."""
    rng = as_rng(rng, image.device)
    model = DigitClassifier()
    with torch.no_grad():
        for weight in model.parameters():
            fan = weight.shape[-1] if weight.ndim > 1 else 0
            weight.copy_(rng.normal(*weight.shape) / fan**0.5 if fan else torch.zeros_like(weight))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(image + noise * rng.normal(*image.shape)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class ClassifierPair:
    """The judge that is the reward, and the held-out one, trained on the other half of the data."""

    reward: DigitClassifier
    held_out: DigitClassifier


def train_judges(seed: int = 0) -> ClassifierPair:
    """Return the two judges of ``seed``."""
    one, two = split_halves(seed)
    rng = Rng(seed)
    return ClassifierPair(train_judge(*one, rng), train_judge(*two, rng.spawn()))


def ink_share(image: Tensor) -> Tensor:
    """Return the share of ink, [*batch, 1, 8, 8] -> [*batch] in [0, 1]."""
    if image.shape[-3:] != EVENT:
        raise InvalidInputError(f"images have shape {tuple(image.shape)}: give [*batch, {', '.join(map(str, EVENT))}]")
    return ((image.clamp(-1, 1) + 1) / 2).mean((-3, -2, -1))
