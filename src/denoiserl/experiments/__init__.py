"""Studies: methods of one kind on one task, with equal budgets and paired seeds, compared by statistical tests.

``Study`` holds the settings. ``run_comparison`` runs what is missing in its folder and returns a ``ComparisonResult``;
``compare_report.write`` writes the report. ``denoiserl compare`` runs a study; a claim is a study with a pass
condition.
"""

from denoiserl.experiments.compare import ComparisonResult, load_results, load_study, run_comparison
from denoiserl.experiments.study import Arm, Study

__all__ = ["Arm", "ComparisonResult", "Study", "load_results", "load_study", "run_comparison"]
