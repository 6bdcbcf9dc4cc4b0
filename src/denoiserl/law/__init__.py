"""Laws: what a decision is drawn from.

A law is a frozen record with five things: ``draw(noise)``, a pure function of given noise, so that it compiles,
replays and differentiates; ``log_prob(x)``, the *joint* over the event's live factors (or one number a factor);
``kl(other)`` in closed form; ``size``, the number of live factors; ``dense``, whether it has a density at all.
"""

from denoiserl.law.base import Law, joint
from denoiserl.law.categorical import Categorical
from denoiserl.law.gaussian import Gaussian
from denoiserl.law.product import Delta, Product
from denoiserl.law.squashed import Squashed
from denoiserl.law.unmasking import Unmasking

__all__ = ["Categorical", "Delta", "Gaussian", "Law", "Product", "Squashed", "Unmasking", "joint"]
