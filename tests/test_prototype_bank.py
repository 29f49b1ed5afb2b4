"""The bank of sentences: nearest entries, the cheapest matching, and what neither may depend on."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from medvlp_kit.errors import KitError
from medvlp_kit.objectives.pieces import sentence_numbers
from medvlp_kit.objectives.prototype_bank import matched_distance, nearest_prototypes

torch.manual_seed(0)


def cheapest(predicted, wanted, mask):
    """The textbook: try every assignment."""
    total, count = 0, 0
    for study in range(len(predicted)):
        real = mask[study].nonzero().flatten().tolist()
        costs = [
            sum((predicted[study, q] - wanted[study, m]).abs().mean() for q, m in zip(chosen, real))
            for chosen in permutations(range(predicted.shape[1]), len(real))
        ]
        total, count = total + min(costs, key=lambda cost: float(cost.detach())), count + len(real)
    return total / count


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    wanted = torch.randn(3, 3, 4, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    return predicted, wanted, mask


@pytest.mark.parametrize("seed", range(4))
def test_the_matching_is_the_cheapest_forward_and_backward(seed):
    predicted, wanted, mask = example(seed)
    ours, oracle = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
    loss, expected = matched_distance(ours, wanted, mask), cheapest(oracle, wanted, mask)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, oracle.grad)


def test_neither_order_nor_padding_matters():
    predicted, wanted, mask = example()
    loss = matched_distance(predicted, wanted, mask)
    torch.testing.assert_close(matched_distance(predicted[:, [3, 0, 4, 1, 2]], wanted, mask), loss)
    torch.testing.assert_close(matched_distance(predicted, wanted[:, [2, 0, 1]], mask[:, [2, 0, 1]]), loss)
    broken = wanted.masked_fill(~mask[..., None], 1e6)
    torch.testing.assert_close(matched_distance(predicted, broken, mask), loss)
    assert matched_distance(predicted, wanted, torch.zeros_like(mask)) == 0


def test_more_sentences_than_queries_is_said():
    predicted, wanted, _ = example()
    with pytest.raises(KitError, match="use more queries"):
        matched_distance(predicted[:, :2], wanted, torch.ones(3, 3, dtype=torch.bool))


def test_the_nearest_entry_is_by_direction_and_noise_tries_others():
    prototypes = torch.eye(3)
    sentences = torch.tensor([[[9.0, 1.0, 0.0], [0.1, 0.0, 0.2]]])
    assert nearest_prototypes(sentences, prototypes).tolist() == [[0, 2]]
    torch.manual_seed(0)
    drawn = torch.cat([nearest_prototypes(sentences, prototypes, noise=1.0).flatten() for _ in range(200)])
    assert set(drawn.tolist()) == {0, 1, 2}


def test_a_full_stop_belongs_to_the_sentence_it_ends():
    ends = torch.tensor([[False, False, True, False, True, True]])
    words = torch.tensor([[False, True, True, True, True, False]])
    assert sentence_numbers(ends, words)[0, 1:5].tolist() == [0, 0, 1, 1]
