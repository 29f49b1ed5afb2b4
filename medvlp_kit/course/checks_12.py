"""Checks of lesson 12, matching."""

from __future__ import annotations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def prior_loss(answer):
    """prior_loss(true, wrong) -> the loss, in nats, of a model that always answers the share of true pairs."""
    import math

    import torch

    from ..objectives.matching import matching_loss

    def truth(true: int, wrong: int) -> float:
        """What the loss itself gives to a model that knows the share and nothing else."""
        share = true / (true + wrong)
        logits = torch.tensor([[math.log(1 - share), math.log(share)]], dtype=torch.float64).expand(true + wrong, 2)
        return float(matching_loss(logits, torch.tensor([1] * true + [0] * wrong)))

    found, expected = answer(1, 3), truth(1, 3)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_not(
        found,
        {
            "ln 2 is the loss at chance between equal numbers: here one pair in four is true": math.log(2),
            "you took the logarithm to base 2: cross-entropy here is in nats": expected / math.log(2),
            "that is the share of true pairs, not its loss": 0.25,
            "you counted the true pairs only: the wrong ones cost -ln(1 - share) each": -math.log(0.25) / 4,
            "you counted the wrong pairs only: the true ones cost -ln(share) each": -0.75 * math.log(0.75),
            "you averaged the two costs as if true and wrong pairs were equally many": -math.log(0.25 * 0.75) / 2,
            "the sign is turned: a loss is minus the logarithm of a probability": -expected,
            "you gave the sum over the pairs: the loss is their mean": 4 * expected,
        },
    )
    expect_close(
        found, expected, f"one true pair to three wrong ones: a quarter costs ln 4, the rest ln 4/3: {expected:.3f}"
    )
    expect_close(answer(1, 2), truth(1, 2), f"ALBEF draws two wrong pairs for a true one: {truth(1, 2):.3f}")
    expect_close(answer(32, 32), math.log(2), "with as many true as wrong pairs the loss is ln 2")


@exercise
def negative_probabilities(answer):
    """negative_probabilities(similarity (B, B), forbid (B, B) bool) -> (B, B), row i: P(text j | image i)."""
    import torch

    similarity = torch.tensor(
        [[2.0, 1.0, 0.0, -1.0], [0.5, 3.0, 1.5, 0.0], [-0.5, 1.0, 2.0, 0.3], [0.2, -1.0, 0.7, 1.0]], dtype=torch.float64
    )
    forbid = torch.zeros(4, 4, dtype=torch.bool)
    forbid[0, 2] = forbid[2, 0] = True
    nobody, diagonal = torch.zeros_like(forbid), torch.eye(4, dtype=torch.bool)
    found = answer(similarity.clone(), forbid.clone())
    expect_shape(found, (4, 4), name="the probabilities")
    closed = diagonal | forbid
    expect_not(
        found,
        {
            "the true pair must not be drawn: close the diagonal": _by_hand(similarity, forbid),
            "you left out `forbid`": _by_hand(similarity, diagonal),
            "the rows no longer sum to one: renormalise after zeroing, or mask before the softmax": similarity.softmax(
                1
            )
            * ~closed,
            "you set closed similarities to 0: exp(0) is 1; what must not be drawn needs minus infinity": similarity.masked_fill(
                closed, 0.0
            ).softmax(dim=1),
            "you went down the columns: row i holds the chances of the texts of image i": _by_hand(
                similarity.T, closed.T
            ).T,
            "every allowed text has the same chance: those are random negatives, not hard ones": (~closed).double()
            / (~closed).sum(1, keepdim=True),
        },
    )
    expect_close(
        found, _by_hand(similarity, closed), "row i should be exp(s_ij) over the allowed j, divided by its sum"
    )
    expect_close(
        answer(similarity, nobody),
        _by_hand(similarity, diagonal),
        "without forbidden pairs only the diagonal is closed",
    )
    everything = forbid | (torch.arange(4)[:, None] == 3)
    expect_close(
        answer(similarity, everything)[3],
        torch.zeros(4),
        "a row in which nothing may be drawn must be zeros, not NaN: the library then leaves the pair out",
    )
    dominant = torch.full((3, 3), -200.0).fill_diagonal_(200.0)
    expect_close(
        answer(dominant, torch.zeros(3, 3, dtype=torch.bool)),
        (1 - torch.eye(3)) / 2,
        "when the true pair dominates, your row underflows to zeros: mask before the softmax, not after",
    )


def _by_hand(similarity, closed):
    """exp over the allowed pairs, row by row, with plain numbers."""
    import math

    import torch

    rows = []
    for values, shut in zip(similarity.tolist(), closed.tolist()):
        weights = [0.0 if s else math.exp(v) for v, s in zip(values, shut)]
        rows.append([w / sum(weights) for w in weights])
    return torch.tensor(rows, dtype=similarity.dtype)


@exercise
def false_negative_rate(answer):
    """false_negative_rate(probabilities (B, B), labels (B, F)) -> expected share of drawn pairs with the same labels."""
    import torch

    labels = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    probabilities = torch.tensor(
        [[0.0, 0.2, 0.7, 0.1], [0.3, 0.0, 0.2, 0.5], [0.6, 0.3, 0.0, 0.1], [0.25, 0.5, 0.25, 0.0]], dtype=torch.float64
    )
    found = answer(probabilities.clone(), labels.clone())
    expect(found is not None, "your function returns None: does it end with return?")
    expect_shape(torch.as_tensor(found), (), name="the rate")
    # Only images 0 and 2 have the same labels: their chances of drawing each other are 0.7 and 0.6.
    expect_not(
        found,
        {
            "you summed over the images: divide by their number": 1.3,
            "you counted pairs, not draws: weigh each pair with its probability": 2 / 12,
            "you counted pairs, the true ones too, and not draws: weigh each pair with its probability": 6 / 16,
            "you counted the true pair as a false negative: its probability is 0, so use the probabilities": (1.3 + 4)
            / 4,
            "two studies that share one finding are not the same: all labels must agree": (0.5 + 0.5) / 4,
            "you compared with `==` and averaged over labels: all of them must agree at once": float(
                (probabilities * (labels[:, None] == labels[None]).double().mean(-1)).sum() / 4
            ),
            "you gave the share of draws that are truly wrong": 1 - 1.3 / 4,
            "you left out the normal studies: two studies without any finding have the same labels": 0.0,
        },
    )
    expect_close(
        found, 1.3 / 4, "sum over each row the probabilities of texts with equal labels, then take the mean of the rows"
    )
    everybody = torch.ones(5, 2)
    uniform = (1 - torch.eye(5)) / 4
    expect_close(answer(uniform, everybody), 1.0, "if all labels are equal, every draw is a false negative")


@exercise
def rerank(answer):
    """rerank(cosine (N, M), matching (N, M), k) -> (N, M) int64: columns, best first; only the k best change places."""
    import torch

    cosine = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.0], [0.1, 0.5, 0.2, 0.4, 0.3]])
    matching = torch.tensor([[-1.0, 0.5, 2.0, 9.0, 8.0], [7.0, 1.0, 6.0, 3.0, 2.0]])
    found = answer(cosine.clone(), matching.clone(), 3)
    expect_shape(found, (2, 5), name="the ranking")
    found = torch.as_tensor(found)
    expect_not(
        found,
        {
            "you ranked all candidates by matching: that is what reranking is there to avoid": [
                [3, 4, 2, 1, 0],
                [0, 2, 3, 4, 1],
            ],
            "you kept the order of the cosine: inside the k best the matching score decides": [
                [0, 1, 2, 3, 4],
                [1, 3, 4, 2, 0],
            ],
            "you ordered the k best from worst to best": [[0, 1, 2, 3, 4], [1, 4, 3, 2, 0]],
            "you give places inside the short list: look up which columns they stand for": [
                [2, 1, 0, 3, 4],
                [1, 2, 0, 2, 0],
            ],
            "the k best by matching, then the rest by cosine: it is the other way round": [
                [3, 4, 2, 0, 1],
                [0, 2, 3, 1, 4],
            ],
            "each row gives the place of a column; what is wanted are the columns, best first": [
                [2, 1, 0, 3, 4],
                [4, 2, 3, 0, 1],
            ],
        },
    )
    expect_close(
        found, [[2, 1, 0, 3, 4], [3, 4, 1, 2, 0]], "the 3 best by cosine, ordered by matching; the others stay"
    )
    expect_close(
        answer(cosine, matching, 1), cosine.argsort(dim=1, descending=True), "with k = 1 nothing can change places"
    )
    expect_close(
        answer(cosine, matching, 5), matching.argsort(dim=1, descending=True), "with k = M matching decides all"
    )
