"""One look for plots and pages, in a light and a dark theme, and the canvas that plots are drawn on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from denoiserl.core.errors import require

DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours as hex strings; ``before``, ``imitation`` and ``after`` mean the same in every picture."""

    ground: str
    panel: str
    ink: str
    faint: str
    line: str
    before: str
    imitation: str
    after: str
    series: tuple[str, ...]

    def arm(self, label: str) -> str:
        """Return the colour of a row of a comparison, by its label."""
        return {"before": self.before, "more imitation": self.imitation}.get(label, self.after)

    def palette(self, names: Iterable[str]) -> dict[str, str]:
        """Return a colour per arm, independent of the order of the names, so that it is the same in all plots.

        "before" and "more imitation" have fixed colours. Beyond ``len(series)`` arms colours repeat.
        """
        own = {"before": self.before, "more imitation": self.imitation}
        names = list(dict.fromkeys(names))
        series = [c for c in self.series if c not in own.values()]
        rest = sorted(name for name in names if name not in own)
        colours = own | {name: series[i % len(series)] for i, name in enumerate(rest)}
        return {name: colours[name] for name in names}


LIGHT = Theme(
    ground="#ffffff",
    panel="#f6f7f9",
    ink="#1c2128",
    faint="#656d78",
    line="#dde1e6",
    before="#7a828d",
    imitation="#b8690b",
    after="#1668b8",
    series=("#1668b8", "#b8690b", "#2c7f4f", "#8a4bb5", "#b5305f", "#2a8a9a", "#7d5a3c", "#5b62c9", "#7a7f1f"),
)
DARK = Theme(
    ground="#14171c",
    panel="#1d2127",
    ink="#e4e7eb",
    faint="#98a1ad",
    line="#333a43",
    before="#98a1ad",
    imitation="#f0a448",
    after="#66b2ff",
    series=("#66b2ff", "#f0a448", "#6fcf97", "#c79bec", "#f2809f", "#6fd0df", "#cfa27c", "#a0a6ff", "#c6cb5a"),
)


def plot_style(theme: Theme) -> dict[str, Any]:
    """Return matplotlib settings: no boxes, few and faint grid lines, readable text."""
    return {
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.faint,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "text.color": theme.ink,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.faint,
        "ytick.labelcolor": theme.faint,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "path.simplify": True,
    }


def canvas(draw: Callable[[Any], None], size: tuple[float, float], theme: Theme) -> bytes:
    """Return the PNG of a figure of ``size`` inches in the theme's style, on which ``draw(figure)`` draws."""
    matplotlib = require("matplotlib", "demo")
    agg = require("matplotlib.backends.backend_agg", "demo")
    with matplotlib.rc_context(plot_style(theme)):
        figure = require("matplotlib.figure", "demo").Figure(figsize=size, dpi=DPI, layout="constrained")
        agg.FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()
