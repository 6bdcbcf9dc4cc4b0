"""Controllers of the samples of a policy: their protocol, and its check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import Tree

if TYPE_CHECKING:
    from denoiserl.policy.policy import Policy


class Controller(Protocol):
    """A controller of the samples of a policy: it chooses among samples, or chooses the initial noise.

    It is a module with ``config``, so that it is saved with the policy; the policy itself does not change.
    """

    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tree:
        """Return final states in model units; ``cond`` in data units. Draw from ``policy.sample_chain``."""
        ...


def check_controller(controller: Any) -> None:
    """Raise InvalidInputError unless ``controller`` is None, or a module with a method ``generate``."""
    if isinstance(controller, type):
        name = controller.__name__
        raise InvalidInputError(f"a controller is a module, and {name} is a class: call it first, {name}(...)")
    if controller is not None and not (isinstance(controller, nn.Module) and hasattr(controller, "generate")):
        raise InvalidInputError(
            f"a controller is a torch.nn.Module with a method generate, not a {type(controller).__name__}: give "
            "BestOfN(verifier, n), or None for no controller"
        )
