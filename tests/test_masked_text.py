"""Masked language modelling: what may be hidden, exactly how much, and that nothing hidden or padded leaks."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.masked_text import (
    ALWAYS_MASK,
    MaskedLanguage,
    TextMasking,
    choose_tokens,
    hide_tokens,
    masked_language_loss,
)
from medvlp_kit.objectives.vocabulary import Vocabulary, medical_words, read_tokenizer
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.study import Tokens
from medvlp_kit.text import MASK, SPECIAL, ReportTokenizer

TINY = budget("tiny")
STUDIES = 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(STUDIES, seed=0, image_size=TINY.image_size)


@pytest.fixture(scope="module")
def tokenizer(phantoms):
    texts = [phantoms.report(i).text for i in range(STUDIES)]
    return ReportTokenizer.train(texts, vocabulary_size=250)  # small, so that many words come in pieces


@pytest.fixture(scope="module")
def batch(phantoms, tokenizer):
    return collate(
        phantoms, range(STUDIES), tokenizer=tokenizer, image_size=TINY.image_size, text_length=40, texts=("impression",)
    )


def build(objective, tokenizer, *, fusion="dual_stream"):
    torch.manual_seed(0)
    recipe = Recipe(
        name="masked", title="", paper="", year=0, idea="", objectives=(), objective=objective, fusion=fusion,
        fusion_options={"layers": 1} if fusion in ("single_stream", "dual_stream") else {},
    )  # fmt: skip
    built = recipes.build(recipe, budget=TINY.but(text_length=40), vocabulary_size=tokenizer.vocabulary_size)
    read_tokenizer(built.objective, tokenizer)
    return built


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.integers(1, 24), st.floats(0.01, 1), st.integers(0, 10_000))
def test_exactly_the_stated_number_of_whole_words_is_hidden(rows, length, ratio, seed):
    generator = seeded(seed)
    maskable = torch.rand(rows, length, generator=generator) < 0.7
    inner = torch.rand(rows, length, generator=generator) < 0.4
    starts = torch.arange(length).expand(rows, length).masked_fill(inner, 0).cummax(dim=1).values
    maskable = maskable.gather(1, starts)  # a word is maskable as a whole
    chosen = choose_tokens(maskable, starts, ratio=ratio, generator=generator)
    assert not (chosen & ~maskable).any()
    for row in range(rows):
        words = {int(s) for s, m in zip(starts[row], maskable[row]) if m}
        hidden = {int(s) for s, c in zip(starts[row], chosen[row]) if c}
        assert len(hidden) == (max(1, round(ratio * len(words))) if words else 0)
        for start in hidden:  # all pieces or none
            assert chosen[row][starts[row] == start].all()


def test_every_word_is_chosen_equally_often():
    maskable = torch.ones(1, 10, dtype=torch.bool).expand(4000, 10)
    starts = torch.arange(10).expand(4000, 10)
    share = choose_tokens(maskable, starts, ratio=0.3, generator=seeded()).double().mean(dim=0)
    assert ((share - 0.3).abs() < 4.5 * math.sqrt(0.21 / 4000)).all()


def test_hidden_tokens_follow_the_80_10_10_rule_and_the_others_stay():
    vocabulary = 50
    ids = torch.randint(5, vocabulary, (400, 50), generator=seeded(1))
    chosen = torch.rand(400, 50, generator=seeded(2)) < 0.5
    replaceable = torch.arange(vocabulary) >= 5
    seen = hide_tokens(ids, chosen, mask_id=MASK, replaceable=replaceable, generator=seeded(3))
    assert torch.equal(seen[~chosen], ids[~chosen])
    count = int(chosen.sum())
    masked = (seen == MASK).sum() / count
    changed = ((seen != ids) & (seen != MASK)).sum() / count
    assert abs(masked - 0.8) < 0.015 and abs(changed - 0.1 * 44 / 45) < 0.012
    drawn = Counter(seen[(seen != ids) & (seen != MASK)].tolist())
    assert min(drawn) >= 5 and len(drawn) == 45  # never a special token; every other one sometimes
    always = hide_tokens(ids, chosen, mask_id=MASK, replaceable=replaceable, rule=ALWAYS_MASK, generator=seeded(3))
    assert (always[chosen] == MASK).all()


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("which", ["all", "medical"])
def test_special_and_padded_tokens_are_never_hidden(unit, which, batch, tokenizer):
    masking = TextMasking(tokenizer.vocabulary_size, ratio=1.0, unit=unit, which=which)
    masking.vocabulary.read(tokenizer)
    masked = masking(batch.tokens, generator=seeded())
    allowed = batch.tokens.mask & (batch.tokens.ids >= len(SPECIAL))
    assert masked.chosen.any() and not (masked.chosen & ~allowed).any()
    if which == "all":
        assert torch.equal(masked.chosen, allowed)
    assert torch.equal(masked.tokens.ids[~allowed], batch.tokens.ids[~allowed])


def test_medical_words_alone_are_hidden_and_whole(tokenizer):
    """Against plain string handling: the words of the text, looked up in the list."""
    text = "There is a small right pleural effusion; the heart size is not enlarged today."
    tokens = tokenizer.encode([text], length=64)
    masking = TextMasking(tokenizer.vocabulary_size, ratio=1.0, unit="word", which="medical")
    masking.vocabulary.read(tokenizer)
    chosen = masking(tokens, generator=seeded()).chosen[0]
    pieces = ["[CLS]", *tokenizer.pieces(text), "[SEP]"]
    words, member = [], []
    for piece in pieces:
        if not piece.startswith("##"):
            words.append("")
        words[-1] += piece.removeprefix("##")
        member.append(len(words) - 1)
    assert any(piece.startswith("##") for piece in pieces)
    expected = [words[k] in medical_words() for k in member]
    assert {words[k] for k, e in zip(member, expected) if e} == {"small", "right", "pleural", "effusion", "heart"}
    assert chosen.tolist() == expected


def test_a_text_without_a_medical_word_hides_nothing_and_costs_nothing(batch, tokenizer):
    built = build(lambda model: MaskedLanguage(model, fused=False, which="medical", words=["zebra"]), tokenizer)
    output = built.objective(ForwardPass(built.model, batch))
    assert float(output.loss.detach()) == 0
    output.loss.backward()  # and still there is a gradient to take


def test_the_facts_about_the_vocabulary_travel_in_the_checkpoint(batch, tokenizer):
    first = TextMasking(tokenizer.vocabulary_size, unit="word", which="medical", ratio=0.5)
    second = TextMasking(tokenizer.vocabulary_size, unit="word", which="medical", ratio=0.5)
    with pytest.raises(KitError, match="read_tokenizer"):
        second(batch.tokens)
    first.vocabulary.read(tokenizer)
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        first(batch.tokens, generator=seeded()).tokens.ids, second(batch.tokens, generator=seeded()).tokens.ids
    )


def test_a_tokenizer_that_does_not_fit_is_one_line(tokenizer):
    with pytest.raises(KitError) as caught:
        Vocabulary(tokenizer.vocabulary_size - 1).read(tokenizer)
    assert "\n" not in str(caught.value)


def test_loss_equals_the_formula_forward_and_backward():
    logits = torch.randn(6, 9, generator=seeded(), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 8, 8, 2, 5])
    slow = 0.0
    for row, target in zip(logits, targets):
        slow = slow - torch.log(torch.exp(row[target]) / sum(torch.exp(score) for score in row)) / len(targets)
    fast = masked_language_loss(logits, targets)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits))


@pytest.mark.parametrize("fused", [True, False])
def test_starts_near_ln_v_and_learns(fused, batch, tokenizer):
    built = build(lambda model: MaskedLanguage(model, fused=fused, ratio=0.3), tokenizer)
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    torch.manual_seed(1)
    losses = []
    for step in range(90):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        loss = built.objective(ForwardPass(built.model, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert abs(losses[0] - math.log(tokenizer.vocabulary_size)) < 0.35
    # the share of each token in the batch, known without reading anything, gives this entropy
    ids = batch.tokens.ids[batch.tokens.ids >= len(SPECIAL)]
    shares = torch.bincount(ids).double() / len(ids)
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
    assert sum(losses[-5:]) / 5 < 0.9 * entropy


@pytest.mark.parametrize("fusion", ["single_stream", "dual_stream"])
def test_padding_changes_neither_loss_nor_gradient(fusion, batch, tokenizer):
    built = build(lambda model: MaskedLanguage(model, ratio=0.3), tokenizer, fusion=fusion)
    both = torch.nn.ModuleList([built.model, built.objective]).double().eval()
    masking = built.objective.masking
    view = masking(batch.tokens, generator=seeded())
    results = []
    for filler in (0, 7):
        ids = view.tokens.ids.masked_fill(~view.tokens.mask, filler)
        seen = type(view)(Tokens(ids, view.tokens.mask), view.chosen, view.original.masked_fill(~view.tokens.mask, filler))
        forward_pass = ForwardPass(built.model, _double(batch))
        forward_pass.cached(masking.key, lambda seen=seen: seen)
        both.zero_grad()
        loss = built.objective(forward_pass).loss
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in both.parameters() if p.grad is not None]))
    assert (~view.tokens.mask).any()
    torch.testing.assert_close(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(one, other)


def test_the_image_is_used_only_when_fused(batch, tokenizer):
    for fusion, fused, helps in [("dual_stream", True, True), ("dual_stream", False, False), ("none", True, False)]:
        built = build(lambda model: MaskedLanguage(model, fused=fused), tokenizer, fusion=fusion)
        built.model.eval()
        images = batch.images.clone().requires_grad_()
        torch.manual_seed(0)
        loss = built.objective(ForwardPass(built.model, _with_images(batch, images))).loss
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0]
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == helps


def test_objectives_that_mask_alike_share_one_view(batch, tokenizer):
    def three(model):
        more = MaskedLanguage(model, ratio=0.4, unit="word")
        return WeightedSum({"text": MaskedLanguage(model, fused=False), "fused": MaskedLanguage(model), "more": more})

    built = build(three, tokenizer)
    calls = []
    built.model.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    forward_pass = ForwardPass(built.model, batch)
    built.objective(forward_pass)
    assert len(calls) == 2  # one for the two that mask alike, one for the third
    parts = built.objective.parts
    assert parts["text"].masking.view(forward_pass) is parts["fused"].masking.view(forward_pass)


def test_a_given_seed_gives_the_same_masks(batch, tokenizer):
    masking = TextMasking(tokenizer.vocabulary_size)
    first, again = (masking(batch.tokens, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first.tokens.ids, again.tokens.ids)
    assert not torch.equal(first.chosen, masking(batch.tokens, generator=seeded(5)).chosen)


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.2}, {"unit": "letter"}, {"which": "nouns"}, {"rule": (0.9, 0.2)}])
def test_wrong_options_are_one_line(options, batch, tokenizer):
    with pytest.raises(KitError) as caught:
        TextMasking(tokenizer.vocabulary_size, **options)(batch.tokens, generator=seeded())
    assert "\n" not in str(caught.value)


def test_fused_without_a_fusion_is_one_line(tokenizer):
    with pytest.raises(KitError, match="fused=False"):
        build(MaskedLanguage, tokenizer, fusion=None)


def test_autocast_keeps_the_loss_in_float32(batch, tokenizer):
    built = build(MaskedLanguage, tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = built.objective(ForwardPass(built.model, batch)).loss
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert F.relu(loss) > 0


def _double(batch):
    return _with_images(batch, batch.images.double())


def _with_images(batch, images):
    return type(batch)(batch.indices, {"frontal": images}, batch.texts, batch.sentences, batch.labels, batch.label_names)
