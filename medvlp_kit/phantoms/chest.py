"""The phantom chest radiograph: scenes to pictures and to the regions of their signs.

Teaching phantoms, not clinical images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import KitError, unknown
from ..study import Region
from . import signs
from .anatomy import LEFT, RIGHT
from .frontal import Frontal
from .scene import SIDES, Scene
from .threads import spread

VIEWS = ("frontal", "lateral")
# Pixels of the exams whose curves and findings are computed at once: the more, the less overhead, the more memory
CHUNK = 1 << 21
SHARE = 1 << 20  # pixels from which a thread has enough to draw for its own overhead not to matter
PART = 1 << 19  # pixels of the exams whose layers are drawn at once on a CPU: few, so that they stay in the cache
SMALLEST = 16


def check(size: int, view: str) -> None:
    if view not in VIEWS:
        raise unknown("view", view, VIEWS)
    if isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST:
        raise KitError(f"cannot draw a phantom of size {size!r}: give a whole number of pixels, at least {SMALLEST}")


@torch.no_grad()
def render(
    scenes: Sequence[Scene], *, size: int = 64, view: str = "frontal", device: torch.device | str = "cpu"
) -> Tensor:
    """Pictures (B, 1, size, size) float32 in [0, 1]; bright is dense, as on film.

    A scene's picture depends on the scene alone, not on the batch, and on the device only by rounding.
    """
    check(size, view)
    pictures = torch.empty((len(scenes), 1, size, size), device=device)
    many = _exams(CHUNK, size)
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    if threads > 1 and len(scenes) * size**2 >= threads * SHARE:
        many = min(many, -(-len(scenes) // threads))

    @torch.no_grad()  # a thread has a gradient mode of its own
    def draw(start: int) -> None:
        part = scenes[start : start + many]
        pictures[start : start + many, 0] = _draw(part, size, view, device, covers=False)[0]

    starts = range(0, len(scenes), many)
    with torch.autocast(pictures.device.type, enabled=False):  # a caller's half precision would show as banding
        if threads > 1 and len(starts) > 1:
            spread(draw, starts)
        else:
            for start in starts:
                draw(start)
    return pictures


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def regions(scenes: Sequence[Scene], *, size: int = 64, view: str = "frontal") -> list[tuple[Region, ...]]:
    """Where each sign is, per scene: a mask (size, size) bool and its half-open box, from the geometry as drawn.

    One region a side for signs on both sides (edema always is), one a lesion or broken rib for signs that are counted,
    one for midline signs. What covers no pixel is left out.
    """
    check(size, view)
    found: list[tuple[Region, ...]] = []
    many = _exams(CHUNK, size)
    for start in range(0, len(scenes), many):
        part = scenes[start : start + many]
        per_scene: list[list[Region]] = [[] for _ in part]
        for name, marks, cover in _draw(part, size, view, "cpu", covers=True)[1]:
            masks = cover > 0.35
            for row in range(len(marks)):
                exam = int(marks.exam[row])
                sign = part[exam].sign(name)
                side = None if sign.side is None and name != "Edema" else SIDES[::-1][int(marks.side[row])]
                for mask in masks[row].reshape(-1, size, size):  # one a lesion or rib for signs that are counted
                    if mask.any():
                        per_scene[exam].append(Region(name, _box(mask), mask, side, sign.zone, view))
        found.extend(map(tuple, per_scene))
    return found


def _exams(pixels: int, size: int) -> int:
    return max(1, min(256, pixels // size**2))


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _draw(scenes: Sequence[Scene], size: int, view: str, device, *, covers: bool) -> tuple[Tensor, list]:
    """Pictures (B, H, W) and, if wanted, [(finding, marks, cover (n, ..., H, W))]."""
    if view == "lateral":
        from .lateral import draw

        return draw(scenes, size, device)
    picture = Frontal(scenes, size, device)
    many = _exams(PART, size) if torch.device(device).type == "cpu" else len(scenes)
    shape = (len(scenes), 2, size, picture.strip)
    drawn = torch.empty((len(scenes), 2, *shape[1:]), device=device)
    layers = signs.Layers(
        ribs=drawn[:, :, 0],
        vessels=drawn[:, :, 1],
        air=torch.empty(shape, device=device),
        extra=torch.zeros(shape, device=device),
        covers=covers,
    )
    picture.inside = torch.empty(shape, device=device)
    parts = list(picture.parts(many))
    for rows, part in parts:
        part.fields(inside=picture.inside[rows], air=layers.air[rows])
        drawn[rows] = part.sample()

    found = []
    for name, sign in signs.SIDED_SIGNS.items():
        marks = picture.marks.get(name)
        if marks is not None:
            marks = signs.both_sides(marks) if name == "Edema" else marks
            cover = sign(signs.Window(picture, marks), layers)
            if covers:
                found.append((name, marks, _widen(cover, marks.side, size)))

    film = torch.empty((len(scenes), size, size), device=device)
    for rows, part in parts:
        part.assemble(film[rows], **layers.rows(rows))
    devices = picture.marks.get("Support Devices")
    if devices is not None:
        cover = signs.device(picture, devices, film)
        found.append(("Support Devices", devices, cover))
    for rows, part in parts:
        part.expose(film[rows])
    if covers:
        x, y = picture.position()
        for name, midline in (("Cardiomegaly", _heart), ("Enlarged Cardiomediastinum", _mediastinum)):
            marks = picture.marks.get(name)
            if marks is not None:
                found.append((name, marks, midline(picture, x, y)[marks.exam]))
    return film, found


def _widen(cover: Tensor, side: Tensor, size: int) -> Tensor:
    """Covers of lung windows (n, ..., H, S) in the frame of the picture (n, ..., H, W)."""
    strip = cover.shape[-1]
    wide = cover.new_zeros((*cover.shape[:-1], size))
    wide[side == RIGHT, ..., :strip] = cover[side == RIGHT]
    wide[side == LEFT, ..., size - strip :] = cover[side == LEFT]
    return wide


def _heart(view: Frontal, x: Tensor, y: Tensor) -> Tensor:
    inside = (x < view.heart_left) & (-x < view.heart_right)
    return (inside & (y > view.heart_top) & (y < view.heart_bottom)).float()


def _mediastinum(view: Frontal, x: Tensor, y: Tensor) -> Tensor:
    inside = (x < view.upper_left) & (-x < view.upper_right)
    middle = view.body.knob_height.view(-1, 1, 1) + 0.02
    return (inside & ((y - middle).abs() < 0.30)).float()
