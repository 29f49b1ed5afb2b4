"""`Budget`: every size in the kit comes from here, so one word moves a lesson from a test to a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

from .errors import KitError, unknown


@dataclass(frozen=True)
class Budget:
    """Sizes and times of one way to run the kit."""

    name: str
    # data
    image_size: int  # pixels a side
    train_studies: int
    test_studies: int
    text_length: int  # tokens, at most
    vocabulary_size: int
    # model
    image_model: str  # a timm name
    text_width: int
    text_layers: int
    text_heads: int
    embedding_width: int  # of the shared space
    # loop
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_fraction: float = 0.1
    # evaluation
    resamples: int = 1000  # of a bootstrap
    seeds: int = 3  # of an experiment that prints an interval
    # notebooks
    cell_seconds: int = 600  # a cell that runs longer is stopped

    @property
    def steps(self) -> int:
        """Optimiser steps of one pretraining run (the last, partial batch is dropped)."""
        return max(1, self.train_studies // self.batch_size) * self.epochs

    def but(self, **changes) -> Budget:
        """The same budget with some sizes changed; unknown names are errors."""
        names = {f.name for f in fields(self)}
        for name in changes:
            if name not in names:
                raise unknown("budget field", name, names)
        return replace(self, **changes)


BUDGETS = {
    "tiny": Budget(
        name="tiny", image_size=32, train_studies=64, test_studies=48, text_length=32, vocabulary_size=600,
        image_model="resnet10t", text_width=32, text_layers=1, text_heads=2, embedding_width=32,
        batch_size=16, epochs=2, learning_rate=1e-3, resamples=100, seeds=2, cell_seconds=120,
    ),
    "laptop": Budget(
        name="laptop", image_size=64, train_studies=11_000, test_studies=1_000, text_length=64, vocabulary_size=2_000,
        image_model="kit_resnet10", text_width=128, text_layers=2, text_heads=4, embedding_width=128,
        batch_size=32, epochs=3, learning_rate=2e-3,
    ),
    "gpu": Budget(
        name="gpu", image_size=224, train_studies=200_000, test_studies=5_000, text_length=128, vocabulary_size=4_000,
        image_model="resnet50", text_width=512, text_layers=6, text_heads=8, embedding_width=512,
        batch_size=256, epochs=4, learning_rate=5e-4, cell_seconds=7_200,
    ),
}  # fmt: skip


def budget(name: str | Budget | None = None) -> Budget:
    """The budget called `name`; None reads MEDVLP_BUDGET and falls back to laptop."""
    if isinstance(name, Budget):
        return name
    name = name or os.environ.get("MEDVLP_BUDGET") or "laptop"
    if not isinstance(name, str):
        raise KitError(f"a budget is a name or a Budget, not {type(name).__name__}: use budget('laptop')")
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return BUDGETS[name]
