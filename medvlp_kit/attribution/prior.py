"""The control that knows the phrase and not the picture: where a finding of this name and side usually lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..downstream.grounding import Cases, box_mask


def phrase_prior(learned: Cases, questions: Sequence[tuple[str, str | None]], *, size: int) -> Tensor:
    """Maps (K, size, size): for each question (finding, side) the mean of its boxes in `learned`, in [0, 1].

    learned: cases of *training* studies, at the same size. A question that never occurs there gets zeros.
    """
    habit = defaultdict(list)
    for label, side, boxes in zip(learned.labels, learned.sides, learned.boxes, strict=True):
        habit[label, side].append(box_mask(boxes, height=size, width=size).float())
    usual = {question: torch.stack(masks).mean(0) for question, masks in habit.items()}
    return torch.stack([usual.get(question, torch.zeros(size, size)) for question in questions])
