"""The checks of lesson 12: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math

import pytest
import torch

from medvlp_kit.course import checks

lesson = checks.lesson_12


def stub(*arguments, **options):
    raise NotImplementedError


def prior_loss(true, wrong):
    share = true / (true + wrong)
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def negative_probabilities(similarity, forbid):
    closed = forbid | torch.eye(len(forbid), dtype=torch.bool)
    return similarity.masked_fill(closed, -torch.inf).softmax(dim=1).nan_to_num()


def false_negative_rate(probabilities, labels):
    same = (labels[:, None] == labels[None]).all(dim=-1)
    return (probabilities * same).sum(dim=1).mean()


def rerank(cosine, matching, k):
    order = cosine.argsort(dim=1, descending=True)
    short = order[:, :k]
    best = matching.gather(1, short).argsort(dim=1, descending=True)
    return torch.cat([short.gather(1, best), order[:, k:]], dim=1)


REFERENCES = [prior_loss, negative_probabilities, false_negative_rate, rerank]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def half(true, wrong):
    share = true / (true + wrong)
    return -(math.log(share) + math.log(1 - share)) / 2


def zeroed_after(similarity, forbid):
    return similarity.softmax(dim=1) * ~(forbid | torch.eye(len(forbid), dtype=torch.bool))


def renormalised_after(similarity, forbid):
    weights = zeroed_after(similarity, forbid)
    return (weights / weights.sum(dim=1, keepdim=True)).nan_to_num()


def closed_to_zero(similarity, forbid):
    return similarity.masked_fill(forbid | torch.eye(len(forbid), dtype=torch.bool), 0.0).softmax(dim=1)


def diagonal_open(similarity, forbid):
    return similarity.masked_fill(forbid, -torch.inf).softmax(dim=1)


def columns(similarity, forbid):
    return negative_probabilities(similarity.T, forbid.T).T


def without_repair(similarity, forbid):
    closed = forbid | torch.eye(len(forbid), dtype=torch.bool)
    return similarity.masked_fill(closed, -torch.inf).softmax(dim=1)


def flat(similarity, forbid):
    return negative_probabilities(torch.zeros_like(similarity), forbid)


def shared_finding(probabilities, labels):
    share = ((labels[:, None] == 1) & (labels[None] == 1)).any(dim=-1).fill_diagonal_(False)
    return (probabilities * share).sum(dim=1).mean()


def pairs_not_draws(probabilities, labels):
    same = (labels[:, None] == labels[None]).all(dim=-1).fill_diagonal_(False)
    return same.sum() / (len(same) * (len(same) - 1))


def abnormal_only(probabilities, labels):
    same = (labels[:, None] == labels[None]).all(dim=-1) & labels.any(dim=-1)
    return (probabilities * same).sum(dim=1).mean()


def label_by_label(probabilities, labels):
    return (probabilities * (labels[:, None] == labels[None]).double().mean(dim=-1)).sum(dim=1).mean()


def diagonal_too(probabilities, labels):
    same = (labels[:, None] == labels[None]).all(dim=-1)
    return ((probabilities + torch.eye(len(labels))) * same).sum(dim=1).mean()


def everything_by_matching(cosine, matching, k):
    return matching.argsort(dim=1, descending=True)


def worst_first(cosine, matching, k):
    return rerank(cosine, -matching, k)


def places(cosine, matching, k):
    order = cosine.argsort(dim=1, descending=True)
    best = matching.gather(1, order[:, :k]).argsort(dim=1, descending=True)
    return torch.cat([best, order[:, k:]], dim=1)


def short_only(cosine, matching, k):
    return rerank(cosine, matching, k)[:, :k]


def matching_first(cosine, matching, k):
    order = matching.argsort(dim=1, descending=True)[:, :k]
    rest = cosine.scatter(1, order, -torch.inf).argsort(dim=1, descending=True)[:, : cosine.shape[1] - k]
    return torch.cat([order, rest], dim=1)


WRONG = [
    ("prior_loss", lambda true, wrong: math.log(2), "ln 2 is the loss at chance"),
    ("prior_loss", lambda true, wrong: prior_loss(true, wrong) / math.log(2), "base 2"),
    ("prior_loss", lambda true, wrong: true / (true + wrong), "not its loss"),
    ("prior_loss", lambda true, wrong: -true / (true + wrong) * math.log(true / (true + wrong)), "true pairs only"),
    ("prior_loss", lambda true, wrong: -wrong / (true + wrong) * math.log(wrong / (true + wrong)), "wrong pairs only"),
    ("prior_loss", half, "equally many"),
    ("prior_loss", lambda true, wrong: -prior_loss(true, wrong), "sign is turned"),
    ("prior_loss", lambda true, wrong: (true + wrong) * prior_loss(true, wrong), "their mean"),
    ("prior_loss", lambda true, wrong: None, "returns None"),
    ("prior_loss", lambda true, wrong: prior_loss(1, 3), "ALBEF draws two"),
    ("negative_probabilities", diagonal_open, "close the diagonal"),
    ("negative_probabilities", lambda s, f: negative_probabilities(s, torch.zeros_like(f)), "left out `forbid`"),
    ("negative_probabilities", zeroed_after, "no longer sum to one"),
    ("negative_probabilities", closed_to_zero, "exp(0) is 1"),
    ("negative_probabilities", columns, "down the columns"),
    ("negative_probabilities", flat, "random negatives"),
    ("negative_probabilities", without_repair, "not NaN"),
    ("negative_probabilities", renormalised_after, "underflows to zeros"),
    ("negative_probabilities", lambda s, f: negative_probabilities(s, f)[0], "should have shape"),
    ("false_negative_rate", lambda p, y: false_negative_rate(p, y) * len(p), "divide by their number"),
    ("false_negative_rate", pairs_not_draws, "counted pairs, not draws"),
    ("false_negative_rate", diagonal_too, "counted the true pair"),
    ("false_negative_rate", shared_finding, "share one finding"),
    ("false_negative_rate", label_by_label, "averaged over labels"),
    ("false_negative_rate", lambda p, y: 1 - false_negative_rate(p, y), "truly wrong"),
    ("false_negative_rate", abnormal_only, "left out the normal"),
    ("rerank", everything_by_matching, "ranked all candidates"),
    ("rerank", lambda c, m, k: c.argsort(dim=1, descending=True), "kept the order of the cosine"),
    ("rerank", worst_first, "worst to best"),
    ("rerank", places, "places inside the short list"),
    ("rerank", matching_first, "other way round"),
    ("rerank", lambda c, m, k: rerank(c, m, k).argsort(dim=1), "place of a column"),
    ("rerank", short_only, "should have shape"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
