"""Looking: learning curves, pictures, films, tables in the terminal, and reports that are one file.

Nothing here imports matplotlib or Pillow before it draws.
"""

from denoiserl.show.curves import dots, learning_curves, panels, plot
from denoiserl.show.films import beside, chosen, film_grid
from denoiserl.show.media import film, gif, image_grid, mp4, png
from denoiserl.show.metrics import Curve, across, curve, groups, overlay, read_metrics, smooth, stages
from denoiserl.show.report import (
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
    page,
    plotted,
    write,
)
from denoiserl.show.run import run_report
from denoiserl.show.standings import console_standings, print_standings, standings_section
from denoiserl.show.style import DARK, LIGHT, Theme
from denoiserl.show.sudoku import sudoku_svg, wrong_cells
from denoiserl.show.table import console_table, print_comparisons
from denoiserl.show.violins import violins
from denoiserl.show.words import verdict

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
    "beside",
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
    "mp4",
    "overlay",
    "page",
    "panels",
    "plot",
    "plotted",
    "png",
    "print_comparisons",
    "print_standings",
    "read_metrics",
    "run_report",
    "smooth",
    "stages",
    "standings_section",
    "sudoku_svg",
    "verdict",
    "violins",
    "write",
    "wrong_cells",
]
