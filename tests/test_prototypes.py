"""Sinkhorn and prototype alignment: sums, balance, overflow, the formula, and the count of frozen steps."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit.errors import KitError
from medvlp_kit.objectives.prototypes import PrototypeAlignment, prototype_loss, sinkhorn


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def textbook(scores, epsilon, iterations):
    """Sinkhorn-Knopp on the matrix itself, entry by entry."""
    table = [[math.exp(x / epsilon) for x in row] for row in scores.tolist()]
    for _ in range(iterations):
        for k in range(len(table[0])):
            total = sum(row[k] for row in table)
            for row in table:
                row[k] *= len(table) / len(table[0]) / total
        for row in table:
            total = sum(row)
            row[:] = [x / total for x in row]
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 4), (3, 9), (1, 5), (5, 1)])
def test_equals_the_textbook(shape):
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for epsilon, iterations in [(0.05, 3), (1.0, 1), (0.3, 20)]:
        torch.testing.assert_close(
            sinkhorn(scores, epsilon=epsilon, iterations=iterations), textbook(scores, epsilon, iterations)
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_rows_sum_to_one_whatever_the_scores(batch, count, seed, scale):
    scores = scale * torch.randn(batch, count, generator=torch.Generator().manual_seed(seed))
    found = sinkhorn(scores)
    assert (found >= 0).all() and torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(batch), rtol=1e-3, atol=1e-3)


def test_columns_become_balanced():
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0] + [0.0] * 7)
    assert (scores / 0.5).softmax(dim=1).sum(dim=0).max() > 60  # alone, everything would fall into the first
    once, often = (sinkhorn(scores, epsilon=0.5, iterations=n).sum(dim=0) for n in (1, 100))
    torch.testing.assert_close(often, torch.full((8,), 8.0), rtol=1e-3, atol=1e-2)
    assert (once - 8).abs().max() > (often - 8).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    scores = unit(16, 12).detach().to(dtype) * 3
    assert torch.isinf((scores / 0.05).half().exp()).any()  # the published form
    found = sinkhorn(scores)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), sinkhorn(scores.float()), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.float().sum(dim=1), torch.ones(16), rtol=1e-2, atol=1e-2)


def test_the_loss_equals_its_formula_forward_and_backward():
    image, text, prototypes = unit(5, 3), unit(5, 3, seed=1), unit(4, 3, seed=2)
    fast = prototype_loss(image, text, prototypes, temperature=0.3)
    total = 0.0
    for one, two in [(image, text), (text, image)]:
        wanted = textbook(one.detach() @ prototypes.detach().T, 0.05, 3)
        for i in range(5):
            exponents = torch.exp(prototypes @ two[i] / 0.3)
            total = total - (wanted[i] * torch.log(exponents / exponents.sum())).sum() / 10
    torch.testing.assert_close(fast, total)
    for ours, theirs in zip(*(torch.autograd.grad(x, (image, text, prototypes)) for x in (fast, total))):
        torch.testing.assert_close(ours, theirs)


def test_swapping_the_modalities_or_the_order_changes_nothing():
    image, text, prototypes = unit(6, 4), unit(6, 4, seed=1), unit(3, 4, seed=2)
    expected = prototype_loss(image, text, prototypes)
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    torch.testing.assert_close(prototype_loss(text, image, prototypes), expected)
    torch.testing.assert_close(prototype_loss(image[order], text[order], prototypes[[2, 0, 1]]), expected)


def test_starts_near_ln_k_and_agreeing_clusters_cost_little():
    image, text = unit(256, 512).detach(), unit(256, 512, seed=1).detach()
    assert abs(prototype_loss(image, text, unit(16, 512, seed=2).detach(), temperature=1.0).item() - math.log(16)) < 0.02
    corners = torch.eye(8).repeat(4, 1)
    assert prototype_loss(corners, corners, torch.eye(8), temperature=0.05).item() < 1e-3


def forward_pass(seed=0):
    return SimpleNamespace(image_embedding=unit(12, 6, seed=seed).float(), text_embedding=unit(12, 6, seed=seed + 1).float())


def test_prototypes_rest_for_the_frozen_steps_only_and_the_count_is_kept():
    torch.manual_seed(0)
    objective = PrototypeAlignment(6, count=4, frozen_steps=2)
    moved = []
    for step in range(4):
        objective.prototypes.grad = None
        output = objective(forward_pass(step))
        output.loss.backward()
        moved.append(bool(objective.prototypes.grad.abs().max() > 0))
    assert moved == [False, False, True, True] and int(objective.step) == 4
    objective.eval()(forward_pass())
    assert int(objective.step) == 4  # only training counts
    again = PrototypeAlignment(6, count=4, frozen_steps=2)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.eval()(forward_pass()).loss, objective(forward_pass()).loss)
    assert 1 <= output.logs["clusters used"] <= 4 and 0 <= output.logs["same cluster"] <= 1


@pytest.mark.parametrize("function", [
    lambda: sinkhorn(torch.ones(3)), lambda: sinkhorn(torch.ones(0, 2)), lambda: sinkhorn(torch.ones(2, 2), epsilon=0),
    lambda: sinkhorn(torch.ones(2, 2), iterations=0),
    lambda: prototype_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 2)),
])  # fmt: skip
def test_wrong_arguments_are_one_line(function):
    with pytest.raises(KitError) as caught:
        function()
    assert "\n" not in str(caught.value)
