"""What a number is worth: intervals, tests that keep their error rate, and verdicts about methods.

    question                                   answer
    how good is it?                            ``success``, ``student``, ``bootstrap``, ``nested``, ``posterior``
    is one better on the same episodes?        ``paired``, ``mcnemar``
    on episodes of their own?                  ``barnard``, ``fisher``; many tests at once: ``holm``
    may I look after every trial?              ``e_pairs``, ``e_rates``, ``stops``; many arms: ``Race``
    which of several methods differ?           ``standings``: over training seeds, with ``compact_letters``
    does a claim hold?                         ``exceeds``; what could have been seen: ``detectable``
    who tries what, blindly?                   ``Plan``, ``selection_seed``, ``test_seed``
    what was tried, with which weights?        ``Trials``, ``fingerprint``, ``join``, ``pairs``, ``read``, ``write``
    how often does a test err or see?          ``type_one``, ``power`` of ``anytime_pairs``, ``peeked``, ...

Records: ``Interval``, ``Beta``, ``Contrast``, ``Standing``, ``Standings``, ``Verdict``, ``Comparison``, ``Simulated``.
"""

from denoiserl.stats.comparison import Comparison
from denoiserl.stats.exact import barnard, fisher, holm, mcnemar
from denoiserl.stats.interval import (
    Beta,
    Interval,
    binomial,
    bootstrap,
    measured,
    nested,
    paired,
    posterior,
    student,
    success,
)
from denoiserl.stats.letters import compact_letters
from denoiserl.stats.plan import Plan, selection_seed, test_seed
from denoiserl.stats.seeds import Verdict, detectable, exceeds, standings
from denoiserl.stats.sequential import Race, e_pairs, e_rates, log_e, stops
from denoiserl.stats.simulate import (
    Simulated,
    anytime_pairs,
    anytime_rates,
    paired_outcomes,
    peeked,
    power,
    rejections,
    type_one,
)
from denoiserl.stats.standing import Contrast, Standing, Standings
from denoiserl.stats.trial import Trials, fingerprint, join, pairs, read, write

__all__ = [
    "Beta",
    "Comparison",
    "Contrast",
    "Interval",
    "Plan",
    "Race",
    "Simulated",
    "Standing",
    "Standings",
    "Trials",
    "Verdict",
    "anytime_pairs",
    "anytime_rates",
    "barnard",
    "binomial",
    "bootstrap",
    "compact_letters",
    "detectable",
    "e_pairs",
    "e_rates",
    "exceeds",
    "fingerprint",
    "fisher",
    "holm",
    "join",
    "log_e",
    "mcnemar",
    "measured",
    "nested",
    "paired",
    "paired_outcomes",
    "pairs",
    "peeked",
    "posterior",
    "power",
    "read",
    "rejections",
    "selection_seed",
    "standings",
    "stops",
    "student",
    "success",
    "test_seed",
    "type_one",
    "write",
]
