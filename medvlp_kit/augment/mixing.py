"""Mixing studies: pictures and reports (MixGen), or embeddings (feature-space mixup).

Hao et al., "MixGen: A New Multi-Modal Data Augmentation", 2023 (mean of two images, two texts joined); Verma et al.,
"Manifold Mixup", 2019 (mixing hidden features).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KitError
from ..labeller import label_findings
from ..study import ABSENT, PRESENT, UNCERTAIN, Finding, Report
from .pairs import Pairs, Policy, check_probability, chosen
from .sentence_level import HEADS, drop_sentences


def partners(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Another row for each of `count` rows, at random, (B,): one cycle, so nobody is paired with itself or twice."""
    order = torch.randperm(count, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    return other


# ---- in feature space -------------------------------------------------------------------------------------------


def mix_features(image: Tensor, text: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Mixed pairs in the joint space: z = normalise(l z_i + (1 - l) z_j), with the same j and l for image and text.

    image, text: (B, D) unit vectors -> two (B, D) of unit vectors, row i of one belonging to row i of the other. l is
    uniform in [1/2, 1), one a pair, so the first of the two prevails. With different l, or different j, the mixed image
    would not belong to the mixed text. No pixel and no word is touched, so no statement can become false.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise KitError(f"image {tuple(image.shape)} and text {tuple(text.shape)}: both must be (B, D), of one shape")
    other = partners(len(image), generator).to(image.device)
    share = (0.5 + 0.5 * torch.rand(len(image), 1, generator=generator)).to(image)  # (B, 1)
    return tuple(F.normalize(share * part + (1 - share) * part[other], dim=-1) for part in (image, text))


# ---- MixGen -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixGen(Policy):
    """Mix a share of the studies with another: picture = weight x first + (1 - weight) x second, both reports joined.

    A denial of one report that the other's findings contradict is dropped: "no effusion" is false of the mixture when
    the second picture has one. Studies without findings are mixed among themselves only, because a sentence such as
    "normal chest" denies everything. The joined text is long: allow for it in the text length.
    """

    probability: float = 0.25
    weight: float = 0.5
    guarantee: ClassVar[str] = "every statement is true of the mixed picture; signs are fainter by their weight"

    def __post_init__(self):
        check_probability(self, self.probability)
        if not 0 < self.weight < 1:
            raise KitError(f"MixGen(weight={self.weight!r}): give a number between 0 and 1")

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        other, which = torch.arange(len(pairs)), chosen(len(pairs), self.probability, generator)
        healthy = torch.tensor([not _there(findings) for findings in pairs.findings])
        for group in (healthy, ~healthy):
            rows = group.nonzero().flatten()
            other[rows] = rows[partners(len(rows), generator)]
        which &= other != torch.arange(len(pairs))  # a group of one has nobody to mix with
        images, twin = pairs.images, other.to(pairs.images.device)
        mixed = self.weight * images + (1 - self.weight) * images[twin]
        images = torch.where(which.to(images.device).view(-1, 1, 1, 1), mixed, images)
        union = torch.maximum(pairs.labels, pairs.labels[other])  # (B, F), NaN stays NaN
        labels = torch.where(which[:, None], union, pairs.labels)
        reports, findings, regions = list(pairs.reports), list(pairs.findings), list(pairs.regions)
        for row in which.nonzero().flatten().tolist():
            second = int(other[row])
            reports[row] = joined(pairs.reports[row], pairs.reports[second])
            findings[row] = together(pairs.findings[row] + pairs.findings[second])
            regions[row] = pairs.regions[row] + pairs.regions[second]
        return pairs.but(
            images=images, labels=labels, reports=tuple(reports), findings=tuple(findings), regions=tuple(regions)
        )


def joined(first: Report, second: Report) -> Report:
    """One report of two, section by section, without the denials that the other one contradicts."""
    if first.language != second.language:
        languages = f"{first.language!r} and {second.language!r}"
        raise KitError(f"reports in {languages} cannot be joined: mix within one language")
    there = [
        _there(label_findings(report.text, language=report.language).values()) for report in (first, second)
    ]
    one = drop_sentences(first, lambda fact: fact[1] == ABSENT and fact[0] in there[1])
    two = drop_sentences(second, lambda fact: fact[1] == ABSENT and fact[0] in there[0])
    if bool(one.findings + one.impression) != bool(two.findings + two.impression):  # one has sections, one has not
        return Report(text=f"{one.text}\n{two.text}", language=first.language)
    found, concluded = (
        "\n".join(filter(None, (getattr(one, part), getattr(two, part)))) for part in ("findings", "impression")
    )
    if not found + concluded:
        return replace(one, text=f"{one.text}\n{two.text}")
    heads = HEADS.get(first.language, HEADS["en"])
    text = "\n".join(f"{head}: {body}" for head, body in zip(heads, (found, concluded), strict=True) if body)
    return Report(text=text, findings=found, impression=concluded, language=first.language)


def _there(findings) -> frozenset[str]:
    return frozenset(finding.name for finding in findings if finding.status != ABSENT)


def together(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Statements about two pictures as statements about their mixture, one a finding, as the labeller joins them."""
    merged = []
    for name in dict.fromkeys(finding.name for finding in findings):
        same = [finding for finding in findings if finding.name == name]
        status = max((finding.status for finding in same), key=(ABSENT, UNCERTAIN, PRESENT).index)
        same = [finding for finding in same if finding.status == status]

        def all_of(field: str, several: str | None = None) -> str | None:
            values = {value for finding in same if (value := getattr(finding, field)) is not None}
            return several if len(values) > 1 else next(iter(values), None)

        merged.append(Finding(name, status, all_of("side", "bilateral"), all_of("zone"), all_of("severity")))
    return tuple(merged)
