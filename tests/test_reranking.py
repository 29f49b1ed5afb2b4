"""Reranking against a plain loop, with recipes whose scorer fuses pairs; galleries against exact search."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.downstream.encode import Examination, similarity
from medvlp_kit.downstream.gallery import Gallery, overlap
from medvlp_kit.downstream.ranking import places, top
from medvlp_kit.downstream.reranking import fused_pairs, matching_score, rerank
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny").but(test_studies=12)
with_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="FAISS is an option: pip install faiss-cpu to test it too"
)


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**16), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_reranking_orders_the_k_best_alone_and_keeps_the_first_order_of_equals(rows, columns, seed, pairs):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 3, (rows, columns), generator=generator).float() for _ in range(2))
    k, asked = 1 + seed % columns, []

    def pair_score(row, column):
        asked.extend(zip(row.tolist(), column.tolist(), strict=True))
        return second[row, column]

    found = rerank(first, pair_score, k=k, pairs=pairs)
    for i in range(rows):
        best = sorted(range(columns), key=lambda j: (-first[i, j], j))[:k]  # noqa: B023
        assert found[i].tolist() == sorted(best, key=lambda j: -second[i, j])  # noqa: B023  sorted() is stable
    assert len(asked) == len(set(asked)) == rows * k  # each pair once, and no other


def test_reranking_all_candidates_is_ranking_by_the_second_score_where_the_first_is_level():
    second = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    assert (rerank(torch.zeros(5, 7), lambda r, c: second[r, c], k=7) == top(second, 7)).all()


def test_a_perfect_second_stage_finds_what_the_first_brings_and_nothing_else():
    first = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    found = rerank(first, lambda row, column: (row == column).float(), k=10)
    brought = places(top(first, 10)) < 10
    assert ((places(found) == 0) == brought).all() and 0 < brought.sum() < 40


@pytest.fixture(scope="module")
def exams():
    phantoms = Phantoms(12, split="test", image_size=32)
    tokenizer = ReportTokenizer.train([phantoms.report(i).text for i in range(12)], vocabulary_size=300)
    return phantoms, tokenizer


@pytest.mark.parametrize("name", ["albef", "medvill", "m3ae", "ptunifier"])
def test_fused_pairs_are_what_the_recipe_itself_would_say_of_each_pair(exams, name):
    phantoms, tokenizer = exams
    torch.manual_seed(0)
    built = recipes.build(name, budget=TINY, vocabulary_size=tokenizer.vocabulary_size, channels=1)
    model, score = built.model.eval(), matching_score(built.objective)
    exam = Examination(model, tokenizer, phantoms, budget=TINY)
    image, text = exam.encoded.image, exam.encoded.text
    scorer = built.objective.parts["matching"].scorer()
    with torch.inference_mode():
        whole = scorer(model, image, text)  # (12, 12), every pair fused
    first = exam.encoded.image_embedding @ exam.encoded.text_embedding.T
    for scores, target, transposed in ((first, whole, False), (first.T, whole.T, True)):
        pair_score = fused_pairs(model, score, image, text, transposed=transposed)
        rows, columns = torch.arange(12).repeat_interleave(12), torch.arange(12).repeat(12)
        torch.testing.assert_close(pair_score(rows, columns).view(12, 12), target, rtol=1e-4, atol=1e-5)
        found = rerank(scores, lambda r, c: target[r, c], k=4)  # noqa: B023
        assert (rerank(scores, pair_score, k=4, pairs=5).sort(1).values == found.sort(1).values).all()
    if name in ("medvill", "m3ae"):  # their own similarity fuses too
        torch.testing.assert_close(similarity(model, image, text), whole, rtol=1e-4, atol=1e-5)
        matching_score(model)  # and holds the head


def test_a_recipe_without_matching_and_scores_of_a_wrong_shape_give_one_line(exams):
    built = recipes.build("clip", budget=TINY, vocabulary_size=300, channels=1)
    with pytest.raises(KitError, match="no matching") as caught:
        matching_score(built.objective)
    assert "\n" not in str(caught.value)
    with pytest.raises(KitError, match="one number a pair"):
        rerank(torch.eye(3), lambda row, column: torch.zeros(len(row), 2), k=2)
    with pytest.raises(KitError, match="NaN"):
        rerank(torch.eye(3), lambda row, column: torch.full((len(row),), torch.nan), k=2)
    with pytest.raises(KitError, match="k=4"):
        rerank(torch.eye(3), lambda row, column: row, k=4)


# galleries


def unit(count, width=8, seed=0):
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_exact_search_is_the_start_of_the_ranking_and_ties_go_to_the_lower_column():
    vectors, queries = unit(50), unit(9, seed=1)
    assert (Gallery(vectors).search(queries, k=5) == (queries @ vectors.T).argsort(1, descending=True)[:, :5]).all()
    assert Gallery(torch.ones(6, 3)).search(torch.ones(1, 3), k=3).tolist() == [[0, 1, 2]]
    assert overlap(torch.tensor([[3, 1], [0, -1]]), torch.tensor([[1, 2], [0, 3]])) == 0.5


def test_faults_of_a_gallery_give_one_line(monkeypatch):
    calls = [
        (lambda: Gallery(unit(5), index="annoy"), "index"),
        (lambda: Gallery(torch.zeros(5)), "shape"),
        (lambda: Gallery(unit(5), cells=2), "cells"),
        (lambda: Gallery(unit(5)).search(torch.zeros(2, 3), k=1), "width"),
        (lambda: Gallery(unit(5)).search(unit(2), k=6), "k=6"),
        (lambda: overlap(torch.zeros(2, 2), torch.zeros(2, 3)), "neighbours"),
    ]
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)  # as if it were not installed
    calls.append((lambda: Gallery(unit(5), index="faiss"), "pip install faiss-cpu"))
    for call, words in calls:
        with pytest.raises(KitError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@with_faiss
def test_faiss_finds_the_same_neighbours_and_an_inverted_index_most_of_them():
    vectors, queries = unit(2000, 16), unit(100, 16, seed=1)
    exact = Gallery(vectors).search(queries, k=10)
    assert (Gallery(vectors, index="faiss").search(queries, k=10) == exact).all()
    shares = [overlap(Gallery(vectors, index="faiss", cells=20, probes=p).search(queries, k=10), exact) for p in (1, 5, 20)]
    assert shares[0] < shares[1] < shares[2] == 1.0
    again = Gallery(vectors, index="faiss", cells=20, probes=5).search(queries, k=10)
    assert overlap(again, exact) == shares[1]
    few = Gallery(vectors[:40], index="faiss", cells=1).search(queries, k=40)
    assert (few.sort(1).values == torch.arange(40)).all()


@with_faiss
def test_faiss_keeps_the_rule_for_ties_within_the_list_and_says_when_it_finds_too_few():
    assert Gallery(torch.ones(6, 3), index="faiss").search(torch.ones(1, 3), k=6).tolist() == [[0, 1, 2, 3, 4, 5]]
    vectors = torch.cat([unit(60, seed=2) + 4, unit(60, seed=3) - 4])
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    found = Gallery(vectors, index="faiss", cells=2, probes=1).search(vectors[:1], k=100)
    assert (found[0] >= 0).sum() == 60 and (found[0, 60:] == -1).all()
