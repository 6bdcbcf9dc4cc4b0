"""GoRL on fork2d, from clones: a latent Gaussian over a flow that is made anew, against PPO and FPO.

The paper learns from nothing on the DeepMind control suite; this asks for the direction of its claim where a Gaussian
has to give up one of two modes before it can be good. All arms have the same demonstrations and environment steps.
``one-stage`` never makes a new decoder; no condition speaks of it.
"""

from denoiserl.claims.claim import Claim, Condition
from denoiserl.study import Arm, Study


def plan(budget: str) -> Study:
    """Five seeds in the laptop's budget, ten in the full one."""
    size = {"copies": 64, "steps": 12}
    latent = {**size, "updates": 1500, "rollout": 30}
    arms = {
        "gorl": Arm("gorl", {**latent, "stages": [2.0, 1.0, 1.0]}),
        "ppo": Arm("ppo", size),
        "fpo": Arm("fpo", size),
        "one-stage": Arm("gorl", {**latent, "stages": [1.0]}),
        "cloned": Arm("none", kind="flow"),
    }
    seeds = tuple(range(100, 105)) if budget == "laptop" else tuple(range(100, 110))
    return Study("denoiserl.claims._fork:task", arms, 400_000, "env steps", seeds, trials=400, tune=3, curve=4)


CLAIM = Claim(
    claim="Learning a Gaussian over a generator's noise, and making the generator anew, beats a Gaussian over actions",
    paper="arXiv 2512.02581",
    pass_condition=(
        "success on fork2d after 400 000 environment steps, mean over seeds: GoRL from a cloned flow exceeds PPO from a "
        "Gaussian clone by more than 10 points, and the clone that it began with by more than 5 (95 % intervals of the "
        "paired differences)"
    ),
    conditions=(Condition("gorl", "ppo", 0.1), Condition("gorl", "cloned", 0.05)),
    plan=plan,
    calibrated=(
        "The margin over PPO is that of the specification, set before any run; every method has three tuning runs (its "
        "learning rate, a third and three times of it) on a seed of their own. Sizes were looked at on seed 0."
    ),
)
