"""Checks of lesson 08, global contrastive."""

from __future__ import annotations

import math
from collections import Counter

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape


@exercise
def logit_gradient(answer):
    """logit_gradient(logits (B, B), image_weight) -> dL/dlogits (B, B); rows are images. Truth: autograd."""
    import torch

    logits = torch.tensor([[4.0, 0.0, 3.0], [3.0, 5.0, 4.0], [4.8, 4.0, 5.0]], dtype=torch.float64)
    own, count = torch.eye(3, dtype=torch.float64), 3
    rows, columns = logits.softmax(dim=1) - own, logits.softmax(dim=0) - own
    found = answer(logits.clone(), 0.75)
    expect_shape(found, (3, 3), name="the gradient")
    expect_not(
        found,
        {
            "the division by B is missing: the loss is a mean over the batch": 0.75 * rows + 0.25 * columns,
            "you divided by B twice over: the mean is over B rows, not over B x B cells": (0.75 * rows + 0.25 * columns)
            / count**2,
            "the sign is turned: the gradient is share given minus share deserved, and descent subtracts it": -(
                0.75 * rows + 0.25 * columns
            )
            / count,
            "the diagonal is not yet subtracted: the own text deserves a share of one": (
                0.75 * (rows + own) + 0.25 * (columns + own)
            )
            / count,
            "only image to text: text to image adds the softmax over columns": rows / count,
            "only text to image: image to text adds the softmax over rows": columns / count,
            "the weight is not used: both directions count half here": (rows + columns) / (2 * count),
            "the directions are swapped: image_weight belongs to the softmax over a row, where an image chooses a text": (
                0.25 * rows + 0.75 * columns
            )
            / count,
            "you added the directions without their weights": (rows + columns) / count,
        },
    )
    expect_close(found, _autograd(logits, 0.75), "compare with autograd on a 3 x 3 matrix: a cell is wrong")
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
    for weight in (0.0, 0.5, 1.0):
        truth = _autograd(logits, weight)
        expect_close(answer(logits.clone(), weight), truth, f"wrong for a 7 x 7 matrix with image_weight {weight}")


def _autograd(logits, weight: float):
    """The gradient PyTorch finds."""
    import torch
    import torch.nn.functional as F

    logits = logits.clone().requires_grad_()
    target = torch.arange(len(logits))
    loss = weight * F.cross_entropy(logits, target) + (1 - weight) * F.cross_entropy(logits.T, target)
    return torch.autograd.grad(loss, logits)[0]


@exercise
def share_of_hardest(answer):
    """share_of_hardest(cosines (B,), own, temperature) -> the share of the negatives' push on the hardest. Truth: loops."""
    import torch

    cosines, own, temperature = torch.tensor([0.2, 0.9, 0.5, -0.1]), 1, 0.25
    found = answer(cosines.clone(), own, temperature)
    expect(found is not None, "your function returns None: does it end with return?")
    powers = [math.exp(float(value) / temperature) for value in cosines]
    small = [math.exp(float(value) * temperature) for value in cosines]
    others = sum(powers) - powers[own]
    expect_not(
        found,
        {
            "the own text is still among those pushed: the share is of the push on negatives alone": powers[2] / sum(powers),
            "that is the own text: it has the greatest cosine, but it is pulled, not pushed": powers[own] / sum(powers),
            "you multiplied by the temperature: cosines are divided by it": small[2] / (sum(small) - small[own]),
            "that is the easiest negative: the hardest is the most similar one": powers[3] / others,
            "the temperature is not used": math.exp(0.5) / (math.exp(0.2) + math.exp(0.5) + math.exp(-0.1)),
            "that is the push on the hardest negative against the pull on the own text: divide by the other negatives": powers[2]
            / powers[own],
        },
    )
    expect_close(found, powers[2] / others, "the softmax over the negatives' cosines / temperature, and its greatest entry")
    # A negative above the own text, and a cold temperature at which exp overflows unless the greatest is taken off.
    cosines = torch.tensor([0.9, 0.3, 0.88])
    truth = 1 / (1 + math.exp((0.88 - 0.9) / 0.002))
    found = answer(cosines, 1, 0.002)
    expect(
        math.isfinite(float(found)),
        "at temperature 0.002 your share is not finite: exp overflows, take the greatest off first or use softmax",
    )
    expect_close(found, truth, "wrong when a negative is more similar than the own text")


@exercise
def lowest_loss(answer):
    """lowest_loss(texts) -> the lowest InfoNCE loss a batch with these texts allows. Truth: descent is not needed, ln k."""
    texts = ["Normal study.", "normal  study.", "Left effusion.", "Normal study.", "Nodule.", "Left effusion.", "Fracture."]
    found = answer(list(texts))
    expect(found is not None, "your function returns None: does it end with return?")
    kinds = Counter(" ".join(text.casefold().split()) for text in texts)
    truth = _floor(kinds)
    expect_not(
        found,
        {
            "that is chance, ln B: distinct texts can be told apart": math.log(len(texts)),
            "equal texts cannot be told apart, so the floor is not zero": 0.0,
            "case and spacing still count: 'Normal study.' and 'normal  study.' say the same": _floor(Counter(texts)),
            "you took the mean over distinct texts: a text with k copies has k rows, each of which loses ln k": sum(
                math.log(k) for k in kinds.values()
            )
            / len(kinds),
            "that is ln of the number of distinct texts: what counts is how many copies each one has": math.log(len(kinds)),
            "you added up the rows: the loss is their mean": len(texts) * truth,
            "that is both directions added: they are averaged, and the floor is the same in each": 2 * truth,
            "that is ln of the largest group: the other rows have floors of their own": math.log(max(kinds.values())),
            "only one row a group is counted: each of the k copies loses ln k": sum(math.log(k) for k in kinds.values())
            / len(texts),
            "that is the share of texts that have a copy: each such row loses ln k": sum(k for k in kinds.values() if k > 1)
            / len(texts),
            "use the natural logarithm, as the loss does": truth / math.log(2),
        },
    )
    expect_close(found, truth, "the mean over rows of ln k, with k the number of copies of the row's text")
    for texts, message in (
        (["a.", "b.", "c."], "where all texts differ, nothing stands in the way: the floor is zero"),
        (["Normal."] * 8, "where all texts are the same, nothing can be learned: the floor is ln B"),
    ):
        expect(close(answer(list(texts)), _floor(Counter(texts))), message)


def _floor(kinds: Counter) -> float:
    return sum(k * math.log(k) for k in kinds.values()) / kinds.total()
