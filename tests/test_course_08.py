"""The checks of lesson 08: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.course import checks
from medvlp_kit.objectives.contrastive import info_nce

lesson = checks.lesson_08


def stub(*arguments, **options):
    raise NotImplementedError


def logit_gradient(logits, image_weight):
    own = torch.eye(len(logits), dtype=logits.dtype)
    rows, columns = logits.softmax(dim=1) - own, logits.softmax(dim=0) - own
    return (image_weight * rows + (1 - image_weight) * columns) / len(logits)


def share_of_hardest(cosines, own, temperature):
    negatives = torch.cat([cosines[:own], cosines[own + 1 :]])
    return (negatives / temperature).softmax(dim=0).max().item()


def lowest_loss(texts):
    copies = Counter(" ".join(text.casefold().split()) for text in texts)
    return sum(k * math.log(k) for k in copies.values()) / len(texts)


@pytest.mark.parametrize("reference", [logit_gradient, share_of_hardest, lowest_loss], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_floor_is_reached_but_not_passed():
    """The formula that the check takes for true is what the best embedding of `info_nce` reaches, and no descent beats it."""
    texts = ["n"] * 3 + ["a", "b", "b"]
    names = sorted(set(texts))
    best = F.one_hot(torch.tensor([names.index(text) for text in texts])).double()
    assert info_nce(best, best, temperature=1e-3).item() == pytest.approx(lowest_loss(texts), abs=1e-9)
    torch.manual_seed(0)
    image, word = torch.randn(6, 4, dtype=torch.float64), torch.randn(len(names), 4, dtype=torch.float64)
    optimizer = torch.optim.Adam([image.requires_grad_(), word.requires_grad_()], lr=0.1)
    for _ in range(300):
        text = word[[names.index(name) for name in texts]]  # equal texts have equal embeddings
        loss = info_nce(F.normalize(image, dim=-1), F.normalize(text, dim=-1), temperature=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() >= lowest_loss(texts) - 1e-9
    assert loss.item() == pytest.approx(lowest_loss(texts), abs=1e-2)


def parts(logits):
    own = torch.eye(len(logits), dtype=logits.dtype)
    return logits.softmax(dim=1) - own, logits.softmax(dim=0) - own


def only_rows(logits, weight):
    return parts(logits)[0] / len(logits)


def undeserved(logits, weight):
    return (weight * logits.softmax(1) + (1 - weight) * logits.softmax(0)) / len(logits)


def fixed_half(logits, weight):
    return sum(parts(logits)) / (2 * len(logits))


def overflowing(cosines, own, temperature):
    powers = torch.exp(cosines / temperature)
    return (powers.topk(2).values[-1 if cosines.argmax() == own else 0] / (powers.sum() - powers[own])).item()


def second_greatest(cosines, own, temperature):
    """Right only where the own text is the most similar."""
    negatives = torch.cat([cosines[:own], cosines[own + 1 :]]) / temperature
    return negatives.softmax(0)[negatives.argsort(descending=True)[0 if cosines.argmax() == own else 1]].item()


def with_own(cosines, own, temperature):
    return (cosines / temperature).softmax(0).topk(2).values[1].item()


def copies(texts):
    return Counter(" ".join(text.casefold().split()) for text in texts)


WRONG = [
    ("logit_gradient", lambda s, w: logit_gradient(s, w) * len(s), "division by B is missing"),
    ("logit_gradient", lambda s, w: logit_gradient(s, w) / len(s), "twice over"),
    ("logit_gradient", lambda s, w: -logit_gradient(s, w), "sign is turned"),
    ("logit_gradient", undeserved, "diagonal is not yet subtracted"),
    ("logit_gradient", only_rows, "only image to text"),
    ("logit_gradient", lambda s, w: only_rows(s.T, w).T, "only text to image"),
    ("logit_gradient", fixed_half, "weight is not used"),
    ("logit_gradient", lambda s, w: logit_gradient(s, 1 - w), "directions are swapped"),
    ("logit_gradient", lambda s, w: 2 * fixed_half(s, w), "without their weights"),
    ("logit_gradient", lambda s, w: logit_gradient(s, w).T, "a cell is wrong"),
    ("logit_gradient", lambda s, w: logit_gradient(s, 0.75), "7 x 7"),
    ("logit_gradient", lambda s, w: None, "is None"),
    ("logit_gradient", lambda s, w: logit_gradient(s, w).sum(), "should have shape"),
    ("share_of_hardest", with_own, "still among those pushed"),
    ("share_of_hardest", lambda c, i, t: (c / t).softmax(0).max().item(), "that is the own text"),
    ("share_of_hardest", lambda c, i, t: share_of_hardest(c, i, 1 / t), "multiplied by the temperature"),
    ("share_of_hardest", lambda c, i, t: (torch.cat([c[:i], c[i + 1 :]]) / t).softmax(0).min().item(), "easiest negative"),
    ("share_of_hardest", lambda c, i, t: share_of_hardest(c, i, 1.0), "temperature is not used"),
    ("share_of_hardest", lambda c, i, t: math.exp((0.5 - 0.9) / t), "against the pull"),
    ("share_of_hardest", overflowing, "not finite"),
    ("share_of_hardest", second_greatest, "more similar than the own text"),
    ("share_of_hardest", lambda c, i, t: None, "returns None"),
    ("lowest_loss", lambda texts: math.log(len(texts)), "that is chance"),
    ("lowest_loss", lambda texts: 0.0, "not zero"),
    ("lowest_loss", lambda texts: sum(k * math.log(k) for k in Counter(texts).values()) / len(texts), "case and spacing"),
    ("lowest_loss", lambda texts: sum(map(math.log, copies(texts).values())) / len(copies(texts)), "mean over distinct"),
    ("lowest_loss", lambda texts: math.log(len(copies(texts))), "number of distinct texts"),
    ("lowest_loss", lambda texts: len(texts) * lowest_loss(texts), "added up the rows"),
    ("lowest_loss", lambda texts: 2 * lowest_loss(texts), "both directions added"),
    ("lowest_loss", lambda texts: math.log(max(copies(texts).values())), "largest group"),
    ("lowest_loss", lambda texts: sum(map(math.log, copies(texts).values())) / len(texts), "one row a group"),
    ("lowest_loss", lambda texts: sum(k for k in copies(texts).values() if k > 1) / len(texts), "share of texts"),
    ("lowest_loss", lambda texts: lowest_loss(texts) / math.log(2), "natural logarithm"),
    ("lowest_loss", lambda texts: lowest_loss(texts) if len(texts) != 3 else 1.0, "the floor is zero"),
    ("lowest_loss", lambda texts: lowest_loss(texts) if len(copies(texts)) > 1 else 0.0, "the floor is ln B"),
    ("lowest_loss", lambda texts: None, "returns None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
