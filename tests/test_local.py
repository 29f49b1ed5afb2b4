"""Word-region alignment against its formula, one pair and one word at a time, and what padding may not do."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass, VisionLanguageModel
from medvlp_kit.objectives.local import (
    WordRegion,
    word_region_attention,
    word_region_loss,
    word_region_similarity,
)
from medvlp_kit.objectives.pieces import real_words
from medvlp_kit.study import Batch, Tokens


def textbook(patches, words, mask, *, attention_scale=4.0, word_scale=5.0, logit_scale=10.0, words_first=True):
    """The formula, one image, one text and one word at a time, every context written out."""
    logits = []
    for regions in patches:
        row = []
        for text, real in zip(words, mask):
            text = text[real]
            scores = regions @ text.T  # (N, T)
            if words_first:
                scores = torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True)
            total = 0.0
            for t, word in enumerate(text):
                weights = torch.exp(attention_scale * scores[:, t])
                context = (weights[:, None] * regions).sum(dim=0) / weights.sum()
                cosine = context @ word / (context @ context).sqrt() / (word @ word).sqrt()
                total = total + torch.exp(word_scale * cosine)
            row.append(logit_scale * torch.log(total))
        logits.append(torch.stack(row))
    chances = torch.exp(torch.stack(logits))
    image_to_text = -torch.log(torch.diagonal(chances / chances.sum(dim=1, keepdim=True))).mean()
    text_to_image = -torch.log(torch.diagonal(chances / chances.sum(dim=0, keepdim=True))).mean()
    return image_to_text, text_to_image


def inputs(batch=4, regions=6, length=5, width=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, regions, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    words = torch.randn(batch, length, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    return patches, words, torch.arange(length) < lengths[:, None]


def gradients(function, patches, words, mask, **options):
    losses = function(patches, words, mask, **options)
    return [*losses, *torch.autograd.grad(0.3 * losses[0] + 0.7 * losses[1], (patches, words))]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("words_first", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (3, 2, 4, 7), (1, 5, 2, 4)])  # more and fewer regions than dimensions
def test_equals_the_formula_forward_and_backward(shape, words_first, keep):
    data = inputs(*shape, seed=sum(shape))
    options = dict(words_first=words_first, attention_scale=2.5, word_scale=3.0, logit_scale=1.5)
    slow = gradients(textbook, *data, **options)
    for fast, expected in zip(gradients(word_region_loss, *data, keep=keep, **options), slow):
        torch.testing.assert_close(fast, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("words_first", [True, False])
def test_float32_is_close_to_float64_at_the_published_size(words_first):
    patches, words, mask = inputs(8, 196, 32, 256, seed=3)
    patches, words = ((x.detach() / 4).requires_grad_() for x in (patches, words))
    exact = gradients(word_region_loss, patches, words, mask, words_first=words_first)
    single = [x.detach().float().requires_grad_() for x in (patches, words)]
    for found, expected in zip(gradients(word_region_loss, *single, mask, words_first=words_first), exact):
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5


@pytest.mark.parametrize("words_first", [True, False])
def test_neither_the_chunk_nor_keeping_changes_the_result(words_first):
    data = inputs(5, 7, 4, 3)
    expected = gradients(word_region_loss, *data, words_first=words_first, chunk=5, keep=True)
    for chunk in (1, 2, 3, 50):
        for keep in (True, False):
            found = gradients(word_region_loss, *data, words_first=words_first, chunk=chunk, keep=keep)
            for one, two in zip(found, expected):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("words_first", [True, False])
@pytest.mark.parametrize("filling", [1e6, math.nan, math.inf])
def test_padding_changes_neither_loss_nor_gradient(words_first, filling):
    patches, words, mask = inputs()
    expected = gradients(word_region_loss, patches, words, mask, words_first=words_first)
    other = words.detach().masked_fill(~mask[..., None], filling).requires_grad_()
    found = gradients(word_region_loss, patches, other, mask, words_first=words_first)
    wider = F.pad(words.detach(), (0, 0, 0, 3), value=7.0).requires_grad_()
    longer = gradients(word_region_loss, patches, wider, F.pad(mask, (0, 3)), words_first=words_first)
    assert (~mask).any() and (found[3][~mask] == 0).all()
    for one, two, three in zip(found, expected, longer):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(three[:, : words.shape[1]] if three.ndim and three.shape != two.shape else three, two)


def test_the_order_of_pairs_words_and_regions_does_not_matter():
    patches, words, mask = inputs()
    mask = torch.ones_like(mask)
    pairs, regions, places = torch.tensor([2, 0, 3, 1]), torch.randperm(6), torch.tensor([4, 2, 0, 1, 3])
    moved = word_region_loss(patches[pairs][:, regions], words[pairs][:, places], mask)
    torch.testing.assert_close(moved, word_region_loss(patches, words, mask))


def test_a_text_without_words_says_nothing_and_breaks_nothing():
    patches, words, mask = inputs()
    mask = mask.clone()
    mask[1] = False
    assert (word_region_similarity(patches, words, mask)[:, 1] == 0).all()
    found = gradients(word_region_loss, patches, words, mask)
    assert all(torch.isfinite(x).all() for x in found) and (found[3][1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_that_cancel_and_vectors_of_zero_stay_finite(dtype):
    """The weighted sum of v and -v under equal weights is rounding noise, whose cosine would be anything."""
    patches, words, mask = inputs(dtype=dtype)
    with torch.no_grad():
        patches[0, 3:] = -patches[0, :3]
        patches[1] = 0
        words[2] = 0
    for words_first in (True, False):
        found = gradients(word_region_loss, patches, words, mask, words_first=words_first, attention_scale=0.0)
        assert all(torch.isfinite(x).all() for x in found)
    assert word_region_similarity(patches, words[:1], mask[:1], attention_scale=0.0)[0, 0].item() == pytest.approx(math.log(5))


def test_half_precision_runs_in_float32():
    patches, words, mask = inputs(dtype=torch.bfloat16)
    found = word_region_similarity(patches, words, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, word_region_similarity(patches.float(), words.float(), mask))


def test_unrelated_pairs_start_near_ln_b_and_matching_ones_end_near_zero():
    patches, words, mask = inputs(12, 9, 6, 64, seed=5)
    for loss in word_region_loss(patches, words, mask | True, logit_scale=0.01):
        assert abs(loss.item() - math.log(12)) < 0.05
    own = 4 * F.normalize(words.detach(), dim=-1)  # every word is a region of its own image
    for loss in word_region_loss(own, own, mask | True):
        assert loss.item() < 1e-3


def test_attention_is_a_distribution_and_finds_the_planted_region():
    patches, words, mask = inputs(3, 8, 5, 32, seed=2)
    with torch.no_grad():
        patches *= 0.1
        words.copy_(2 * torch.eye(32)[:5].expand(3, -1, -1))
        patches[:, 1:6] = 3 * words
    for words_first in (True, False):
        attention = word_region_attention(patches, words, mask, words_first=words_first)
        torch.testing.assert_close(attention.sum(dim=2), mask.double())
        looked = mask & (mask.sum(dim=1, keepdim=True) > 1)
        assert looked.sum() == 5 and (attention.argmax(dim=2) == torch.arange(1, 6))[looked].all()
    # a word that has no rival wins every region, and with words first it then looks everywhere alike
    alone = word_region_attention(patches, words[:, :1], mask[:, :1])
    torch.testing.assert_close(alone, torch.full_like(alone, 1 / 8))
    # the contexts of the attention are those of the similarity
    attention = word_region_attention(patches, words, mask)
    cosine = F.cosine_similarity(attention @ patches, words, dim=2).masked_fill(~mask, -torch.inf)
    expected = torch.logsumexp(5 * cosine, dim=1)
    torch.testing.assert_close(torch.diagonal(word_region_similarity(patches, words, mask)), expected)


def test_wrong_arguments_are_one_line():
    patches, words, mask = inputs()
    for bad in [(patches[:2], words, mask), (patches, words[..., :2], mask), (patches, words, mask.double()),
                (patches, words, mask[:, :2]), (patches[0], words, mask)]:  # fmt: skip
        with pytest.raises(KitError) as caught:
            word_region_loss(*bad)
        assert "\n" not in str(caught.value)


class Given(torch.nn.Module):
    """An encoder that hands out what it was given."""

    def __init__(self, features, width):
        super().__init__()
        self.features, self.width = features, width

    def forward(self, *_):
        return self.features


def forward_pass(ids, mask, *, local=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, length = ids.shape
    patches = torch.randn(rows, 4, 8, generator=generator)
    tokens = torch.randn(rows, length, 8, generator=generator)
    torch.manual_seed(seed)
    model = VisionLanguageModel(
        Given(ImageFeatures(patches.mean(1), patches, (2, 2)), 8), Given(TextFeatures(tokens[:, 0], tokens, mask), 8),
        embedding_width=6, local_projection=local,
    )  # fmt: skip
    views, texts = {"frontal": torch.zeros(rows, 1, 2, 2)}, {"report": Tokens(ids, mask)}
    return ForwardPass(model, Batch(tuple(range(rows)), views, texts, (), torch.zeros(rows, 1)))


IDS = torch.tensor([[2, 10, 11, 12, 3, 0], [2, 12, 10, 10, 11, 3], [2, 10, 3, 0, 0, 0]])  # 11 continues a word
MASK = IDS != 0


def test_the_objective_reads_words_only():
    assert real_words(MASK).int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]
    given = forward_pass(IDS, MASK)
    output = WordRegion()(given)
    patches, words = given.model.project_patches(given.image), given.model.token_projection(given.text.tokens)
    torch.testing.assert_close(output.loss, sum(word_region_loss(patches, words, real_words(MASK))) / 2)
    output.loss.backward()
    assert given.model.patch_projection.weight.grad.abs().max() > 0
    assert given.model.token_projection.weight.grad.abs().max() > 0


def test_pieces_of_a_word_are_summed():
    objective = WordRegion(vocabulary_size=20)
    with pytest.raises(KitError, match="read_tokenizer"):
        objective(forward_pass(IDS, MASK))
    objective.read_tokenizer(SimpleNamespace(vocabulary={"[PAD]": 0, "effus": 10, "##ion": 11, "heart": 12}))
    given = forward_pass(IDS, MASK)
    tokens = given.model.token_projection(given.text.tokens)
    empty = torch.zeros(6)
    words = torch.stack([
        torch.stack([tokens[0, 1] + tokens[0, 2], tokens[0, 3], empty]),
        torch.stack([tokens[1, 1], tokens[1, 2], tokens[1, 3] + tokens[1, 4]]),
        torch.stack([tokens[2, 1], empty, empty]),
    ])  # fmt: skip
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    expected = sum(word_region_loss(given.model.project_patches(given.image), words, mask)) / 2
    torch.testing.assert_close(objective(given).loss, expected)


def test_the_objective_needs_local_heads():
    with pytest.raises(KitError, match="local_projection"):
        WordRegion()(forward_pass(IDS, MASK, local=False))
