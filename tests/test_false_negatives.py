"""Rules for pairs that say the same: each matrix against its formula, and the losses that read them against theirs."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit.errors import KitError
from medvlp_kit.model import Temperature
from medvlp_kit.objectives.contrastive import (
    DebiasedContrastive,
    SoftTargetContrastive,
    debiased_nce,
    info_nce,
    soft_target_nce,
)
from medvlp_kit.objectives.false_negatives import (
    category_targets,
    label_targets,
    pair_labels,
    same_category,
    smoothed_targets,
    text_numbers,
    triage,
    triage_targets,
    word_similarity,
)
from medvlp_kit.study import Batch, Tokens

NAN = float("nan")
LABELS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [NAN, 0, 0], [NAN, 0, 0]])


def unit(count=7, width=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1)


def logits(count=7, seed=0):
    return (5 * unit(count, seed=seed) @ unit(count, seed=seed + 1).T).requires_grad_()


# the matrices


def test_equal_labels_are_one_category_and_unknown_is_a_value_of_its_own():
    expected = torch.zeros(7, 7, dtype=torch.bool)
    for group in [(0, 2), (1, 3), (4,), (5, 6)]:
        for i in group:
            expected[i, list(group)] = True
    assert torch.equal(same_category(LABELS), expected)
    assert torch.equal(same_category(torch.tensor([4, 2, 4, 2, 1, 0, 0])), expected)
    targets = category_targets(LABELS)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(7))
    assert targets[0, 2] == targets[0, 0] == 0.5 and targets[4, 4] == 1 and targets[0, 1] == 0


def test_pair_labels_treat_relatives_as_told():
    same = same_category(LABELS)
    ignored, positive = pair_labels(same), pair_labels(same, treat="positive")
    own = torch.eye(7, dtype=torch.bool)
    assert (ignored[own] == 1).all() and (ignored[same & ~own] == 0).all() and (ignored[~same] == -1).all()
    assert torch.equal(positive, torch.where(same, 1, -1).to(torch.int8))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("absent", [0.0, -1.0])
def test_label_targets_equal_their_formula(cosine, absent):
    rows = []
    for labels in LABELS.tolist():
        row = labels + [float(all(x == 0 for x in labels))]
        rows.append([absent if x == 0 else 0.0 if math.isnan(x) else x for x in row])
    for i, one in enumerate(rows):
        products = [sum(a * b for a, b in zip(one, two)) for two in rows]
        if cosine:
            lengths = [math.sqrt(sum(a * a for a in row)) or 1.0 for row in rows]
            products = [p / lengths[i] / length for p, length in zip(products, lengths)]
        exponents = torch.tensor([math.exp(p / 0.5) for p in products])
        found = label_targets(LABELS, temperature=0.5, cosine=cosine, absent=absent)[i]
        torch.testing.assert_close(found, exponents / exponents.sum())
    assert label_targets(LABELS)[0].argmax() in (0, 2)  # normal studies resemble each other


def test_smoothed_targets_equal_their_formula():
    correlation = torch.tensor([[1.0, 0.5, -0.4], [0.5, 1.0, 0.9], [-0.4, 0.9, 1.0]])
    found = smoothed_targets(correlation, strength=0.3, rate=2.0)
    expected = torch.eye(3)
    for i, j, c in [(0, 1, 0.5), (1, 2, 0.9)]:
        expected[i, j] = expected[j, i] = 0.3 * (1 - math.exp(-2.0 * c))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(smoothed_targets(correlation, normalise=True).sum(dim=1), torch.ones(3))


def test_triage_by_percentile_makes_piles_of_the_stated_size():
    similarity = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    labels = triage(similarity, low=0.8, high=0.95)
    assert (labels.diagonal() == 1).all()
    others = labels[~torch.eye(40, dtype=torch.bool)]
    assert [(others == x).sum().item() for x in (-1, 0, 1)] == [1248, 234, 78]  # 0.8, 0.15 and 0.05 of 1560
    assert similarity[labels == -1].max() < similarity[labels == 0].min()
    assert torch.equal(triage(10 * similarity + 3, low=0.8, high=0.95), labels)  # a matter of order alone


def test_triage_by_value_and_identical_texts():
    similarity = torch.tensor([[1.0, 0.975, 0.99], [0.975, 1.0, 0.5], [0.99, 0.5, 1.0]])
    labels = triage(similarity, low=0.97, high=0.98, percentile=False)
    assert labels.tolist() == [[1, 0, 1], [0, 1, -1], [1, -1, 1]]
    same = torch.full((4, 4), 1.0) + 1e-8 * torch.rand(4, 4)  # rounding must not tell copies apart
    same[3, :3] = same[:3, 3] = 0.0
    assert triage(same, low=0.5, high=0.9).tolist() == [[1, 1, 1, -1], [1, 1, 1, -1], [1, 1, 1, -1], [-1, -1, -1, 1]]
    assert triage(torch.zeros(3, 3)).tolist() == (2 * torch.eye(3) - 1).tolist()  # nothing is known


def test_words_are_compared_without_padding_and_blind_to_what_all_share():
    ids = torch.tensor([[1, 5, 6, 2], [1, 5, 6, 2], [1, 7, 2, 0], [1, 6, 5, 2]])
    mask = ids > 0
    found = word_similarity(ids, mask)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 0.0, 1.0]))  # 1 and 2 stand in every text
    changed = ids.clone()
    changed[2, 3] = 5
    torch.testing.assert_close(word_similarity(changed, mask), found)
    numbers = text_numbers(ids, mask)
    assert numbers[0] == numbers[1] != numbers[3]  # the order of words counts here
    assert torch.equal(text_numbers(changed, mask), numbers)
    wider = torch.cat([ids, torch.zeros(4, 3, dtype=torch.int64)], dim=1)
    assert torch.equal(text_numbers(wider, wider > 0), numbers)


# the losses


def textbook(scores, targets, weights, rivals, normalise):
    """The formula, one pair at a time."""
    count, total = len(scores), 0.0
    for scores, targets, weights in [(scores, targets, weights), (scores.T, targets.T, weights.T)]:
        for i in range(count):
            size = float(targets[i].sum()) if normalise else 1.0
            for j in range(count):
                if targets[i, j] == 0:
                    continue
                below = torch.exp(scores[i, j])
                for k in range(count):
                    if k != j and (rivals == "all" or targets[i, k] == 0):
                        below = below + (weights[i, k] if targets[i, k] == 0 else 1.0) * torch.exp(scores[i, k])
                total = total - targets[i, j] / size * torch.log(torch.exp(scores[i, j]) / below) / (2 * count)
    return total


@pytest.mark.parametrize("rivals", ["all", "negatives"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_soft_target_nce_equals_the_formula(rivals, normalise, seed):
    generator, scores = torch.Generator().manual_seed(seed), logits(6, seed)
    targets = torch.rand(6, 6, generator=generator, dtype=torch.float64) * (torch.rand(6, 6, generator=generator) < 0.4)
    targets += torch.eye(6)
    targets[2] = 0  # a row without an answer
    weights = torch.rand(6, 6, generator=generator, dtype=torch.float64) * (torch.rand(6, 6, generator=generator) < 0.7)
    fast = soft_target_nce(scores, targets, weights=weights, rivals=rivals, normalise=normalise)
    slow = textbook(scores, targets, weights, rivals, normalise)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, scores), torch.autograd.grad(slow, scores))


@pytest.mark.parametrize("rivals", ["all", "negatives"])
def test_the_identity_as_targets_is_info_nce(rivals):
    image, text = unit(), unit(seed=1)
    found = soft_target_nce(image @ text.T / 0.2, torch.eye(7), rivals=rivals)
    torch.testing.assert_close(found, info_nce(image, text, temperature=0.2))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000), st.sampled_from([1.0, 50.0, 1000.0]), st.sampled_from(["all", "negatives"]))
def test_any_matrix_gives_a_finite_gradient(count, seed, scale, rivals):
    generator = torch.Generator().manual_seed(seed)
    scores = (scale * torch.randn(count, count, generator=generator)).requires_grad_()
    targets = (torch.rand(count, count, generator=generator) < 0.3).float()  # rows and columns may be empty
    weights = (torch.rand(count, count, generator=generator) < 0.5).float()
    loss = soft_target_nce(scores, targets, weights=weights, rivals=rivals)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all() and loss >= -1e-4


def test_left_out_pairs_have_no_gradient_and_positives_do_not_compete():
    scores = logits(4)
    labels = torch.tensor([[1, 1, 0, -1], [1, 1, -1, 0], [0, -1, 1, -1], [-1, 0, -1, 1]])
    targets, weights = triage_targets(labels)
    soft_target_nce(scores, targets, weights=weights, rivals="negatives").backward()
    assert torch.equal(scores.grad == 0, labels == 0)
    assert torch.equal(scores.grad.sign(), -labels.double())  # both positives are pulled, however good one is already


def debiased_textbook(scores, share, temperature):
    total, count = 0.0, len(scores)
    for scores in (scores, scores.T):
        for i in range(count):
            wrong = sum(torch.exp(scores[i, j]) for j in range(count) if j != i) / (count - 1)
            one = share[i] if isinstance(share, torch.Tensor) else share
            estimate = (wrong - one * torch.exp(scores[i, i])) / (1 - one)
            estimate = max(estimate, torch.tensor(math.exp(-1 / temperature), dtype=scores.dtype))
            right = torch.exp(scores[i, i])
            total = total - torch.log(right / (right + (count - 1) * estimate)) / (2 * count)
    return total


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, "each"])
def test_debiased_equals_the_formula(share):
    share = torch.linspace(0, 0.7, 7, dtype=torch.float64) if share == "each" else share
    scores = (unit() @ unit(seed=1).T / 0.5).requires_grad_()
    fast, slow = debiased_nce(scores, share=share, temperature=0.5), debiased_textbook(scores, share, 0.5)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, scores), torch.autograd.grad(slow, scores))


def test_debiased_without_a_share_is_info_nce_and_survives_a_low_temperature():
    image, text = unit(), unit(seed=1)
    found = debiased_nce(image @ text.T / 0.2, share=0.0, temperature=0.2)
    torch.testing.assert_close(found, info_nce(image, text, temperature=0.2))
    scores = (unit(dtype=torch.float32) @ unit(seed=1, dtype=torch.float32).T / 0.005).requires_grad_()
    loss = debiased_nce(scores, share=0.3, temperature=0.005)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all()


# the objectives


def forward_pass(labels=LABELS, seed=0):
    count = len(labels)
    ids = torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]])[torch.arange(count) % 2]
    batch = Batch(tuple(range(count)), {}, {"report": Tokens(ids, ids > 0)}, ("",) * count, labels)
    image, text = (unit(count, 8, seed=seed + k, dtype=torch.float32).requires_grad_() for k in (0, 1))
    return SimpleNamespace(
        image_embedding=image, text_embedding=text, batch=batch, cached=lambda key, compute: compute(),
        model=SimpleNamespace(temperature=Temperature(0.2)),
    )  # fmt: skip


RULES = [
    dict(targets="labels", temperature=0.3), dict(targets="category"), dict(targets="similarity"),
    dict(targets="similarity", similarity="embeddings", normalise=False), dict(targets="triage", low=0.5, high=0.6),
    dict(targets=lambda forward_pass: (torch.eye(7), None)),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "a function" if callable(rule["targets"]) else str(rule))
def test_an_objective_does_not_depend_on_the_order_of_the_batch_and_reaches_the_temperature(rule):
    torch.manual_seed(0)
    objective, given = SoftTargetContrastive(**rule), forward_pass()
    output = objective(given)
    output.loss.backward()
    assert given.model.temperature.log_scale.grad.abs() > 0 and torch.isfinite(given.image_embedding.grad).all()
    order = torch.tensor([3, 1, 0, 6, 2, 5, 4])
    tokens = given.batch.tokens
    turned = forward_pass(LABELS[order])
    turned.image_embedding, turned.text_embedding = given.image_embedding[order], given.text_embedding[order]
    turned.batch.texts["report"] = Tokens(tokens.ids[order], tokens.mask[order])
    torch.testing.assert_close(objective(turned).loss, output.loss)
    assert 0 <= output.logs["answer elsewhere"] < 1


def test_hard_one_is_info_nce_and_category_targets_shift_the_answer():
    given = forward_pass()
    expected = info_nce(given.image_embedding, given.text_embedding, temperature=0.2)
    torch.testing.assert_close(SoftTargetContrastive("category", hard=1.0)(given).loss, expected)
    assert SoftTargetContrastive("category")(given).logs["answer elsewhere"].item() == pytest.approx(3 / 7)
    torch.testing.assert_close(DebiasedContrastive(share=0.0)(given).loss, expected)


@pytest.mark.parametrize("wrong", [
    lambda: soft_target_nce(torch.ones(3, 3), torch.ones(2, 2)),
    lambda: soft_target_nce(torch.ones(3, 3), torch.ones(3, 3), weights=torch.ones(3)),
    lambda: soft_target_nce(torch.ones(3, 3), torch.ones(3, 3), rivals="none"),
    lambda: debiased_nce(torch.ones(1, 1), share=0.1, temperature=1.0),
    lambda: debiased_nce(torch.ones(3, 3), share=1.0, temperature=1.0),
    lambda: DebiasedContrastive(share=1.0),
    lambda: SoftTargetContrastive("categories"),
    lambda: SoftTargetContrastive("similarity", similarity="meaning"),
    lambda: SoftTargetContrastive("category", hard=2.0),
    lambda: SoftTargetContrastive("category", rivals="none"),
    lambda: SoftTargetContrastive("category")(forward_pass(torch.zeros(4, 0))),
    lambda: same_category(torch.ones(2, 2, 2)),
    lambda: pair_labels(torch.ones(2, 2, dtype=torch.bool), treat="maybe"),
    lambda: label_targets(torch.ones(3)),
    lambda: label_targets(torch.ones(3, 2), temperature=0),
    lambda: triage(torch.ones(3, 2)),
    lambda: triage(torch.ones(3, 3), low=0.9, high=0.1),
    lambda: triage(torch.ones(3, 3), low=0.9, high=1.1),
])  # fmt: skip
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(KitError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
