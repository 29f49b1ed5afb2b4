"""Sentence-region and token-patch alignment: their formulas one study at a time, smoothing, sentences, padding."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.budget import budget
from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass, VisionLanguageModel
from medvlp_kit.objectives.local import WordRegion
from medvlp_kit.objectives.sentence_region import (
    SentenceRegion,
    importance,
    pool_sentences,
    smoothed_positives,
    within_study_contrast,
)
from medvlp_kit.objectives.token_alignment import TokenAlignment, clip_to_quantiles, cross_attention_alignment
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain
from medvlp_kit.recipes import Recipe
from medvlp_kit.study import Batch, Tokens
from medvlp_kit.text import ReportTokenizer


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()


def textbook(own, cross, mask, temperature, targets, weights):
    totals = [0.0, 0.0]
    studies = int(mask.any(dim=1).sum())
    for b in range(len(own)):
        real = [k for k in range(own.shape[1]) if mask[b, k]]
        whole = sum(weights[b, k] for k in real)
        for side, (one, two) in enumerate([(own, cross), (cross, own)]):
            for k in real:
                scores = {m: F.cosine_similarity(one[b, k], two[b, m], dim=0) / temperature for m in real}
                normaliser = torch.log(sum(torch.exp(score) for score in scores.values()))
                share = sum(targets[k, m] for m in real)
                loss = normaliser - sum(targets[k, m] / share * scores[m] for m in real)
                totals[side] = totals[side] + weights[b, k] / whole * loss / studies
    return totals


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_within_study_contrast_equals_the_formula_forward_and_backward(smooth, weighted):
    own, cross = randn(4, 5, 3), randn(4, 5, 3, seed=1)
    targets = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if smooth else None
    weights = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) if weighted else None
    fast = within_study_contrast(own, cross, MASK, temperature=0.4, targets=targets, weights=weights)
    slow = textbook(
        own, cross, MASK, 0.4, torch.eye(5, dtype=torch.float64) if targets is None else targets,
        torch.ones(4, 5) if weights is None else weights,
    )  # fmt: skip
    for one, two in zip(fast, slow):
        torch.testing.assert_close(one, two)
        for ours, theirs in zip(*(torch.autograd.grad(x, (own, cross), retain_graph=True) for x in (one, two))):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("filling", [9.0, math.nan])
def test_padding_changes_neither_loss_nor_gradient(filling):
    keys = randn(4, 6, 3, seed=4)
    key_mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6, [0, 1, 0, 1, 0, 0], [0] * 6]).bool()

    def everything(own, keys):
        one = sum(within_study_contrast(own, own.flip(0), MASK & MASK.flip(0), temperature=0.3))
        return one + cross_attention_alignment(own, keys, MASK, key_mask)

    own = randn(4, 5, 3)
    expected = everything(own, keys)
    gradients = torch.autograd.grad(expected, (own, keys))
    both = MASK & MASK.flip(0)
    other = [own.detach().masked_fill(~MASK[..., None], filling), keys.detach().masked_fill(~key_mask[..., None], filling)]
    other = [x.requires_grad_() for x in other]
    found = everything(*other)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, other), gradients):
        torch.testing.assert_close(ours, theirs)
    assert both.any() and (gradients[1][~key_mask] == 0).all() and gradients[1].abs().max() > 0


def test_smoothed_positives_are_wide_exactly_as_the_formula_says():
    wide = smoothed_positives((3, 4), threshold=0.5, beta=1.0)
    torch.testing.assert_close(wide.sum(dim=1), torch.ones(12, dtype=torch.float64))
    for k in range(12):
        found = {}
        for m in range(12):
            distance = math.dist(divmod(k, 4), divmod(m, 4)) / 5  # the diagonal of 3 x 4
            found[m] = math.exp(-distance) if distance <= 0.5 else 0.0
        for m in range(12):
            assert wide[k, m].item() == pytest.approx(found[m] / sum(found.values()))
    assert torch.equal(smoothed_positives((3, 3), threshold=0.0), torch.eye(9, dtype=torch.float64))
    assert smoothed_positives((1, 1)).tolist() == [[1.0]]


def test_unrelated_elements_start_near_the_log_of_their_number():
    own, cross = randn(8, 20, 512), randn(8, 20, 512, seed=1)
    for term in within_study_contrast(own, cross, temperature=1.0):
        assert abs(term.item() - math.log(20)) < 0.02
    assert sum(within_study_contrast(own, 3 * own, temperature=0.01)).item() < 1e-6  # lengths do not matter


def test_cross_attention_alignment_equals_the_formula():
    queries, keys = randn(3, 4, 5), randn(3, 6, 5, seed=1)
    total = 0.0
    for b in range(3):
        words, patches = F.normalize(queries[b], dim=1), F.normalize(keys[b], dim=1)
        found = []
        for word in words:
            weights = torch.exp(patches @ word / 0.2)
            found.append(F.normalize(weights @ patches / weights.sum(), dim=0))
        for t in range(4):
            forward = sum(torch.exp(words[t] @ found[u] / 0.2) for u in range(4))
            backward = sum(torch.exp(found[t] @ words[u] / 0.2) for u in range(4))
            total = total + (torch.log(forward) + torch.log(backward)) / 2 - words[t] @ found[t] / 0.2
    fast = cross_attention_alignment(queries, keys, temperature=0.2)
    torch.testing.assert_close(fast, total / 12)
    for ours, theirs in zip(*(torch.autograd.grad(x, (queries, keys)) for x in (fast, total / 12))):
        torch.testing.assert_close(ours, theirs)


def test_weights_are_clipped_row_by_row():
    weights = torch.rand(3, 30, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(30) < torch.tensor([30, 11, 0])[:, None]
    clipped = clip_to_quantiles(weights, mask)
    for row in range(2):
        real = weights[row][mask[row]]
        limits = torch.quantile(real, torch.tensor([0.1, 0.9]))
        torch.testing.assert_close(clipped[row][mask[row]], real.clamp(limits[0], limits[1]))
    assert (clipped[~mask] == 0).all()


def test_importance_is_a_distribution_over_real_parts_without_gradient():
    whole, parts = randn(4, 3), randn(4, 5, 3, seed=1)
    found = importance(whole, parts, MASK)
    assert not found.requires_grad and (found[~MASK] == 0).all()
    torch.testing.assert_close(found.sum(dim=1), MASK.any(dim=1).double())
    expected = (F.cosine_similarity(whole[1], parts[1, :2], dim=1) / 0.1).softmax(dim=0)
    torch.testing.assert_close(found[1, :2], expected.detach())


def test_sentences_are_the_maximum_over_their_tokens():
    tokens = randn(1, 6, 2)
    numbers, mask = torch.tensor([[0, 0, 1, 1, 2, 3]]), torch.tensor([[True, True, True, False, True, True]])
    pooled, found = pool_sentences(tokens, numbers, mask, most=3)
    expected = [tokens[0, :2].amax(dim=0), tokens[0, 2], tokens[0, 4:].amax(dim=0)]
    torch.testing.assert_close(pooled[0], torch.stack(expected))
    assert found.tolist() == [[True, True, True]]
    pooled, found = pool_sentences(tokens, numbers, mask & (numbers == 0), most=3)
    assert found.tolist() == [[True, False, False]] and (pooled[0, 1:] == 0).all()


class Given(torch.nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.features, self.width = features, width

    def forward(self, *_):
        return self.features


STOP = 9
IDS = torch.tensor([[2, 5, 6, STOP, 7, STOP, 3], [2, 5, 5, 7, 3, 0, 0], [2, 3, 0, 0, 0, 0, 0]])


def forward_pass(local=True, disturb=False):
    generator, mask = torch.Generator().manual_seed(0), IDS != 0
    patches, tokens = torch.randn(3, 6, 8, generator=generator), torch.randn(3, 7, 8, generator=generator)
    if disturb:
        tokens = tokens.masked_fill(~mask[..., None], 1e3)
    torch.manual_seed(0)
    image, text = ImageFeatures(patches.mean(1), patches, (2, 3)), TextFeatures(tokens[:, 0], tokens, mask)
    model = VisionLanguageModel(Given(image, 8), Given(text, 8), embedding_width=6, local_projection=local)
    views, texts = {"frontal": torch.zeros(3, 1, 2, 2)}, {"report": Tokens(IDS, mask)}
    return ForwardPass(model, Batch((0, 1, 2), views, texts, (), torch.zeros(3, 1)))


def objectives():
    torch.manual_seed(1)
    sentence_region = SentenceRegion(6, 20, most=4)
    sentence_region.read_tokenizer(SimpleNamespace(vocabulary={"effusion": 5, ".": STOP}))
    return [sentence_region, TokenAlignment()]


def test_objectives_teach_both_heads_and_do_not_see_padding():
    for objective in objectives():
        given = forward_pass()
        output = objective(given)
        output.loss.backward()
        for head in (given.model.patch_projection, given.model.token_projection):
            assert torch.isfinite(head.weight.grad).all() and head.weight.grad.abs().max() > 0
        assert torch.equal(objective(forward_pass(disturb=True)).loss, output.loss)
        with pytest.raises(KitError, match="local_projection"):
            objective(forward_pass(local=False))


def test_sentences_end_at_full_stops():
    output = objectives()[0](forward_pass())
    assert output.logs["sentences per report"].item() == pytest.approx((2 + 1 + 0) / 3)
    with pytest.raises(KitError, match="read_tokenizer"):
        SentenceRegion(6, 20)(forward_pass())


@pytest.mark.parametrize("function", [
    lambda: within_study_contrast(torch.ones(2, 3, 4), torch.ones(2, 4, 4), temperature=1.0),
    lambda: cross_attention_alignment(torch.ones(2, 3, 4), torch.ones(2, 3, 5)),
])  # fmt: skip
def test_wrong_shapes_are_one_line(function):
    with pytest.raises(KitError) as caught:
        function()
    assert "\n" not in str(caught.value)


TRAINED = {
    "word-region": lambda model: WordRegion(vocabulary_size=model.text_encoder.vocabulary_size),
    "sentence-region": lambda model: SentenceRegion(model.embedding_width, model.text_encoder.vocabulary_size),
    "token alignment": lambda model: TokenAlignment(),
}


@pytest.mark.parametrize("name", TRAINED)
def test_each_local_objective_trains_in_the_loop(name):
    phantoms = Phantoms(32, seed=0, image_size=32)
    tokenizer = ReportTokenizer.train([phantoms.report(i).text for i in range(32)], vocabulary_size=300)

    def objective(model):
        made = TRAINED[name](model)
        if hasattr(made, "read_tokenizer"):
            made.read_tokenizer(tokenizer)
        return made

    recipe = Recipe(
        name=name, title=name, paper="", year=2022, idea="", objectives=(name,), objective=objective,
        text_options={"pooling": "mean"}, model_options={"local_projection": True},
    )  # fmt: skip
    sizes = budget("tiny").but(epochs=8, train_studies=32, learning_rate=3e-3)
    history = pretrain(recipe, phantoms, budget=sizes, tokenizer=tokenizer, progress=False).history
    assert history["loss"].iloc[-3:].mean() < 0.95 * history["loss"].iloc[0]
