"""One look for plots and pages, in a light and a dark theme."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours as hex strings; ``before``, ``imitation`` and ``after`` mean the same in every picture."""

    ground: str
    panel: str
    ink: str
    faint: str
    line: str
    wrong: str
    before: str
    imitation: str
    after: str
    series: tuple[str, ...]

    def arm(self, label: str) -> str:
        """The colour of a row of a comparison, by its label."""
        return {"before": self.before, "more imitation": self.imitation}.get(label, self.after)

    def palette(self, names: Iterable[str]) -> dict[str, str]:
        """A colour an arm, whatever the order of the names: an arm looks the same in every picture of a comparison.

        "before" and "more imitation" have theirs. Beyond ``len(series)`` arms colours repeat.
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
    wrong="#c62f2f",
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
    wrong="#ff8080",
    before="#98a1ad",
    imitation="#f0a448",
    after="#66b2ff",
    series=("#66b2ff", "#f0a448", "#6fcf97", "#c79bec", "#f2809f", "#6fd0df", "#cfa27c", "#a0a6ff", "#c6cb5a"),
)


def plot_style(theme: Theme) -> dict[str, Any]:
    """matplotlib settings: no boxes, no legend, few and quiet grid lines, text that can be read."""
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


def _variables(theme: Theme) -> str:
    names = ("ground", "panel", "ink", "faint", "line", "wrong", "before", "imitation", "after")
    return "".join(f"--{name}:{getattr(theme, name)};" for name in names)


CSS = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--ground);color:var(--ink);
 font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}}
main,header,footer{{max-width:62rem;margin:0 auto;padding:0 1.5rem}}
header{{padding-top:3rem}}
h1{{font-size:2rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.015em}}
h2{{font-size:1.3rem;line-height:1.3;margin:0 0 .8rem;letter-spacing:-.01em}}
section{{margin:2.8rem 0;padding-top:2rem;border-top:1px solid var(--line)}}
p{{margin:0 0 1rem;max-width:44rem}}
.lead{{font-size:1.1rem;color:var(--faint)}}
nav{{margin:1.2rem 0 0;font-size:.92rem}}
nav a{{margin-right:1.2rem;color:var(--after);text-decoration:none;white-space:nowrap}}
nav a:hover{{text-decoration:underline}}
figure{{margin:1.4rem 0}}
figure img,figure video{{display:block;max-width:100%;height:auto;border-radius:6px}}
figure svg{{display:block;max-width:100%;height:auto}}
figcaption{{margin-top:.5rem;font-size:.88rem;line-height:1.45;color:var(--faint);max-width:44rem;
 overflow-wrap:anywhere}}
.gallery{{display:flex;flex-wrap:wrap;gap:1.2rem 1.6rem;align-items:flex-start;margin:1.4rem 0}}
.gallery figure{{margin:0;flex:0 1 auto;min-width:0;max-width:100%}}
.scroll{{overflow-x:auto;margin:1.4rem 0}}
table{{border-collapse:collapse;font-size:.95rem}}
caption{{caption-side:bottom;text-align:left;padding-top:.5rem;font-size:.88rem;color:var(--faint)}}
th,td{{padding:.42rem 1.6rem .42rem 0;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--line)}}
th{{font-weight:600;font-size:.84rem;color:var(--faint)}}
.number{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
tr.strong td{{font-weight:650}}
.note{{border-left:3px solid var(--imitation);background:var(--panel);padding:.7rem 1rem;border-radius:0 6px 6px 0;
 max-width:44rem;margin:1rem 0}}
details{{margin:.8rem 0;background:var(--panel);border-radius:6px;padding:.55rem 1rem}}
summary{{cursor:pointer;font-weight:600;font-size:.95rem}}
pre{{overflow-x:auto;font-size:.84rem;line-height:1.5;margin:.7rem 0 .2rem}}
section>pre{{background:var(--panel);border-radius:6px;padding:.9rem 1rem;margin:1rem 0}}
code,pre{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}}
code{{font-size:.9em;background:var(--panel);padding:.1em .35em;border-radius:4px}}
footer{{padding-top:1.5rem;padding-bottom:3rem;font-size:.85rem;color:var(--faint);border-top:1px solid var(--line)}}
@media print{{details{{display:block}}section{{break-inside:avoid}}}}
"""
