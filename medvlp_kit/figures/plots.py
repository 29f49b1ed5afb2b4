"""The plots that lessons share. Each takes tensors, arrays or data frames and returns a figure for `figures.show`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from ..errors import KitError, unknown
from .style import BLUE, GREY, MARKERS, ORANGE, PALETTE, SKY, VERMILION, new, styled

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@styled
def grid(
    images,
    *,
    titles: Sequence[str] | None = None,
    boxes: Sequence | None = None,
    masks: Sequence | None = None,
    heatmaps=None,
    columns: int | None = None,
    scale: tuple[float, float] | None = None,
    heatmap_scale: tuple[float, float] | None = None,
    heatmap_label: str = "",
    cell: float = 2.0,
) -> Figure:
    """Images side by side on one shared grey scale.

    images:   (B, C, H, W) or (B, H, W), tensor or array; three channels are shown in colour
    titles:   B strings
    boxes:    B sequences of half-open pixel boxes (x0, y0, x1, y1) or of `Region`s, which are drawn with their label
    masks:    B masks (H, W), or B sequences of masks, drawn as outlines
    heatmaps: (B, h, w) of any resolution, laid over the images on one shared scale with a colour bar
    scale:    the values shown black and white; [0, 1] when every pixel is inside, else the range of the images
    cell:     inches a picture
    """
    pictures = _images(images)
    count, height, width = pictures.shape[:3]
    for name, given in (("titles", titles), ("boxes", boxes), ("masks", masks), ("heatmaps", heatmaps)):
        if given is not None and len(given) != count:
            raise KitError(f"grid got {count} images but {len(given)} {name}: give one entry an image")
    columns = columns or min(count, 6)
    rows = math.ceil(count / columns)
    if scale is None:
        low, high = float(pictures.min()), float(pictures.max())
        scale = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    room = 0.2 * max(title.count("\n") + 1 for title in titles) if titles else 0.0
    bar = 0.9 if heatmaps is not None else 0.0
    fig, axes = new(rows, columns, size=(cell * columns + bar, (cell * height / width + room) * rows), squeeze=False)
    fig.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    drawn = None
    if heatmaps is not None:
        heat = np.stack([_array(one) for one in heatmaps]).astype(float)  # (B, h, w)
        colours = _colours(heat, heatmap_scale)
    for ax in axes.flat:
        ax.set_axis_off()
    for place, ax in enumerate(axes.flat[:count]):
        ax.imshow(pictures[place], cmap="gray", vmin=scale[0], vmax=scale[1])
        if heatmaps is not None:
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            drawn = ax.imshow(heat[place], **colours, alpha=0.45, extent=extent, interpolation="bilinear")
        for order, mask in enumerate(_masks(masks[place]) if masks is not None else ()):
            if mask.any():
                ax.contour(mask, levels=[0.5], colors=[(SKY, VERMILION)[order % 2]], linewidths=1.4)
        for box in boxes[place] if boxes is not None else ():
            _draw_box(ax, box)
        if titles is not None:
            ax.set_title(titles[place], fontsize=9)
    if drawn is not None:
        fig.colorbar(drawn, ax=axes, shrink=0.8, label=heatmap_label)
    return fig


@styled
def curves(
    history: pandas.DataFrame,
    *,
    columns: str | Sequence[str] = "loss",
    x: str = "step",
    references: Mapping[str, float] | None = None,
    smooth: int = 1,
    x_label: str | None = None,
    y_label: str | None = None,
    title: str = "",
) -> Figure:
    """Lines over training. `smooth` is the window of a centred running mean (the raw line stays, faint, behind it).

    `references` are named horizontal lines, such as {"chance (ln B)": 4.16}. KitError for an unknown column.
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    for name in (x, *columns):
        if name not in history.columns:
            raise unknown("history column", name, history.columns)
    fig, ax = new()
    for order, name in enumerate(columns):
        known = history[[x, name]].dropna()
        colour, dash = PALETTE[order % 6], ("-", "--", "-.", ":")[order % 4]
        if smooth > 1 and len(known) > smooth:
            ax.plot(known[x], known[name], color=colour, alpha=0.25, linewidth=1)
            known = known.assign(**{name: known[name].rolling(smooth, center=True, min_periods=1).mean()})
        ax.plot(known[x], known[name], color=colour, label=name, linestyle=dash)
    for order, (name, value) in enumerate((references or {}).items()):
        ax.axhline(value, color=GREY, linestyle=(":", "--", "-.")[order % 3], linewidth=1.4, label=name)
    ax.set(xlabel=x_label or x, ylabel=y_label or (columns[0] if len(columns) == 1 else ""), title=title)
    if len(columns) > 1 or references:
        ax.legend()
    return fig


@styled
def heatmap(
    matrix,
    *,
    x_labels: Sequence[str] | None = None,
    y_labels: Sequence[str] | None = None,
    x_label: str = "",
    y_label: str = "",
    label: str = "",
    title: str = "",
    scale: tuple[float, float] | None = None,
    numbers: bool | None = None,
) -> Figure:
    """A matrix (rows, columns) in colour with its colour bar; values are written in the cells when they are few.

    Data with both signs get a diverging map centred on zero, others a sequential one that survives in greyscale.
    """
    matrix = _array(matrix).astype(float)
    if matrix.ndim != 2:
        raise KitError(f"heatmap needs a matrix (rows, columns), got shape {matrix.shape}")
    rows, columns = matrix.shape
    fig, ax = new(size=(min(10, max(4.2, 0.5 * columns + 2.2)), min(9, max(3.0, 0.38 * rows + 1.4))))
    drawn = ax.imshow(matrix, **_colours(matrix, scale), aspect="auto")
    fig.colorbar(drawn, ax=ax, label=label)
    if x_labels is not None:
        slanted = max(map(len, x_labels)) > 3
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        ax.set_xticks(range(columns), x_labels, **turn)
    if y_labels is not None:
        ax.set_yticks(range(rows), y_labels)
    if numbers or (numbers is None and matrix.size <= 144):
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value))
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                ax.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=8)
    ax.set(xlabel=x_label, ylabel=y_label, title=title)
    return fig


@styled
def interval_plot(
    results: pandas.DataFrame,
    *,
    chance: float | None = None,
    chance_name: str = "chance",
    x_label: str = "",
    title: str = "",
    control_name: str = "control",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Estimates with their intervals, one a line, beside their controls.

    results: columns `name`, `estimate`, `low`, `high`, and optionally `control` (drawn as an open diamond)
    chance:  a dashed line, called `chance_name`: say "no difference" where the estimates are differences
    """
    for column in ("name", "estimate", "low", "high"):
        if column not in results.columns:
            raise unknown("results column", column, results.columns)
    places = np.arange(len(results))[::-1]
    fig, ax = new(size=(6.4, 0.36 * len(results) + 1.3))
    estimate = results["estimate"].to_numpy(float)
    reach = np.stack([estimate - results["low"].to_numpy(float), results["high"].to_numpy(float) - estimate])
    reach = np.clip(reach, 0, None)
    ax.errorbar(estimate, places, xerr=reach, fmt="o", color=BLUE, capsize=4, label="estimate and interval")
    if "control" in results.columns:
        control = results["control"].to_numpy(float)
        ax.plot(control, places, "D", markerfacecolor="white", color=VERMILION, label=control_name)
    if chance is not None:
        ax.axvline(chance, color=GREY, linestyle="--", linewidth=1.4, label=f"{chance_name} ({chance:g})")
    ax.set_yticks(places, list(results["name"]))
    ax.set(xlabel=x_label, title=title, ylim=(-0.6, len(results) - 0.4))
    if limits is not None:
        ax.set_xlim(*limits)
    _legend_below(fig)
    return fig


def _legend_below(fig: Figure, most: int = 3) -> None:
    """A legend under the axes in as many columns as the figure is wide enough for: layouts do not shrink legends."""
    for columns in range(most, 0, -1):
        legend = fig.legend(loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            return
        legend.remove()


@styled
def scatter(
    points,
    *,
    labels: Sequence | None = None,
    values=None,
    value_label: str = "",
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Figure:
    """Points (N, 2) in the plane: `labels` (N) give each kind a colour and a marker, `values` (N) a colour scale."""
    points = _array(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise KitError(f"scatter needs points of shape (N, 2), got {points.shape}: project them first, say with PCA")
    fig, ax = new(size=(6.4, 4.4))
    size = 30 if len(points) < 400 else 10
    if values is not None:
        drawn = ax.scatter(points[:, 0], points[:, 1], c=_array(values), cmap="cividis", s=size)
        fig.colorbar(drawn, ax=ax, label=value_label)
    else:
        names = ["" if labels is None else str(label) for label in (points if labels is None else labels)]
        for order, kind in enumerate(dict.fromkeys(names)):
            chosen = points[[name == kind for name in names]]  # (n, 2)
            look = {"color": PALETTE[order % 6], "marker": MARKERS[order % 8], "s": size, "alpha": 0.8}
            ax.scatter(chosen[:, 0], chosen[:, 1], label=kind, **look)
        if labels is not None:
            fig.legend(loc="outside right upper")
    ax.set(xlabel=x_label, ylabel=y_label, title=title)
    return fig


def _array(value) -> np.ndarray:
    """A tensor on any device, or anything array-like, as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value)


def _images(images) -> np.ndarray:
    """(B, H, W) or (B, H, W, 3) from (B, C, H, W) or (B, H, W)."""
    array = _array(images)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        array = array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, -1)
    elif array.ndim != 3:
        raise KitError(f"grid needs images of shape (B, 1, H, W), (B, 3, H, W) or (B, H, W), got {array.shape}")
    if not len(array):
        raise KitError("grid got no images: give at least one")
    return array.astype(float)


def _masks(masks) -> list[np.ndarray]:
    """The masks of one image: from one (H, W) mask, or several."""
    if masks is None:
        return []
    if hasattr(masks, "ndim"):
        masks = [masks] if masks.ndim == 2 else list(masks)
    return [_array(mask) for mask in masks if mask is not None]


def _draw_box(ax, box) -> None:
    x0, y0, x1, y1 = map(float, getattr(box, "box", box))
    # Pixel centres are whole numbers, so the half-open box starts half a pixel before its first one.
    ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=ORANGE, linewidth=1.6))
    label = getattr(box, "label", "")
    if label:
        ground = {"facecolor": "white", "alpha": 0.8, "pad": 0.6, "linewidth": 0}
        ax.text(x0, y0 - 1, label, color="black", fontsize=7, va="bottom", bbox=ground, clip_on=True)


def _colours(values: np.ndarray, scale: tuple[float, float] | None) -> dict:
    """The colour map of data: diverging about zero where both signs occur, else sequential."""
    low, high = scale or (float(np.nanmin(values)), float(np.nanmax(values)))
    if low < 0 < high:
        low, high = scale or (-max(-low, high), max(-low, high))
        return {"cmap": "RdBu_r", "vmin": low, "vmax": high}
    return {"cmap": "cividis", "vmin": low, "vmax": high if high > low else low + 1}
