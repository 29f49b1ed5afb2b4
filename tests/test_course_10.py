"""The checks of lesson 10: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import pytest
import torch

from medvlp_kit.course import checks

lesson = checks.lesson_10


def stub(*arguments, **options):
    raise NotImplementedError


def expected_count(counts, batch_size):
    total = sum(counts)
    return (batch_size - 1) * sum(n * (n - 1) for n in counts) / (total * (total - 1))


def pair_answers(labels, left_out=0.0):
    same = (labels[:, None] == labels[None]).all(dim=2)
    return torch.where(same, left_out, -1.0).fill_diagonal_(1.0)


def soft_gradient(logits, targets):
    rows = logits.softmax(dim=1) - targets / targets.sum(dim=1, keepdim=True)
    columns = logits.softmax(dim=0) - targets / targets.sum(dim=0, keepdim=True)
    return (rows + columns) / (2 * len(logits))


@pytest.mark.parametrize("reference", [expected_count, pair_answers, soft_gradient], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def shares_one(labels):
    return torch.where(labels @ labels.T > 0, 0.0, -1.0).fill_diagonal_(1.0)


def shares_one_or_none(labels):
    normal = labels.sum(1) == 0
    return torch.where((labels @ labels.T > 0) | (normal[:, None] & normal[None]), 0.0, -1.0).fill_diagonal_(1.0)


def normals_only(labels):
    normal = labels.sum(1) == 0
    return torch.where(normal[:, None] & normal[None], 0.0, -1.0).fill_diagonal_(1.0)


def as_many(labels):
    count = labels.sum(1)
    return torch.where(count[:, None] == count[None], 0.0, -1.0).fill_diagonal_(1.0)


def own_left_out(labels):
    answers = pair_answers(labels)
    return answers.fill_diagonal_(0.0)


def identity(logits, targets):
    return soft_gradient(logits, torch.eye(len(logits), dtype=logits.dtype))


def not_normalised(logits, targets):
    return (logits.softmax(dim=1) - targets + logits.softmax(dim=0) - targets) / (2 * len(logits))


def by_rows(logits, targets):
    shares = targets / targets.sum(dim=1, keepdim=True)
    return (logits.softmax(dim=1) + logits.softmax(dim=0) - 2 * shares) / (2 * len(logits))


def rows_only(logits, targets):
    return (logits.softmax(dim=1) - targets / targets.sum(dim=1, keepdim=True)) / len(logits)


WRONG = [
    ("expected_count", lambda n, b: b * expected_count(n, 2), "its own negative"),
    ("expected_count", lambda n, b: (b - 1) * sum((k / sum(n)) ** 2 for k in n), "with replacement"),
    ("expected_count", lambda n, b: expected_count(n, 2), "one pair"),
    ("expected_count", lambda n, b: b * expected_count(n, b), "whole batch"),
    ("expected_count", lambda n, b: b - 1 - expected_count(n, b), "true negatives"),
    ("expected_count", lambda n, b: (b - 1) * max(n) * (max(n) - 1) / (sum(n) * (sum(n) - 1)), "commonest category alone"),
    ("expected_count", lambda n, b: None, "returns None"),
    ("pair_answers", lambda x: pair_answers(x, 1.0), "call other studies of the same findings matches"),
    ("pair_answers", shares_one, "two normals are"),
    ("pair_answers", shares_one_or_none, "'effusion and edema' differ"),
    ("pair_answers", normals_only, "only normal studies"),
    ("pair_answers", as_many, "number of findings"),
    ("pair_answers", own_left_out, "own pair is left out"),
    ("pair_answers", lambda x: pair_answers(x, -1.0), "nothing is left out"),
    ("pair_answers", lambda x: -pair_answers(x), "signs are turned"),
    ("pair_answers", lambda x: pair_answers(x)[0], "should have shape"),
    ("soft_gradient", identity, "subtracted the identity"),
    ("soft_gradient", not_normalised, "not normalised"),
    ("soft_gradient", by_rows, "normalised along the rows for both"),
    ("soft_gradient", rows_only, "only image to text"),
    ("soft_gradient", lambda s, y: -soft_gradient(s, y), "sign is turned"),
    ("soft_gradient", lambda s, y: len(s) * soft_gradient(s, y), "division by B"),
    ("soft_gradient", lambda s, y: 2 * soft_gradient(s, y), "added the directions"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
