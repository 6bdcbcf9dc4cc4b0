"""Reports: learning curves, pictures, videos, tables in the terminal, and HTML pages of one file.

Matplotlib and Pillow are imported at their first use.
"""

from denoiserl.report.formatting import verdict
from denoiserl.report.html import (
    Figure,
    Fold,
    Gallery,
    Note,
    Prose,
    Section,
    Settings,
    Table,
    comparison_section,
    comparison_table,
    make_figure,
    render_page,
    write_page,
)
from denoiserl.report.learning_curves import learning_curves, panels, plot, plot_comparisons
from denoiserl.report.media import encode_video, gif, image_grid, mp4, png
from denoiserl.report.metrics import Curve, curve, group_by_stage, groups, mean_over_runs, overlay, read_metrics, smooth
from denoiserl.report.run_report import run_report
from denoiserl.report.standings import console_standings, print_standings, standings_section
from denoiserl.report.style import DARK, LIGHT, Theme
from denoiserl.report.table import console_table, print_comparisons
from denoiserl.report.video_grid import film_grid, select_episodes
from denoiserl.report.violins import violins

__all__ = [
    "DARK",
    "LIGHT",
    "Curve",
    "Figure",
    "Fold",
    "Gallery",
    "Note",
    "Prose",
    "Section",
    "Settings",
    "Table",
    "Theme",
    "comparison_section",
    "comparison_table",
    "console_standings",
    "console_table",
    "curve",
    "encode_video",
    "film_grid",
    "gif",
    "group_by_stage",
    "groups",
    "image_grid",
    "learning_curves",
    "make_figure",
    "mean_over_runs",
    "mp4",
    "overlay",
    "panels",
    "plot",
    "plot_comparisons",
    "png",
    "print_comparisons",
    "print_standings",
    "read_metrics",
    "render_page",
    "run_report",
    "select_episodes",
    "smooth",
    "standings_section",
    "verdict",
    "violins",
    "write_page",
]
