"""Random crops, with the words about what was cut.

A crop enlarges a part of the picture. Where the boxes of the findings are known, it is known what is lost: a finding of
which less than `inside` is left is cut, and the sentences that state it are dropped, so that nobody is taught to see
what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KitError, unknown
from ..study import ABSENT, Region, Report
from .pairs import TRUE, Pairs, Policy, check_probability, chosen
from .sentence_level import drop_sentences

CUTS = ("drop", "skip")


def crop(images: Tensor, frames: Tensor) -> Tensor:
    """The part of each image inside its frame, at the size of the whole: (B, C, H, W), (B, 4) -> (B, C, H, W).

    frames: (x0, y0, x1, y1) in pixels, half-open, not necessarily whole; bilinear.
    """
    height, width = images.shape[-2:]
    x0, y0, x1, y1 = frames.to(images).unbind(1)  # (B,) each
    theta = images.new_zeros(len(images), 2, 3)  # from [-1, 1] of the result to [-1, 1] of the picture
    theta[:, 0, 0], theta[:, 0, 2] = (x1 - x0) / width, (x0 + x1) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (y1 - y0) / height, (y0 + y1) / height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def share_inside(region: Region, frame: tuple[float, float, float, float]) -> float:
    """How much of a region lies in a frame: of its mask where there is one, else of its box."""
    x0, y0, x1, y1 = frame
    if region.mask is not None:
        rows, columns = region.mask.nonzero(as_tuple=True)  # pixel centres are at + 1/2
        within = (columns + 0.5 >= x0) & (columns + 0.5 < x1) & (rows + 0.5 >= y0) & (rows + 0.5 < y1)
        return float(within.float().mean()) if len(within) else 0.0
    left, top, right, bottom = region.box
    width, height = max(0.0, min(right, x1) - max(left, x0)), max(0.0, min(bottom, y1) - max(top, y0))
    return width * height / ((right - left) * (bottom - top))


def crop_region(region: Region, frame: tuple[float, float, float, float], size: tuple[int, int]) -> Region:
    """The region in the pixels of the crop, cut at its edges; size: (height, width) of the picture."""
    height, width = size
    x0, y0, x1, y1 = frame
    across, down = width / (x1 - x0), height / (y1 - y0)
    left, top, right, bottom = region.box
    box = (
        min(max((left - x0) * across, 0.0), width), min(max((top - y0) * down, 0.0), height),
        min(max((right - x0) * across, 0.0), width), min(max((bottom - y0) * down, 0.0), height),
    )  # fmt: skip
    mask = region.mask
    if mask is not None:
        mask = crop(mask[None, None].float(), torch.tensor([frame]))[0, 0] > 0.5
    return replace(region, box=box, mask=mask)


@dataclass(frozen=True)
class Crop(Policy):
    """A square part of the picture, of `scale` of its area, enlarged; sentences follow what is left.

    inside: the share of every one of its regions that a finding needs to count as still there
    cut:    "drop" the sentences about findings that are cut, or "skip" the crop of such a study
    A finding without a region is not known to be inside, so it counts as cut. A study of whose report nothing would be
    left is not cropped. Labels of findings that are cut become unknown: a part is still there, or may be.
    """

    scale: tuple[float, float] = (0.6, 1.0)
    inside: float = 0.7
    cut: str = "drop"
    probability: float = 1.0
    promises: ClassVar[tuple[str, ...]] = (TRUE,)
    guarantee: ClassVar[str] = "what is stated to be there is there, by at least the share `inside`; other facts stay"
    needs_boxes: ClassVar[bool] = True

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            name = type(self).__name__
            raise KitError(f"{name}(scale={self.scale!r}): give two shares of the area, 0 < low <= high <= 1")
        check_probability(self, self.probability)
        if self.cut not in CUTS:
            raise unknown("answer to cut findings", self.cut, CUTS)

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        frames = self.frames(pairs, generator)  # (B, 4)
        lost = [self.lost(pairs, row, tuple(frame)) for row, frame in enumerate(frames.tolist())]
        reports = list(pairs.reports)
        for row, names in enumerate(lost):
            if not names:
                continue
            shorter = self.shorten(reports[row], names)
            if shorter is None:
                frames[row], lost[row] = self.whole(pairs), frozenset()
            else:
                reports[row] = shorter
        return self.cropped(pairs, frames, lost).but(reports=tuple(reports))

    @staticmethod
    def whole(pairs: Pairs) -> Tensor:
        height, width = pairs.images.shape[-2:]
        return torch.tensor([0.0, 0.0, width, height])

    def frames(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """A random square a picture, (B, 4)."""
        height, width = pairs.images.shape[-2:]
        drawn = torch.rand(3, len(pairs), generator=generator)
        side = (self.scale[0] + (self.scale[1] - self.scale[0]) * drawn[0]).sqrt()  # of a picture of side one
        side = torch.where(chosen(len(pairs), self.probability, generator), side, torch.ones(()))
        left, top = drawn[1] * (1 - side), drawn[2] * (1 - side)
        return torch.stack([left * width, top * height, (left + side) * width, (top + side) * height], dim=1)

    def lost(self, pairs: Pairs, row: int, frame: tuple[float, float, float, float]) -> frozenset[str]:
        """The findings of a study that the frame cuts."""
        if frame == tuple(self.whole(pairs).tolist()):
            return frozenset()
        stated = {finding.name for finding in pairs.findings[row] if finding.status != ABSENT}
        if stated and not any(pairs.regions):
            raise KitError(
                f"report {row} of the batch states findings, but no region of the batch is known, so nobody knows what "
                "a crop cuts: use a collection with boxes, or Intensity()"
            )
        there = {region.label for region in pairs.regions[row]}
        cut = {region.label for region in pairs.regions[row] if share_inside(region, frame) < self.inside}
        return frozenset((stated - there) | cut)

    def shorten(self, report: Report, names: frozenset[str]) -> Report | None:
        """The report without the sentences about `names`; None where the picture must stay whole instead."""
        if self.cut == "skip":
            return None
        shorter = drop_sentences(report, lambda fact: fact[0] in names and fact[1] != ABSENT)
        sections = report.findings + report.impression
        left = shorter.findings + shorter.impression if sections else shorter.text
        return shorter if left.strip() else None

    def cropped(self, pairs: Pairs, frames: Tensor, lost: list[frozenset[str]]) -> Pairs:
        """Everything but the text, as it is in the frames."""
        size = tuple(pairs.images.shape[-2:])
        labels = pairs.labels.clone()
        uncut = (frames == self.whole(pairs)).all(1)  # (B,): these keep their very bits
        findings, regions = [], []
        for row, frame in enumerate(map(tuple, frames.tolist())):
            if uncut[row]:
                findings.append(pairs.findings[row])
                regions.append(pairs.regions[row])
                continue
            findings.append(tuple(f for f in pairs.findings[row] if f.name not in lost[row]))
            there = [r for r in pairs.regions[row] if share_inside(r, frame) >= self.inside]
            regions.append(tuple(crop_region(region, frame, size) for region in there))
            for name in lost[row] & set(pairs.label_names):
                labels[row, pairs.label_names.index(name)] = torch.nan
        images = torch.where(uncut.to(pairs.images.device).view(-1, 1, 1, 1), pairs.images, crop(pairs.images, frames))
        return pairs.but(images=images, findings=tuple(findings), regions=tuple(regions), labels=labels)


@dataclass(frozen=True)
class BlindCrop(Crop):
    """The published habit: cut the picture, leave the report as it is. Guarantees nothing; for lessons and controls."""

    promises: ClassVar[tuple[str, ...]] = ()
    guarantee: ClassVar[str] = "nothing: a report may state what was cut away"

    def shorten(self, report: Report, names: frozenset[str]) -> Report:
        return report
