"""What both views share: exposure, noise, collimation and the marker letter."""

from __future__ import annotations

import torch
from torch import Tensor

from . import atlas
from .anatomy import RIGHT, Anatomy


def ramp(distance: Tensor, width) -> Tensor:
    """0 outside, 1 inside, linear over `width` about the edge: an antialiased step."""
    return (distance / width + 0.5).clamp_(0, 1)


class Film:
    """A batch on its way from attenuation to grey values; views add the geometry."""

    body: Anatomy
    size: int  # pixels a side
    device: torch.device | str

    def full(self, value: Tensor) -> Tensor:
        """Numbers of the exams (B,) beside pictures: (B, 1, 1)."""
        return value.view(-1, 1, 1)

    def clouds(self, exam: Tensor | None = None) -> Tensor:
        """Slow noise (B or n, H, W) of unit variance, the same for one exam whatever the batch."""
        body, bank = self.body, atlas.noise(self.size, str(self.device))[1]
        x, y = body.cloud_x.long(), body.cloud_y.long()
        return atlas.slices(bank, self.size, *((x, y) if exam is None else (x[exam], y[exam])))

    def expose(self, layer: Tensor, *, marker: bool = True) -> Tensor:
        """Film: attenuation to grey values in [0, 1], (B, H, W), with noise, collimation and marker."""
        body = self.body
        white = atlas.slices(atlas.noise(self.size, str(self.device))[0], self.size,
                             body.noise_x.long(), body.noise_y.long())  # fmt: skip
        # a finer pixel catches fewer quanta
        layer = torch.addcmul(layer, white, self.full(body.noise) * (0.6 + 0.4 * self.size / 128))
        gain = 5.2 * self.full(body.contrast)
        film = torch.sigmoid(layer.sub_(0.50 - 0.2 * self.full(body.brightness)).mul_(gain))
        bend = self.full(body.gamma) - 1
        film = film * (1 + bend - bend * film)
        if marker:  # a letter names a side of the picture, which a lateral view does not have
            self._marker(film)
        return film.mul_(self._collimation()).clamp_(0, 1)

    def _collimation(self) -> Tensor:
        body, size = self.body, self.size
        place = torch.arange(size, device=self.device, dtype=torch.float32) / size
        used = (body.collimation < 0.25).float()

        def open_from(near: Tensor, far: Tensor) -> Tensor:
            low, high = (near * 0.05 * used).view(-1, 1), (1 - far * 0.05 * used).view(-1, 1)
            return ((place >= low) & (place < high)).float()  # (B, size)

        return open_from(body.edge_top, body.edge_bottom)[:, :, None] * open_from(body.edge_left, body.edge_right)[:, None]

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
