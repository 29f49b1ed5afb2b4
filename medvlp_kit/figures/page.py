"""Figures and tables onto the page: plain HTML with alternative text, captions and header cells."""

from __future__ import annotations

import base64
import html
import io
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from ..errors import KitError
from .style import DPI, STYLE

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

WIDEST = 1100  # pixels
SHORTEST_ALT = 20  # characters
CAPTION_WIDTH = 44  # characters
LEFT = 'style="text-align:left"'


class Picture:
    """Something finished for the page: a notebook shows its HTML, `str()` gives it, a terminal prints its text."""

    def __init__(self, markup: str, text: str):
        self.markup, self.text = markup, text

    def __str__(self) -> str:
        return self.markup

    def _repr_html_(self) -> str:
        return self.markup

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.markup, "text/plain": self.text}


def show(fig: Figure, *, alt: str, caption: str = "") -> Picture | None:
    """Put a figure on the page, with its alternative text, and close it.

    In a notebook the picture is displayed and nothing is returned; elsewhere the `Picture` is returned.
    KitError when `alt` is shorter than 20 characters or only repeats the figure's title or caption.
    """
    return _display(picture(fig, alt=alt, caption=caption))


def picture(fig: Figure, *, alt: str, caption: str = "") -> Picture:
    """A figure as HTML without displaying it: what an explorer puts into `widgets.HTML` (see `show`)."""
    alt = check_alt(alt, titles=[caption, *_titles(fig)])
    data, (width, height) = png(fig)
    close(fig)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    size = f'width="{width}" height="{height}" style="max-width:100%;height:auto"'
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    image = f'<img src="{source}" alt="{html.escape(alt)}" {size}>'
    return Picture(f'<figure style="margin:0.5em 0">{image}{below}</figure>', f"Figure: {alt}")


def check_alt(alt: str, *, titles: Sequence[str] = ()) -> str:
    """`alt` with its spaces tidied; KitError when it says too little."""
    alt = " ".join(str(alt).split())
    if len(alt) < SHORTEST_ALT:
        raise KitError(f"alt={alt!r} is too short: say in at least {SHORTEST_ALT} characters what the figure shows")
    if _bare(alt) in {_bare(title) for title in titles if title}:
        raise KitError(f"alt={alt!r} only repeats the title or caption: say what the figure shows")
    return alt


def png(fig: Figure) -> tuple[bytes, tuple[int, int]]:
    """The figure as a small PNG and its (width, height) in pixels.

    At most `WIDEST` pixels wide; in a palette of 256 colours where that is smaller and cannot be seen.
    """
    from PIL import Image

    dpi = min(DPI, WIDEST / fig.get_figwidth())
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # ticks are made while drawing, so the style must hold here too
        fig.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    plain = Image.open(buffer).convert("RGB")
    best = _encode(plain)
    reduced = plain.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(reduced.convert("RGB"), dtype=np.int16) - np.asarray(plain, dtype=np.int16)).mean()
    if error < 1.5:  # grey levels; above that the palette shows
        best = min(best, _encode(reduced), key=len)
    return best, plain.size


def close(fig: Figure) -> None:
    """Forget a figure, so that neither memory nor an automatic second display remains."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)
    fig.clear()


def table(frame: pandas.DataFrame, *, caption: str, digits: int = 3, index: bool | None = None) -> Picture | None:
    """Put a table on the page: header cells with their scope, a caption, numbers rounded to `digits` decimals.

    `index=None` shows the index where it says more than 0, 1, 2, ... In a notebook the table is displayed and nothing
    is returned; elsewhere it is returned.
    """
    if not str(caption).strip():
        raise KitError("a table needs a caption: figures.table(frame, caption='What the numbers are')")
    if index is None:
        index = frame.index.name is not None or list(frame.index) != list(range(len(frame)))
    if index:
        frame = frame.rename_axis(frame.index.name or "").reset_index()
    rows = [[str(name) for name in frame.columns]]
    rows += [[_cell(value, digits) for value in row] for row in frame.itertuples(index=False, name=None)]
    heads = "".join(f'<th scope="col" {LEFT}>{html.escape(cell)}</th>' for cell in rows[0])
    body = "".join(_row(cells) for cells in rows[1:])
    width = min(len(caption), CAPTION_WIDTH)  # a caption is otherwise as narrow as its table
    title = f'<caption style="min-width:{width}ch">{html.escape(caption)}</caption>'
    markup = f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return _display(Picture(markup, f"{caption}\n{_aligned(rows)}"))


def _row(cells: list[str]) -> str:
    first, *others = [html.escape(cell) for cell in cells]
    return f'<tr><th scope="row" {LEFT}>{first}</th>' + "".join(f"<td {LEFT}>{cell}</td>" for cell in others) + "</tr>"


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return "–" if math.isnan(value) else str(value)
        hidden = value != 0 and abs(value) < 0.5 * 10**-digits  # would round to zero
        return f"{value:.{digits}g}" if hidden else f"{value:,.{digits}f}"
    return str(value)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _display(shown: Picture) -> Picture | None:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return shown
    from IPython.display import display

    display(shown)
    return None


def _titles(fig: Figure) -> list[str]:
    return [fig.get_suptitle(), *(ax.get_title(place) for ax in fig.axes for place in ("left", "center", "right"))]


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")


def _encode(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
