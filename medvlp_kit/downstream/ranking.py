"""Ranking in blocks of rows, with one rule for ties: of equal scores, the lower column comes first.

Ranks are counted, not sorted: a column's rank is the number of columns that come before it. Scores may be a matrix, a
pair of embeddings, or a model with features; never more than a block of rows is formed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import KitError
from .encode import images_at, similarity, texts_at

BLOCK = 2**19  # similarities held at once: small enough to stay near the processor


class ModelScores:
    """`model.similarity` of N images and M texts, computed row by row when asked for; `.T` ranks images for texts."""

    def __init__(self, model, image, text, *, transposed: bool = False):
        self.model, self.image, self.text, self.transposed = model, image, text, transposed
        shape = (len(image.pooled), len(text.pooled))
        self.shape = shape[::-1] if transposed else shape

    @property
    def T(self) -> ModelScores:
        return ModelScores(self.model, self.image, self.text, transposed=not self.transposed)

    def rows(self, start: int, stop: int) -> Tensor:
        if self.transposed:
            return similarity(self.model, self.image, texts_at(self.text, slice(start, stop))).T
        return similarity(self.model, images_at(self.image, slice(start, stop)), self.text)


class WithoutSelf:
    """Square scores in which nobody is among his own candidates: the diagonal is minus infinity, so it comes last.

    For neighbours within one collection, image by image: the query itself is always there and always first.
    """

    def __init__(self, scores):
        self.scores, self.shape = scores, shape_of(scores)
        if self.shape[0] != self.shape[1]:
            raise KitError(f"{self.shape[0]} queries and {self.shape[1]} candidates: to leave out the query, give the same")

    def rows(self, start: int, stop: int) -> Tensor:
        block = rows_of(self.scores, slice(start, stop)).clone()  # (b, N)
        own = torch.arange(start, stop, device=block.device)
        block[own - start, own] = -torch.inf
        return block


def shape_of(scores) -> tuple[int, int]:
    shape = (len(scores[0]), len(scores[1])) if isinstance(scores, tuple) else tuple(scores.shape)
    if len(shape) != 2 or 0 in shape:
        raise KitError(f"a similarity has shape (queries, candidates), both at least 1; got {shape}")
    return shape


def rows_of(scores, rows: slice) -> Tensor:
    """Some rows of a matrix, of a pair of embeddings, or of anything with `rows(start, stop)`."""
    if isinstance(scores, tuple):
        return scores[0][rows] @ scores[1].T
    return scores[rows] if isinstance(scores, Tensor) else scores.rows(rows.start, rows.stop)


def blocks(scores) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of a matrix, of a pair of embeddings or of anything with `rows(start, stop)`."""
    count, width = shape_of(scores)
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        block = rows_of(scores, rows)
        if block.sum().isnan() and block.isnan().any():  # the sum is the cheap look, inf - inf its false alarm
            raise KitError("the similarity holds NaN: nothing can be ranked; look at the model's embeddings")
        yield rows, block


class _Groups:
    """Which columns are equally right, kept as one list of columns in order of their group."""

    def __init__(self, groups, width: int):
        numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
        if numbers.shape != (width,):
            raise KitError(f"groups has {numbers.size} entries for {width} candidates: give one to each")
        self.number = torch.from_numpy(numbers)
        self.columns = self.number.argsort(stable=True)  # so that within a group the columns ascend
        self.size = torch.bincount(self.number)
        self.start = self.size.cumsum(0) - self.size

    def best(self, block: Tensor, targets: Tensor) -> Tensor:
        """For each row of a block (b, M), the best column of its target's group, the lower one of equals: (b,)."""
        group = self.number[targets]
        sizes = self.size[group]
        row = torch.arange(len(block)).repeat_interleave(sizes)  # (E,) one entry for each row and member
        within = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]
        column = self.columns[self.start[group][row] + within]
        value = block[row, column]
        top = block.new_full((len(block),), -torch.inf).scatter_reduce(0, row, value, "amax")
        column = torch.where(value == top[row], column, block.shape[1])
        return torch.full_like(targets, block.shape[1]).scatter_reduce(0, row, column, "amin")


def ranks(scores, *, targets=None, groups=None) -> Tensor:
    """The 0-based rank of each row's right column, (N,) int64: how many columns are ranked before it.

    scores:  (N, M) tensor, a pair of embeddings (N, D), (M, D), or `ModelScores`
    targets: (N,) the right column of each row; the diagonal when None
    groups:  (M,) columns of one group are equally right (identical report texts); the best of them counts
    Of equal scores the lower column comes first.
    """
    count, width = shape_of(scores)
    if targets is None and count > width:
        raise KitError(f"{count} queries and {width} candidates: give `targets`, the right candidate of each query")
    targets = torch.arange(count) if targets is None else torch.as_tensor(targets)
    members = None if groups is None else _Groups(groups, width)
    columns, found = torch.arange(width), []
    for rows, block in blocks(scores):
        best = targets[rows] if members is None else members.best(block.cpu(), targets[rows])  # (b,)
        best, columns = best.to(block.device), columns.to(block.device)
        value = block.gather(1, best[:, None])  # (b, 1)
        rank = (block > value).count_nonzero(dim=1)
        # Rows in which another column has the same score; there are few, so the rule for ties costs little.
        tied = ((block >= value).count_nonzero(dim=1) > rank + 1).nonzero()[:, 0]
        if len(tied):
            before = (block[tied] == value[tied]) & (columns < best[tied, None])
            rank[tied] += before.sum(1)
        found.append(rank.cpu())
    return torch.cat(found)


def best_columns(block: Tensor, k: int) -> Tensor:
    """The k best columns of each row, best first; of equal scores the lower column comes first. (b, k)"""
    width = block.shape[1]
    values, chosen = block.topk(min(k + 1, width), dim=1)
    # Order within the k: by column, then stably by score.
    chosen, by_column = chosen[:, :k].sort(dim=1)
    kept = values[:, :k].gather(1, by_column)
    chosen = chosen.gather(1, kept.sort(dim=1, descending=True, stable=True).indices)
    if k < width:  # where the k-th and the next score are equal, topk chose among them as it pleased
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        if len(tied):
            chosen[tied] = block[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return chosen


def top(scores, k: int) -> Tensor:
    """The k best columns of every row, best first, (N, k) int64; of equal scores the lower column first."""
    width = shape_of(scores)[1]
    if not 1 <= k <= width:
        raise KitError(f"k={k}: give a whole number from 1 to the number of candidates ({width})")
    return torch.cat([best_columns(block, k).cpu() for _, block in blocks(scores)])


def places(best: Tensor, *, targets=None, groups=None) -> Tensor:
    """The 0-based place of each row's right column in its list of columns, (N,): k where the list lacks it.

    best: (N, k) columns, best first, as `top`, `rerank` or an index gives them; targets and groups as in `ranks`. So
    `(places(best) < 5)` are the hits at 5 of lists of which the rest of the ranking is not known.
    """
    count, k = best.shape
    targets = torch.arange(count) if targets is None else torch.as_tensor(targets)
    if groups is None:
        right = best == targets[:, None]
    else:
        number = torch.from_numpy(np.unique(np.asarray(groups), return_inverse=True)[1])
        # an index that found too few gives column -1, which is nobody's
        right = (number[best] == number[targets][:, None]) & (best >= 0)
    return torch.where(right.any(1), right.int().argmax(1), k)
