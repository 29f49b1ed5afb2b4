"""Augmented studies as a `Collection`, so that collation reads them like any others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import KitError
from ..study import Collection, Finding, Region, Report, Study
from .pairs import Pairs, Policy


class Augmented(Collection):
    """The studies `indices` of another collection as one draw of a policy left them: one view, at one size."""

    def __init__(self, parent: Collection, indices: Sequence[int], pairs: Pairs):
        self.parent, self.pairs = parent, pairs
        self.rows = {index: row for row, index in enumerate(indices)}
        self.name, self.label_names, self.channels = parent.name, parent.label_names, parent.channels

    def __len__(self) -> int:
        return len(self.parent)

    def study(self, index: int) -> Study:
        raise KitError("an augmented batch has no whole studies: ask the collection it came from")

    def images(self, indices: Sequence[int], *, size: int, view: str = "frontal") -> Tensor:
        own = self.pairs.images
        if view != self.pairs.view or size != own.shape[-1]:
            there = f"{self.pairs.view} of {own.shape[-1]} pixels"
            raise KitError(f"this batch was augmented as {there}, not {view} of {size}: collate it anew")
        return own[[self.rows[i] for i in indices]]

    def labels(self, indices: Sequence[int]) -> Tensor:
        return self.pairs.labels[[self.rows[i] for i in indices]]

    def regions(self, index: int, *, size: int, view: str = "frontal") -> tuple[Region, ...]:
        return self.pairs.regions[self.rows[index]]

    def report(self, index: int) -> Report:
        return self.pairs.reports[self.rows[index]]

    def findings(self, index: int) -> tuple[Finding, ...]:
        return self.pairs.findings[self.rows[index]]


def augmented(
    collection: Collection, indices: Sequence[int], policy: Policy, *, size: int, views: Sequence[str], seed: int
) -> Augmented:
    """One batch of `collection` under a policy; the same for the same seed and indices, in every process."""
    if len(views) != 1 or " x" in views[0]:
        raise KitError(f"a policy changes one view together with its report, not {', '.join(views)}: ask for one view")
    pairs = Pairs.of(collection, indices, size=size, view=views[0], boxes=policy.needs_boxes)
    return Augmented(collection, indices, policy(pairs, generator=generator_of(seed, indices)))


def generator_of(seed: int, indices: Sequence[int]) -> torch.Generator:
    """The chance of one batch: a function of the seed and its studies."""
    words = f"augment {seed} {','.join(map(str, indices))}".encode()
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(number)
