"""Laws: what a decision is drawn from.

A law is a frozen record with five things: ``sample(noise)``, a pure function of given noise, so that it compiles,
replays and differentiates; ``log_prob(x)``, the *joint* over the event's factors that ``mask`` counts (or one number a
factor); ``kl(other)`` in closed form; ``num_factors``, how many these are; ``has_density``, whether it has a density at
all.
"""

from denoiserl.distributions.base import Distribution, sum_event
from denoiserl.distributions.categorical import Categorical
from denoiserl.distributions.gaussian import Gaussian
from denoiserl.distributions.product import Delta, Product
from denoiserl.distributions.squashed import Squashed
from denoiserl.distributions.unmasking import Unmasking

__all__ = ["Categorical", "Delta", "Distribution", "Gaussian", "Product", "Squashed", "Unmasking", "sum_event"]
