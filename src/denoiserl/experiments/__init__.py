"""Studies: methods of one kind on one task, with equal budgets and paired seeds, judged by statistics.

``Study`` says what is compared, ``play`` runs what is missing in its folder and returns ``Found``, ``page.write`` draws
it. ``denoiserl compare`` is a study; a claim is a study with a pass condition.
"""

from denoiserl.experiments.compare import Arm, Found, Study, gathered, opened, play

__all__ = ["Arm", "Found", "Study", "gathered", "opened", "play"]
