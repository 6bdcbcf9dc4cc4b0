"""Looking: learning curves, pictures, films, tables in the terminal, and reports that are one file.

Nothing here imports matplotlib or Pillow before it draws.
"""

from denoiserl.show.curves import dots, panels, plot
from denoiserl.show.media import beside, film, gif, image_grid, mp4, png
from denoiserl.show.metrics import Curve, across, curve, groups, read_metrics, smooth, stages
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
from denoiserl.show.style import DARK, LIGHT, Theme
from denoiserl.show.sudoku import sudoku_svg, wrong_cells
from denoiserl.show.table import console_table, print_comparisons

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
    "comparison_section",
    "comparison_table",
    "console_table",
    "curve",
    "dots",
    "film",
    "gif",
    "groups",
    "image_grid",
    "mp4",
    "page",
    "panels",
    "plot",
    "plotted",
    "png",
    "print_comparisons",
    "read_metrics",
    "run_report",
    "smooth",
    "stages",
    "sudoku_svg",
    "write",
    "wrong_cells",
]
