"""The frontal chest radiograph: B exams drawn at once as a map of attenuation, then exposed like a film.

Outlines are cheap because an edge is a function of the row (lung border, heart border) or of the column (diaphragm,
clavicle), so only the final comparison touches every pixel. Each lung is drawn in a window of its own, with `x`
counted from the midline outwards on both sides. Findings (`signs.py`) change the air, the vessels and the bones of
these windows before everything is added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import atlas
from .anatomy import LEFT, RIGHT, Anatomy, marks
from .film import Film, ramp
from .scene import Scene

AIR = 0.54  # attenuation that a full depth of lung lacks against soft tissue


class Frontal(Film):
    """The geometry and the layers of a batch. Shapes: full (B, H, W); sided (B, 2, H, S), RIGHT then LEFT."""

    def __init__(self, scenes: Sequence[Scene], size: int, device: torch.device | str):
        self.body = body = Anatomy(scenes, device)
        self.marks = marks(scenes, device)
        self.size, self.device = size, device
        self.strip = strip = math.ceil(0.6 * size)  # columns of a lung's window

        centres = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1
        scale = self.full(body.scale)
        columns = (centres.view(1, 1, -1) - self.full(body.shift_x)) / scale  # (B, 1, W)
        self.row = (centres.view(1, -1, 1) - self.full(body.shift_y)) / scale  # (B, H, 1)
        self.pixel = 2 / size / scale  # (B, 1, 1) in lengths of the body
        self.edge = self.pixel.clamp(min=0.008) * 1.3
        tilt = self.full(body.tilt)
        self.x = columns + tilt * self.row  # (B, H, W), 0 on the midline, the patient's left positive
        self.y = self.row - tilt * columns  # (B, H, W)
        self.column = columns
        # windows: x outwards from the midline on both sides
        self.side_x = torch.stack([-self.x[..., :strip], self.x[..., size - strip :]], dim=1)  # (B, 2, H, S)
        self.side_y = torch.stack([self.y[..., :strip], self.y[..., size - strip :]], dim=1)
        self.side_column = torch.stack([-columns[..., :strip], columns[..., size - strip :]], dim=1)  # (B, 2, 1, S)
        self.side_row = self.row[:, None]  # (B, 1, H, 1)
        self.side_edge = self.edge[:, None]
        self._heart()
        self._lungs()

    def sided(self, right: Tensor, left: Tensor) -> Tensor:
        return torch.stack([right, left], dim=1).view(-1, 2, 1, 1)

    # geometry

    def _heart(self) -> None:
        """Borders of the central shadow by row, and of the heart within it, widened by the midline findings."""
        body, y = self.body, self.row
        big = torch.ones(body.size, device=self.device)
        large = self.marks.get("Cardiomegaly")
        if large is not None:
            growth = 1 + (0.30 + 0.17 * large.grade + 0.05 * large.shape[:, 0]) * (0.35 + 0.65 * large.strength)
            big[large.exam] = growth
        wide = torch.zeros(body.size, device=self.device)
        broad = self.marks.get("Enlarged Cardiomediastinum")
        if broad is not None:
            wide[broad.exam] = (0.075 + 0.04 * broad.grade + 0.015 * broad.shape[:, 0]) * broad.strength
        big, wide = self.full(big), self.full(wide)
        near = 1 + 0.07 * self.full(body.bedside)  # the heart is magnified with the plate behind the back
        turn = self.full(body.turn)
        height = self.full(body.heart_height) * (0.6 + 0.4 * big)
        centre = self.full(body.heart_centre) - 0.03 * (big - 1)
        t = (y - centre) / height
        oval = (1 - t.square()).clamp(min=0).sqrt()
        low = 0.58 + 0.42 * ((t + 0.9) / 1.3).clamp(0, 1)  # the left border bulges low, towards the apex of the heart
        self.heart_left = self.full(body.heart_left) * near * big * oval * low + turn
        self.heart_right = self.full(body.heart_right) * near * (0.25 + 0.75 * big) * oval - turn
        self.heart_top, self.heart_bottom = centre - height * 0.86, centre + height

        years = self.full(body.years)
        knob_height, upper = self.full(body.knob_height), self.full(body.upper_width) * near
        bulge = torch.exp(-((y - knob_height) / 0.085).square())
        trunk = torch.exp(-((y - knob_height - 0.21) / 0.10).square())
        widening = wide * torch.exp(-((y - knob_height - 0.02) / 0.27).square().square())
        neck = 1 - 0.25 * ((-0.45 - y) / 0.2).clamp(0, 1)
        left = upper * 0.8 * neck + bulge * (self.full(body.knob) * (0.9 + 0.2 * years) - upper * 0.8)
        left = left + trunk * (self.full(body.trunk) - upper * 0.8) * near
        right = upper * neck * (1 - 0.12 * trunk)
        self.upper_left = left + turn + widening * 1.05
        self.upper_right = right - turn + widening
        self.central_left = torch.maximum(self.upper_left, self.heart_left)  # (B, H, 1)
        self.central_right = torch.maximum(self.upper_right, self.heart_right)
        self.plain_left, self.plain_right = left + turn, right - turn  # without widening
        self.wide = wide

    def _lungs(self) -> None:
        body = self.body
        width = self.sided(body.lung_width + body.turn * 0.5, body.lung_width * 0.985 - body.turn * 0.5)
        self.width = width  # (B, 2, 1, 1)
        self.apex = self.full(body.apex)[:, None]
        low = body.base + body.breath - 0.06 * body.bedside
        self.base = self.full(low)[:, None]
        self.rise = self.sided(body.dome_right, body.dome_left)
        fallen = self.marks.get("Atelectasis")  # loss of volume in the lower zone pulls the diaphragm up
        self.raised = torch.zeros_like(self.rise)
        if fallen is not None:
            lift = (0.05 + 0.035 * fallen.grade) * fallen.strength * (fallen.zone == 2)
            self.raised[fallen.exam, fallen.side, 0, 0] = lift
        self.level = (self.side_row - self.apex) / (self.base - self.apex)  # (B, 1, H, 1) 0 apex, 1 angle
        self.outer = width * atlas.outer_edge(self.level)  # (B, 2, H, 1)
        across = self.side_column / width
        shape = (1 - ((across - 0.42) / 0.60).abs().clamp(max=1.2) ** 2.4)
        self.plain_dome = self.base - self.rise * shape
        self.dome = self.plain_dome - self.raised * shape.clamp(min=0)  # (B, 2, 1, S)
        medial = (0.20 - self.side_column).clamp(min=0)
        top = self.apex + 2.5 * medial.square()
        inside = ramp(self.outer - self.side_x, self.side_edge)
        inside *= ramp(self.side_x - 0.045, self.side_edge)
        inside *= ramp(self.side_y - top, self.side_edge)
        self.thorax = inside * ramp(self.base + 0.03 - self.side_y, self.side_edge)  # the chest cavity, dome or not
        self.inside = inside * ramp(self.dome - self.side_y, self.side_edge * 1.2)  # (B, 2, H, S)
        depth = ((self.outer - self.side_x) / 0.22).clamp_(0, 1).mul_(0.36).add_(0.64)
        depth *= ((self.side_x - 0.02) / 0.26).clamp_(0, 1).mul_(0.85).add_(0.15)  # little lung before the spine
        self.air = depth * self.inside

    def grid(self, exam: Tensor | None = None, side: Tensor | None = None) -> Tensor:
        """Where every pixel of a lung's window lies on an atlas page, (B, 2, H, S, 2) in [-1, 1]; or of some rows."""
        x, y, width = self.side_x, self.side_y, self.width
        apex, base = self.apex.expand(-1, 2, 1, 1), self.base.expand(-1, 2, 1, 1)
        if exam is not None:
            x, y, width, apex, base = (value[exam, side] for value in (x, y, width, apex, base))
        (u0, u1), (v0, v1) = atlas.U_RANGE, atlas.V_RANGE
        across = x * (2 / (u1 - u0) / width) - (2 * u0 / (u1 - u0) + 1)
        tall = 2 / (v1 - v0) / (base - apex)
        down = y * tall - (apex * tall + 2 * v0 / (v1 - v0) + 1)
        return torch.stack([across, down], dim=-1)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Ribs and vessels of every lung, each (B, 2, H, S)."""
        page = self.body.page.long().clamp(max=atlas.VARIANTS - 1)
        self.pages = torch.stack([page, (page + 5) % atlas.VARIANTS], dim=1)  # the two lungs differ
        source = atlas.pages(self.size, str(self.device))[:, :2][self.pages.flatten()]
        grid = self.grid().flatten(0, 1)
        drawn = functional.grid_sample(source, grid, align_corners=False).unflatten(0, (-1, 2))
        return drawn[:, :, 0], drawn[:, :, 1]

    # layers

    def soft_tissue(self) -> Tensor:
        """Body outline and thickness, abdomen, breasts, spine and airway: (B, H, W)."""
        body, x, y = self.body, self.x, self.y
        stout = self.full(body.stoutness)
        reach = self.row
        half = self.full(body.lung_width) + 0.10 + 0.07 * stout
        half = half + 0.55 * ((-0.12 - reach) / 0.5).clamp(0, 1).square() + 0.05 * ((reach - 0.4) / 0.5).clamp(0, 1)
        across = (x / half).square_()
        outline = self.column.abs()
        slope = self.full(body.shoulders)
        top = slope + 0.20 * (outline - 0.3) - 2.4 * torch.exp(-(outline / 0.225).square())
        mask = ramp(half - x.abs(), self.edge * 2).mul_(ramp(y - top, self.edge * 2))
        thick = 0.72 + 0.05 * stout + 0.16 * ((reach - 0.30) / 0.4).clamp(0, 1)
        thick = thick - 0.16 * ((-0.62 - reach) / 0.2).clamp(0, 1)  # the neck is thin
        layer = (thick - 0.36 * across).clamp_(min=0.22).mul_(mask)
        layer *= (0.70 + 0.30 * ((half - x.abs()) / 0.10).clamp_(0, 1))
        return layer

    def centre(self, layer: Tensor) -> None:
        """Add mediastinum, heart, spine and airway to `layer` (B, H, W), in the middle columns only."""
        size = self.size
        a, b = int(size * 0.08), size - int(size * 0.02)
        x, y, part = self.x[..., a:b], self.y[..., a:b], layer[..., a:b]
        body = self.body
        inset = torch.minimum(self.central_left - x, self.central_right + x)
        shadow = (inset / (self.edge * 1.6) + 0.5).clamp_(0, 1)
        deep = (inset / 0.22).clamp_(0, 1)
        # below the diaphragm the shadow runs into the abdomen
        crest = self.full(body.base + body.breath - body.dome_left)
        weight = 0.17 - 0.155 * ((self.row - crest + 0.02) / 0.12).clamp(0, 1)
        part += shadow * weight
        part += deep * (weight * 1.25)

        c, d = int(size * 0.36), size - int(size * 0.36)
        x, y, part = self.x[..., c:d], self.y[..., c:d], layer[..., c:d]
        bend = self.full(body.spine_bend) * torch.cos(self.row * 2.0)
        column = ((0.085 - (x - bend).abs()) / 0.03).clamp_(0, 1)
        discs = 0.5 + 0.5 * torch.cos((self.row - self.full(body.base)) * (2 * math.pi / 0.118))
        part += column * (0.035 + 0.03 * discs)
        spine = torch.exp(-((x - bend) / 0.014).square_())
        part += spine * (0.035 * discs)
        self._airway(x, y, part)

    def _airway(self, x: Tensor, y: Tensor, part: Tensor) -> None:
        body = self.body
        carina = self.full(body.knob_height) + 0.10
        lean = self.full(body.turn) * 0.6 - 0.015 * ((self.row + 0.45) / 0.2).clamp(0, 1)
        row = self.row
        calibre = 0.036
        windpipe = ((calibre - (x - lean).abs()) / 0.014).clamp_(0, 1)
        part -= windpipe * (0.15 * ((carina - row) / 0.03).clamp(0, 1) * (1 - 0.3 * ((row + 0.6) / 0.4).clamp(0, 1)))
        below = row - carina
        opening = ((0.19 - below) / 0.03).clamp(0, 1) * ((below + 0.03) / 0.03).clamp(0, 1) * 0.085
        for slant in (0.95, -0.62):  # the left main bronchus lies flatter and is longer than the right
            middle = lean + slant * below
            part -= ((0.026 - (x - middle).abs() * (0.75 if slant < 0 else 0.62)) / 0.014).clamp_(0, 1) * opening

    def shoulders(self, sided: Tensor) -> None:
        """Add clavicles and shoulder blades to a sided layer, in the upper rows only."""
        body, rows = self.body, int(0.55 * self.size)
        x, y, part = self.side_x[:, :, :rows], self.side_y[:, :, :rows], sided[:, :, :rows]
        across = self.side_column
        bedside = self.full(body.bedside)[:, None]
        height = self.full(body.clavicle)[:, None] - 0.06 * bedside
        line = height - 0.10 * ((across - 0.07) / 0.6) - 0.10 * torch.sin((across - 0.07) * 4.4).clamp(min=0) * 0.8
        thick = 0.026 + 0.014 * (1 - (across / 0.14)).clamp(0, 1) + 0.006 * ((across - 0.5) / 0.3).clamp(0, 1)
        reach = ((across - 0.065) / 0.02).clamp(0, 1) * ((0.80 - across) / 0.05).clamp(0, 1)
        off = (y - line).abs_() / thick
        rim = (1.15 - off).clamp_(0, 0.3).mul_(1 / 0.3)
        part += rim * (0.66 + 0.34 * off.clamp_(max=1)) * (reach * 0.15)
        # shoulder blade: a faint plate with a brighter medial border, over the lung when the arms are down
        medial = self.width * 0.98 + self.full(body.scapula)[:, None] - 0.16 * bedside
        border = medial - 0.02 + 0.22 * (self.side_row[:, :, :rows] + 0.45)
        border = torch.where(self.side_row[:, :, :rows] < -0.3, border, border - 0.15 * (self.side_row[:, :, :rows] + 0.3))
        extent = ((self.side_row[:, :, :rows] + 0.62) / 0.08).clamp(0, 1) * ((0.10 - self.side_row[:, :, :rows]) / 0.14).clamp(0, 1)
        past = x - border
        plate = (past / 0.02).clamp_(0, 1)
        part += plate * (extent * 0.055)
        part += (1 - (past - 0.015).abs_() / 0.022).clamp_(min=0) * (extent * 0.06)
        head = ((x - 0.93).square() + (y + 0.52).square()).sqrt_()
        part += ((0.13 - head) / 0.04).clamp_(0, 1) * 0.10

    def extras(self, layer: Tensor, sided: Tensor) -> None:
        """Breasts and the stomach's air bubble: nuisance that carries no finding."""
        body = self.body
        breast = (self.full(body.breast) * self.full(body.female))[:, None]
        x, y = self.side_x, self.side_y
        fall = ((x - 0.43) / 0.34).square_().add_(((y - 0.12) / 0.36).square_())
        sided += (1 - fall).clamp_(min=0).mul_(1.6).clamp_(max=1) * (0.09 * breast)
        gas = self.full(body.stomach).clamp(min=0)
        wide = self.full(body.stomach_width)
        down = self.full(body.base) + self.full(body.breath) - self.full(body.dome_left) * 0.62
        x, y = x[:, LEFT], y[:, LEFT]
        bubble = 1 - ((x - 0.30) / wide).square_() - ((y - down - 0.09) / (0.55 * wide)).square_()
        sided[:, LEFT] -= bubble.mul_(2).clamp_(0, 1) * (0.20 * gas)

    def assemble(self, ribs: Tensor, vessels: Tensor, extra: Tensor) -> Tensor:
        """Attenuation (B, H, W) from the layers of both lungs."""
        body = self.body
        layer = self.soft_tissue()
        sided = extra
        sided -= self.air * AIR
        sided += ribs * (0.098 * self.full(body.rib_contrast)[:, None])
        self.shoulders(sided)
        self.extras(layer, sided)
        layer[..., : self.strip] += sided[:, RIGHT]
        layer[..., self.size - self.strip :] += sided[:, LEFT]
        self.centre(layer)
        return layer
