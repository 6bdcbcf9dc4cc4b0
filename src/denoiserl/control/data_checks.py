"""Check before training that data lie within the policy's units."""

from __future__ import annotations

from denoiserl.data import ActionChunkCodec, Demonstrations, RunningNormCodec, TanhCodec
from denoiserl.data.ranges import NARROW, compare, warn_each
from denoiserl.envs.units import action_range, inner, range_remarks
from denoiserl.policy.policy import Policy


def check_data_fits(policy: Policy, data: Demonstrations) -> None:
    """Warn of data outside the policy's units.

    These are actions that the policy's codec cannot decode, and actions that use less than a tenth of its range.
    Observations count if they exceed its fitted range by more than the range's width.
    """
    own, name = inner(policy.codec), data.name or "the data"
    known = None if isinstance(own, RunningNormCodec) else action_range(own)
    if known is not None and data.actions.shape[-1] == len(known[0]):
        slack = 0.0 if isinstance(own, TanhCodec | ActionChunkCodec) else NARROW  # others do not clip
        what = f"the actions of {name}", "actions that the policy can take"
        compare(data.actions, *known, *what, slack=slack)
    warn_each(range_remarks(own, data.observations, f"the observations of {name}"))
