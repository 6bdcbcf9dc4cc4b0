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
    page,
    write,
)
from denoiserl.report.learning_curves import dots, learning_curves, panels, plot
from denoiserl.report.media import film, gif, image_grid, mp4, png
from denoiserl.report.metrics import Curve, across, curve, groups, overlay, read_metrics, smooth, stages
from denoiserl.report.run_report import run_report
from denoiserl.report.standings import console_standings, print_standings, standings_section
from denoiserl.report.style import DARK, LIGHT, Theme
from denoiserl.report.table import console_table, print_comparisons
from denoiserl.report.video_grid import chosen, film_grid
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
    "across",
    "chosen",
    "comparison_section",
    "comparison_table",
    "console_standings",
    "console_table",
    "curve",
    "dots",
    "film",
    "film_grid",
    "gif",
    "groups",
    "image_grid",
    "learning_curves",
    "make_figure",
    "mp4",
    "overlay",
    "page",
    "panels",
    "plot",
    "png",
    "print_comparisons",
    "print_standings",
    "read_metrics",
    "run_report",
    "smooth",
    "stages",
    "standings_section",
    "verdict",
    "violins",
    "write",
]
