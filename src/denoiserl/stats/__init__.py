"""Statistics of evaluations: intervals, tests that keep their error rate, and verdicts about methods.

    question                                   answer
    how good is a policy?                      ``rate_interval``, ``t_interval``, ``bootstrap``, ``posterior``
    is one better, on the same episodes?       ``paired_interval``, ``mcnemar``
    is one better, on separate episodes?       ``barnard``, ``fisher``; many tests at once: ``holm``
    how to test after every trial?             ``e_pairs``, ``e_rates``; many arms: ``SequentialComparison``
    which of several methods differ?           ``standings``: over training seeds, with ``compact_letters``
    does a claim hold?                         ``superiority_test``; before: ``minimum_detectable_effect``
    in which order to run blind trials?        ``Plan``, ``selection_seed``, ``test_seed``
    how to record trials?                      ``Trials``, ``fingerprint``, ``join_runs``, ``read``, ``write``
    what are a test's error rate and power?    ``type_one``, ``power`` of ``anytime_pairs``, ``repeated_z_test``, ...

Records: ``Interval``, ``Beta``, ``Contrast``, ``ComparisonRow``, ``ComparisonTable``, ``Verdict``, ``Comparison``,
``Simulated``.
"""

from denoiserl.stats.compact_letters import compact_letters
from denoiserl.stats.comparison import Comparison
from denoiserl.stats.exact import barnard, fisher, holm, mcnemar
from denoiserl.stats.interval import (
    Beta,
    Interval,
    auto_interval,
    binomial,
    bootstrap,
    hierarchical_bootstrap,
    paired_interval,
    posterior,
    rate_interval,
    t_interval,
)
from denoiserl.stats.plan import Plan, selection_seed, test_seed
from denoiserl.stats.seeds import Verdict, minimum_detectable_effect, standings, superiority_test
from denoiserl.stats.sequential import SequentialComparison, e_pairs, e_rates, log_e, stopping_time
from denoiserl.stats.simulate import (
    Simulated,
    anytime_pairs,
    anytime_rates,
    paired_outcomes,
    power,
    rejections,
    repeated_z_test,
    type_one,
)
from denoiserl.stats.standing import ComparisonRow, ComparisonTable, Contrast
from denoiserl.stats.trial import Trials, fingerprint, join_runs, pairs, read, write

__all__ = [
    "Beta",
    "Comparison",
    "ComparisonRow",
    "ComparisonTable",
    "Contrast",
    "Interval",
    "Plan",
    "SequentialComparison",
    "Simulated",
    "Trials",
    "Verdict",
    "anytime_pairs",
    "anytime_rates",
    "auto_interval",
    "barnard",
    "binomial",
    "bootstrap",
    "compact_letters",
    "e_pairs",
    "e_rates",
    "fingerprint",
    "fisher",
    "hierarchical_bootstrap",
    "holm",
    "join_runs",
    "log_e",
    "mcnemar",
    "minimum_detectable_effect",
    "paired_interval",
    "paired_outcomes",
    "pairs",
    "posterior",
    "power",
    "rate_interval",
    "read",
    "rejections",
    "repeated_z_test",
    "selection_seed",
    "standings",
    "stopping_time",
    "superiority_test",
    "t_interval",
    "test_seed",
    "type_one",
    "write",
]
