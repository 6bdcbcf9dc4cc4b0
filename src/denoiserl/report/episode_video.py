"""Render episodes of a policy as one video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.envs.evaluate import record_video
from denoiserl.report.media import gif
from denoiserl.report.video_grid import film_grid, select_episodes

FEW = 8


def episode_video(
    act: Callable[[Any, Rng], Any], env: Any, n: int, seed: int, size: int = 160
) -> dict[str, bytes | str]:
    """Render the first ``n`` episodes of ``evaluate`` in a grid: {"episodes.gif": GIF}.

    Of more than eight, show the first four failures and the first four successes. If the environment cannot render,
    return {"episodes.txt": reason}.
    """
    try:
        films, won = record_video(act, env, n, seed, size)
    except RunError as error:
        return {"episodes.txt": f"No video of the episodes: {error}."}
    shown = select_episodes(won) if n > FEW else list(range(n))
    outcomes = None if all(w is None for w in won) else [won[i] for i in shown]
    return {"episodes.gif": gif(film_grid([films[i] for i in shown], outcomes), 20.0)}
