"""Checks of lesson 13, captioning and generation."""

from __future__ import annotations

import math
from collections import Counter

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape


@exercise
def beam_step(answer):
    """beam_step(scores (K,), log_probabilities (K, V)) -> scores (K,), parents (K,), words (K,). Truth: all K V sums."""
    import torch

    scores = torch.log(torch.tensor([0.3, 0.5], dtype=torch.float64))
    words = torch.log(torch.tensor([[0.2, 0.2, 0.6], [0.4, 0.1, 0.5]], dtype=torch.float64))
    found = answer(scores.clone(), words.clone())
    expect(found is not None, "your function returns None: does it end with return?")
    expect(len(found) == 3, "return three tensors: the scores, the beam each one continues, and the word it adds")
    for tensor, name in zip(found, ("scores", "parents", "words"), strict=True):
        expect_shape(tensor, (2,), name=name)
    best, parents, added = found
    expect_not(
        best,
        {
            "each beam keeps its own best word: that is two greedy searches; the beams compete for the two places": [
                math.log(0.18), math.log(0.25)
            ],
            "the last word alone decides: add the score of the beam so far": [math.log(0.6), math.log(0.5)],
            "you multiplied logarithms: probabilities are multiplied, their logarithms added": (
                (scores[:, None] * words).flatten().sort(descending=True).values[:2]
            ),
            "these are the two least probable: the best sum is the one nearest zero": [math.log(0.05), math.log(0.06)],
            "you added the probability to the score: the score is a logarithm, so add the logarithm": (
                (scores[:, None] + words.exp()).flatten().topk(2).values
            ),
            "scores are probabilities here: leave them as logarithms, long reports would underflow": [0.25, 0.2],
        },
    )  # fmt: skip
    expect_close(best, [math.log(0.25), math.log(0.2)], "of all six sums of a beam and a word, the two greatest, best first")
    expect(
        not close(parents, [5, 3]) and not close(added, [5, 3]),
        "that is the place among all K x V sums: the beam is place // V, the word place % V",
    )
    expect(not (close(parents, [2, 0]) and close(added, [1, 1])), "parents and words are swapped")
    expect(
        not close(parents, [2, 1]) and not close(added, [1, 1]),
        "the place is divided by the number of beams: a row has V sums, so the beam is place // V, the word place % V",
    )
    expect_close(parents, [1, 1], "both of the best continue the second beam (number 1)")
    expect_close(added, [2, 0], "the words are the columns 2 and 0")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, generator=generator, dtype=torch.float64)
    words = torch.randn(4, 9, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    every = sorted(((float(scores[k] + words[k, v]), k, v) for k in range(4) for v in range(9)), reverse=True)[:4]
    best, parents, added = answer(scores.clone(), words.clone())
    expect_close(best, [score for score, _, _ in every], "wrong for four beams and nine words: as many go on as came in")
    expect_close(parents, [k for _, k, _ in every], "wrong parents for four beams and nine words: the beam is place // V")
    expect_close(added, [v for _, _, v in every], "wrong words for four beams and nine words: the word is place % V")


@exercise
def clipped_precision(answer):
    """clipped_precision(written, reference, n) -> the share of n-grams of `written` that the reference has. Truth: loops."""
    written, reference = "no no effusion and no edema".split(), "no effusion is seen and there is no edema".split()
    found = answer(list(written), list(reference), 1)
    expect(found is not None, "your function returns None: does it end with return?")
    both = Counter(written) & Counter(reference)
    expect_not(
        found,
        {
            "a repeated word counts each time: it may count only as often as the reference has it ('no' twice, not three "
            "times)": 1.0,
            "each distinct word counts once: count them as often as both texts have them": 4 / 6,
            "each distinct word counts once, and so does the denominator: a set forgets how often": 4 / 4,
            "you divided by the length of the reference: that is recall; precision divides by what was written": 5 / 9,
            "you divided by the number of distinct words": 5 / 4,
            "that is a count: divide by the number of n-grams written": sum(both.values()),
        },
    )
    expect_close(found, 5 / 6, "five of the six written words stand in the reference, 'no' counted twice")
    stepped = answer("a no effusion".split(), list(reference), 2)
    expect(not close(stepped, 0.0), "pairs of neighbours overlap: step by one word, not by n")
    found = answer(list(written), list(reference), 2)
    expect_not(
        found,
        {
            "n is not used: for n=2 count pairs of neighbours": 5 / 6,
            "a text of T words has T - n + 1 n-grams, not T": 2 / 6,
        },
    )
    expect_close(found, 2 / 5, "for n=2: 'no effusion' and 'no edema', of five pairs")
    expect(close(answer(["normal"], list(reference), 2), 0.0), "a text shorter than n has no n-gram: the precision is 0 by rule")


@exercise
def fact_scores(answer):
    """fact_scores(said (N, F) bool, true (N, F) bool) -> precision, recall, F1, each (F,). Truth: scikit-learn."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    true = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    said = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=bool)
    precision, recall, f1, _ = precision_recall_fscore_support(true, said, zero_division=0)
    found = answer(said.copy(), true.copy())
    expect(found is not None, "your function returns None: does it end with return?")
    expect(len(found) == 3, "return three arrays: precision, recall and F1")
    for values, name in zip(found, ("precision", "recall", "F1"), strict=True):
        expect(
            np.shape(values) != (len(true),),
            f"{name} has one number a report: count over the reports of one finding, that is, down the column",
        )
        expect(np.shape(values) != (), f"{name} is one number for all findings: rare ones would vanish; give one a finding")
        expect_shape(values, (3,), name=name)
    expect(
        not (close(found[0], recall) and close(found[1], precision)),
        "precision and recall are swapped: precision asks what was said, recall what is true",
    )
    expect(
        not close(found[0], (said == true).mean(axis=0)),
        "that is accuracy: it also counts what is rightly left unsaid, and saying nothing would score well",
    )
    expect_close(found[0], precision, "precision: of the reports that state the finding, the share in which it is true")
    expect_close(found[1], recall, "recall: of the studies that have the finding, the share whose report states it")
    expect_not(
        found[2],
        {
            "F1 is the harmonic mean, 2 p r / (p + r), not the arithmetic one": (precision + recall) / 2,
            "that is the product: F1 is 2 p r / (p + r)": precision * recall,
            "the factor 2 is missing: F1 is 2 p r / (p + r)": f1 / 2,
        },
    )
    expect_close(found[2], f1, "F1 is 2 p r / (p + r)")
    silent = answer(np.zeros_like(said), true.copy())
    expect(
        all(np.isfinite(np.asarray(values, dtype=float)).all() for values in silent),
        "a generator that never states a finding gives 0 / 0: the rule here is 0, else it would drop out of the mean",
    )
    expect(all(close(values, np.zeros(3)) for values in silent), "a finding never stated has precision, recall and F1 0")


@exercise
def sampling_weights(answer):
    """sampling_weights(normal (N,) bool, share) -> weights (N,) that sum to 1. Truth: their sums over either kind."""
    import numpy as np

    normal = np.array([True, True, False, True, False, True, True, True])
    found = answer(normal.copy(), 0.3)
    expect_shape(found, (8,), name="the weights")
    found = np.asarray(found, dtype=float)
    expect((found >= 0).all(), "a weight is a probability of being drawn: none is negative")
    expect_not(
        found,
        {
            "every normal study got the whole share: divide it among them, or they outweigh the rest": np.where(normal, 0.3, 0.7),
            "the kinds are swapped: `share` belongs to the normal studies": np.where(normal, 0.7 / 6, 0.3 / 2),
            "these are equal weights for all: the draw then has the share of normals the data have": np.full(8, 1 / 8),
            "both kinds got a half: use `share`": np.where(normal, 0.5 / 6, 0.5 / 2),
            "you divided both shares by N: divide each by the number of its own kind": np.where(normal, 0.3, 0.7) / 8,
        },
    )
    expect(close(found.sum(), 1.0), f"the weights sum to {found.sum():.3g}: they are probabilities, so to 1")
    expect_close(found[normal].sum(), 0.3, "the normal studies together should have the weight `share`")
    expect_close(found, np.where(normal, 0.3 / 6, 0.7 / 2), "studies of one kind are drawn equally often")
    for share in (0.0, 1.0):
        expect(close(np.asarray(answer(normal.copy(), share))[normal].sum(), share), f"wrong for share={share:g}")
    alike = np.asarray(answer(np.zeros(4, dtype=bool), 0.5), dtype=float)
    expect(
        np.isfinite(alike).all() and close(alike, np.full(4, 0.25)),
        "where all studies are of one kind there is nothing to balance: give them equal weights that sum to 1",
    )
