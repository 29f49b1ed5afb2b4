"""Every picture in the kit: the house style, the plots lessons share, and `show`, the one way onto a page.

`show` emits a plain HTML ``<figure>`` with an embedded PNG, its alternative text and a caption. It needs no style sheet
to be legible, and the alternative text survives in JupyterLab, in an exported page and on code hosts. Say in `alt` what
the picture shows, not what it is called: "Zero-shot AUROC rises from 0.5 to 0.93 within 12,000 pairs".
"""

from .page import Picture, check_alt, close, picture, png, show, table
from .plots import curves, grid, heatmap, interval_plot, scatter
from .style import BLACK, BLUE, GREEN, GREY, MARKERS, ORANGE, PALETTE, PURPLE, SKY, STYLE, VERMILION, YELLOW, new

__all__ = [
    "BLACK", "BLUE", "GREEN", "GREY", "MARKERS", "ORANGE", "PALETTE", "PURPLE", "SKY", "STYLE", "VERMILION", "YELLOW",
    "Picture", "check_alt", "close", "curves", "grid", "heatmap", "interval_plot", "new", "picture", "png", "scatter",
    "show", "table",
]  # fmt: skip
