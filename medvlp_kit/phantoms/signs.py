"""The findings of the frontal view: what each does to air, vessels, bone and density, and where.

Every function takes the geometry and the rows of one finding, changes the layers of its lungs and returns the cover:
(n, H, S) in [0, 1], the part of each lung's window that the sign occupies, or (n, 3, H, S) for signs that are
counted. Regions are cut from the same cover, so a
box can never disagree with the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import atlas
from .anatomy import LEFT, RIGHT, Marks
from .film import ramp
from .frontal import Frontal

ZONE_LEVELS = (0.26, 0.47, 0.68)  # heights of the zones' middles: 0 apex, 1 costophrenic angle


@dataclass
class Layers:
    """What the findings may change, each (B, 2, H, S)."""

    ribs: Tensor
    vessels: Tensor
    air: Tensor
    extra: Tensor  # attenuation to add
    covers: bool = True  # whether anyone will look at the covers: if not, they may be rough

    def rows(self, rows: slice) -> dict[str, Tensor]:
        return {name: getattr(self, name)[rows] for name in ("ribs", "vessels", "air", "extra")}


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


class Window:
    """The geometry of the lungs that one finding is in: n rows."""

    def __init__(self, view: Frontal, marks: Marks):
        exam, side = marks.exam, marks.side
        self.view, self.marks = view, marks
        self.column, self.row = view.side_column[exam, side], view.row[exam]  # (n, 1, S), (n, H, 1)
        tilt = view.side_tilt[exam, side]
        self.x, self.y = self.column + tilt * self.row, self.row - tilt * self.column  # (n, H, S)
        self.outer, self.width = view.outer[exam, side], view.width[exam, side]  # (n, H, 1), (n, 1, 1)
        self.dome, self.inside = view.dome[exam, side], view.inside[exam, side]
        self.apex, self.base = view.apex[exam, 0], view.base[exam, 0]
        self.level = view.level[exam, 0]  # (n, H, 1)
        self.edge, self.pixel = view.edge[exam], view.pixel[exam]
        self.grade, self.strength = column(marks.grade), column(marks.strength)

    def shape(self, k: int, low: float, high: float) -> Tensor:
        return column(low + (high - low) * self.marks.shape[:, k])

    def at(self, level: Tensor, across: Tensor, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The point at `level` (0 apex, 1 angle) and `across` (0 hilum side, 1 outer edge), (n, 1, 1) each."""
        outer = self.width[rows] * atlas.outer_edge(level)
        inner = 0.16 + 0.10 * (self.marks.side == LEFT).view(-1, 1, 1)[rows] * level
        apex, base = self.apex[rows], self.base[rows]
        return inner + (outer - inner) * across, apex + level * (base - apex)

    def zone(self, k: int, jitter: float = 0.045) -> Tensor:
        levels = torch.tensor(ZONE_LEVELS, device=self.x.device)[self.marks.zone]
        return column(levels) + self.shape(k, -jitter, jitter)

    def clouds(self) -> Tensor:
        """Slow noise in the window, (n, H, S)."""
        field, strip = self.view.clouds(self.marks.exam), self.view.strip
        left = (self.marks.side == LEFT).view(-1, 1, 1)
        return torch.where(left, field[..., field.shape[-1] - strip :], field[..., :strip])

    def add(self, layer: Tensor, change: Tensor) -> None:
        layer.index_put_((self.marks.exam, self.marks.side), change, accumulate=True)

    def scale(self, layer: Tensor, factor: Tensor) -> None:
        index = (self.marks.exam, self.marks.side)
        layer[index] = layer[index] * factor


def consolidation(window: Window, layers: Layers) -> Tensor:
    """Air replaced by fluid in a fluffy patch; the airways stay dark in it, the vessels disappear."""
    cx, cy = window.at(window.zone(0), window.shape(1, 0.40, 0.62))
    reach = (0.15 + 0.045 * window.grade) * window.shape(2, 0.92, 1.08)
    tall = reach * window.shape(3, 0.85, 1.1)
    off = ((window.x - cx) / reach).square_().add_(((window.y - cy) / tall).square_()).sqrt_()
    patch = (1.22 - off + 0.21 * window.clouds()).div_(0.55).clamp_(0, 1)
    cover = patch * window.inside
    fill = (0.55 + 0.14 * window.grade) * window.strength
    vessels = layers.vessels[window.marks.exam, window.marks.side]
    window.add(layers.extra, -cover * vessels * (0.10 * window.strength))
    window.scale(layers.air, 1 - patch * fill)
    window.scale(layers.vessels, 1 - cover * 0.8 * window.strength)
    return cover


def edema(window: Window, layers: Layers) -> Tensor:
    """Haze about the hila on both sides (bat wing), thick vessels, short septal lines at the bases."""
    hx, hy = window.at(window.shape(0, 0.46, 0.50), torch.full_like(window.strength, 0.22))
    reach = 0.27 + 0.035 * window.grade
    off = ((window.x - hx) / reach).square_().add_(((window.y - hy) / (reach * 1.25)).square_()).sqrt_()
    fog = (window.clouds().mul_(0.15) - off).add_(1.35).mul_(1 / 0.9).clamp_(0, 1)
    vessels = layers.vessels[window.marks.exam, window.marks.side]
    thick = torch.mul(fog, vessels, out=vessels).mul_(window.inside)
    change = thick.mul_((0.07 + 0.03 * window.grade) * window.strength)
    window.scale(layers.air, 1 - fog * ((0.46 + 0.15 * window.grade) * window.strength))
    # the lines lie in the lower rows, within a few pixels of the chest wall
    low = slice(int(0.45 * window.view.size), int(0.95 * window.view.size))
    wall = window.outer[:, low] - window.x[:, low]
    strip = ramp(0.10 - wall, 0.03) * ramp(wall - 0.012, window.edge) * window.inside[:, low]
    level, row = window.level[:, low], window.row[:, low]
    strip *= ((level - 0.62) / 0.06).clamp(0, 1) * ((0.93 - level) / 0.06).clamp(0, 1)
    comb = ((torch.cos(row * (2 * torch.pi / 0.055)) - 0.2) / 0.8).clamp_(min=0)
    change[:, low] += strip * comb * ((0.05 + 0.03 * window.grade) * window.strength)
    window.add(layers.extra, change)
    cover = fog.mul_(window.inside)
    torch.maximum(cover[:, low], strip, out=cover[:, low])
    return cover


def atelectasis(window: Window, layers: Layers) -> Tensor:
    """Plates of collapsed lung, nearly horizontal; in the lower zone the diaphragm rises (see Frontal._lungs)."""
    level = torch.where(column(window.marks.zone) == 2, window.zone(0) - 0.01, window.zone(0))
    cx, cy = window.at(level, window.shape(1, 0.46, 0.6))
    slope = window.shape(2, -0.34, 0.12)
    cover = torch.zeros_like(window.x)
    # one plate more with each grade, the later ones thinner and at another angle
    for k, (gap, lean, size) in enumerate(((0.0, 0.0, 1.0), (0.10, -0.20, 0.75), (-0.105, 0.16, 0.7))):
        rows = torch.nonzero(window.marks.grade >= k).flatten()
        grade = window.grade[rows]
        away = window.x[rows] - (cx + window.shape(3 + k, -0.05, 0.05) * (k > 0))[rows]
        along = away / ((0.20 + 0.03 * grade) * size)
        line = away.mul_((slope + lean)[rows]).addcmul_(along.square(), window.shape(6, -0.01, 0.04)[rows], value=-1)
        off = (window.y[rows] - (cy + gap)[rows]).sub_(line).abs_()
        thick = ((0.025 + 0.006 * grade) * size).maximum(0.75 * window.pixel[rows])
        plate = off.mul_(-1 / thick).add_(1.45).clamp_(0, 1)
        plate *= along.abs_().mul_(-1.7).add_(1.7).clamp_(0, 1)
        cover[rows] = torch.maximum(cover[rows], plate)
    cover *= window.inside
    window.add(layers.extra, cover * ((0.28 + 0.03 * window.grade) * window.strength))
    if not layers.covers:
        return cover
    lifted = ramp(window.y - window.dome, window.edge)
    plain = window.view.plain_dome[window.marks.exam, window.marks.side]
    walls = torch.minimum(window.outer - window.x, window.x - 0.045)
    return torch.maximum(cover, lifted * ramp(torch.minimum(plain - window.y, walls), window.edge))


def pneumothorax(window: Window, layers: Layers) -> Tensor:
    """Air outside the lung: a dark rim without vessels, widest at the apex, and the pleural line that bounds it."""
    gap = (0.090 + 0.070 * window.grade) * window.shape(0, 0.9, 1.1)
    level = window.level.clamp(0, 1)
    side = gap * (0.45 + 0.55 * (1 - level)) * ((1.05 - window.level) / 0.25).clamp(0, 1)
    shrunk = (window.level - gap * 0.55) / (1 - gap * 0.4)
    fallen = window.width * atlas.outer_edge(shrunk) * (shrunk > 0)
    pleura = torch.minimum(window.outer - side, fallen - 0.35 * side)
    top = window.apex + gap * 0.72 + 2.5 * (0.20 - window.column).clamp(min=0).square()
    off = torch.maximum(window.x - pleura, top - window.y)  # positive outside the collapsed lung
    rim = ramp(off, window.edge) * window.inside
    width = (0.011 * torch.ones_like(window.pixel)).maximum(0.55 * window.pixel)
    line = (1.5 - off.abs() / width).clamp_(0, 1) * window.inside
    window.scale(layers.vessels, 1 - rim * window.strength)
    window.add(layers.extra, (line * 0.19 - rim * 0.13) * window.strength)
    return torch.maximum(rim, line)


def effusion(window: Window, layers: Layers) -> Tensor:
    """Fluid in the pleural space: fills the angle and rises outwards in a meniscus."""
    full = window.base - window.apex
    depth = (0.27 + 0.13 * window.grade) * window.shape(0, 0.9, 1.1) * full
    across = (window.column / window.width).clamp(0, 1.1)
    surface = window.base - depth * (0.55 + 0.45 * window.shape(1, 0.9, 1.1) * across.square() * across)
    surface = surface - 0.05 * (0.2 - across).clamp(min=0)
    below = ramp(window.y - surface, 0.05)
    window.scale(layers.air, 1 - below * (0.94 * window.strength))
    window.scale(layers.vessels, 1 - below * 0.9 * window.strength)
    cover = below * window.inside
    window.add(layers.extra, cover * 0.06 * window.strength)
    return cover


class Patches:
    """Small squares about points in the windows, for signs that are counted: m of them, each P pixels a side.

    Row j belongs to item `kth[j]` of mark `mark[j]`, so a mark with a count of two has two patches.
    """

    def __init__(self, window: Window, reach: float):
        marks, view = window.marks, window.view
        device = window.x.device
        items = torch.arange(3, device=device)
        self.mark, self.kth = torch.nonzero(items < marks.count[:, None], as_tuple=True)  # (m,) each
        self.window, self.exam, self.side = window, marks.exam[self.mark], marks.side[self.mark]
        self.many = min(view.strip, 2 * math.ceil(reach * view.size * 0.57) + 3)  # 0.57: pixels to a length, at most
        self.grade, self.strength = window.grade[self.mark], window.strength[self.mark]
        self.edge, self.pixel = window.edge[self.mark], window.pixel[self.mark]

    def shape(self, k: int, low: float, high: float) -> Tensor:
        """Number k + item of each mark's shape, (m, 1, 1)."""
        return column(low + (high - low) * self.window.marks.shape[self.mark, k + self.kth])

    def item(self, *values: float) -> Tensor:
        """One of three values by item, (m, 1, 1)."""
        return column(torch.tensor(values, device=self.edge.device)[self.kth])

    def place(self, cx: Tensor, cy: Tensor) -> tuple[Tensor, Tensor]:
        """Centre the patches; x and y of their pixels, (m, P, P) each."""
        window, view, rows = self.window, self.window.view, self.mark
        size, strip, steps = view.size, view.strip, torch.arange(self.many, device=cx.device)
        tilt = view.side_tilt[self.exam, self.side]
        column_line, row_line = window.column[rows, 0], window.row[rows, :, 0]  # (m, S), (m, H)
        # nearest pixel, found on the untilted lines: the margin of two pixels covers the difference
        across = (column_line - (cx - tilt * cy)[:, 0]).abs().argmin(1)
        down = (row_line - (cy + tilt * cx)[:, 0]).abs().argmin(1)
        left = (across - self.many // 2).clamp(0, strip - self.many)[:, None] + steps  # (m, P)
        top = (down - self.many // 2).clamp(0, size - self.many)[:, None] + steps
        self.index = (self.exam[:, None, None], self.side[:, None, None], top[:, :, None], left[:, None])
        here_x, here_y = column_line.gather(1, left)[:, None], row_line.gather(1, top)[:, :, None]
        return here_x + tilt * here_y, here_y - tilt * here_x

    def add(self, layer: Tensor, change: Tensor) -> None:
        layer.index_put_(self.index, change, accumulate=True)

    def cover(self, values: Tensor) -> Tensor:
        """Covers (n, 3, H, S) from those of the patches (m, P, P)."""
        full = values.new_zeros((len(self.window.marks), 3, self.window.view.size, self.window.view.strip))
        full[(self.mark[:, None, None], self.kth[:, None, None], *self.index[2:])] = values
        return full


def lesion(window: Window, layers: Layers) -> Tensor:
    """One to three round nodules or masses in one zone."""
    patches = Patches(window, 0.14)
    mark = patches.mark
    several = column(window.marks.count > 1)[mark]
    place = torch.remainder(window.shape(2, 0.0, 1.0)[mark] + patches.item(0, 1 / 3, 2 / 3), 1.0)
    lift = patches.shape(3, -0.02, 0.02) + patches.item(-0.045, 0.045, 0.0) * several
    cx, cy = window.at((window.zone(1, 0.03)[mark] + lift).clamp(0.14, 0.8), 0.16 + 0.62 * place, mark)
    radius = (0.066 + 0.024 * patches.grade) * window.shape(0, 0.93, 1.07)[mark] * patches.item(1.0, 0.85, 0.75)
    x, y = patches.place(cx, cy)
    off = ((x - cx).square() + (y - cy).square()).sqrt_() / radius
    cover = ramp(1 - off, patches.edge / radius) * window.view.inside[patches.index]
    ball = (0.45 + 0.55 * (1 - off.square()).clamp_(min=0).sqrt_()) * cover
    patches.add(layers.extra, ball * (0.36 + 0.03 * patches.grade) * patches.strength)
    return patches.cover(cover)


def fracture(window: Window, layers: Layers) -> Tensor:
    """Posterior ribs broken near their outer ends: a dark gap, displaced ends, dense bone about them."""
    view, patches = window.view, Patches(window, 0.17)
    mark, exam, side = patches.mark, patches.exam, patches.side
    pages, zone = view.pages()[exam, side], window.marks.zone[mark]
    first = torch.tensor((2, 4, 6), device=mark.device)[zone] + (window.marks.shape[mark, 0] * 1.99).long()
    rib = first + torch.tensor((0, 1, -1), device=mark.device)[patches.kth]
    lines = atlas.rib_lines().to(mark.device)[pages, rib]  # (m, 40, 2)
    start = (23 + 8 * patches.shape(1, 0.0, 1.0)).long().flatten()
    rows = torch.arange(len(mark), device=mark.device)
    width, apex, base = window.width[mark], window.apex[mark], window.base[mark]
    (cx, cy), (ax, ay) = (
        (column(lines[rows, at, 0]) * width, apex + column(lines[rows, at, 1]) * (base - apex))
        for at in (start, start + 4)
    )
    dx, dy = ax - cx, ay - cy
    norm = (dx.square() + dy.square()).sqrt()
    dx, dy = dx / norm, dy / norm
    x, y = patches.place(cx, cy)
    along, across = (x - cx) * dx + (y - cy) * dy, (y - cy) * dx - (x - cx) * dy
    # the outer piece is displaced upwards: its part of the rib cage is sampled from further down
    shift = (0.020 + 0.010 * patches.grade) * patches.strength
    outer = ramp(along, 0.01) * ramp(0.085 - along, 0.06) * ramp(0.06 - across.abs(), 0.03)
    source = atlas.pages(view.size, str(view.device), "frontal")[pages, :1]
    whole, broken = (
        functional.grid_sample(source, view.grid(x, moved, width, apex, base), align_corners=False)[:, 0]
        for moved in (y, y + outer * shift)
    )
    patches.add(layers.ribs, broken - whole)
    # the ends are dense where they overlap and heal
    lump = 0.027 + 0.003 * patches.grade
    beside = (across + shift * dx * (along > 0)).abs()
    ends = (1.5 - ((along.abs() - 0.052) / 0.052).square() - (beside / lump).square()).clamp_(0, 1)
    slit = torch.full_like(patches.pixel, 0.009).maximum(0.5 * patches.pixel)
    gap = (1.4 - along.abs() / slit).clamp_(0, 1) * ramp(lump * 1.3 - beside, 0.02)
    bone = ends * (1 - gap) * (0.30 + 0.03 * patches.grade) - gap * 0.17
    patches.add(layers.extra, bone * patches.strength)
    return patches.cover(ramp(0.12 - along.abs(), 0.03) * ramp(lump * 1.5 + shift - across.abs(), 0.02))


SIDED_SIGNS = {
    "Lung Lesion": lesion,
    "Consolidation": consolidation,
    "Edema": edema,
    "Atelectasis": atelectasis,
    "Pneumothorax": pneumothorax,
    "Pleural Effusion": effusion,
    "Fracture": fracture,
}


def both_sides(marks: Marks) -> Marks:
    """Rows for both lungs of a finding that has no side."""
    twice = {name: torch.cat([value, value]) for name, value in vars(marks).items()}
    side = torch.cat([torch.full_like(marks.side, RIGHT), torch.full_like(marks.side, LEFT)])
    return Marks(**{**twice, "side": side})


def rounded(path: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Corners cut at a quarter of each segment (Chaikin), so that a wire bends instead of breaking."""
    points = []
    for (ax, ay), (bx, by) in zip(path, path[1:], strict=False):
        points += [(0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by), (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by)]
    return points


def device(view: Frontal, marks: Marks, layer: Tensor) -> Tensor:
    """A pacemaker with its lead, or a port with its catheter, below the clavicle of one side. Cover (n, H, W)."""
    exam, shape = marks.exam, marks.shape
    sign = column(torch.where(marks.side == LEFT, 1.0, -1.0))
    rows = slice(int(0.12 * view.size), int(0.60 * view.size))  # no case reaches beyond
    x, y = (value[:, rows] for value in view.position(exam))
    pacemaker = column((shape[:, 0] < 0.65).float())
    cx = sign * column(0.46 + 0.10 * shape[:, 1])
    cy = column(-0.36 + 0.08 * shape[:, 2])
    turn = column(-0.35 + 0.7 * shape[:, 3])
    dx, dy = x - cx, y - cy
    across, along = dx + turn * dy, dy - turn * dx
    wide = 0.055 + 0.045 * pacemaker + column(0.012 * shape[:, 4])
    tall = wide * (1 - 0.2 * pacemaker)
    power = ((across / wide).square_().square_() + (along / tall).square_().square_())
    edge = view.edge[exam] / wide * 4
    case = ((1 - power) / edge + 0.5).clamp_(0, 1)
    core = ((0.35 - power) / edge + 0.5).clamp_(0, 1)
    # lead: from the case to the middle of the clavicle, down the superior vena cava (the patient's right), to the heart
    tip_x = torch.where(pacemaker > 0, column(0.10 + 0.12 * shape[:, 5]), torch.full_like(cx, -0.09))
    tip_y = torch.where(pacemaker > 0, column(0.36 + 0.08 * shape[:, 6]), column(-0.02 + 0.1 * shape[:, 6]))
    cava = torch.full_like(cx, -0.085)
    path = [
        (cx, cy - tall * 0.9), (cx - sign * 0.09, cy - 0.15), (cx - sign * 0.2, cy - 0.15),
        (sign * 0.09, cy - 0.06), (cava * 0.7, cy + 0.06), (cava, cy + 0.16), (cava, tip_y.clamp(max=0.16)),
        ((tip_x + cava) / 2, tip_y - 0.03 * pacemaker), (tip_x, tip_y),
    ]  # fmt: skip
    lead = view.wire(exam, [path[0], *rounded(path), path[-1]], 0.008)
    case = functional.pad(case, (0, 0, rows.start, view.size - rows.stop))
    core = functional.pad(core, (0, 0, rows.start, view.size - rows.stop))
    layer.index_put_((exam,), torch.maximum(case * (0.55 - 0.18 * core), lead * 0.27), accumulate=True)
    return torch.maximum(case, lead)
