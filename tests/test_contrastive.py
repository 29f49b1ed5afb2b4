"""InfoNCE against its formula, and the properties a contrastive loss must have."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.errors import KitError
from medvlp_kit.objectives.contrastive import info_nce


def textbook(image, text, temperature, weight):
    """The formula of the docstring, one pair at a time."""
    count = len(image)
    total = 0.0
    for i in range(count):
        row = sum(torch.exp(image[i] @ text[j] / temperature) for j in range(count))
        column = sum(torch.exp(image[j] @ text[i] / temperature) for j in range(count))
        own = torch.exp(image[i] @ text[i] / temperature)
        total = total - weight * torch.log(own / row) - (1 - weight) * torch.log(own / column)
    return total / count


def pairs(count=7, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda: F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)  # noqa: E731
    return make().requires_grad_(), make().requires_grad_()


@pytest.mark.parametrize("weight", [0.5, 0.75, 0.0, 1.0])
def test_equals_the_formula_forward_and_backward(weight):
    image, text = pairs()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    fast = info_nce(image, text, temperature=temperature, image_weight=weight)
    fast_gradients = torch.autograd.grad(fast, (image, text, temperature))
    slow = textbook(image, text, temperature, weight)
    slow_gradients = torch.autograd.grad(slow, (image, text, temperature))
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(fast_gradients, slow_gradients):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_in_pieces_it_is_the_same_forward_and_backward(chunk):
    values = *pairs(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = [info_nce(*values[:2], temperature=values[2], image_weight=0.75, chunk=size) for size in (None, chunk)]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(*(torch.autograd.grad(loss, values) for loss in found))


def test_a_permutation_of_the_pairs_changes_nothing():
    image, text = pairs()
    order = torch.tensor([3, 1, 0, 6, 2, 5, 4])
    torch.testing.assert_close(
        info_nce(image, text, temperature=0.1), info_nce(image[order], text[order], temperature=0.1)
    )


def test_is_near_ln_b_for_unrelated_embeddings_and_zero_for_perfect_ones():
    generator = torch.Generator().manual_seed(1)
    image, text = (F.normalize(torch.randn(256, 512, generator=generator), dim=-1) for _ in range(2))
    assert abs(info_nce(image, text, temperature=1.0).item() - math.log(256)) < 0.02
    one_hot = torch.eye(16)
    assert info_nce(one_hot, one_hot, temperature=0.01).item() < 1e-6


def test_direction_weights_are_not_swapped():
    """Two images share one text direction: images find a tie, texts do not."""
    image = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2]]), dim=-1)
    text = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.1]]), dim=-1)
    only_image = info_nce(image, text, temperature=0.1, image_weight=1.0)
    torch.testing.assert_close(only_image, torch.tensor(math.log(2)))  # identical texts: every image must guess
    assert info_nce(image, text, temperature=0.1, image_weight=0.0) != only_image


@pytest.mark.parametrize(
    "image, text, options",
    [
        (torch.ones(3, 4), torch.ones(2, 4), {}),
        (torch.ones(3, 2, 4), torch.ones(3, 2, 4), {}),
        (torch.ones(3, 4), torch.ones(3, 4), {"image_weight": 1.5}),
        (torch.ones(3, 4), torch.ones(3, 4), {"chunk": 0}),
    ],
)
def test_wrong_arguments_are_one_line(image, text, options):
    with pytest.raises(KitError) as caught:
        info_nce(image, text, temperature=0.1, **options)
    assert "\n" not in str(caught.value)
