"""The house style: colours told apart by everyone, legible letters, a white ground that a dark page leaves alone."""

from __future__ import annotations

from functools import wraps
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito (2008), Color Universal Design: told apart with any common form of colour blindness.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW, BLACK = PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
MARKERS = "osD^vP*X"  # colour is never the only sign
GREY = "#666666"
DPI = 110

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "savefig.facecolor": "white",  # opaque, so a dark theme does not swallow black labels
    "axes.facecolor": "white",
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE[:6]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "font.size": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same letters on every machine
    "text.color": "black",
    "axes.labelcolor": "black",
    "axes.edgecolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 2,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def styled(plot):
    """Decorator: run a plotting function in the house style, whatever the reader's own settings are."""

    @wraps(plot)
    def in_style(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            return plot(*arguments, **options)

    return in_style


@styled
def new(rows: int = 1, columns: int = 1, *, size: tuple[float, float] | None = None, **options):
    """A figure and its axes, as `matplotlib.pyplot.subplots` gives them, in the house style; `size` in inches."""
    fig = Figure(figsize=size or (min(10.0, 5.6 * columns), 3.4 * rows))
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **options)
