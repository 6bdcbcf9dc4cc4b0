"""What a number is worth: intervals, paired differences, and whether two results are apart."""

from denoiserl.evidence.comparison import Comparison
from denoiserl.evidence.interval import Interval, binomial, bootstrap, measured, paired, student, success
from denoiserl.evidence.quantile import beta_quantile, student_quantile

__all__ = [
    "Comparison",
    "Interval",
    "beta_quantile",
    "binomial",
    "bootstrap",
    "measured",
    "paired",
    "student",
    "student_quantile",
    "success",
]
