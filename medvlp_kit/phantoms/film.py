"""What both views share: the picture's frame, exposure, noise, collimation and the marker letter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import atlas
from .anatomy import RIGHT, Anatomy, Marks


def ramp(distance: Tensor, width) -> Tensor:
    """0 outside, 1 inside, linear over `width` about the edge: an antialiased step. A new tensor."""
    return (distance / width).add_(0.5).clamp_(0, 1)


class Film:
    """A batch on its way from attenuation to grey values; views add the anatomy.

    Lengths are in half-pictures of the body: `column` (B, 1, W) and `row` (B, H, 1) are the pixels' places after the
    exam's scale and shift, 0 on the midline; `pixel` (B, 1, 1) is the side of a pixel.
    """

    def __init__(self, body: Anatomy, marks: dict[str, Marks], size: int, device: torch.device | str):
        self.body, self.marks, self.size, self.device = body, marks, size, device
        centres = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1
        scale = self.full(body.scale)
        self.column = (centres.view(1, 1, -1) - self.full(body.shift_x)) / scale
        self.row = (centres.view(1, -1, 1) - self.full(body.shift_y)) / scale
        self.pixel = 2 / size / scale
        self.edge = self.pixel.clamp(min=0.008) * 1.3  # width of a sharp edge
        self.sharp = 1 / self.edge

    def full(self, value: Tensor) -> Tensor:
        """Numbers of the exams (B,) beside pictures: (B, 1, 1)."""
        return value.view(-1, 1, 1)

    def position(self, exam: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """x and y of every pixel (B or n, H, W), in the frame of the tilted body."""
        column, row, tilt = self.column[exam], self.row[exam], self.full(self.body.tilt[exam])
        return column + tilt * row, row - tilt * column

    def clouds(self, exam: Tensor) -> Tensor:
        """Slow noise (n, H, W) of unit variance, the same for one exam whatever the batch."""
        body, bank = self.body, atlas.noise(self.size, str(self.device))[1]
        return atlas.slices(bank, self.size, body.cloud_x[exam].long(), body.cloud_y[exam].long())

    def wire(self, exam: Tensor, path: list[tuple[Tensor, Tensor]], width: float) -> Tensor:
        """Cover (n, H, W) of a wire through the points of `path`, each a pair (n, 1, 1) of places in the body.

        The wire is a dense row of dots, and only the few pixels about each dot are touched.
        """
        size, many = self.size, math.ceil(0.25 * self.size)  # dots a segment: closer than a pixel
        knots = torch.stack([torch.cat([x.view(-1, 1), y.view(-1, 1)], 1) for x, y in path], 1)  # (n, K, 2)
        along = torch.arange(many, device=self.device).view(1, 1, -1, 1) / many
        dots = torch.lerp(knots[:, :-1, None], knots[:, 1:, None], along).flatten(1, 2)  # (n, P, 2)
        tilt, scale = self.body.tilt[exam][:, None], self.body.scale[exam][:, None]
        x, y = dots.unbind(-1)
        column = (x - tilt * y) / (1 + tilt.square()) * scale + self.body.shift_x[exam][:, None]
        row = (y + tilt * x) / (1 + tilt.square()) * scale + self.body.shift_y[exam][:, None]
        column, row = ((place + 1) * (size / 2) - 0.5 for place in (column, row))
        pixel = self.pixel[exam][:, 0]
        thick = (width / pixel).clamp(min=0.55)  # in pixels, (n, 1)
        reach = math.ceil(1.45 * float(max(0.55, width * 0.6 * size))) + 1
        window = torch.arange(-reach, reach + 1, device=self.device)
        columns, rows = column.round()[..., None] + window, row.round()[..., None] + window  # (n, P, R)
        far = (rows - row[..., None]).square()[..., :, None] + (columns - column[..., None]).square()[..., None, :]
        value = (1.45 - far.sqrt_() / thick[..., None, None]).clamp_(0, 1)
        value *= ((columns >= 0) & (columns < size))[..., None, :]
        place = rows.clamp(0, size - 1)[..., :, None] * size + columns.clamp(0, size - 1)[..., None, :]
        value *= ((rows >= 0) & (rows < size))[..., :, None]
        cover = torch.zeros((len(exam), size * size), device=self.device)
        cover.scatter_reduce_(1, place.flatten(1).long(), value.flatten(1), "amax")
        return cover.view(-1, size, size)

    def expose(self, layer: Tensor, *, marker: bool = True) -> Tensor:
        """Film: attenuation to grey values in [0, 1], (B, H, W), with noise, collimation and marker. In place."""
        body = self.body
        white = atlas.slices(atlas.noise(self.size, str(self.device))[0], self.size,
                             body.noise_x.long(), body.noise_y.long())  # fmt: skip
        gain = 5.2 * self.full(body.contrast)
        # a finer pixel catches fewer quanta
        layer.addcmul_(white, self.full(body.noise) * (0.6 + 0.4 * self.size / 128))
        film = layer.mul_(gain).sub_(gain * (0.50 - 0.2 * self.full(body.brightness))).sigmoid_()
        bend = self.full(body.gamma) - 1
        film *= (film * -bend).add_(1 + bend)
        if marker:  # a letter names a side of the picture, which a lateral view does not have
            self._marker(film)
        used = torch.nonzero(body.collimation < 0.25).flatten()
        film[used] *= self._window(used)
        return film.clamp_(0, 1)

    def _window(self, exam: Tensor) -> Tensor:
        """1 inside the collimator's window, which only some exams show; (n, H, W)."""
        body, size = self.body, self.size
        place = torch.arange(size, device=self.device, dtype=torch.float32) / size

        def between(near: Tensor, far: Tensor) -> Tensor:
            low, high = (near[exam] * 0.05).view(-1, 1), (1 - far[exam] * 0.05).view(-1, 1)
            return ((place >= low) & (place < high)).float()  # (n, size)

        rows, columns = between(body.edge_top, body.edge_bottom), between(body.edge_left, body.edge_right)
        return rows[:, :, None] * columns[:, None]

    def _marker(self, film: Tensor) -> None:
        """The letter R or L, always on the side it names."""
        body, size = self.body, self.size
        which = body.marker.long()
        glyphs = atlas.letters(size, str(self.device))
        height, width = glyphs.shape[1:]
        rows = torch.nonzero(which > 0).flatten()
        if not len(rows):
            return
        side = which[rows] - 1
        inset = (body.marker_x[rows] * size).long()
        left = torch.where(side == RIGHT, inset, size - width - inset)
        down = (body.marker_y[rows] * size).long()
        across = left[:, None, None] + torch.arange(width, device=self.device)[None, None]
        along = down[:, None, None] + torch.arange(height, device=self.device)[None, :, None]
        exam = rows[:, None, None]
        film[exam, along, across] = torch.maximum(film[exam, along, across], 0.95 * glyphs[side])
