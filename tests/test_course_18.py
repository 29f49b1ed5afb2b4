"""The checks of lesson 18: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

from math import comb

import pytest
import torch

from medvlp_kit.course import checks
from medvlp_kit.downstream.ranking import places, ranks, top
from medvlp_kit.downstream.reranking import rerank
from medvlp_kit.downstream.retrieval import chance_recall as chance_of_the_kit
from medvlp_kit.downstream.retrieval import relevant_in

lesson = checks.lesson_18


def stub(*arguments, **options):
    raise NotImplementedError


def rank_of_right(scores, right):
    value = scores.gather(1, right[:, None])
    earlier = torch.arange(scores.shape[1]) < right[:, None]
    return ((scores > value) | ((scores == value) & earlier)).sum(1)


def semantic_precision(ranking, labels, k):
    return (labels[ranking[:, :k]] == labels[:, None]).all(-1).double().mean().item()


def chance_recall(candidates, right, k):
    return 1 - comb(candidates - right, k) / comb(candidates, k)


def best_after_reranking(first_ranks, depth, k):
    return (first_ranks < max(depth, k)).double().mean().item()


REFERENCES = [rank_of_right, semantic_precision, chance_recall, best_after_reranking]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_library_passes_too():
    assert lesson.rank_of_right(lambda s, r: ranks(s, targets=r)).passed
    same = lesson.semantic_precision(
        lambda order, labels, k: relevant_in(order, labels, ks=(k,), relevance="same").mean().item()
    )
    assert same.passed
    assert lesson.chance_recall(lambda m, g, k: chance_of_the_kit(m, (k,), group_sizes=g)[k]).passed


def test_the_ceiling_is_what_a_perfect_pair_score_reaches():
    scores = torch.rand(50, 50, generator=torch.Generator().manual_seed(0))
    first = ranks(scores)
    for depth, k in ((10, 1), (10, 5), (20, 10)):
        found = places(rerank(scores, lambda row, column: (row == column).float(), k=depth))
        assert (found < k).double().mean().item() == pytest.approx(best_after_reranking(first, depth, k))
    assert (places(top(scores, 10)) < 10).double().mean().item() == pytest.approx(best_after_reranking(first, 10, 1))


WRONG = [
    ("rank_of_right", lambda s, r: (s > s.gather(1, r[:, None])).sum(1), "scores everything alike"),
    ("rank_of_right", lambda s, r: (s >= s.gather(1, r[:, None])).sum(1) - 1, "counts as lost"),
    ("rank_of_right", lambda s, r: rank_of_right(s, r) + 1, "start at 0"),
    ("rank_of_right", lambda s, r: r * 0, "further left"),
    ("rank_of_right", lambda s, r: rank_of_right(s.flip(1), s.shape[1] - 1 - r), "you let the higher one"),
    ("rank_of_right", lambda s, r: (s < s.gather(1, r[:, None])).sum(1), "worst to best"),
    ("rank_of_right", lambda s, r: s.argmax(1), "where the right one stands"),
    ("semantic_precision", lambda o, y, k: (y[o[:, :k]] == y[:, None]).all(-1).any(1).double().mean().item(), "hit rate"),
    ("semantic_precision", lambda o, y, k: (y[o[:, :k]] * y[:, None]).any(-1).double().mean().item(), "one common finding"),
    ("semantic_precision", lambda o, y, k: semantic_precision(o, y, o.shape[1]), "cut the ranking"),
    (
        "semantic_precision",
        lambda o, y, k: ((y[o[:, :k]] == y[:, None]).all(-1) & y[:, None].any(-1)).double().mean().item(),
        "two empty rows",
    ),
    (
        "semantic_precision",
        lambda o, y, k: (o[:, :k] == torch.arange(len(o))[:, None]).any(1).double().mean().item(),
        "recall of the pair",
    ),
    ("chance_recall", lambda m, g, k: k / m, "you counted one right"),
    ("chance_recall", lambda m, g, k: g * k / m, "do not add"),
    ("chance_recall", lambda m, g, k: 1 - (1 - g / m) ** k, "with replacement"),
    ("chance_recall", lambda m, g, k: g / m, "k is not used"),
    ("chance_recall", lambda m, g, k: comb(m - g, k) / comb(m, k), "none of them"),
    ("best_after_reranking", lambda r, depth, k: (r < k).double().mean().item(), "first stage's own recall"),
    ("best_after_reranking", lambda r, depth, k: 1.0, "did not bring"),
    ("best_after_reranking", lambda r, depth, k: (r <= depth).double().mean().item(), "ranks 0 to 9"),
    ("best_after_reranking", lambda r, depth, k: (r < depth).double().mean().item(), "places 6 to 20"),
    ("best_after_reranking", lambda r, depth, k: int((r < depth).sum()), "not a count"),
]


@pytest.mark.parametrize(("name", "answer", "words"), WRONG)
def test_misconceptions_are_named(name, answer, words):
    verdict = getattr(lesson, name)(answer)
    assert not verdict.passed and words in verdict.message, verdict.message
    assert "\n" not in verdict.message
