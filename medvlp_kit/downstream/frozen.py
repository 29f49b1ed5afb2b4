"""Features of a frozen image encoder on train, validation and test studies: each image is encoded once for all probes.

Reports are not read and texts not encoded: a probe needs images and labels alone. The same for the random-weight control.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..budget import Budget
from ..budget import budget as budget_of
from ..errors import KitError, unknown
from ..study import SPLITS, Collection
from .encode import device_of, evaluating, held_out, randomised

FEATURES = ("pooled", "embedding")


@dataclass(frozen=True)
class Part:
    """N encoded images: pooled (N, W) of the encoder, embedding (N, D) unit vectors of the joint space, labels (N, C)."""

    pooled: np.ndarray
    embedding: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows) -> Part:
        """Some of the studies."""
        return Part(self.pooled[rows], self.embedding[rows], self.labels[rows])

    def features(self, name: str) -> np.ndarray:
        if name not in FEATURES:
            raise unknown("features", name, FEATURES)
        return getattr(self, name)


def encode_images(
    model, collection: Collection, *, image_size: int, batch_size: int = 64, view: str = "frontal"
) -> Part:
    """Encode the images of a collection once, in evaluation mode; the result does not depend on `batch_size`."""
    if len(collection) == 0:
        raise KitError(f"{collection.name} has no study to encode: choose another split or data set")
    device, pooled, joint = device_of(model), [], []
    with evaluating(model):
        for start in range(0, len(collection), batch_size):
            rows = list(range(start, min(start + batch_size, len(collection))))
            image = model.encode_image(collection.images(rows, size=image_size, view=view).to(device))
            pooled.append(image.pooled.float().cpu())
            joint.append(model.embed_image(image).float().cpu())
    labels = collection.labels(list(range(len(collection))))
    return Part(torch.cat(pooled).numpy(), torch.cat(joint).numpy(), labels.numpy().astype(float))


class Transfer:
    """One model before the train, validation and test studies of a downstream task.

    train_studies: labelled studies at most, drawn at random (the budget's when None); validation and test: the budget's
    test_studies at most. Features are made on first use and kept; `control` is the same with random weights.
    """

    def __init__(
        self, model, collection: Collection, *, budget: str | Budget | None = None, train_studies: int | None = None,
        seed: int = 0,
    ):  # fmt: skip
        self.model, self.collection, self.budget, self.seed = model, collection, budget_of(budget), seed
        if not collection.label_names:
            raise KitError(f"{collection.name} has no labels, so nothing can be learned from them: choose another data set")
        self.names = list(collection.label_names)
        most = {split: self.budget.test_studies for split in SPLITS}
        most["train"] = train_studies or self.budget.train_studies
        self.studies = {split: held_out(collection, split, most=most[split], seed=seed) for split in SPLITS}
        self._parts: dict[str, Part] = {}

    def part(self, split: str) -> Part:
        """The features of one split, encoded on first use."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if split not in self._parts:
            self._parts[split] = encode_images(
                self.model, self.studies[split], image_size=self.budget.image_size, batch_size=2 * self.budget.batch_size
            )
        return self._parts[split]

    @property
    def train(self) -> Part:
        return self.part("train")

    @property
    def validation(self) -> Part:
        return self.part("validation")

    @property
    def test(self) -> Part:
        return self.part("test")

    def of(self, model) -> Transfer:
        """The same studies before another model."""
        other = copy.copy(self)
        other.__dict__.pop("control", None)
        other.model, other._parts = model, {}
        return other

    @cached_property
    def control(self) -> Transfer:
        """The same studies before a copy of the model with random weights."""
        return self.of(randomised(self.model, seed=self.seed))

    def images(self, split: str) -> Tensor:
        """The pictures of a split, (N, C, H, W), for what trains the encoder too."""
        studies = self.studies[split]
        return studies.images(list(range(len(studies))), size=self.budget.image_size)

    @property
    def where(self) -> str:
        """Which studies these are, for a result's `split`."""
        name = self.collection.name.removesuffix("/train")
        return (
            f"test split of {name}, {len(self.studies['test'])} studies; chosen on {len(self.studies['validation'])} "
            "validation studies"
        )
