"""Ranks, recall and precision at k against plain loops; retrieval as a task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Oracle, Planted, Words
from torchmetrics.retrieval import RetrievalHitRate, RetrievalPrecision

from medvlp_kit.budget import budget
from medvlp_kit.downstream import ranking
from medvlp_kit.downstream.encode import Examination
from medvlp_kit.downstream.ranking import ModelScores, WithoutSelf, places, ranks, top
from medvlp_kit.downstream.retrieval import (
    chance_precision,
    chance_recall,
    image_to_image,
    precision_at_k,
    recall_at_k,
    relevant_at_k,
    retrieval,
    same_text,
)
from medvlp_kit.errors import KitError

TINY = budget("tiny")


def order(row) -> list[int]:
    """Columns, best first; of equal scores the lower column first."""
    return sorted(range(len(row)), key=lambda j: (-float(row[j]), j))


def slow_rank(row, target: int, groups) -> int:
    right = {target} if groups is None else {j for j in range(len(row)) if groups[j] == groups[target]}
    return next(place for place, j in enumerate(order(row)) if j in right)


@st.composite
def problems(draw):
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(7, 9))
    values = draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))  # many ties
    groups = draw(st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=columns, max_size=columns)))
    targets = draw(st.one_of(st.none(), st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows)))
    return torch.tensor(values, dtype=torch.float32).reshape(rows, columns), groups, targets


@given(problems(), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_ranks_equal_sorting_with_ties_groups_and_targets_in_any_block(problem, block):
    scores, groups, targets = problem
    slow = [slow_rank(row, i if targets is None else targets[i], groups) for i, row in enumerate(scores)]
    before, ranking.BLOCK = ranking.BLOCK, block
    try:
        assert ranks(scores, groups=groups, targets=targets).tolist() == slow
    finally:
        ranking.BLOCK = before
    found = recall_at_k(scores, ks=(1, 3), groups=groups, targets=targets)
    assert found == {k: pytest.approx(np.mean([rank < k for rank in slow])) for k in (1, 3)}


@given(problems(), st.sampled_from(["any", "same"]))
@settings(max_examples=100, deadline=None)
def test_precision_equals_sorting_with_ties(problem, relevance):
    scores, generator = problem[0], np.random.default_rng(problem[0].numel())
    mine = generator.choice([0.0, 1.0, np.nan], (scores.shape[0], 2))
    theirs = generator.choice([0.0, 1.0, np.nan], (scores.shape[1], 2))

    def right(i, j):
        a, b = {f for f in range(2) if mine[i, f] == 1}, {f for f in range(2) if theirs[j, f] == 1}
        return a == b if relevance == "same" else bool(a & b) or a == b

    found = precision_at_k(scores, mine, ks=(1, 2, 5), column_labels=theirs, relevance=relevance)
    for k in (1, 2, 5):
        slow = np.mean([np.mean([right(i, j) for j in order(row)[:k]]) for i, row in enumerate(scores)])
        assert found[k] == pytest.approx(slow)


def test_recall_and_precision_equal_torchmetrics_without_ties():
    generator = torch.Generator().manual_seed(0)
    # torchmetrics counts only scores above 0 as retrieved, so these are positive.
    scores, classes = torch.rand(20, 20, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    query = torch.arange(20)[:, None].expand(20, 20)
    same = classes[:, None] == classes
    for k in (1, 5, 10):
        hit = RetrievalHitRate(top_k=k)(scores.flatten(), torch.eye(20, dtype=torch.bool).flatten(), query.flatten())
        assert recall_at_k(scores, ks=(k,))[k] == pytest.approx(hit.item())
        precision = RetrievalPrecision(top_k=k)(scores.flatten(), same.flatten(), query.flatten())
        assert precision_at_k(scores, classes, ks=(k,))[k] == pytest.approx(precision.item())


def test_embeddings_give_what_their_matrix_gives_and_never_form_it(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    # Whole numbers: their products are exact, so that blocks of any size give the same bits.
    image, text = (torch.randint(-2, 3, (50, 6), generator=generator).double() for _ in range(2))
    whole = ranks(image @ text.T)
    assert (ranks(text @ image.T) == ranks((text, image))).all()
    monkeypatch.setattr(ranking, "BLOCK", 50 * 8)
    sizes = [len(block) for _, block in ranking.blocks((image, text))]
    assert max(sizes) == 8 and sum(sizes) == 50
    assert (ranks((image, text)) == whole).all()


def test_a_constant_similarity_earns_no_recall_beyond_its_first_columns():
    assert recall_at_k(torch.zeros(10, 10), ks=(1, 5)) == {1: 0.1, 5: 0.5}


def test_chance_equals_the_recall_of_random_scores():
    groups = [0] * 5 + [1] * 2 + list(range(2, 15))
    sizes = [groups.count(g) for g in groups]
    expected = chance_recall(20, (1, 5), group_sizes=sizes)
    generator = torch.Generator().manual_seed(0)
    drawn = [recall_at_k(torch.rand(20, 20, generator=generator), ks=(1, 5), groups=groups) for _ in range(400)]
    for k in (1, 5):
        assert np.mean([found[k] for found in drawn]) == pytest.approx(expected[k], abs=0.015)
    assert chance_recall(4, (1, 4, 9)) == {1: pytest.approx(0.25), 4: 1.0, 9: 1.0}


@given(problems(), st.integers(1, 7), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_lists_of_the_best_are_the_start_of_the_sorted_row_and_places_are_ranks_within_them(problem, k, block):
    scores, groups, targets = problem
    before, ranking.BLOCK = ranking.BLOCK, block
    try:
        best = top(scores, k)
    finally:
        ranking.BLOCK = before
    assert best.tolist() == [order(row)[:k] for row in scores]
    whole = ranks(scores, groups=groups, targets=targets)
    assert places(best, groups=groups, targets=targets).tolist() == whole.clamp(max=k).tolist()


def test_what_an_index_did_not_find_is_nobodys():
    best = torch.tensor([[1, -1], [-1, -1]])
    assert places(best, targets=[1, 1]).tolist() == [0, 2]
    assert places(best, targets=[2, 2], groups=["a", "b", "a"]).tolist() == [2, 2]  # -1 is not the last column


@pytest.mark.parametrize("relevance", ["any", "same"])
def test_image_to_image_leaves_out_the_query_and_equals_a_loop(relevance, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-1, 2, (20, 4), generator=generator).double()  # many ties, and twins
    labels = torch.randint(0, 2, (20, 3), generator=generator).float()
    monkeypatch.setattr(ranking, "BLOCK", 20 * 3)
    cosine, shares = image @ image.T, {1: [], 5: []}
    for i in range(20):
        ranked = [j for j in order(cosine[i]) if j != i]
        mine = set(labels[i].nonzero()[:, 0].tolist())
        theirs = [set(labels[j].nonzero()[:, 0].tolist()) for j in ranked]
        right = [mine == their if relevance == "same" else bool(mine & their) or mine == their for their in theirs]
        for k in shares:
            shares[k].append(np.mean(right[:k]))
    found = image_to_image(image, labels, ks=(1, 5), relevance=relevance)
    assert found == {k: pytest.approx(np.mean(share)) for k, share in shares.items()}
    level = chance_precision(labels, relevance=relevance, others=True).mean()
    every = image_to_image(image, labels, ks=(19,), relevance=relevance)[19]  # all others: whatever their order
    assert every == pytest.approx(float(level))


def test_the_precision_of_random_scores_is_the_chance_level():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randint(0, 3, (count,), generator=generator) for count in (30, 40))
    expected = chance_precision(mine, column_labels=theirs)
    assert expected.tolist() == pytest.approx([(theirs == own).double().mean().item() for own in mine])
    drawn = [
        precision_at_k(torch.rand(30, 40, generator=generator), mine, ks=(3,), column_labels=theirs)[3] for _ in range(200)
    ]
    assert np.mean(drawn) == pytest.approx(expected.mean().item(), abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: top(torch.zeros(2, 2), 3), "k=3"),
        (lambda: WithoutSelf(torch.zeros(2, 3)), "leave out the query"),
        (lambda: image_to_image(torch.eye(3), torch.zeros(3), ks=(3,)), "ks"),
        (lambda: ranks(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda: ranks(torch.zeros(3, 2)), "give `targets`"),
        (lambda: ranks(torch.zeros(2, 2), groups=[1, 2, 3]), "groups has 3"),
        (lambda: recall_at_k(torch.zeros(2, 2), ks=(0,)), "ks"),
        (lambda: precision_at_k(torch.zeros(2, 2), torch.zeros(2), ks=(3,)), "ks"),
        (lambda: precision_at_k(torch.zeros(2, 2), torch.zeros(3), ks=(1,)), "labels for 3"),
        (lambda: relevant_at_k(torch.zeros(2, 2), torch.zeros(2), ks=(1,), relevance="all"), "relevance"),
        (lambda: ranks(torch.zeros(4)), "queries, candidates"),
    ],
)
def test_faults_give_one_line(call, words):
    with pytest.raises(KitError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture
def exam():
    words = Words()
    return Examination(Oracle(words), words, Planted(48), budget=TINY)


def test_model_scores_are_the_models_similarity_in_both_directions(exam):
    encoded = exam.encoded
    scores = ModelScores(exam.model, encoded.image, encoded.text)
    with torch.no_grad():
        whole = exam.model.similarity(encoded.image, encoded.text)
    assert scores.shape == (48, 48)
    torch.testing.assert_close(scores.rows(7, 31), whole[7:31])
    torch.testing.assert_close(scores.T.rows(7, 31), whole.T[7:31])


def test_retrieval_finds_every_pair_of_a_perfect_model_and_not_the_shuffled_ones(exam):
    result = retrieval(exam.model, exam.tokenizer, exam.collection, examination=exam, headline=1)
    assert result.value == 1.0 and result.passed  # identical texts are hits for each other
    shuffled, chance = result.controls
    assert shuffled.low <= chance.value <= shuffled.high
    assert exam.model.images_seen == exam.model.texts_seen == len(exam)
    recall = result.table.xs("recall@1", level="metric")
    assert (recall["value"] == 1).all() and (recall["shuffled"] < 0.3).all()
    # Images that show the same findings fit each other's texts: near the top, relevant studies only.
    precision = result.table.xs("precision@1", level="metric")["value"]
    assert precision["image to text"] == precision["text to image"] == 1 and precision["image to image"] > 0.9
    assert (result.table["chance"] < result.table["value"]).all()


def test_a_large_split_is_ranked_without_the_whole_matrix(exam, monkeypatch):
    module = __import__("medvlp_kit.downstream.retrieval", fromlist=["WHOLE"])
    whole = retrieval(exam.model, exam.tokenizer, exam.collection, examination=exam)
    monkeypatch.setattr(module, "WHOLE", 10)
    monkeypatch.setattr(ranking, "BLOCK", 48 * 16)
    assert retrieval(exam.model, exam.tokenizer, exam.collection, examination=exam).to_dict() == whole.to_dict()


def test_few_studies_are_said_to_be_too_few():
    words = Words()
    result = retrieval(Oracle(words), words, Planted(6), budget=TINY, headline=1)
    assert result.value == 1.0 and not result.passed
    assert "Too few data to conclude: n = 6 studies" in result.conclusion and "Too few" in str(result)


def test_texts_that_differ_in_case_and_spacing_are_the_same():
    assert len(set(same_text(["No  effusion.", "no effusion.", "No effusion"]))) == 2
