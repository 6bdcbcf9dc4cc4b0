"""Laws: what a decision is drawn from.

A law is a frozen record with five things: ``draw(noise)``, a pure function of given noise, so that it compiles,
replays and differentiates; ``log_prob(x)``, the *joint* over the event's live factors (or one number a factor);
``kl(other)`` in closed form; ``size``, the number of live factors; ``dense``, whether it has a density at all.
"""

from denoiserl.distributions.base import Distribution, sum_event
from denoiserl.distributions.categorical import Categorical
from denoiserl.distributions.gaussian import Gaussian
from denoiserl.distributions.product import Delta, Product
from denoiserl.distributions.squashed import Squashed
from denoiserl.distributions.unmasking import Unmasking

__all__ = ["Categorical", "Delta", "Distribution", "Gaussian", "Product", "Squashed", "Unmasking", "sum_event"]
