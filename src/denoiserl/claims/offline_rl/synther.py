"""SynthER offline: learn from a few thousand transitions of a replay buffer, or from a model's samples of them.

TD3+BC has as many updates in every arm. ``augmented`` has as many rows as ``synther``: noisy copies of the recorded
ones. ``mixed`` takes half of each batch from the recorded rows; it has no condition.
"""

from typing import Any

from denoiserl.experiments import Arm, Study
from denoiserl.experiments.claims.claim import Claim, Condition

ROWS = 3000
"""number of recorded transitions, drawn by the seed"""
LEARNER: dict[str, Any] = {"iterations": 100, "updates_per_iteration": 150, "batch_size": 128, "critic_width": 64}
MADE: dict[str, Any] = {
    **LEARNER,
    "num_synthetic": 50_000,
    "model": {"num_updates": 6000, "width": 128, "depth": 3, "sampling_steps": 32},
}


def plan(budget: str) -> Study:
    """Return the study: swing-up and five seeds in the laptop's budget; the reacher, ten seeds and a larger model in
    the full one.
    """
    full = budget == "full"
    more = {"model": {"num_updates": 30_000, "width": 512, "depth": 6, "sampling_steps": 128}} if full else {}
    arms = {
        "synther": Arm("synther", {**MADE, **more}),
        "augmented": Arm("synther", {**MADE, "generator": "noise"}),
        "recorded": Arm("td3_bc", LEARNER),
        "mixed": Arm("synther", {**MADE, **more, "synthetic_fraction": 0.5}),
    }
    base = {
        "data": f"locosmall:{'reacher' if full else 'swingup'}-medium-replay",
        "max_transitions": ROWS,
        "policy_width": 64,
    }
    return Study("offline", arms, 100_000, "updates", tuple(range(100, 110 if full else 105)), base, curve=0)


CLAIM = Claim(
    claim="A learner of logged data does better on what a diffusion model makes of few rows than on these rows",
    paper="arXiv 2303.06614",
    pass_condition=(
        "score (0 random, 100 expert) of TD3+BC with 15 000 updates on swing-up, from 3000 recorded transitions, mean "
        "over seeds: 50 000 generated ones exceed the recorded ones by more than 5 and as many copies with noise less "
        "1 (95 % intervals of the paired differences)"
    ),
    conditions=(Condition("synther", "recorded", 5.0), Condition("synther", "augmented", -1.0)),
    plan=plan,
    calibration_note=(
        "Margins are those proposed before any run: 5 % of the range between random and expert. The budget counts the "
        "model's updates too and ends no arm: the learner's are equal."
    ),
)
