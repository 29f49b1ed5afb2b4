"""`Pairs`: images and what is said of them; `Policy`: what changes both; `Chain`, `two_views`: policies together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import KitError
from ..study import Collection, Finding, Region, Report

TRUE = "nothing false"  # whatever the report states is so in the picture: finding, polarity, side
WHOLE = "nothing lost"  # and every finding of the picture is still stated


@dataclass(frozen=True)
class Pairs:
    """B images and what is known of them: everything an augmentation may have to change together.

    images:   (B, C, H, W) float32 in [0, 1]
    reports:  B reports
    findings: B tuples: what is stated of each picture, with the patient's side
    regions:  B tuples of regions in the pixels of `images`; all empty where boxes are not known
    labels:   (B, F) float32: 1 present, 0 absent, NaN unknown; columns are `label_names`
    view:     which view the images are
    """

    images: Tensor
    reports: tuple[Report, ...]
    findings: tuple[tuple[Finding, ...], ...]
    regions: tuple[tuple[Region, ...], ...]
    labels: Tensor
    label_names: tuple[str, ...] = ()
    view: str = "frontal"

    def __post_init__(self):
        counts = {len(part) for part in (self.images, self.reports, self.findings, self.regions, self.labels)}
        if len(counts) != 1 or self.images.ndim != 4:
            raise KitError(
                f"pairs hold {len(self.images)} images {tuple(self.images.shape)}, {len(self.reports)} reports, "
                f"{len(self.findings)} findings, {len(self.regions)} regions, {len(self.labels)} rows of labels: "
                "give (B, C, H, W) and B of each"
            )

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, collection: Collection, indices: Sequence[int], *, size: int, view: str = "frontal",
           boxes: bool = True) -> Pairs:  # fmt: skip
        """The pairs of some studies; `boxes=False` leaves the regions out: slow to draw and often not needed."""
        indices = [int(i) for i in indices]
        return cls(
            images=collection.images(indices, size=size, view=view),
            reports=tuple(collection.report(i) for i in indices),
            findings=tuple(tuple(collection.findings(i)) for i in indices),
            regions=tuple(tuple(collection.regions(i, size=size, view=view)) if boxes else () for i in indices),
            labels=collection.labels(indices),
            label_names=tuple(collection.label_names),
            view=view,
        )

    def but(self, **changes) -> Pairs:
        return replace(self, **changes)


class Policy(ABC):
    """A rule that changes pairs at random: `policy(pairs, generator=...) -> pairs`, all of a batch at once.

    Policies are frozen dataclasses, so their `repr` says all there is to know. `promises` is what the checker holds
    them to, of `TRUE` and `WHOLE`; `guarantee` says the same, and its conditions, to people. The generator is the only
    source of chance. Draws are made on the CPU, so that they do not depend on the device of the images.
    """

    promises: ClassVar[tuple[str, ...]] = (TRUE, WHOLE)
    guarantee: ClassVar[str] = ""
    needs_boxes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs: ...

    @property
    def name(self) -> str:
        """Its class and what was set otherwise than by default: `Crop(scale=(0.2, 1.0))`."""
        own = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(own)})" if own else type(self).__name__

    @property
    def steps(self) -> tuple[Policy, ...]:
        """The policies this one is made of."""
        return (self,)


@dataclass(frozen=True, init=False, repr=False)
class Chain(Policy):
    """Several policies, one after another; it guarantees what all of them guarantee."""

    members: tuple[Policy, ...]

    def __init__(self, *members: Policy):
        for member in members:
            if not isinstance(member, Policy):
                raise KitError(f"Chain got {member!r}: give policies, such as Chain(CoupledFlip(), Intensity())")
        object.__setattr__(self, "members", members)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.members))})"

    @property
    def name(self) -> str:
        return f"Chain({', '.join(member.name for member in self.members)})"

    @property
    def promises(self) -> tuple[str, ...]:
        return tuple(promise for promise in (TRUE, WHOLE) if all(promise in member.promises for member in self.members))

    @property
    def guarantee(self) -> str:
        return "; ".join(member.guarantee for member in self.members)

    @property
    def needs_boxes(self) -> bool:
        return any(member.needs_boxes for member in self.members)

    @property
    def steps(self) -> tuple[Policy, ...]:
        return tuple(step for member in self.members for step in member.steps)

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        for member in self.members:
            pairs = member(pairs, generator=generator)
        return pairs


def two_views(pairs: Pairs, policy: Policy, *, generator: torch.Generator) -> tuple[Pairs, Pairs]:
    """Two independent draws of `policy` from the same studies, for objectives that compare views (SimCLR, CXR-CLIP).

    Each draw keeps the policy's guarantee by itself: image 1 fits text 1 and image 2 fits text 2. Image 1 fits text 2
    only under a policy that moves nothing, such as `Intensity` and the sentence policies.
    """
    return policy(pairs, generator=generator), policy(pairs, generator=generator)


def chosen(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(B,) bool: which of `count` pairs a policy acts on."""
    return torch.rand(count, generator=generator) < probability


def check_probability(policy: Policy, value: float) -> None:
    if not 0 <= value <= 1:
        raise KitError(f"{type(policy).__name__}(probability={value!r}): give a number from 0 to 1")
