"""Left-right flips: the habit that makes reports lie, and two that do not.

The patient's right is on the picture's left. A mirrored film shows what was on the right on the left, and a report that
still says "right" is then false. `CoupledFlip` exchanges the words with the sides; `SidelessFlip` says no side at all.

What no flip can repair: the heart of a mirrored patient points to the right, and a marker letter is mirrored too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import KitError, unknown
from ..study import Finding, Region
from ..text import swap_sides
from .pairs import TRUE, Pairs, Policy, check_probability, chosen
from .sides import mirrored_text, refuse, why_not_mirrored, without_sides

OTHER = {"left": "right", "right": "left"}
REFUSED = ("raise", "keep")


def flip_images(images: Tensor, which: Tensor) -> Tensor:
    """(B, C, H, W), those where `which` (B,) is true mirrored left to right."""
    return torch.where(which.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def mirror_region(region: Region, width: int) -> Region:
    """The region of the mirrored picture: half-open edges go from x to width - x, and the patient's side changes.

    A side in the label itself ("right lung") changes too; so it does in findings and in the columns of labels.
    """
    x0, y0, x1, y1 = region.box
    mask = None if region.mask is None else region.mask.flip(-1)
    side = OTHER.get(region.side, region.side)
    box = (width - x1, y0, width - x0, y1)
    return replace(region, label=swap_sides(region.label), box=box, mask=mask, side=side)


def mirror_finding(finding: Finding) -> Finding:
    return replace(finding, name=swap_sides(finding.name), side=OTHER.get(finding.side, finding.side))


def mirror_columns(names: tuple[str, ...]) -> list[int]:
    """For each column of labels the one that holds its value after a flip: itself, unless its name says a side."""
    mirrored = [swap_sides(name) for name in names]
    for name, other in zip(names, mirrored, strict=True):
        if other not in names:
            raise KitError(f"label {name!r} names a side, but there is no label {other!r} to exchange with: do not flip")
    return [names.index(name) for name in mirrored]


def flip(pairs: Pairs, which: Tensor | None = None) -> Pairs:
    """The mirrored patients: picture, words, findings and regions together. Its own inverse, bit for bit.

    which: (B,) bool; None flips all. A study that cannot be mirrored (`why_not_mirrored`) is a `KitError`.
    """
    which = torch.ones(len(pairs), dtype=torch.bool) if which is None else which
    rows = which.tolist()
    for row, report in enumerate(pairs.reports):
        if rows[row] and (reason := why_not_mirrored(report, view=pairs.view)):
            raise refuse(report, reason, row=row)
    moved = _moved(pairs, which)
    reports = [mirrored_text(report) if turn else report for report, turn in zip(pairs.reports, rows, strict=True)]
    return moved.but(reports=tuple(reports))


def _moved(pairs: Pairs, which: Tensor) -> Pairs:
    """Everything mirrored but the text."""
    width, rows = pairs.images.shape[-1], which.tolist()

    def turned(parts, mirror):
        return tuple(tuple(map(mirror, part)) if turn else part for part, turn in zip(parts, rows, strict=True))

    return pairs.but(
        images=flip_images(pairs.images, which),
        labels=torch.where(which[:, None], pairs.labels[:, mirror_columns(pairs.label_names)], pairs.labels),
        findings=turned(pairs.findings, mirror_finding),
        regions=turned(pairs.regions, lambda region: mirror_region(region, width)),
    )


@dataclass(frozen=True)
class CoupledFlip(Policy):
    """Mirror the picture and exchange left and right in text, findings and regions.

    refused: what becomes of a study that cannot be mirrored: "raise" an error, or "keep" it as it is.
    """

    probability: float = 0.5
    refused: str = "raise"
    guarantee: ClassVar[str] = "sides in text, findings and regions follow the picture; flipping twice gives all back"

    def __post_init__(self):
        _check(self)

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        return flip(pairs, _allowed(pairs, chosen(len(pairs), self.probability, generator), self.refused))


@dataclass(frozen=True)
class SidelessFlip(Policy):
    """Mirror the picture and say no side, in mirrored and unmirrored pairs alike. A model cannot learn sides from it.

    Side words are removed everywhere, because words that appear only beside unmirrored films would tell which is which.
    """

    probability: float = 0.5
    refused: str = "raise"
    promises: ClassVar[tuple[str, ...]] = (TRUE,)
    guarantee: ClassVar[str] = "no side is stated of anything, so none can be false; findings and polarity stay"

    def __post_init__(self):
        _check(self)

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        which = _allowed(pairs, chosen(len(pairs), self.probability, generator), self.refused)
        moved = _moved(pairs, which)
        return moved.but(reports=tuple(map(without_sides, pairs.reports)))


@dataclass(frozen=True)
class BlindFlip(Policy):
    """The published habit: mirror the picture, leave the report as it is. Guarantees nothing; for lessons and controls.

    Findings and regions are mirrored: they say what is in the picture now.
    """

    probability: float = 0.5
    promises: ClassVar[tuple[str, ...]] = ()
    guarantee: ClassVar[str] = "nothing: a report that names a side is false after the flip"

    def __post_init__(self):
        check_probability(self, self.probability)

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        return _moved(pairs, chosen(len(pairs), self.probability, generator))


def _check(policy: CoupledFlip | SidelessFlip) -> None:
    check_probability(policy, policy.probability)
    if policy.refused not in REFUSED:
        raise unknown("answer to refused studies", policy.refused, REFUSED)


def _allowed(pairs: Pairs, which: Tensor, refused: str) -> Tensor:
    """`which` (B,), without the studies that cannot be mirrored where these are to be kept."""
    for row, turn in enumerate(which.tolist()):
        if turn and (reason := why_not_mirrored(pairs.reports[row], view=pairs.view)):
            if refused == "raise":
                raise refuse(pairs.reports[row], reason, row=row)
            which[row] = False
    return which
