"""The frontal chest radiograph: B exams drawn at once as a map of attenuation, then exposed like a film.

Outlines are cheap because an edge is a function of the row (lung border, heart border) or of the column (diaphragm,
clavicle), so only the final comparison touches every pixel. Each lung is drawn in a window of its own, with `x`
counted from the midline outwards on both sides. Findings (`signs.py`) change the air, the vessels and the bones of
these windows before everything is added up. Curves are computed for all exams at once, pictures a few at a time
(`parts`), so that they stay in the processor's cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import atlas
from .anatomy import LEFT, RIGHT, Anatomy, Marks, marks
from .film import Film
from .scene import Scene

AIR = 0.54  # attenuation that a full depth of lung lacks against soft tissue


class Frontal(Film):
    """The geometry and the layers of a batch. Shapes: full (B, H, W); sided (B, 2, H, S), RIGHT then LEFT."""

    def __init__(self, scenes: Sequence[Scene], size: int, device: torch.device | str):
        super().__init__(Anatomy(scenes, device), marks(scenes, device), size, device)
        body = self.body
        self.strip = strip = math.ceil(0.6 * size)  # columns of a lung's window
        # windows: x outwards from the midline on both sides
        self.side_column = torch.stack([-self.column[..., :strip], self.column[..., size - strip :]], dim=1)
        self.side_row = self.row[:, None]  # (B, 1, H, 1); side_column is (B, 2, 1, S)
        self.side_sharp = self.sharp[:, None]
        sign = torch.tensor([-1.0, 1.0], device=device).view(1, 2, 1, 1)
        self.side_tilt = sign * body.tilt.view(-1, 1, 1, 1)
        self._heart()
        self._lungs()

    def sided(self, right: Tensor, left: Tensor) -> Tensor:
        """Numbers of both lungs (B,) beside their windows: (B, 2, 1, 1)."""
        return torch.stack([right, left], dim=1).view(-1, 2, 1, 1)

    def parts(self, many: int) -> Iterator[tuple[slice, Frontal]]:
        """Views of `many` exams each; their tensors are slices of this one's."""
        for start in range(0, self.body.size, many):
            rows = slice(start, start + many)
            part = copy.copy(self)
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(part, name, value[rows])
            part.body = self.body.part(rows)
            yield rows, part

    # curves

    def _heart(self) -> None:
        """Borders of the central shadow by row, and of the heart within it, widened by the midline findings."""
        body, y = self.body, self.row
        big = torch.ones(body.size, device=self.device)
        large = self.marks.get("Cardiomegaly")
        if large is not None:
            big[large.exam] = self.growth(large)
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

    def growth(self, large: Marks) -> Tensor:
        """How much wider a large heart is than the patient's own: for cardiothoracic ratios about 0.56, 0.62, 0.67."""
        body, exam = self.body, large.exam
        ratio = 0.545 + 0.06 * large.grade + 0.02 * large.shape[:, 0]
        own = (0.95 * body.heart_left[exam] + body.heart_right[exam]) / (2 * body.lung_width[exam])
        return 1 + (1.04 * ratio / own - 1) * (0.35 + 0.65 * large.strength)

    def _lungs(self) -> None:
        body = self.body
        self.width = self.sided(body.lung_width + body.turn * 0.5, body.lung_width * 0.985 - body.turn * 0.5)
        self.apex = self.full(body.apex)[:, None]
        self.base = self.full(body.base + body.breath - 0.06 * body.bedside)[:, None]
        self.rise = self.sided(body.dome_right, body.dome_left)
        raised = torch.zeros_like(self.rise)
        fallen = self.marks.get("Atelectasis")  # loss of volume in the lower zone pulls the diaphragm up
        if fallen is not None:
            lift = (0.05 + 0.035 * fallen.grade) * fallen.strength * (fallen.zone == 2)
            raised[fallen.exam, fallen.side, 0, 0] = lift
        self.level = (self.side_row - self.apex) / (self.base - self.apex)  # (B, 1, H, 1) 0 apex, 1 angle
        self.outer = self.width * atlas.outer_edge(self.level)  # (B, 2, H, 1)
        shape = 1 - ((self.side_column / self.width - 0.42) / 0.60).abs().clamp(max=1.2) ** 2.4
        self.plain_dome = self.base - self.rise * shape
        self.dome = self.plain_dome - raised * shape.clamp(min=0)  # (B, 2, 1, S)
        self.top = self.apex + 2.5 * (0.20 - self.side_column).clamp(min=0).square()

    # pictures

    def fields(self, *, inside: Tensor, air: Tensor) -> None:
        """Writes `inside` (of a lung) and `air` (how much every ray meets), both (B, 2, H, S)."""
        x = self.side_column + self.side_tilt * self.side_row
        y = self.side_row - self.side_tilt * self.side_column
        wall = self.outer - x
        inset = self.dome - y
        torch.minimum(inset, wall, out=inset)
        torch.minimum(inset, y.sub_(self.top), out=inset)
        torch.minimum(inset, x.sub_(0.045), out=inset)
        torch.mul(inset, self.side_sharp, out=inside).add_(0.5).clamp_(0, 1)
        depth = wall.mul_(0.36 / 0.22).clamp_(0, 0.36).add_(0.64)
        x.add_(0.025).mul_(0.85 / 0.26).clamp_(0, 0.85).add_(0.15)  # little lung beside the spine
        torch.mul(depth, inside, out=air).mul_(x)

    def grid(self, x: Tensor, y: Tensor, width: Tensor, apex: Tensor, base: Tensor) -> Tensor:
        """Where points of a lung lie on an atlas page, (..., 2) in [-1, 1]."""
        (u0, u1), (v0, v1) = atlas.U_RANGE, atlas.V_RANGE
        across = x * (2 / (u1 - u0) / width) - (2 * u0 / (u1 - u0) + 1)
        down = ((y - apex) / (base - apex) - v0) * (2 / (v1 - v0)) - 1
        return torch.stack([across, down], dim=-1)

    def pages(self) -> Tensor:
        """The atlas page of each lung, (B, 2); the two lungs of a patient differ."""
        page = self.body.page.long().clamp(max=atlas.VARIANTS - 1)
        return torch.stack([page, (page + 5) % atlas.VARIANTS], dim=1)

    def sample(self) -> Tensor:
        """Ribs and vessels of every lung, (B, 2, 2, H, S)."""
        source = atlas.pages(self.size, str(self.device), "frontal")[self.pages().flatten()]
        # the map is affine, so the grid is that of row 0 and column 0 plus what one step down adds
        column, zero = self.side_column, torch.zeros_like(self.width)
        shape = (self.width, self.apex, self.base)
        at = self.grid(column, -self.side_tilt * column, *shape).flatten(-2)  # (B, 2, 1, 2 S)
        step_down = self.grid(zero + self.side_tilt, zero + 1, *shape) - self.grid(zero, zero, *shape)
        step_down = step_down.expand(-1, -1, -1, self.strip, -1).reshape(at.shape)
        grid = torch.addcmul(at, self.side_row, step_down).view(-1, self.size, self.strip, 2)
        return functional.grid_sample(source, grid, align_corners=False).unflatten(0, (-1, 2))

    def soft_tissue(self, layer: Tensor) -> None:
        """Body outline and thickness, with the abdomen, written to `layer` (B, H, W)."""
        body, row = self.body, self.row
        stout = self.full(body.stoutness)
        half = self.full(body.lung_width) + 0.10 + 0.07 * stout
        half = half + 0.55 * ((-0.12 - row) / 0.5).clamp(0, 1).square() + 0.05 * ((row - 0.4) / 0.5).clamp(0, 1)
        outline = self.column.abs()
        top = self.full(body.shoulders) + 0.20 * (outline - 0.3) - 2.4 * torch.exp(-(outline / 0.225).square())
        thick = 0.72 + 0.05 * stout + 0.16 * ((row - 0.30) / 0.4).clamp(0, 1)
        thick = thick - 0.16 * ((-0.62 - row) / 0.2).clamp(0, 1)  # the neck is thin
        x, y = self.position()
        within = torch.minimum(half - x.abs(), y.sub_(top), out=y)
        torch.mul(x.square_(), -0.36 / half.square(), out=layer).add_(thick)
        layer *= within.mul_(self.sharp * 0.35).add_(0.5).clamp_(0, 1)

    def centre(self, layer: Tensor) -> None:
        """Add mediastinum, heart, spine and airway to `layer` (B, H, W)."""
        size, body, row = self.size, self.body, self.row
        # the shadow between its two borders: a step at the edge, and depth towards the middle
        middle, half = (self.central_left - self.central_right) / 2, (self.central_left + self.central_right) / 2
        tilt, sharp = self.full(body.tilt), self.sharp / 1.6
        off = torch.add(self.column, tilt * row - middle).abs_()
        shadow = (half * sharp + 0.5 - off * sharp).clamp_(0, 1)
        shadow += (half * (1.25 / 0.22) - off.mul_(1.25 / 0.22)).clamp_(0, 1.25)
        # below the diaphragm it runs into the abdomen
        crest = self.full(body.base + body.breath - body.dome_left)
        layer.addcmul_(shadow, 0.17 - 0.155 * ((row - crest + 0.02) / 0.12).clamp(0, 1))

        near, far = int(size * 0.36), size - int(size * 0.36)
        x = self.column[..., near:far] + tilt * row
        bend = self.full(body.spine_bend) * torch.cos(row * 2.0)
        discs = 0.5 + 0.5 * torch.cos((row - self.full(body.base)) * (2 * math.pi / 0.118))
        off = (x - bend).abs_()
        part = (0.085 / 0.03 - off * (1 / 0.03)).clamp_(0, 1).mul_(0.035 + 0.03 * discs)
        part.addcmul_(off.mul_(-1 / 0.024).add_(1).clamp_(min=0), 0.03 * discs)  # spinous processes

        carina = self.full(body.knob_height) + 0.10
        lean = self.full(body.turn) * 0.6 - 0.015 * ((row + 0.45) / 0.2).clamp(0, 1)
        open_to = 0.15 * ((carina - row) / 0.03).clamp(0, 1) * (1 - 0.3 * ((row + 0.6) / 0.4).clamp(0, 1))
        off = (x - lean).abs_().mul_(-1 / 0.014).add_(0.036 / 0.014).clamp_(0, 1)
        part.addcmul_(off, open_to, value=-1)
        top, bottom = int(size * 0.28), int(size * 0.62)  # rows that the main bronchi can lie in
        below = (row - carina)[:, top:bottom]
        length = ((0.19 - below) / 0.03).clamp(0, 1) * ((below + 0.03) / 0.03).clamp(0, 1) * 0.085
        x, lean = x[:, top:bottom], lean[:, top:bottom]
        for slant, shear in ((0.95, 0.75), (-0.62, 0.62)):  # the left bronchus is flatter and longer than the right
            off = (x - (lean + slant * below)).abs_().mul_(-shear / 0.014).add_(0.026 / 0.014).clamp_(0, 1)
            part[:, top:bottom].addcmul_(off, length, value=-1)
        layer[..., near:far] += part

    def shoulders(self, sided: Tensor) -> None:
        """Add clavicles and shoulder blades to a sided layer, in the upper rows only."""
        body, rows = self.body, int(0.36 * self.size)
        across = self.side_column
        bedside = self.full(body.bedside)[:, None]
        height = self.full(body.clavicle)[:, None] - 0.06 * bedside
        line = height - 0.10 * ((across - 0.07) / 0.6) - 0.08 * torch.sin((across - 0.07) * 4.4).clamp(min=0)
        thick = 0.026 + 0.014 * (1 - (across / 0.14)).clamp(0, 1) + 0.006 * ((across - 0.5) / 0.3).clamp(0, 1)
        reach = ((across - 0.065) / 0.02).clamp(0, 1) * ((0.80 - across) / 0.05).clamp(0, 1)
        off = torch.add(self.side_row[:, :, :rows], -self.side_tilt * across - line).abs_().mul_(1 / thick)
        rim = (1.15 / 0.3 - off * (1 / 0.3)).clamp_(0, 1).mul_(off.clamp_(max=1).mul_(0.34).add_(0.66))
        sided[:, :, :rows].addcmul_(rim, reach * 0.15)
        # shoulder blade: a faint plate with a brighter medial border, over the lung when the arms are down
        rows, near = int(0.60 * self.size), self.size // 3  # of a window, from the picture's edge
        row = self.side_row[:, :, :rows]
        x = torch.stack([across[:, RIGHT, :, :near], across[:, LEFT, :, self.strip - near :]], dim=1)
        border = self.width * 0.98 + self.full(body.scapula)[:, None] - 0.16 * bedside - 0.02 + 0.22 * (row + 0.45)
        border = border - 0.15 * (row + 0.3).clamp(min=0)
        extent = ((row + 0.62) / 0.08).clamp(0, 1) * ((0.10 - row) / 0.14).clamp(0, 1)
        past = torch.add(x, self.side_tilt * row - border)
        blade = past.mul(0.92 / 0.02).clamp_(0, 0.92)
        blade += past.sub_(0.015).abs_().mul_(-1 / 0.022).add_(1).clamp_(min=0)
        extent = extent * 0.06
        sided[:, RIGHT, :rows, :near].addcmul_(blade[:, RIGHT], extent[:, 0])
        sided[:, LEFT, :rows, self.strip - near :].addcmul_(blade[:, LEFT], extent[:, 0])

    def extras(self, sided: Tensor) -> None:
        """Breasts and the stomach's air bubble: nuisance that carries no finding."""
        body, size = self.body, self.size
        women = torch.nonzero(body.female).flatten()
        top, bottom = int(0.36 * size), int(0.84 * size)
        if len(women):
            row, across = self.side_row[women, :, top:bottom], self.side_column[women]
            fall = torch.add(1.6 - 1.6 * ((across - 0.43) / 0.34).square(), -1.6 * ((row - 0.12) / 0.36).square())
            sided[women, :, top:bottom] += fall.clamp_(0, 1).mul_(0.09 * body.breast[women].view(-1, 1, 1, 1))
        gas = self.full(body.stomach).clamp(min=0)
        wide = self.full(body.stomach_width)
        down = self.full(body.base + body.breath - body.dome_left * 0.62) + 0.09
        top = int(0.6 * size)
        across = 2 - 2 * ((self.side_column[:, LEFT] - 0.30) / wide).square()
        bubble = torch.add(across, -2 * ((self.row[:, top:] - down) / (0.55 * wide)).square()).clamp_(0, 1)
        sided[:, LEFT, top:].addcmul_(bubble, -0.20 * gas)

    def assemble(self, layer: Tensor, *, ribs: Tensor, vessels: Tensor, air: Tensor, extra: Tensor) -> None:
        """Attenuation into `layer` (B, H, W) from the layers of both lungs, each (B, 2, H, S); `extra` is used up."""
        body = self.body
        extra.addcmul_(ribs, 0.098 * self.full(body.rib_contrast)[:, None])
        extra.addcmul_((vessels * (0.25 * self.full(body.vessel_contrast)[:, None])).sub_(AIR), air)
        self.shoulders(extra)
        self.extras(extra)
        self.soft_tissue(layer)
        layer[..., : self.strip] += extra[:, RIGHT]
        layer[..., self.size - self.strip :] += extra[:, LEFT]
        self.centre(layer)
