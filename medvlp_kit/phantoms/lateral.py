"""The lateral chest radiograph of the same scene: the patient faces the picture's left and both sides superpose.

`x` runs from front (negative) to back, heights are those of the frontal view. A sign keeps its height; its depth
(front or back) is its own, because the frontal view does not show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import atlas
from .anatomy import Anatomy, Marks, marks
from .film import Film, ramp
from .scene import Scene
from .signs import ZONE_LEVELS, both_sides, column, rounded

AIR = 0.205  # attenuation that each of the two lungs lacks
DEPTHS = (-0.06, -0.20, 0.22)  # x of the middles of the upper, middle and lower zone


class Lateral(Film):
    """Geometry of a batch: everything (B, H, W), the two lungs (B, 2, H, W)."""

    def __init__(self, scenes: Sequence[Scene], size: int, device: torch.device | str):
        super().__init__(Anatomy(scenes, device), marks(scenes, device), size, device)
        self.x, self.y = self.position()
        body, row = self.body, self.row
        stout = self.full(body.stoutness)
        chest = ((row + 0.75) / 0.95).clamp(0, 1)
        breast = self.full(body.breast * body.female) * torch.exp(-((row - 0.12) / 0.2).square())
        wall = 0.07 + 0.03 * stout
        self.ribs_front = -0.20 - 0.43 * torch.sin(chest * math.pi / 2)
        self.ribs_back = 0.48 + 0.14 * torch.sin((chest * 0.9 + 0.1) * math.pi * 0.72)
        self.front = self.ribs_front - wall - 0.09 * breast
        self.back = self.ribs_back + wall + 0.02
        self.spine = self.ribs_back - 0.13
        self.apex = self.full(body.apex)
        self.base = self.full(body.base + body.breath - 0.06 * body.bedside)
        self.level = (row - self.apex) / (self.base - self.apex)
        self._lungs()
        self._heart()

    def _lungs(self) -> None:
        body, x = self.body, self.column
        rise = torch.stack([body.dome_right, body.dome_left], 1).view(-1, 2, 1, 1) * 1.05
        fallen = self.marks.get("Atelectasis")
        self.raised = torch.zeros_like(rise)
        if fallen is not None:
            lift = (0.05 + 0.035 * fallen.grade) * fallen.strength * (fallen.zone == 2)
            self.raised[fallen.exam, fallen.side, 0, 0] = lift
        hump = (1 - ((x + 0.10) / 0.58).abs() ** 2.2)[:, None]
        slope = (0.05 * (x / 0.5) + 0.02)[:, None]  # the sulcus behind is the deepest place of the chest
        self.plain_dome = self.base[:, None] + slope - rise * hump
        self.dome = self.plain_dome - self.raised * hump.clamp(min=0)  # (B, 2, 1, W)
        inner = self.ribs_front + 0.035 + 0.30 * (0.25 - self.level).clamp(0, 0.25) / 0.25
        outer = self.ribs_back - 0.02 - 0.16 * ((0.18 - self.level) / 0.18).clamp(0, 1).square()
        inset = torch.minimum(self.x - inner, outer - self.x)
        self.inset = inset
        top = self.apex + 1.4 * (x - 0.16).square() / (1 + 6 * (x - 0.16).abs())
        self.chest = ramp(inset, self.edge).mul_(ramp(self.y - top, self.edge * 2))[:, None]
        self.inside = self.chest * ramp(self.dome - self.y[:, None], self.edge[:, None] * 1.2)
        depth = (inset / 0.16).clamp_(0, 1).mul_(0.5).add_(0.5)
        self.air = self.inside * depth[:, None]

    def _heart(self) -> None:
        body = self.body
        big = torch.ones(body.size, device=self.device)
        large = self.marks.get("Cardiomegaly")
        if large is not None:
            big[large.exam] = 1 + (0.24 + 0.14 * large.grade) * (0.35 + 0.65 * large.strength)
        big = self.full(big)
        across = self.full(body.heart_left) * 0.74 * big
        self.heart_y = self.full(body.heart_centre) + 0.02
        tall = self.full(body.heart_height) * (0.72 + 0.28 * big) * 0.92
        self.heart_x = -0.31 + (big - 1) * 0.18
        x, y = self.x - self.heart_x, self.y - self.heart_y
        x, y = x + 0.35 * y, y - 0.2 * x  # the axis leans forwards
        self.heart = 1 - (x / across).square() - (y / tall).square()  # positive inside

    def draw(self) -> tuple[Tensor, list]:
        body = self.body
        page = body.page.long().clamp(max=atlas.VARIANTS - 1)
        tree = atlas.pages(self.size, str(self.device), "lateral")[page]
        (u0, u1), (v0, v1) = atlas.U_RANGE, atlas.V_RANGE
        u = (self.x + 0.52) / 1.10
        v = (self.y - self.apex) / (self.base - self.apex)
        grid = torch.stack([(u - u0) * (2 / (u1 - u0)) - 1, (v - v0) * (2 / (v1 - v0)) - 1], dim=-1)
        self.vessels = functional.grid_sample(tree, grid, align_corners=False)[:, 0]
        self.extra = torch.zeros_like(self.x)
        covers = []
        for name, sign in SIGNS.items():
            found = self.marks.get(name)
            if found is not None:
                found = both_sides(found) if name == "Edema" else found
                covers.append((name, found, sign(self, found)))
        layer = self._tissue() + self.extra
        air = self.air.sum(1)
        layer -= air * AIR
        layer += self.vessels * air * (0.075 * self.full(body.vessel_contrast))
        return self.expose(layer, marker=False), covers

    def _tissue(self) -> Tensor:
        body, x, y, row = self.body, self.x, self.y, self.row
        inset = torch.minimum(x - self.front, self.back - x)
        mask = ramp(inset, self.edge * 2)
        thick = 0.60 + 0.05 * self.full(body.stoutness) + 0.26 * ((-0.42 - row) / 0.25).clamp(0, 1)
        thick = thick + 0.20 * ((row - 0.28) / 0.4).clamp(0, 1)
        layer = mask * (0.16 + (thick - 0.16) * (inset / 0.2).clamp(0, 1))
        # shoulders and raised arms: a soft mass over the apex, running forwards and up out of the picture
        shoulder = ((x - 0.08) / 0.40).square() + ((y + 0.92) / 0.34).square()
        arm = ((y + 0.93 - 0.30 * (x + 0.2)) / 0.20).square() + (x + 0.25).clamp(min=0).square() * 6
        layer = torch.maximum(layer, ((1 - torch.minimum(shoulder, arm)) / 0.5).clamp(0, 1) * 0.70)
        crest = self.base - self.full(body.dome_left)
        beat = (self.heart / 0.10).clamp(0, 1) * 0.4 + (self.heart / 0.5).clamp(0, 1) * 0.75
        layer += beat * (0.17 - 0.155 * ((row - crest) / 0.12).clamp(0, 1))
        # great vessels from the heart up to the arch
        trunk = (x + 0.13 - 0.10 * (y + 0.1)) / 0.17
        rows = ((self.heart_y - 0.05 - row) / 0.15).clamp(0, 1)
        rows = rows * ((row - self.full(body.knob_height) + 0.12) / 0.2).clamp(0, 1)
        layer += (1 - trunk.square()).clamp_(min=0) * (0.085 * rows)
        # sternum and spine
        layer += ramp(0.022 - (x - self.ribs_front + 0.012).abs(), 0.012) * (0.10 * ((row + 0.52) / 0.1).clamp(0, 1))
        spine = (0.078 - (x - self.spine).abs())
        discs = torch.cos((y - 0.12 * (x - self.spine) - self.base) * (2 * math.pi / 0.125))
        bone = ramp(spine, 0.02) * (0.075 + 0.09 * (discs + 0.55).clamp(0, 0.5))
        layer += bone
        # ribs run down and forwards; the two sides are slightly out of step
        for step, pitch in ((0.0, 0.118), (0.045, 0.124)):
            wave = torch.cos((y + 0.42 * x + 0.25 * x.square() - step) * (2 * math.pi / pitch))
            layer += (wave - 0.45).clamp_(min=0) * mask * (0.05 * self.full(body.rib_contrast)) * (
                (x + 0.35) / 0.3).clamp(0, 1) * ramp(self.inset + 0.04, 0.03)
        # shoulder blades behind, windpipe in front of the spine, arch of the aorta
        blade = ramp(0.030 - (x - 0.33 - 0.10 * (y + 0.3)).abs(), 0.03) * ((0.02 - y) / 0.1).clamp(0, 1)
        layer += blade * 0.05
        carina = self.full(body.knob_height) + 0.12
        pipe = ramp(0.038 - (x - 0.10 - 0.22 * (y + 0.6)).abs(), 0.03) * ((carina - y) / 0.05).clamp(0, 1)
        layer -= pipe * 0.13 * ((y + 0.95) / 0.1).clamp(0, 1)
        arch = ((x - 0.06).square() + ((y - carina + 0.02) / 1.1).square()).sqrt()
        layer += ramp(0.045 - (arch - 0.20).abs(), 0.04) * ((carina + 0.04 - y) / 0.06).clamp(0, 1) * 0.04
        return layer

    def at(self, found: Marks, k: int) -> tuple[Tensor, Tensor]:
        """Middle of each mark (n, 1, 1): depth by zone and shape, height as in the frontal view."""
        levels = torch.tensor(ZONE_LEVELS, device=self.device)[found.zone]
        depth = torch.tensor(DEPTHS, device=self.device)[found.zone] + 0.16 * (found.shape[:, 20] - 0.5)
        level = levels + 0.09 * (found.shape[:, k] - 0.5)
        apex, base = self.apex.flatten()[found.exam], self.base.flatten()[found.exam]
        return column(depth), column(apex + level * (base - apex))

    def fill(self, found: Marks, cover: Tensor) -> None:
        """Take the air of the mark's lung away where `cover` (n, H, W) is 1."""
        index = (found.exam, found.side)
        self.air[index] = self.air[index] * (1 - cover)

    def add(self, found: Marks, change: Tensor) -> None:
        self.extra.index_put_((found.exam,), change, accumulate=True)


def _consolidation(view: Lateral, found: Marks) -> Tensor:
    cx, cy = view.at(found, 0)
    reach = column((0.16 + 0.045 * found.grade) * (0.92 + 0.16 * found.shape[:, 2]))
    off = (((view.x[found.exam] - cx) / reach).square() + ((view.y[found.exam] - cy) / reach).square()).sqrt()
    patch = ((1.22 - off + 0.2 * view.clouds(found.exam)) / 0.55).clamp(0, 1)
    cover = patch * view.inside[found.exam, found.side]
    view.fill(found, patch * column((0.6 + 0.14 * found.grade) * found.strength))
    view.add(found, cover * column(0.07 * found.strength))
    return cover


def _edema(view: Lateral, found: Marks) -> Tensor:
    exam = found.exam
    cx, cy = 0.03, view.apex[exam] + 0.48 * (view.base[exam] - view.apex[exam])
    reach = column(0.29 + 0.035 * found.grade)
    off = (((view.x[exam] - cx) / reach).square() + ((view.y[exam] - cy) / (1.2 * reach)).square()).sqrt()
    fog = ((1.35 - off + 0.15 * view.clouds(exam)) / 0.9).clamp(0, 1)
    view.fill(found, fog * column((0.46 + 0.15 * found.grade) * found.strength))
    return fog * view.inside[exam, found.side]


def _atelectasis(view: Lateral, found: Marks) -> Tensor:
    exam, side = found.exam, found.side
    cx, cy = view.at(found, 0)
    x, y = view.x[exam] - cx, view.y[exam] - cy
    cover = torch.zeros_like(x)
    for k, (gap, lean, size) in enumerate(((0.0, 0.0, 1.0), (0.10, -0.20, 0.75), (-0.105, 0.16, 0.7))):
        slope = column(-0.5 + 0.4 * found.shape[:, 2]) + lean
        thick = (column(0.025 + 0.006 * found.grade) * size).maximum(0.75 * view.pixel[exam])
        plate = (1.45 - (y - gap - slope * x).abs() / thick).clamp(0, 1)
        plate = plate * (1.7 - 1.7 * x.abs() / (0.24 * size)).clamp(0, 1)
        cover = torch.maximum(cover, plate * (column(found.grade) >= k))
    cover = cover * view.inside[exam, side]
    view.add(found, cover * column((0.20 + 0.03 * found.grade) * found.strength))
    lifted = ramp(view.y[exam] - view.dome[exam, side], view.edge[exam])
    lifted = lifted * ramp(view.plain_dome[exam, side] - view.y[exam], view.edge[exam]) * view.chest[exam, 0]
    return torch.maximum(cover, lifted)


def _pneumothorax(view: Lateral, found: Marks) -> Tensor:
    """Free air collects in front of and above the lung."""
    exam = found.exam
    gap = column((0.085 + 0.06 * found.grade) * (0.9 + 0.2 * found.shape[:, 0]))
    top = view.apex[exam] + gap * 0.9 + 1.2 * (view.column[exam] - 0.16).square()
    front = view.ribs_front[exam] + 0.035 + gap * (1.1 - view.level[exam]).clamp(0, 1)
    front = front + 0.30 * (0.25 - view.level[exam]).clamp(0, 0.25) / 0.25
    off = torch.maximum(front - view.x[exam], top - view.y[exam])
    inside = view.inside[exam, found.side]
    rim = ramp(off, view.edge[exam]) * inside
    width = torch.full_like(view.pixel[exam], 0.011).maximum(0.55 * view.pixel[exam])
    line = (1.5 - off.abs() / width).clamp(0, 1) * inside
    view.add(found, (line * 0.15 - rim * 0.11) * column(found.strength))
    return torch.maximum(rim, line)


def _effusion(view: Lateral, found: Marks) -> Tensor:
    """Fluid fills the sulcus behind first, and rises at both walls."""
    exam = found.exam
    deep = (view.base[exam] - view.apex[exam]) * column((0.24 + 0.12 * found.grade) * (0.9 + 0.2 * found.shape[:, 0]))
    across = ((view.column[exam] - 0.02) / 0.46).clamp(-1, 1.1)
    surface = view.base[exam] + 0.04 - deep * (0.62 + 0.38 * across.abs() ** 3)
    below = ramp(view.y[exam] - surface, 0.05)
    view.fill(found, below * column(0.94 * found.strength))
    cover = below * view.inside[exam, found.side]
    view.add(found, cover * column(0.05 * found.strength))
    return cover


def _lesion(view: Lateral, found: Marks) -> Tensor:
    exam = found.exam
    radius = column((0.062 + 0.024 * found.grade) * (0.93 + 0.14 * found.shape[:, 0]))
    cx, cy = view.at(found, 1)
    inside, covers, dense = view.inside[exam, found.side], [], torch.zeros_like(view.x[exam])
    for k in range(3):
        size = radius * (1.0, 0.85, 0.75)[k]
        shown = (column(found.count) > k).float()
        ahead, lift = (0.0, 0.17, -0.16)[k], (-0.03, 0.04, 0.03)[k] * (column(found.count) > 1)
        off = ((view.x[exam] - cx - ahead).square() + (view.y[exam] - cy - lift).square()).sqrt() / size
        ball = ramp(1 - off, view.edge[exam] / size) * shown * inside
        dense = torch.maximum(dense, (0.45 + 0.55 * (1 - off.square()).clamp(min=0).sqrt()) * ball)
        covers.append(ball)
    view.add(found, dense * column((0.25 + 0.03 * found.grade) * found.strength))
    return torch.stack(covers, 1)


def _fracture(view: Lateral, found: Marks) -> Tensor:
    """Dense displaced ends on either side of a gap, on ribs that run down and forwards."""
    exam = found.exam
    levels = torch.tensor((0.22, 0.44, 0.62), device=view.device)[found.zone]
    covers = []
    for k in range(3):
        shown = (column(found.count) > k).float() * column(found.strength)
        cx = column(0.24 + 0.14 * found.shape[:, 1 + k])
        level = column(levels + 0.09 * k)
        cy = view.apex[exam] + level * (view.base[exam] - view.apex[exam])
        dx, dy = 0.90, -0.43
        along = (view.x[exam] - cx) * dx + (view.y[exam] - cy) * dy
        across = (view.y[exam] - cy) * dx - (view.x[exam] - cx) * dy
        lump = column(0.027 + 0.003 * found.grade)
        step = column(0.02 + 0.01 * found.grade)
        beside = (across + step * (along > 0)).abs()
        ends = (1.5 - ((along.abs() - 0.052) / 0.052).square() - (beside / lump).square()).clamp(0, 1)
        slit = torch.full_like(view.pixel[exam], 0.009).maximum(0.5 * view.pixel[exam])
        gap = (1.4 - along.abs() / slit).clamp(0, 1) * ramp(lump * 1.3 - beside, 0.02)
        view.add(found, shown * (ends * (1 - gap) * column(0.25 + 0.03 * found.grade) - gap * 0.14))
        here = ramp(0.12 - along.abs(), 0.03) * ramp(lump * 1.5 + step - across.abs(), 0.02)
        covers.append(here * (shown > 0))
    return torch.stack(covers, 1)


def _cardiomegaly(view: Lateral, found: Marks) -> Tensor:
    return (view.heart[found.exam] > 0).float()


def _mediastinum(view: Lateral, found: Marks) -> Tensor:
    """The space behind the sternum fills."""
    exam = found.exam
    size = column((0.16 + 0.05 * found.grade) * (0.4 + 0.6 * found.strength))
    cy = column(view.body.knob_height[exam]) + 0.04
    off = ((view.x[exam] + 0.22 + 0.10 * (view.y[exam] + 0.2)) / size).square() + ((view.y[exam] - cy) / 0.27).square()
    cover = ((1 - off) / 0.5).clamp(0, 1) * view.chest[exam, 0]
    view.add(found, cover * column(0.19 * found.strength))
    return cover


def _device(view: Lateral, found: Marks) -> Tensor:
    """The case lies flat under the skin of the chest wall, so it is seen edge on; the lead runs down to the heart."""
    exam, shape = found.exam, found.shape
    x, y = view.x[exam], view.y[exam]
    pacemaker = column((shape[:, 0] < 0.65).float())
    cy = column(-0.36 + 0.08 * shape[:, 2])
    wide, tall = 0.032 + 0.012 * pacemaker, 0.06 + 0.045 * pacemaker
    cx = -0.36 + 0.0 * cy
    lean = x - cx + 0.45 * (y - cy)
    power = (lean / wide).square().square() + ((y - cy) / tall).square().square()
    case = ((1 - power) / (view.edge[exam] / wide * 4) + 0.5).clamp(0, 1)
    tip_y = torch.where(pacemaker > 0, column(0.36 + 0.08 * shape[:, 6]), column(-0.02 + 0.1 * shape[:, 6]))
    tip_x = torch.where(pacemaker > 0, torch.full_like(cy, -0.36), torch.full_like(cy, -0.07))
    path = [(cx, cy - tall), (cx + 0.12, cy - 0.17), (cx + 0.24, cy - 0.12), (cx + 0.28, cy + 0.1),
            (cx * 0 - 0.08, tip_y.clamp(max=0.2) - 0.08), ((tip_x - 0.08) / 2, tip_y - 0.02),
            (tip_x, tip_y)]  # fmt: skip
    lead = view.wire(exam, [path[0], *rounded(path), path[-1]], 0.008)
    view.add(found, torch.maximum(case * 0.5, lead * 0.25))
    return torch.maximum(case, lead)


SIGNS = {
    "Lung Lesion": _lesion,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Fracture": _fracture,
    "Cardiomegaly": _cardiomegaly,
    "Enlarged Cardiomediastinum": _mediastinum,
    "Support Devices": _device,
}


def draw(scenes: Sequence[Scene], size: int, device: torch.device | str) -> tuple[Tensor, list]:
    """Pictures (B, H, W) and [(finding, marks, cover (n, ..., H, W))], the covers being by-products of drawing."""
    return Lateral(scenes, size, device).draw()
