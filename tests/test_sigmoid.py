"""The sigmoid loss against its formula, in pieces and whole, with pairs left out and pairs called matches."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.errors import KitError
from medvlp_kit.objectives.contrastive import SigmoidContrastive, sigmoid_loss
from medvlp_kit.study import Batch, Tokens


def unit(count=7, width=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1)


def inputs(count=7):
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, -1.5))
    return unit(count).requires_grad_(), unit(count, seed=1).requires_grad_(), scale, bias


def textbook(image, text, scale, bias, labels=None):
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            sign = (1 if i == j else -1) if labels is None else int(labels[i, j])
            if sign:
                total = total - torch.log(1 / (1 + torch.exp(-sign * (scale * (image[i] @ text[j]) + bias))))
    return total / len(image)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("labelled", [False, True])
def test_equals_the_formula_forward_and_backward_whole_or_in_pieces(chunk, labelled):
    values = inputs()
    labels = torch.randint(-1, 2, (7, 7), generator=torch.Generator().manual_seed(2)) if labelled else None
    fast = sigmoid_loss(*values[:2], scale=values[2], bias=values[3], labels=labels, chunk=chunk)
    slow = textbook(*values, labels)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, values), torch.autograd.grad(slow, values))


def test_a_kept_graph_can_be_walked_twice_in_pieces():
    values = inputs()
    loss = sigmoid_loss(*values[:2], scale=values[2], bias=values[3], chunk=2)
    first = torch.autograd.grad(loss, values, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, values), first)


def test_no_piece_of_the_matrix_is_kept():
    image, text = (unit(64, 4, seed=s).requires_grad_() for s in (0, 1))

    def largest_kept(chunk):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
            sigmoid_loss(image, text, scale=10.0, bias=-10.0, chunk=chunk)
        return max(kept)

    assert largest_kept(None) >= 64 * 64
    assert largest_kept(8) <= 64 * 4


def test_a_permutation_of_the_pairs_changes_nothing():
    image, text, scale, bias = inputs()
    order = torch.tensor([3, 1, 0, 6, 2, 5, 4])
    torch.testing.assert_close(
        sigmoid_loss(image[order], text[order], scale=scale, bias=bias), sigmoid_loss(image, text, scale=scale, bias=bias)
    )


def test_an_ignored_pair_has_no_gradient():
    scores = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, -1], [0, 1, -1], [-1, -1, 1]])
    loss = sigmoid_loss(torch.eye(3, dtype=torch.float64), scores.T, scale=1.0, bias=0.0, labels=labels)  # logits = scores
    gradient = torch.autograd.grad(loss, scores)[0]
    assert torch.equal(gradient == 0, labels == 0) and torch.equal(gradient.sign(), -labels.double())


def test_begins_near_the_value_of_its_bias_and_is_zero_for_perfect_embeddings():
    image, text = unit(128, 256), unit(128, 256, seed=1)
    expected = math.log1p(math.exp(10)) + 127 * math.log1p(math.exp(-10))
    assert abs(sigmoid_loss(image, text, scale=1.0, bias=-10.0).item() - expected) < 0.05
    assert sigmoid_loss(torch.eye(16), torch.eye(16), scale=100.0, bias=-50.0).item() < 1e-6


def forward_pass(labels=None, seed=0):
    count = 6
    labels = torch.zeros(count, 0) if labels is None else labels
    ids = torch.tensor([[1, 7, 8, 2], [1, 8, 7, 2], [1, 7, 8, 2], [1, 9, 2, 0], [1, 9, 2, 5], [1, 9, 2, 2]])
    batch = Batch(tuple(range(count)), {}, {"report": Tokens(ids, torch.tensor([[True] * 4] * 3 + [[True] * 3 + [False]] * 3))},
                  ("",) * count, labels)  # fmt: skip
    image, text = (unit(count, 8, seed=seed + k, dtype=torch.float32).requires_grad_() for k in (0, 1))
    return SimpleNamespace(image_embedding=image, text_embedding=text, batch=batch, cached=lambda key, compute: compute())


def test_the_objective_learns_scale_and_bias_and_leaves_out_what_says_the_same():
    objective = SigmoidContrastive(same="text")
    assert objective.log_scale.item() == pytest.approx(math.log(10)) and objective.bias.item() == -10
    given = forward_pass()
    output = objective(given)
    output.loss.backward()
    assert objective.log_scale.grad.abs() > 0 and objective.bias.grad.abs() > 0
    labels = 2 * torch.eye(6) - 1
    labels[0, 2] = labels[2, 0] = 0  # the same words in the same order
    labels[3:, 3:] = torch.eye(3)  # the same up to padding
    options = dict(scale=objective.log_scale.exp(), bias=objective.bias)
    expected = sigmoid_loss(given.image_embedding, given.text_embedding, labels=labels, **options)
    torch.testing.assert_close(output.loss, expected)
    positive = SigmoidContrastive(same="text", treat="positive", chunk=2)(given).loss
    torch.testing.assert_close(
        positive, sigmoid_loss(given.image_embedding, given.text_embedding, labels=labels + (labels == 0), **options)
    )


@pytest.mark.parametrize("wrong", [
    lambda: sigmoid_loss(torch.ones(3, 4), torch.ones(2, 4), scale=1.0, bias=0.0),
    lambda: sigmoid_loss(torch.ones(3, 4), torch.ones(3, 4), scale=1.0, bias=0.0, labels=torch.ones(2, 2)),
    lambda: sigmoid_loss(torch.ones(3, 4), torch.ones(3, 4), scale=1.0, bias=0.0, chunk=0),
    lambda: SigmoidContrastive(same="cathegory"),
    lambda: SigmoidContrastive(treat="maybe"),
    lambda: SigmoidContrastive(scale=0.0),
    lambda: SigmoidContrastive(chunk=0),
    lambda: SigmoidContrastive(same="category")(forward_pass()),
])  # fmt: skip
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(KitError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
