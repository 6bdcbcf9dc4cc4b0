"""Probability distributions of decisions.

A distribution is a frozen dataclass. ``sample(noise)`` is a pure function of given noise, so that it compiles, repeats
and differentiates. ``log_prob(x)`` is the *joint* over the event's factors that ``mask`` counts, or one number per
factor; ``num_factors`` is their number. ``kl(other)`` has a closed form. ``has_density`` is False for a deterministic
step.
"""

from denoiserl.distributions.base import Distribution, sum_event
from denoiserl.distributions.categorical import Categorical
from denoiserl.distributions.gaussian import Gaussian
from denoiserl.distributions.product import Delta, Product
from denoiserl.distributions.squashed import Squashed
from denoiserl.distributions.unmasking import Unmasking

__all__ = ["Categorical", "Delta", "Distribution", "Gaussian", "Product", "Squashed", "Unmasking", "sum_event"]
