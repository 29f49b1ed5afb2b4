"""Hard negatives and image-text matching: the distribution that is drawn, what is never drawn, and how it is used."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.errors import KitError
from medvlp_kit.fusion.features import FusedFeatures
from medvlp_kit.objectives.matching import (
    IGNORED,
    ImageTextMatching,
    hard_negatives,
    matching_loss,
    same_labels,
    same_text,
)
from medvlp_kit.study import Batch, Tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_follow_the_softmax_over_the_allowed_pairs():
    similarity = torch.randn(4, 4, generator=seeded(1)) * 1.5
    forbid = torch.zeros(4, 4, dtype=torch.bool)
    forbid[0, 2] = True
    weights = similarity.double().exp() * ~torch.eye(4, dtype=torch.bool) * ~forbid
    generator, count = seeded(2), 6000
    draws = [hard_negatives(similarity, forbid=forbid, generator=generator) for _ in range(count)]
    for found, expected in zip(
        (torch.stack(side) for side in zip(*draws)),
        (weights / weights.sum(dim=1, keepdim=True), (weights / weights.sum(dim=0)).T),
    ):
        frequency = F.one_hot(found, 4).double().mean(dim=0)
        deviation = (expected * (1 - expected) / count).sqrt()
        assert ((frequency - expected).abs() <= 4.5 * deviation + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([0.0, 1.0, 100.0]))
def test_never_the_true_pair_never_a_forbidden_one_and_minus_one_where_nothing_is_left(size, seed, share, scale):
    generator = seeded(seed)
    similarity = scale * torch.randn(size, size, generator=generator)
    forbid = torch.rand(size, size, generator=generator) < share
    texts, images = hard_negatives(similarity, forbid=forbid, generator=generator)
    assert texts.shape == images.shape == (size,)
    for i in range(size):
        allowed = {j for j in range(size) if j != i and not forbid[i, j]}
        assert int(texts[i]) in (allowed or {-1})
        allowed = {j for j in range(size) if j != i and not forbid[j, i]}
        assert int(images[i]) in (allowed or {-1})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_dominant_true_pair_does_not_stop_the_run(dtype):
    similarity = torch.full((5, 5), -3e4, dtype=dtype).fill_diagonal_(3e4)
    published = similarity.float().softmax(dim=1).fill_diagonal_(0)
    with pytest.raises(RuntimeError, match="multinomial"):  # the defect this function is built to avoid
        torch.multinomial(published[0], 1)
    for seed in range(20):
        for drawn in hard_negatives(similarity, generator=seeded(seed)):
            assert ((drawn >= 0) & (drawn != torch.arange(5))).all()


def test_extreme_preferences_keep_their_order_and_ties_are_shared():
    similarity = torch.tensor([[9e4, 0.0, 5e3, 0.0]] * 4)
    texts, images = hard_negatives(similarity, generator=seeded())
    assert texts.tolist() == [2, 0, 0, 0]
    drawn = {int(hard_negatives(similarity, generator=seeded(s))[1][1]) for s in range(40)}
    assert drawn == {0, 2, 3}  # the second column is all ties


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_drawn_from_safely(bad):
    similarity = torch.zeros(4, 4)
    similarity[0] = bad
    similarity[:, 3] = bad
    for seed in range(20):
        for drawn in hard_negatives(similarity, generator=seeded(seed)):
            assert ((drawn >= 0) & (drawn < 4) & (drawn != torch.arange(4))).all()


def test_nan_is_the_lowest_and_infinity_the_highest():
    row = [0.0, math.nan, -1e4, math.inf, -math.inf]
    similarity = torch.tensor([row] * 5)
    assert {int(hard_negatives(similarity, generator=seeded(s))[0][0]) for s in range(30)} == {3}
    similarity[:, 3] = math.nan
    assert {int(hard_negatives(similarity, generator=seeded(s))[0][0]) for s in range(30)} == {2}


def test_one_pair_alone_has_no_negative():
    texts, images = hard_negatives(torch.zeros(1, 1), generator=None)
    assert texts.tolist() == images.tolist() == [-1]


def test_draws_repeat_with_the_generator_and_follow_the_global_one_when_none_is_given():
    similarity = torch.zeros(16, 16)
    first, second = (hard_negatives(similarity, generator=seeded(5)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    generator = seeded(5)
    hard_negatives(similarity, generator=generator)
    assert not all(map(torch.equal, first, hard_negatives(similarity, generator=generator)))
    torch.manual_seed(3)
    third = hard_negatives(similarity, generator=None)
    torch.manual_seed(3)
    assert all(map(torch.equal, third, hard_negatives(similarity, generator=None)))


def test_no_value_is_fetched_from_the_device():
    with FakeTensorMode():  # tensors without values: .item(), a Python loop over values or nonzero() would raise
        texts, images = hard_negatives(torch.randn(6, 6), forbid=torch.rand(6, 6) < 0.5, generator=None)
        assert texts.shape == images.shape == (6,)
        matching_loss(torch.randn(6, 2), torch.zeros(6, dtype=torch.int64))


def test_hard_negatives_name_what_is_wrong():
    with pytest.raises(KitError, match=r"\(2, 3\)"):
        hard_negatives(torch.zeros(2, 3), generator=None)
    with pytest.raises(KitError, match="bool"):
        hard_negatives(torch.zeros(2, 2), forbid=torch.zeros(2, 2), generator=None)
    with pytest.raises(KitError, match="bool"):
        hard_negatives(torch.zeros(2, 2), forbid=torch.zeros(3, 3, dtype=torch.bool), generator=None)


def test_matching_loss_equals_its_formula_and_leaves_out_the_ignored():
    logits = torch.randn(6, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0, IGNORED, 1, IGNORED, 0])
    loss = matching_loss(logits, labels)
    terms = []
    for pair, label in zip(logits, labels.tolist()):
        if label != IGNORED:
            terms.append(-torch.log(torch.exp(pair[label]) / torch.exp(pair).sum()))
    torch.testing.assert_close(loss.double(), sum(terms) / 4, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[[2, 4]] == 0).all() and (gradient[[0, 1, 3, 5]] != 0).all()


def test_matching_loss_at_chance_and_without_any_pair():
    assert float(matching_loss(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))) == pytest.approx(math.log(2))
    prior = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]]).expand(3, 2)
    assert float(matching_loss(prior, torch.tensor([1, 0, 0]))) == pytest.approx(0.6365, abs=1e-4)
    nothing = torch.zeros(2, 2, requires_grad=True)
    loss = matching_loss(nothing, torch.full((2,), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0 and (nothing.grad == 0).all()
    with pytest.raises(KitError, match="give"):
        matching_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def batch_of(ids, labels=None, lengths=None):
    ids = torch.tensor(ids)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    labels = torch.zeros(len(ids), 1) if labels is None else torch.tensor(labels)
    return Batch(
        tuple(range(len(ids))), {"frontal": torch.zeros(len(ids), 1, 2, 2)}, {"report": Tokens(ids, mask)}, (), labels
    )


def test_same_text_reads_real_tokens_only():
    batch = batch_of([[2, 7, 9], [2, 7, 5], [2, 7, 5], [2, 8, 5]], lengths=[2, 2, 3, 3])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same_text(batch), expected)


def test_same_labels_counts_unknown_as_a_value():
    batch = batch_of([[1]] * 4, labels=[[1.0, math.nan], [1.0, math.nan], [1.0, 0.0], [0.0, math.nan]])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same_labels(batch), expected)


class Recorder(nn.Module):
    """A stand-in for the model: features carry their row number; the fusion notes which rows met."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.size, self.met = size, []

    def temperature(self):
        return 0.1

    def fuse(self, image, text):
        self.met.append(list(zip(image.pooled[:, 0].int().tolist(), text.pooled[:, 0].int().tolist())))
        assert torch.equal(image.pooled[:, 0], image.patches[:, 0, 0])
        assert torch.equal(text.pooled[:, 0], text.tokens[:, 0, 0]) and text.mask.shape == text.tokens.shape[:2]
        pooled = self.scale * torch.cat([image.pooled, text.pooled], dim=1)
        return FusedFeatures(pooled, image.patches, text.tokens, text.mask)


def forward_pass_of(batch, similarity=None):
    size = len(batch)
    model = Recorder(size)
    rows = torch.arange(size, dtype=torch.float32)[:, None]
    image = ImageFeatures(rows, rows[:, None].expand(-1, 4, -1), (2, 2))
    text = TextFeatures(rows, rows[:, None].expand(-1, 3, -1), torch.ones(size, 3, dtype=torch.bool))
    cache = {}

    def cached(key, compute):
        if key not in cache:
            cache[key] = compute()
        return cache[key]

    similarity = torch.zeros(size, size) if similarity is None else similarity
    return SimpleNamespace(
        model=model, batch=batch, image=image, text=text, fused=model.fuse(image, text), cached=cached,
        image_embedding=similarity, text_embedding=torch.eye(size),
    )  # fmt: skip


def test_objective_makes_one_wrong_text_for_each_image_and_one_wrong_image_for_each_text():
    torch.manual_seed(0)
    forward_pass = forward_pass_of(batch_of([[i] for i in range(6)]))
    objective = ImageTextMatching(2)
    output = objective(forward_pass)
    true, wrong = forward_pass.model.met
    assert true == [(i, i) for i in range(6)] and len(wrong) == 12
    assert [image for image, _ in wrong[:6]] == list(range(6)) and [text for _, text in wrong[6:]] == list(range(6))
    assert all(image != text for image, text in wrong)
    logits = objective.head(torch.tensor(true + wrong, dtype=torch.float32))
    expected = matching_loss(logits, torch.tensor([1] * 6 + [0] * 12))
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert forward_pass.model.scale.grad != 0
    decisions = logits.argmax(dim=1)
    assert float(output.logs["true pairs accepted"]) == pytest.approx(float((decisions[:6] == 1).float().mean()))
    assert float(output.logs["wrong pairs rejected"]) == pytest.approx(float((decisions[6:] == 0).float().mean()))
    assert float(output.logs["without a negative"]) == 0


def test_objective_prefers_the_similar_and_random_does_not():
    similarity = torch.zeros(6, 6)
    similarity[:, 0], similarity[0, 1] = 5.0, 9.0  # at temperature 0.1: certain
    hard = forward_pass_of(batch_of([[i] for i in range(6)]), similarity)
    ImageTextMatching(2)(hard)
    assert [text for _, text in hard.model.met[1][:6]] == [1, 0, 0, 0, 0, 0]
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        random = forward_pass_of(batch_of([[i] for i in range(6)]), similarity)
        ImageTextMatching(2, negatives="random")(random)
        seen.add(random.model.met[1][3])
    assert len(seen) >= 4  # the wrong texts of image 3 vary


def test_objective_leaves_out_rows_whose_every_partner_is_a_true_match():
    torch.manual_seed(0)
    forward_pass = forward_pass_of(batch_of([[5], [5], [5], [6]]))
    objective = ImageTextMatching(2)
    output = objective(forward_pass)
    assert all({image, text} & {3} for image, text in forward_pass.model.met[1][:3])  # the only one they may meet
    assert float(output.logs["without a negative"]) == 0

    alone = forward_pass_of(batch_of([[5], [5], [5]]))
    output = objective(alone)
    assert float(output.logs["without a negative"]) == 1 and float(output.logs["wrong pairs rejected"]) == 0
    logits = objective.head(torch.tensor([(i, i) for i in range(3)], dtype=torch.float32))
    torch.testing.assert_close(output.loss, matching_loss(logits, torch.ones(3, dtype=torch.int64)))
    assert (
        float(ImageTextMatching(2, forbid=None)(forward_pass_of(batch_of([[5]] * 3))).logs["without a negative"]) == 0
    )


def test_objective_score_is_the_log_odds_and_unknown_options_are_errors():
    objective = ImageTextMatching(2)
    fused = FusedFeatures(torch.randn(3, 2), torch.zeros(3, 1, 2), torch.zeros(3, 1, 2), torch.ones(3, 1).bool())
    match = objective.head(fused.pooled).softmax(dim=1)[:, 1]
    torch.testing.assert_close(objective.score(fused).sigmoid(), match)
    with pytest.raises(KitError, match="did you mean 'hard'"):
        ImageTextMatching(2, negatives="hrd")
    with pytest.raises(KitError, match="same_labels"):
        ImageTextMatching(2, forbid="same_label")
