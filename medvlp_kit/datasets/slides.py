"""Whole slides through OpenSlide: a thumbnail, one region, and tiles that hold tissue.

A slide is far too large to be read at once. Files with one level only and plain pictures work too: the region is then
read at full size and made smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError
from .image_reading import require_file

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND = "openslide.background-color"
MICRONS = "openslide.mpp-x"


@dataclass(frozen=True)
class Tile:
    """`pixels` (3, size, size) float32 in [0, 1]; `box` (x0, y0, x1, y1) in pixels of the finest level."""

    pixels: Tensor
    box: tuple[int, int, int, int]


@contextmanager
def open_slide(path: str | Path):
    """The OpenSlide object (or OpenSlide's stand-in for a plain picture), closed afterwards."""
    import openslide

    path = require_file(path)
    try:
        slide = openslide.open_slide(path)
    except Exception as error:
        raise KitError(f"{path} cannot be read as a slide ({error}); it reads SVS, NDPI, tiled TIFF") from None
    try:
        yield slide
    except openslide.OpenSlideError as error:
        raise KitError(f"{path} is damaged ({error}); copy it again from its source") from None
    finally:
        slide.close()


def describe(path: str | Path) -> dict[str, object]:
    """Levels (width, height), microns a pixel where the file states them, names of associated images."""
    with open_slide(path) as slide:
        microns = slide.properties.get(MICRONS)
        return {
            "levels": tuple(slide.level_dimensions),
            "microns_per_pixel": float(microns) if microns else None,
            "associated": tuple(slide.associated_images),
        }


def thumbnail(path: str | Path, *, size: int) -> Tensor:
    """The whole slide, (3, H, W) float32 in [0, 1], its longer side at most `size`."""
    with open_slide(path) as slide:
        width, height = slide.dimensions
        scale = min(1.0, size / max(width, height))
        return _read(slide, 0, 0, width, height, (max(1, round(height * scale)), max(1, round(width * scale))))


def region(path: str | Path, box: tuple[int, int, int, int], *, size: int | None = None) -> Tensor:
    """The box (x0, y0, x1, y1) of the finest level, (3, H, W) in [0, 1]; `size` is the longer side wanted."""
    with open_slide(path) as slide:
        x0, y0, x1, y1 = (int(edge) for edge in box)
        if not (0 <= x0 < x1 <= slide.dimensions[0] and 0 <= y0 < y1 <= slide.dimensions[1]):
            raise KitError(f"box {box} is not inside the slide of {slide.dimensions[0]} x {slide.dimensions[1]} pixels")
        scale = 1.0 if size is None else size / max(x1 - x0, y1 - y0)
        shape = (max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale)))
        return _read(slide, x0, y0, x1 - x0, y1 - y0, shape)


def tiles(
    path: str | Path, *, size: int, downsample: float = 1.0, tissue: float = 0.0, contrast: float = 0.05
) -> Iterator[Tile]:
    """Whole tiles of `size` pixels at `downsample`, row by row.

    tissue: the least share of pixels that differ from the slide's background by more than `contrast`; 0 gives all.
    The background is the commonest grey of the thumbnail, so that bright-field and fluorescence both work.
    """
    if size < 1 or downsample <= 0:
        raise KitError(f"tiles of size {size} at downsample {downsample} do not exist; give size >= 1, downsample > 0")
    with open_slide(path) as slide:
        step = max(1, round(size * downsample))
        background = _background(slide)
        for y in range(0, slide.dimensions[1] - step + 1, step):
            for x in range(0, slide.dimensions[0] - step + 1, step):
                pixels = _read(slide, x, y, step, step, (size, size))
                share = ((pixels.mean(0) - background).abs() > contrast).float().mean()
                if share >= tissue:
                    yield Tile(pixels=pixels, box=(x, y, x + step, y + step))


def _background(slide) -> float:
    width, height = slide.dimensions
    scale = min(1.0, 256 / max(width, height))
    small = _read(slide, 0, 0, width, height, (max(1, round(height * scale)), max(1, round(width * scale))))
    counts, edges = np.histogram(small.mean(0).numpy(), bins=32, range=(0, 1))
    commonest = int(counts.argmax())
    return float(edges[commonest] + edges[commonest + 1]) / 2


def _read(slide, x: int, y: int, width: int, height: int, shape: tuple[int, int]) -> Tensor:
    """A box of the finest level as (3, *shape): read at the coarsest level that is still fine enough, then resized."""
    import torch
    from PIL import Image

    level = slide.get_best_level_for_downsample(max(height / shape[0], 1.0))
    factor = slide.level_downsamples[level]
    extent = (max(1, round(width / factor)), max(1, round(height / factor)))
    picture = slide.read_region((x, y), level, extent)
    colour = "#" + slide.properties.get(BACKGROUND, "ffffff")
    canvas = Image.new("RGBA", picture.size, colour)
    picture = Image.alpha_composite(canvas, picture).convert("RGB")  # never-scanned parts are transparent
    if picture.size != (shape[1], shape[0]):
        picture = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255)
