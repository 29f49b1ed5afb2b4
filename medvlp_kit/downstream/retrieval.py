"""Retrieval between images and texts: recall and precision at k, in blocks of rows, with one rule for ties.

Recall asks whether the one right partner is found (instance), precision whether what is found is of the right kind
(semantic): a model can be good at either without the other. All functions rank the columns for each row. A similarity
(images, texts) gives image-to-text retrieval; its transpose gives text-to-image; (images, images) without the diagonal
gives image-to-image. Instead of a matrix they take a pair of embeddings, and never form more than a block of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..budget import Budget
from ..errors import KitError, unknown
from ..study import Collection, Tokenizer
from .encode import Examination
from .intervals import Intervals, bootstrap_mean
from .ranking import BLOCK, ModelScores, WithoutSelf, ranks, shape_of, top
from .result import Estimate, Result

WHOLE = 4096  # up to this many studies a whole similarity matrix is kept (64 MB)
RELEVANCE = ("any", "same")


def recall_at_k(similarity, *, ks: Sequence[int] = (1, 5, 10), groups=None, targets=None) -> dict[int, float]:
    """The share of rows whose right column is among their k best; arguments as in `ranks`."""
    _check_ks(ks)
    found = ranks(similarity, targets=targets, groups=groups)
    return {k: (found < k).double().mean().item() for k in ks}


def chance_recall(width: int, ks: Sequence[int], *, group_sizes=1) -> dict[int, float]:
    """Recall at k of a random ranking of `width` columns: 1 - C(M - g, k) / C(M, k), averaged over group sizes g."""
    sizes = np.atleast_1d(np.asarray(group_sizes))

    def missed(k: int) -> np.ndarray:
        drawn = np.arange(min(k, width))
        return np.prod(np.clip((width - sizes[:, None] - drawn) / (width - drawn), 0, None), axis=1)

    return {k: float(np.mean(1 - missed(k))) for k in ks}


def _check_ks(ks: Sequence[int], width: int | None = None) -> None:
    if not ks or min(ks) < 1 or (width is not None and max(ks) > width):
        raise KitError(f"ks {list(ks)}: give whole numbers from 1 to the number of candidates ({width or 'any'})")


def relevant_at_k(
    scores, labels, *, ks: Sequence[int] = (1, 5, 10), column_labels=None, relevance: str = "any"
) -> Tensor:
    """The share of relevant columns among the k best of each row: (N, K)."""
    count, width = shape_of(scores)
    _check_ks(ks, width)
    other = labels if column_labels is None else column_labels
    if len(labels) != count or len(other) != width:
        raise KitError(f"labels for {len(labels)} rows and {len(other)} columns, but the similarity is {count} x {width}")
    return relevant_in(top(scores, max(ks)), labels, ks=ks, column_labels=other, relevance=relevance)


def relevant_in(
    best: Tensor, labels, *, ks: Sequence[int] = (1, 5, 10), column_labels=None, relevance: str = "any"
) -> Tensor:
    """The share of relevant columns among the first k of each row's list (N, at least k) of columns: (N, K)."""
    _check_ks(ks, best.shape[1])
    own, other = _as_classes(labels), _as_classes(labels if column_labels is None else column_labels)
    right = relevant(own[:, None], other[best], relevance=relevance)  # (N, k)
    hits = right.double().cumsum(1)
    return torch.stack([hits[:, k - 1] / k for k in ks], dim=1)


def relevant(mine: Tensor, theirs: Tensor, *, relevance: str = "any") -> Tensor:
    """Whether queries and candidates are of one kind: classes (...) or findings (..., F), broadcast. -> (...) bool"""
    if relevance not in RELEVANCE:
        raise unknown("relevance", relevance, RELEVANCE)
    if mine.dtype != torch.bool:
        return mine == theirs
    if relevance == "same":
        return (mine == theirs).all(-1)
    return (mine & theirs).any(-1) | ~(mine.any(-1) | theirs.any(-1))


def chance_precision(labels, *, column_labels=None, relevance: str = "any", others: bool = False) -> Tensor:
    """The precision of a random ranking, at any k: the share of candidates relevant to each row, (N,).

    others: the candidates are the other rows, as in `image_to_image`
    """
    own, other = _as_classes(labels), _as_classes(labels if column_labels is None else column_labels)
    step = max(1, BLOCK // len(other))
    parts = [relevant(part[:, None], other[None], relevance=relevance).sum(1) for part in own.split(step)]
    count = torch.cat(parts).double()
    return (count - 1) / (len(other) - 1) if others else count / len(other)


def image_to_image(
    image: Tensor, labels, *, ks: Sequence[int] = (1, 5, 10), relevance: str = "any"
) -> dict[int, float]:
    """Precision at k of each image's nearest *other* images by cosine; image: (N, D) unit vectors, labels as below."""
    _check_ks(ks, len(image) - 1)
    return precision_at_k(WithoutSelf((image, image)), labels, ks=ks, relevance=relevance)


def _as_classes(labels) -> Tensor:
    """(N,) class numbers as float64, or (N, F) bool of present findings (unknown and uncertain are not present)."""
    labels = torch.as_tensor(labels)
    return labels.double() if labels.ndim == 1 else labels == 1


def precision_at_k(
    similarity, labels, *, ks: Sequence[int] = (1, 5, 10), column_labels=None, relevance: str = "any"
) -> dict[int, float]:
    """The mean share of relevant columns among each row's k best.

    labels: (N,) classes: a column is relevant when its class is the row's. (N, F) findings, 1 = present: relevant when
    they share a present finding or neither has any ("any"), or when the sets of present findings are equal ("same").
    Ties: the lower column first. The divisor is k, also where fewer than k relevant columns exist.
    """
    shares = relevant_at_k(similarity, labels, ks=ks, column_labels=column_labels, relevance=relevance)
    return dict(zip(ks, shares.mean(0).tolist()))


def same_text(sentences: Sequence[str]) -> list[str]:
    """The group of each report: its text without differences of case and spacing."""
    return [" ".join(sentence.casefold().split()) for sentence in sentences]


def retrieval(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, ks: Sequence[int] = (1, 5, 10), headline: int = 5,
    examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Recall@k in both directions among the studies of the split, beside shuffled pairs and the chance level.

    The headline is recall@`headline`, the mean of the two directions. Identical texts count as hits for each other.
    """
    ks = sorted({*ks, headline})
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    encoded, resamples = exam.encoded, exam.budget.resamples
    count, groups = len(encoded), same_text(encoded.sentences)
    scores = ModelScores(exam.model, encoded.image, encoded.text)
    if count <= WHOLE:
        scores = scores.rows(0, count)
    wrong = np.random.default_rng(seed).permutation(count)

    def hits(direction, targets, group) -> np.ndarray:
        found = ranks(direction, targets=targets, groups=group).numpy()
        return np.stack([found < k for k in ks], axis=1).astype(float)  # (N, K)

    def interval(values: np.ndarray) -> Intervals:
        return bootstrap_mean(values, resamples=resamples, seed=seed)

    # Images have no text of their own: an image is in the group of the text it came with.
    directions = {"image to text": scores, "text to image": scores.T}
    true = {name: hits(direction, None, groups) for name, direction in directions.items()}
    # Shuffled: text wrong[i] is declared the partner of image i. Seen from text wrong[i], that is image i.
    back, shuffled_groups = np.argsort(wrong), np.array(groups, dtype=object)
    shuffled = {
        "image to text": hits(scores, wrong, groups),
        "text to image": hits(scores.T, back, shuffled_groups[wrong]),
    }
    sizes = pd.Series(groups).map(pd.Series(groups).value_counts()).to_numpy()
    chance = chance_recall(count, ks, group_sizes=sizes)
    rows = []
    for name in directions:
        own, control = interval(true[name]), interval(shuffled[name])
        for i, k in enumerate(ks):
            rows.append((name, f"recall@{k}", own.value[i], own.low[i], own.high[i], control.value[i], chance[k]))
    if encoded.labels.shape[1]:
        image = encoded.image_embedding
        for name, direction in {**directions, "image to image": WithoutSelf((image, image))}.items():
            few = [k for k in ks if k <= count - (name == "image to image")]
            if not few:
                continue
            best = top(direction, max(few))
            own = interval(relevant_in(best, encoded.labels, ks=few).numpy())
            # The same rankings judged by the labels of another query.
            control = relevant_in(best, encoded.labels[wrong], ks=few, column_labels=encoded.labels).mean(0)
            level = float(chance_precision(encoded.labels, others=name == "image to image").mean())
            rows += [
                (name, f"precision@{k}", own.value[i], own.low[i], own.high[i], float(control[i]), level)
                for i, k in enumerate(few)
            ]
    columns = ["direction", "metric", "value", "low", "high", "shuffled", "chance"]
    table = pd.DataFrame(rows, columns=columns).set_index(["direction", "metric"])
    at = ks.index(headline)
    own = interval(np.mean([values[:, at] for values in true.values()], axis=0))
    control = interval(np.mean([values[:, at] for values in shuffled.values()], axis=0))
    return Result(
        task="retrieval", name=f"recall@{headline}", value=float(own.value), low=float(own.low), high=float(own.high),
        controls=(Estimate.of("shuffled pairs", control), Estimate("chance", chance[headline])),
        n=count, unit="studies", resamples=resamples, split=exam.where, seed=seed, table=table,
        prompts=f"none: the {exam.text} of each study is the query or the candidate",
        rule=(
            f"mean of image-to-text and text-to-image among {count} candidates, with the scorer of training; studies "
            f"with the same text ({count - len(set(groups))} repeats) count as hits for each other; of equal scores "
            "the lower index comes first; precision: share of the k best that have a present finding in common with "
            "the query, or none like it; image to image: the other images by cosine of the embeddings; studies resampled "
            "as queries, candidates kept"
        ),
    )  # fmt: skip
