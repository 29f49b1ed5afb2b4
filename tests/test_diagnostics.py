"""Diagnostics against counting, against InfoNCE's own gradient, and on embeddings whose shape is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.errors import KitError
from medvlp_kit.objectives.contrastive import info_nce
from medvlp_kit.objectives.diagnostics import (
    alignment,
    effective_rank,
    expected_false_negatives,
    false_negative_gradient_share,
    false_negative_rate,
    modality_gap,
    participation_ratio,
    uniformity,
)
from medvlp_kit.objectives.false_negatives import same_category


def unit(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def test_expected_false_negatives_are_the_mean_of_the_counted_ones():
    labels = torch.tensor([0] * 60 + [1] * 25 + [2] * 15)
    generator, counted = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        drawn = labels[torch.randperm(100, generator=generator)[:16]]
        counted.append(15 * false_negative_rate(drawn).item())
    error = torch.tensor(counted).std().item() / math.sqrt(2000)
    expected = expected_false_negatives(labels, batch_size=16)
    assert abs(sum(counted) / 2000 - expected) < 4 * error
    assert expected == pytest.approx(15 * (0.6**2 + 0.25**2 + 0.15**2), rel=0.03)  # the limit of many studies


def test_sixty_per_cent_of_normals_in_a_batch_of_64():
    normal = torch.zeros(6000, 1)
    others = torch.arange(1, 4001).float()[:, None]  # each of its own kind
    assert expected_false_negatives(torch.cat([normal, others]), batch_size=64) == pytest.approx(63 * 0.36, rel=1e-3)


def test_the_rate_counts_pairs_and_unknown_is_a_value():
    labels = torch.tensor([[0.0, 0], [0, 0], [1, 0], [float("nan"), 0], [float("nan"), 0]])
    assert false_negative_rate(labels).item() == pytest.approx(4 / 20)
    assert false_negative_rate(labels[:1]) == 0
    assert expected_false_negatives(labels, batch_size=5) == pytest.approx(4 * 4 / 20)


def test_the_gradient_share_is_that_of_info_nce():
    image, text, labels = unit(12, 6), unit(12, 6, seed=1), torch.arange(12) % 4
    logits = (image @ text.T / 0.2).requires_grad_()
    same, shares = same_category(labels), []
    for scores in (logits, logits.T):
        loss = F.cross_entropy(scores, torch.arange(12))
        push = torch.autograd.grad(loss, logits)[0].masked_fill(torch.eye(12, dtype=torch.bool), 0)
        assert (push >= 0).all()
        shares.append(push[same].sum() / push.sum())
    torch.testing.assert_close(false_negative_gradient_share(logits, same), sum(shares).detach() / 2)
    even = false_negative_gradient_share(torch.zeros(12, 12), same)  # a model that sees nothing pushes all alike
    assert even.item() == pytest.approx(false_negative_rate(labels).item())
    aware = same.double() * 3.0  # one that sees what is alike pushes there
    assert false_negative_gradient_share(aware, same) > 2 * even
    assert info_nce(image, text, temperature=0.2) > 0


def test_alignment_and_uniformity_equal_their_formulas():
    image, text = unit(9, 4), unit(9, 4, seed=1)
    distances = [(a - b).norm().item() for a, b in zip(image, text)]
    assert alignment(image, text).item() == pytest.approx(sum(d**2 for d in distances) / 9)
    assert alignment(image, text, power=1).item() == pytest.approx(sum(distances) / 9)
    pairs = [math.exp(-2 * (image[i] - image[j]).norm().item() ** 2) for i in range(9) for j in range(9) if i != j]
    assert uniformity(image).item() == pytest.approx(math.log(sum(pairs) / 72))
    assert uniformity(image[:1].expand(5, -1)).item() == pytest.approx(0)
    assert uniformity(unit(400, 256)).item() == pytest.approx(-4, abs=0.1)


@pytest.mark.parametrize("measure", [effective_rank, participation_ratio])
def test_dimensions_in_use_are_counted(measure):
    for rank in (1, 3, 8):
        corners = torch.cat([torch.eye(8, dtype=torch.float64)[:rank], -torch.eye(8, dtype=torch.float64)[:rank]])
        assert measure(5 + corners.repeat(4, 1)).item() == pytest.approx(rank)  # the offset is no dimension
    assert measure(torch.ones(6, 4)).item() == 0
    assert measure(unit(300, 10)).item() > 9
    rotation = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    uneven = unit(50, 10) * torch.linspace(0.1, 2, 10, dtype=torch.float64)
    assert measure(3 * uneven @ rotation).item() == pytest.approx(measure(uneven).item())


def test_effective_rank_equals_its_formula():
    rows = unit(7, 5)
    values = torch.linalg.svdvals(rows).tolist()
    shares = [value / sum(values) for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(rows, centre=False).item() == pytest.approx(expected)


def test_modality_gap_is_the_distance_of_the_two_means():
    cloud = unit(500, 16)
    assert modality_gap(cloud, cloud).item() == pytest.approx(0)
    assert modality_gap(cloud, unit(500, 16, seed=1)).item() < 0.15
    assert modality_gap(torch.eye(4)[:1].expand(3, -1), torch.eye(4)[1:2].expand(3, -1)).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("wrong", [
    lambda: expected_false_negatives(torch.zeros(4), batch_size=5),
    lambda: expected_false_negatives(torch.zeros(4), batch_size=0),
    lambda: false_negative_gradient_share(torch.zeros(3, 3), torch.zeros(3, 3)),
    lambda: uniformity(torch.ones(1, 3)),
    lambda: effective_rank(torch.ones(3)),
    lambda: participation_ratio(torch.ones(3)),
])  # fmt: skip
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(KitError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
