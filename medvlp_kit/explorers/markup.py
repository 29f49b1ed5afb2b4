"""Pieces of HTML that explorers are made of: pictures with maps and boxes, charts, tables, things to pick.

They need no style sheet, take their text colour from the page (so they are legible in a dark theme), and escape what they
are given. Pictures are small JPEGs, composed without matplotlib, because an explorer must answer within a blink.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..errors import KitError
from ..figures import GREY, PALETTE, SKY, check_alt

OPACITY = 0.5  # of a map over its picture
DIVERGING, SEQUENTIAL = "PuOr_r", "cividis"  # both told apart with any form of colour blindness
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
CHART = (520, 220)  # pixels
DASHES = ("", "6 3", "2 2", "8 3 2 3")  # colour is never the only sign


@lru_cache(maxsize=4)
def _colours(name: str) -> np.ndarray:
    """(256, 3) uint8 of a colour map."""
    from matplotlib import colormaps

    return (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def coloured(values, *, scale: tuple[float, float], colours: str = SEQUENTIAL) -> np.ndarray:
    """Numbers (H, W) as colours (H, W, 3) uint8; scale: what the two ends of the colour map stand for."""
    low, high = scale
    if not high > low:
        raise KitError(f"scale {scale}: the second number must be the greater")
    place = (np.nan_to_num(np.asarray(values, dtype=float), nan=low) - low) / (high - low)
    return _colours(colours)[(place.clip(0, 1) * 255).round().astype(int)]


def compose(
    image, *, heat=None, scale: tuple[float, float] = (-1, 1), colours: str = DIVERGING, boxes: Sequence = (), side: int = 224
):
    """A picture as a PIL image of side x side pixels.

    image: (H, W), (1, H, W) or (3, H, W) in [0, 1]; heat: (h, w) of any resolution, laid over it; boxes: half-open
    (x0, y0, x1, y1) in the image's own pixels
    """
    from PIL import Image, ImageDraw

    pixels = np.asarray(image, dtype=float)
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels[..., None]
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    height, width = pixels.shape[:2]
    shown = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).resize((side, side), Image.BICUBIC)
    if heat is not None:
        over = Image.fromarray(np.nan_to_num(np.asarray(heat, dtype=np.float32))).resize((side, side), Image.BILINEAR)
        shown = Image.blend(shown, Image.fromarray(coloured(np.asarray(over), scale=scale, colours=colours)), OPACITY)
    pen = ImageDraw.Draw(shown)
    for box in boxes:
        x0, y0, x1, y1 = (float(edge) * side / full for edge, full in zip(box, (width, height, width, height)))
        if x1 > x0 and y1 > y0:
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline="black", width=4)  # seen on light and dark ground
            pen.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline=SKY, width=2)
    return shown


def figure(image, *, alt: str, caption: str = "", pick: str | None = None) -> str:
    """A PIL image as a figure; `pick` makes it something to choose."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=88)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return _figure(source, *image.size, alt=alt, caption=caption, pick=pick)


def tile(image, *, alt: str, caption: str = "", pick: str | None = None, **options) -> str:
    """`compose` and `figure` in one call."""
    return figure(compose(image, **options), alt=alt, caption=caption, pick=pick)


def _figure(source: str, width: int, height: int, *, alt: str, caption: str, pick: str | None) -> str:
    alt = html.escape(check_alt(alt, titles=[caption]))
    image = f'<img src="{source}" alt="{alt}" width="{width}" height="{height}" style="max-width:100%;height:auto">'
    below = f'<figcaption style="font-size:0.85em;max-width:{width}px">{html.escape(caption)}</figcaption>' if caption else ""
    inside = pickable(image, pick) if pick is not None else image
    return f'<figure style="margin:0 0.75em 0.5em 0;display:inline-block;vertical-align:top">{inside}{below}</figure>'


def pickable(markup: str, value: str, *, chosen: bool = False, tag: str = "span") -> str:
    """Something that can be picked with the mouse or with Tab and Enter; the explorer is told `value`."""
    ring = "outline:2px solid #0072B2;outline-offset:1px;" if chosen else ""
    state = "true" if chosen else "false"
    return (
        f'<{tag} role="button" tabindex="0" data-pick="{html.escape(str(value))}" aria-pressed="{state}" '
        f'style="cursor:pointer;border-radius:2px;{ring}">{markup}</{tag}>'
    )


def shaded(inside: str, value: float, *, scale: tuple[float, float], colours: str = SEQUENTIAL, title: str = "") -> str:
    """HTML (already escaped) on a ground coloured by a number, in ink that is legible on it."""
    ground = coloured([[value]], scale=scale, colours=colours)[0, 0]
    ink = "black" if ground @ LUMINANCE > 140 else "white"
    look = f"background:rgb({','.join(str(int(c)) for c in ground)});color:{ink};padding:0 0.25em;border-radius:2px"
    return f'<span title="{html.escape(title)}" style="{look}">{inside}</span>'


def row(*parts: str) -> str:
    """Parts side by side, in several lines where there is not room for all."""
    return f'<div style="display:flex;flex-wrap:wrap;column-gap:10px;align-items:flex-start">{"".join(parts)}</div>'


def note(text: str) -> str:
    """A line of text."""
    return f'<p style="margin:0.35em 0">{html.escape(text)}</p>'


def static_copy(title: str, told: str, body: str) -> str:
    """What a dead page shows of an explorer: nothing in it can be picked. A living explorer above it folds it away."""
    body = body.replace(' tabindex="0"', "").replace(' role="button"', "")
    head = f"<summary>{html.escape(title)}: static copy</summary><p>{html.escape(told)}</p>"
    return f"<details open data-static-copy>{head}{body}</details>"


def failure(text: str) -> str:
    """One line that says what went wrong; the audit of a run finds it."""
    line = html.escape(" ".join(str(text).split()))
    return f'<p role="alert" data-explorer-error style="border-left:4px solid #D55E00;padding-left:0.5em">{line}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence], *, caption: str) -> str:
    """A small table with header cells and a caption; floats get three decimals."""
    cells = "".join(f'<th scope="col" style="text-align:left;padding:0 0.75em 0 0">{html.escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left;padding:0 0.75em 0 0">{_cell(value)}</td>' for value in line) + "</tr>"
        for line in rows
    )
    return (
        f'<table style="margin:0.35em 0"><caption style="text-align:left">{html.escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value) -> str:
    if isinstance(value, (float, np.floating)):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return html.escape(str(value))


# ---------------------------------------------------------------- charts


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, alt: str, caption: str = "", x_label: str = "",
    y_label: str = "", level: float | None = None, level_label: str = "", limits: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, float]] = (),
) -> str:  # fmt: skip
    """A chart of lines: name -> (xs, ys). level: a dashed horizontal line; marks: points to point out."""
    xs = [float(x) for x_values, _ in series.values() for x in x_values]
    ys = [float(y) for _, y_values in series.values() for y in y_values if math.isfinite(y)]
    if not xs or not ys:
        raise KitError("a chart of lines needs at least one finite point")
    seen = ys if level is None else [*ys, level]
    frame = _Frame(CHART, (min(xs), max(xs)), limits or (min(seen), max(seen)), x_label=x_label, y_label=y_label)
    for order, (name, (x_values, y_values)) in enumerate(series.items()):
        frame.line(x_values, y_values, colour=PALETTE[order % len(PALETTE)], dashes=DASHES[order % len(DASHES)], name=name)
    if level is not None:
        frame.level(level, level_label)
    for x, y in marks:
        frame.mark(x, y)
    return frame.figure(alt=alt, caption=caption)


def histogram(groups: Mapping[str, Sequence[float]], *, bins: int = 24, alt: str, caption: str = "", x_label: str = "") -> str:
    """Distributions of several groups on one axis, each as a share of its own group."""
    every = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()])
    every = every[np.isfinite(every)]
    if not len(every):
        raise KitError("a histogram needs at least one finite number")
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = {name: np.histogram(values, edges)[0] / max(1, len(values)) for name, values in groups.items()}
    highest = max(float(share.max()) for share in shares.values()) or 1.0
    frame = _Frame(CHART, (edges[0], edges[-1]), (0, highest), x_label=x_label, y_label="share")
    for order, (name, share) in enumerate(shares.items()):
        xs, ys = np.repeat(edges, 2), np.concatenate([[0], np.repeat(share, 2), [0]])
        frame.line(xs, ys, colour=PALETTE[order % len(PALETTE)], dashes=("", "6 3")[order % 2], name=name, filled=True)
    return frame.figure(alt=alt, caption=caption)


def _round_numbers(low: float, high: float, *, most: int) -> list[float]:
    """Ascending round numbers that span low to high, with at most `most` steps between them."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(most).tick_values(low, high)]


class _Frame:
    """A plotting area as SVG: white ground, two axes, a legend above."""

    def __init__(self, size: tuple[int, int], across: tuple[float, float], up: tuple[float, float], *, x_label: str, y_label: str):
        self.width, self.height = size
        self.left, self.right, self.top, self.bottom = 64, 24, 24, 38
        levels = _round_numbers(*(up if up[1] > up[0] else (up[0], up[0] + 1)), most=3)
        self.across, self.up = across, (min(up[0], levels[0]), max(up[1], levels[-1]))
        self.parts, self.legend = [f'<rect width="{self.width}" height="{self.height}" rx="4" fill="white"/>'], self.left
        for value in levels:
            y = self.y(value)
            self.parts.append(f'<path d="M{self.left} {y:.1f}H{self.width - self.right}" stroke="#e4e4e4"/>')
            self.text(self.left - 5, y + 4, f"{value:.6g}", anchor="end")
        low, high = across
        whole = float(low).is_integer() and float(high).is_integer() and 1 <= high - low <= 12
        places = np.arange(low, high + 1) if whole else _round_numbers(low, high, most=5)
        for value in (place for place in places if low <= place <= high):
            self.text(self.x(value), self.height - self.bottom + 15, f"{value:.6g}", anchor="middle")
        self.text((self.left + self.width) / 2, self.height - 6, x_label, anchor="middle")
        self.parts.append(
            f'<text transform="translate(13 {(self.top + self.height - self.bottom) / 2:.0f}) rotate(-90)" '
            f'text-anchor="middle" {FONT}>{html.escape(y_label)}</text>'
        )

    def x(self, value: float) -> float:
        low, high = self.across
        return self.left + (value - low) / ((high - low) or 1) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.up
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT}>{html.escape(text)}</text>')

    def line(self, xs, ys, *, colour: str, dashes: str, name: str, filled: bool = False) -> None:
        low, high = self.up
        points = [(self.x(float(x)), self.y(min(max(float(y), low), high))) for x, y in zip(xs, ys) if math.isfinite(y)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        fill = f'fill="{colour}" fill-opacity="0.15"' if filled else 'fill="none"'
        self.parts.append(f'<path d="{path}" {fill} stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        self.parts.append(
            f'<path d="M{self.legend} 12h22" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
        )
        self.text(self.legend + 27, 16, name)
        self.legend += 40 + 7 * len(name)

    def level(self, value: float, label: str) -> None:
        y = self.y(value)
        self.parts.append(f'<path d="M{self.left} {y:.1f}H{self.width - self.right}" stroke="{GREY}" stroke-dasharray="4 4"/>')
        self.text(self.width - self.right - 2, y - 4, label, anchor="end")

    def mark(self, x: float, y: float) -> None:
        centre = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}"'
        self.parts.append(f'<circle {centre} r="5" fill="white" stroke="#D55E00" stroke-width="2.5"/>')

    def figure(self, *, alt: str, caption: str) -> str:
        drawn = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}">{"".join(self.parts)}</svg>'
        )
        source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
        return _figure(source, self.width, self.height, alt=alt, caption=caption, pick=None)


FONT = 'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="#222"'
