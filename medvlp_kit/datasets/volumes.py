"""NIfTI volumes: read in one orientation, cut into pictures.

Values are brought to RAS: the first axis grows to the patient's right, the second to the front, the third to the head.
Pictures are drawn the radiological way: the patient's right is on the picture's left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError, unknown
from .image_reading import require_file

if TYPE_CHECKING:
    from torch import Tensor

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis that a plane cuts across
TAILS = (0.5, 99.5)  # percentiles that become black and white where no window is given


@dataclass(frozen=True)
class Volume:
    """`values` float32 (X, Y, Z), or (X, Y, Z, T) for a series, in RAS; `spacing` in mm along X, Y, Z."""

    values: np.ndarray
    spacing: tuple[float, float, float]


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file; the header's scaling is applied and the axes are brought to the nearest RAS order."""
    import nibabel

    path = require_file(path)
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # gzip, header and size faults each raise their own kind
        raise KitError(f"{path} cannot be read as NIfTI ({error}); copy it again or convert it to .nii.gz") from None
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (3, 4):
        raise KitError(f"{path} has shape {values.shape}; a volume has 3 axes, or 4 for a series")
    return Volume(values=values, spacing=tuple(float(step) for step in image.header.get_zooms()[:3]))


def slab(
    volume: Volume,
    plane: str = "axial",
    index: int | None = None,
    *,
    neighbours: int = 0,
    time: int = 0,
    window: tuple[float, float] | None = None,
    square_pixels: bool = True,
) -> Tensor:
    """A slice with its neighbours as channels ("2.5-D"): (2 * neighbours + 1, H, W) float32 in [0, 1].

    index: from 0; None is the middle. Neighbours beyond the end repeat the last slice. window: (centre, width) in the
    volume's units; without one the percentiles in TAILS of the whole volume are used, so slices keep their relation.
    square_pixels: resize so that a pixel is as high as wide (in mm).
    """
    import torch
    from torch.nn.functional import interpolate

    if plane not in AXES:
        raise unknown("plane", plane, AXES)
    axis = AXES[plane]
    values = volume.values
    if values.ndim == 4:
        if not 0 <= time < values.shape[3]:
            raise KitError(f"the series has {values.shape[3]} volumes; choose time from 0 to {values.shape[3] - 1}")
        values = values[..., time]
    count = values.shape[axis]
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise KitError(f"there are {count} {plane} slices; choose an index from 0 to {count - 1}")
    chosen = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, count - 1)
    stack = np.moveaxis(np.take(values, chosen, axis=axis), axis, 0)  # (K, first, second remaining axis)
    # Remaining axes are (Y, Z), (X, Z) or (X, Y). Columns run along the first and rows along the second; both are
    # turned over so that the front or the head is up and the patient's right, or front, is on the left.
    picture = torch.from_numpy(np.ascontiguousarray(stack[:, ::-1, ::-1].transpose(0, 2, 1)))
    picture = torch.nan_to_num(_to_unit(picture, values, window))
    across, down = (step for other, step in enumerate(volume.spacing) if other != axis)
    if square_pixels and across > 0 and down > 0 and abs(across / down - 1) > 0.01:
        finest = min(across, down)
        shape = (round(picture.shape[1] * down / finest), round(picture.shape[2] * across / finest))
        picture = interpolate(picture[None], shape, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return picture


def _to_unit(picture: Tensor, values: np.ndarray, window: tuple[float, float] | None) -> Tensor:
    if window is not None:
        center, width = window
        if width <= 0:
            raise KitError(f"window width {width} must be above 0")
        return ((picture - center) / width + 0.5).clamp(0, 1)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, TAILS) if finite.size else (0.0, 0.0)
    if high <= low and finite.size:  # nearly all one value, as in a mask
        low, high = float(finite.min()), float(finite.max())
    return ((picture - float(low)) / max(float(high - low), 1e-12)).clamp(0, 1)


def mid_slices(volume: Volume, *, window: tuple[float, float] | None = None) -> dict[str, Tensor]:
    """The middle slice in each plane, (1, H, W) float32 in [0, 1]."""
    return {plane: slab(volume, plane, window=window) for plane in AXES}
