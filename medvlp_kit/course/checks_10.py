"""Checks of lesson 10, false negatives."""

from __future__ import annotations

from itertools import combinations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def expected_count(answer):
    """expected_count(counts, batch_size) -> false negatives of one study on average. Truth: every possible pair is counted."""
    counts, size = [5, 3, 2], 4
    found = answer(list(counts), size)
    expect(found is not None, "your function returns None: does it end with return?")
    total = sum(counts)
    truth = _by_pairs(counts, size)
    expect_not(
        found,
        {
            "you counted a study as its own negative: a batch of B holds B - 1 others": size
            * sum(n * (n - 1) for n in counts)
            / (total * (total - 1)),
            "that is for drawing with replacement: a study cannot meet itself, so n (n - 1) / (N (N - 1)) replaces p squared": (
                size - 1
            )
            * sum((n / total) ** 2 for n in counts),
            "with replacement, and the study counted as its own negative": size * sum((n / total) ** 2 for n in counts),
            "that is the chance for one pair: a study has B - 1 negatives": sum(n * (n - 1) for n in counts)
            / (total * (total - 1)),
            "that is all the negatives: only those of the same category are false": size - 1,
            "you counted the commonest category alone: the others have false negatives too": (size - 1)
            * max(counts)
            * (max(counts) - 1)
            / (total * (total - 1)),
            "that is the sum over the whole batch: the question is about one study": size * truth,
            "those are the true negatives: the false ones have the same category": (size - 1) - truth,
            "the first study of the pair may be any of n, the second any of n - 1: you left the share of the category out": (
                size - 1
            )
            * sum((n - 1) / (total - 1) for n in counts),
        },
    )
    expect_close(found, truth, "(B - 1) times the sum over categories of n (n - 1) / (N (N - 1))")
    expect_close(answer([1, 1, 1, 1], 3), 0.0, "where all studies differ there is no false negative")
    expect_close(answer([7], 5), 4.0, "where all studies are the same, all B - 1 negatives are false")
    expect_close(answer([60, 25, 15], 32), _by_pairs([60, 25, 15], 32), "wrong for 60, 25 and 15 studies in batches of 32")


def _by_pairs(counts: list[int], batch_size: int) -> float:
    """The share of equal pairs among all pairs of the collection, times B - 1."""
    studies = [category for category, count in enumerate(counts) for _ in range(count)]
    pairs = list(combinations(studies, 2))
    return (batch_size - 1) * sum(a == b for a, b in pairs) / len(pairs)


@exercise
def pair_answers(answer):
    """pair_answers(labels (B, F)) -> (B, B): +1 own pair, 0 the same findings, -1 the rest. Truth: sets of findings."""
    import torch

    labels = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]])
    found = answer(labels.clone())
    expect_shape(found, (6, 6), name="the answers")
    same, own = _same_sets(labels), torch.eye(6, dtype=torch.bool)
    shared, both_normal = labels @ labels.T > 0, (labels.sum(1) == 0)[:, None] & (labels.sum(1) == 0)[None]

    def answers(related, left_out=0.0):
        return torch.where(related, left_out, -1.0).masked_fill(own, 1.0)

    expect_not(
        found,
        {
            "you call other studies of the same findings matches: here they are left out, with 0": answers(same, 1.0),
            "nothing is left out: studies of the same findings are still negatives": answers(own),
            "the own pair is left out as well: it is the match, +1": torch.where(same, 0.0, -1.0),
            "one shared finding is not enough: the findings must all be the same, and two normals are": answers(shared),
            "one shared finding is not enough: 'effusion' and 'effusion and edema' differ": answers(shared | both_normal),
            "two normal studies have the same findings, none: they are left out too": answers(same & ~both_normal),
            "only normal studies are left out: two studies of the same single finding say the same as well": answers(both_normal),
            "the number of findings is not the findings: an effusion is no fracture": answers(
                labels.sum(1)[:, None] == labels.sum(1)[None]
            ),
            "the signs are turned: +1 is a match, -1 a negative": -answers(same),
            "the negatives are 0 and the left-out pairs -1: swap them": torch.where(same, -1.0, 0.0).masked_fill(own, 1.0),
        },
    )
    expect_close(found, answers(same), "+1 on the diagonal, 0 where two studies have the same set of findings, else -1")
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(9, 4, generator=generator) < 0.3).float()
    truth = torch.where(_same_sets(labels), 0.0, -1.0).fill_diagonal_(1.0)
    expect_close(answer(labels.clone()), truth, "wrong for a random batch of nine studies")


def _same_sets(labels):
    import torch

    sets = [frozenset(row.nonzero().flatten().tolist()) for row in labels]
    return torch.tensor([[a == b for b in sets] for a in sets])


@exercise
def soft_gradient(answer):
    """soft_gradient(logits (B, B), targets (B, B)) -> d loss / d logits. Truth: autograd of the cross-entropy."""
    import torch

    logits = torch.tensor([[2.0, 1.5, 0.0], [1.0, 2.0, 0.5], [0.2, 0.0, 2.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    found = answer(logits.clone(), targets.clone())
    expect_shape(found, (3, 3), name="the gradient")
    p, q, own = logits.softmax(dim=1), logits.softmax(dim=0), torch.eye(3, dtype=torch.float64)
    y, z = targets / targets.sum(dim=1, keepdim=True), targets / targets.sum(dim=0, keepdim=True)
    expect_not(
        found,
        {
            "the sign is turned: it is share given minus share deserved": -(p - y + q - z) / 6,
            "the division by B is missing: the loss is a mean over the batch": (p - y + q - z) / 2,
            "you added the directions: the loss is their mean": (p - y + q - z) / 3,
            "only image to text: text to image adds the softmax down the columns": (p - y) / 3,
            "only text to image: image to text adds the softmax along the rows": (q - z) / 3,
            "you subtracted the identity: here other texts deserve a share too": (p - own + q - own) / 6,
            "the targets are not normalised: each direction divides them by its own sums": (p - targets + q - targets) / 6,
            "you normalised along the rows for both directions: down the columns the columns' sums count": (p - y + q - y) / 6,
            "you normalised down the columns for both directions: along the rows the rows' sums count": (p - z + q - z) / 6,
            "the targets are not yet subtracted": (p + q) / 6,
        },
    )
    expect_close(found, _autograd(logits, targets), "compare with autograd on a 3 x 3 batch: a cell is wrong")
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
    targets = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    expect_close(answer(logits.clone(), targets.clone()), _autograd(logits, targets), "wrong for a random 8 x 8 batch")


def _autograd(logits, targets):
    """The gradient PyTorch finds of its own cross-entropy with soft targets."""
    import torch
    import torch.nn.functional as F

    free = logits.clone().requires_grad_()
    rows = F.cross_entropy(free, targets / targets.sum(dim=1, keepdim=True))
    columns = F.cross_entropy(free.T, targets.T / targets.T.sum(dim=1, keepdim=True))
    return torch.autograd.grad((rows + columns) / 2, free)[0]
