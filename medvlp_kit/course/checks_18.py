"""Checks of lesson 18, retrieval."""

from __future__ import annotations

from math import comb

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def rank_of_right(answer):
    """rank_of_right(scores (N, M), right (N,)) -> (N,): how many columns come before the right one. Truth: sorted()."""
    import torch

    scores = torch.tensor(
        [[5, 3, 3, 3, 1], [2, 2, 2, 2, 2], [1, 2, 3, 4, 5], [4, 0, 4, 1, 4], [0, 1, 0, 3, 0]], dtype=torch.float64
    )
    right = torch.tensor([2, 3, 4, 4, 0])
    found = answer(scores.clone(), right.clone())
    expect_shape(found, (5,), name="the ranks")
    truth = [
        sorted(range(5), key=lambda j: (-row[j], j)).index(r) for row, r in zip(scores.tolist(), right.tolist(), strict=True)
    ]
    value = scores.gather(1, right[:, None])
    before, tied = (scores > value).sum(1), (scores == value).sum(1) - 1
    later = ((scores == value) & (torch.arange(5) > right[:, None])).sum(1)
    expect_not(
        found,
        {
            "equal scores cost you nothing: a model that scores everything alike would have a perfect recall": before,
            "every equal score counts as lost: then a model that scores everything alike has none, and nothing is "
            "gained by the order of the columns; the rule here is lower column first": before + tied,
            "ranks start at 0: count the columns before the right one, without itself": [rank + 1 for rank in truth],
            "of equal scores the lower column comes first, you let the higher one": before + later,
            "half of the ties: the expected rank of a coin, but the rule here is lower column first": before + tied / 2,
            "you ranked from worst to best: greater scores come first": (scores < value).sum(1),
            "you gave the column of the greatest score: what is asked is where the right one stands": scores.argmax(1),
        },
    )
    expect_close(found, truth, "count the columns with a greater score, and those with an equal one further left")


@exercise
def semantic_precision(answer):
    """semantic_precision(ranking (N, M), labels (N, F), k) -> float: mean share of the k best with the row's labels."""
    import torch

    labels = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]])
    ranking = torch.tensor([[3, 1, 2, 4, 0], [2, 3, 1, 4, 0], [2, 4, 1, 0, 3], [3, 1, 4, 2, 0], [2, 4, 1, 0, 3]])
    found = answer(ranking.clone(), labels.clone(), 3)

    def mean(right, k=3, once=False) -> float:
        rows = [[right(i, j) for j in row[:k]] for i, row in enumerate(ranking.tolist())]
        return sum(float(any(row)) if once else sum(row) / k for row in rows) / len(rows)

    def same(i, j):
        return labels[i].tolist() == labels[j].tolist()

    def share(i, j):
        return bool((labels[i] * labels[j]).any())

    available = [min(3, sum(same(i, j) for j in range(5))) for i in range(5)]
    capped = sum(sum(same(i, j) for j in row[:3]) / n for i, (row, n) in enumerate(zip(ranking.tolist(), available))) / 5
    expect_not(
        found,
        {
            "that is a hit rate, whether any of the k is right: precision is the share of the k that are": mean(same, once=True),
            "one common finding is not the same findings: compare the whole rows of labels": mean(share),
            "a study without findings has the same findings as another without: two empty rows are equal": mean(
                lambda i, j: share(i, j) and same(i, j)
            ),
            "that is recall of the pair, whether the row's own column is there": mean(lambda i, j: i == j, once=True),
            "you compared with the places 0 to k - 1: look up which columns stand there": mean(
                lambda i, j: same(i, ranking[i].tolist().index(j))
            ),
            "you used all columns: cut the ranking after k": mean(same, k=5),
            "you divided by the number of relevant columns there are: the divisor is k": capped,
        },
    )
    expect_close(found, mean(same), "for each row the share of its first k columns whose labels all equal the row's own")
    expect_close(answer(ranking, labels, 1), mean(same, k=1), "with k = 1 it is the share of rows whose best column is right")


@exercise
def chance_recall(answer):
    """chance_recall(candidates, right, k) -> float: recall at k of a random order with `right` right candidates."""
    for candidates, right, k in ((20, 3, 5), (100, 1, 10), (10, 4, 2)):
        found = answer(candidates, right, k)
        truth = 1 - comb(candidates - right, k) / comb(candidates, k)
        mistakes = {
            "that is the chance that none of them is among the k best: take one minus it": 1 - truth,
            "k is not used: ten guesses hit more often than one": right / candidates,
            "you drew with replacement: a ranking never shows the same candidate twice": 1 - (1 - right / candidates) ** k,
        }
        if right > 1:
            mistakes |= {
                "you counted one right candidate: several of them share the text": k / candidates,
                "chances of overlapping events do not add: two of the right ones may both be among the k": right
                * k
                / candidates,
            }
        expect_not(found, mistakes, tolerance=1e-6)
        expect_close(
            found, truth, f"{right} of {candidates} are right, {k} are seen: one minus the chance to see none", tolerance=1e-6
        )
    expect_close(answer(6, 3, 4), 1.0, "with 3 of 6 right, any 4 contain one of them")


@exercise
def best_after_reranking(answer):
    """best_after_reranking(first_ranks (N,), depth, k) -> float: recall at k of a perfect second stage on `depth`."""
    import torch

    ranks = torch.tensor([0, 3, 9, 2, 4, 25, 1, 60, 10, 19])
    found = answer(ranks.clone(), 10, 1)
    share = {edge: float((ranks < edge).double().mean()) for edge in (1, 5, 10, 20)}
    expect_not(
        found,
        {
            "that is the first stage's own recall at k: a perfect second stage brings everything it is shown to the "
            "front": share[1],
            "even a perfect second stage cannot find what the first did not bring: look at the ranks": 1.0,
            "ranks start at 0: the best 10 are ranks 0 to 9": float((ranks <= 10).double().mean()),
            "that is the share that is lost": 1 - share[10],
            "give a share of the queries, not a count": share[10] * len(ranks),
        },
    )
    expect_close(found, share[10], "all whose right candidate is among the first `depth`, for these can come first")
    beyond = answer(ranks.clone(), 5, 20)
    expect(
        abs(float(beyond) - share[5]) > 1e-9,
        "depth 5, k 20: places 6 to 20 stay as the first stage ordered them, and are still among the 20",
    )
    expect_close(beyond, share[20], "depth 5, k 20: the first stage's own recall at 20, for nobody leaves the list")
