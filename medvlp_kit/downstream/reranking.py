"""Retrieve, then rerank: a fast score picks k candidates for each query, a slow one orders these k alone.

A dual encoder compares N + M vectors. A cross-encoder, which fuses image and text, reads every pair: N * M of them, or
only N * k when a dual encoder has chosen the k. What the first stage does not bring, the second cannot find.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..errors import KitError
from ..fusion.features import FusedFeatures
from ..objectives.matching import ImageTextMatching, MatchingScorer, log_odds
from .encode import device_of, evaluating, image_to, images_at, text_to, texts_at
from .ranking import top

PAIRS = 1024  # fused at once


def rerank(scores, pair_score: Callable[[Tensor, Tensor], Tensor], *, k: int, pairs: int = PAIRS) -> Tensor:
    """The k best columns of each row by `scores`, in the order of `pair_score`: (N, k) int64, best first.

    scores:     the first stage, whatever `ranks` accepts: (N, M), a pair of embeddings, `ModelScores`
    pair_score: (rows (P,), columns (P,)) -> (P,), higher for better pairs, such as `fused_pairs`; asked of N * k pairs
    Of equal pair scores the first stage's order stays, whose own ties go to the lower column.
    """
    best = top(scores, k)  # (N, k)
    rows = torch.arange(len(best)).repeat_interleave(k)  # (N k,)
    parts = []
    for row, column in zip(rows.split(pairs), best.flatten().split(pairs), strict=True):
        part = torch.as_tensor(pair_score(row, column)).float().cpu()
        if part.shape != row.shape or part.isnan().any():
            raise KitError(
                f"pair_score gave shape {tuple(part.shape)}{' with NaN' if part.isnan().any() else ''} for {len(row)} pairs: "
                "give one number a pair"
            )
        parts.append(part)
    order = torch.cat(parts).view(best.shape).sort(dim=1, descending=True, stable=True).indices
    return best.gather(1, order)


def fused_pairs(
    model, score: Callable[[FusedFeatures], Tensor], image: ImageFeatures, text: TextFeatures, *, transposed: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """A `pair_score` that fuses each pair: rows are images and columns texts, or the other way round if `transposed`.

    image, text: features as `encode_collection` keeps them. score: fused features of P pairs -> (P,), such as
    `matching_score(run.objective)`.
    """

    def scored(rows: Tensor, columns: Tensor) -> Tensor:
        if transposed:
            rows, columns = columns, rows
        device = device_of(model)
        with evaluating(model):
            return score(model.fuse(image_to(images_at(image, rows), device), text_to(texts_at(text, columns), device)))

    return scored


def matching_score(objective: nn.Module) -> Callable[[FusedFeatures], Tensor]:
    """The score of fused pairs that a recipe with image-text matching has learned: its log odds of a match, (P,).

    objective: of a run, or any module that holds an `ImageTextMatching` or a `MatchingScorer`.
    """
    for part in objective.modules():
        if isinstance(part, ImageTextMatching | MatchingScorer):
            return lambda fused: log_odds(part.head, fused)
    raise KitError(
        f"{type(objective).__name__} has learned no matching, so it cannot score pairs: take a recipe that has, such as "
        "albef, medvill, m3ae or ptunifier"
    )
