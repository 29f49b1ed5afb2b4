"""Captioning, prefix language model and CoCa: the formula, no look at later words, and decoding that repeats training."""

import math

import pytest
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.captioning import Captioning, PrefixLanguage, next_token_accuracy, next_token_loss
from medvlp_kit.objectives.coca import AttentionalPooler, CoCa
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.study import Tokens
from medvlp_kit.text import CLS, PAD, SEP, ReportTokenizer

TINY = budget("tiny")
STUDIES, LENGTH = 8, 24


@pytest.fixture(scope="module")
def tokenizer():
    phantoms = Phantoms(STUDIES, seed=0, image_size=TINY.image_size)
    return ReportTokenizer.train([phantoms.report(i).text for i in range(STUDIES)], vocabulary_size=250)


@pytest.fixture(scope="module")
def batch(tokenizer):
    return collate(
        Phantoms(STUDIES, seed=0, image_size=TINY.image_size), range(STUDIES), tokenizer=tokenizer,
        image_size=TINY.image_size, text_length=LENGTH, texts=("impression",),
    )  # fmt: skip


def build(objective, tokenizer, *, text="gpt2", fusion=None, **fusion_options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="captioning", title="", paper="", year=0, idea="", objectives=(), objective=objective, fusion=fusion,
        text_encoder=text, text_options={"pooling": "eos"} if text == "gpt2" else {}, fusion_options=fusion_options,
    )  # fmt: skip
    sizes = TINY.but(text_length=LENGTH, text_layers=2, image_model="kit_resnet10")
    return recipes.build(recipe, budget=sizes, vocabulary_size=tokenizer.vocabulary_size)


EVERY = {
    "captioning": (lambda model: Captioning(model), dict(text="bert")),
    "prefix": (lambda model: PrefixLanguage(model), dict(fusion="single_stream")),
    "coca": (lambda model: CoCa(model, queries=5), dict()),
}


def make(name, tokenizer):
    objective, options = EVERY[name]
    return build(objective, tokenizer, **options)


def logits_of(built, batch):
    """Scores (B, T, V) of the next token, and the word embeddings they were computed from."""
    tokens, model, objective = batch.tokens, built.model, built.objective
    table = objective.decoder.body.transformer.wte if isinstance(objective, Captioning) else model.text_encoder.body.wte
    kept = []
    hook = table.register_forward_hook(lambda module, inputs, output: kept.append(output))
    image = model.encode_image(batch.images)
    if isinstance(objective, Captioning):
        logits = objective.decoder(image, tokens.ids, tokens.mask)
    elif isinstance(objective, PrefixLanguage):
        logits = objective.logits(model, image, tokens.ids, tokens.mask)
    else:
        logits = objective.logits(image, model.encode_text(tokens))
    hook.remove()
    return logits, kept[0]


def generate(built, batch, **options):
    image = built.model.encode_image(batch.images)
    if isinstance(built.objective, Captioning):
        return built.objective.generate(image, **options)
    return built.objective.generate(built.model, image, **options)


def train(built, batch, steps):
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        output = built.objective(ForwardPass(built.model, batch))
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        losses.append(float(output.loss.detach()))
    both.eval()
    return losses, output


def test_loss_equals_the_formula_forward_and_backward():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (3, 5), generator=generator)
    lengths = [5, 3, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    slow, count = 0.0, 0
    for b in range(3):
        for t in range(lengths[b] - 1):
            slow = slow - torch.log(torch.exp(logits[b, t, ids[b, t + 1]]) / torch.exp(logits[b, t]).sum())
            count += 1
    slow = slow / count
    fast = next_token_loss(logits, ids, mask)
    torch.testing.assert_close(fast, slow)
    gradient = torch.autograd.grad(fast, logits)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(slow, logits)[0])
    assert (gradient[2] == 0).all() and (gradient[1, 2:] == 0).all()  # nothing is asked of or by padding
    hits = sum(int(logits[b, t].argmax() == ids[b, t + 1]) for b in range(3) for t in range(lengths[b] - 1))
    assert float(next_token_accuracy(logits, ids, mask)) == pytest.approx(hits / count)


def test_no_text_at_all_is_zero_and_not_nan():
    loss = next_token_loss(torch.zeros(2, 1, 4, requires_grad=True), torch.zeros(2, 1).long(), torch.ones(2, 1).bool())
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("name", EVERY)
def test_no_word_is_predicted_from_itself_or_a_later_one(name, batch, tokenizer):
    built = make(name, tokenizer)
    torch.nn.ModuleList([built.model, built.objective]).double().eval()
    logits, words = logits_of(built, _double(batch))
    for t in (0, 1, 5):  # the scores at t are asked for the token at t + 1
        asked = logits[:, t].log_softmax(dim=-1).gather(1, batch.tokens.ids[:, t + 1, None]).sum()
        gradient = torch.autograd.grad(asked, words, retain_graph=True)[0].abs().sum(dim=(0, 2))  # (T,)
        assert (gradient[t + 1 :] == 0).all() and (gradient[: t + 1] > 0).all(), (name, t)


def test_masks_that_show_later_words_are_refused(tokenizer):
    for options in (
        dict(fusion="single_stream", text="bert"),
        dict(fusion="dual_stream"),
        dict(fusion="single_stream", layers=2, meet_at=1),
        dict(),
    ):
        with pytest.raises(KitError) as caught:
            build(PrefixLanguage, tokenizer, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(KitError, match="gpt2"):
        build(CoCa, tokenizer, text="bert")


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_neither_loss_nor_gradient(name, batch, tokenizer):
    built = make(name, tokenizer)
    both = torch.nn.ModuleList([built.model, built.objective]).eval()
    assert (~batch.tokens.mask).any()
    results = []
    for filler in (PAD, 9):
        tokens = Tokens(batch.tokens.ids.masked_fill(~batch.tokens.mask, filler), batch.tokens.mask)
        changed = type(batch)(batch.indices, batch.views, {"impression": tokens}, batch.sentences, batch.labels)
        both.zero_grad()
        loss = built.objective(ForwardPass(built.model, changed)).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for parameter in results[0][1]:
        torch.testing.assert_close(results[0][1][parameter], results[1][1][parameter], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_starts_near_ln_v_and_learns_to_write_the_report_of_each_image(name, batch, tokenizer):
    built = make(name, tokenizer)
    losses, output = train(built, batch, 120)
    start = losses[0] if name != "coca" else (losses[0] - math.log(STUDIES)) / 2
    assert abs(start - math.log(tokenizer.vocabulary_size)) < 0.4
    assert float(output.logs["next word found"]) > 0.9, losses[-1]
    written = generate(built, batch, new_tokens=LENGTH - 1)
    assert (written[:, 0] == CLS).all()
    ids = batch.tokens.ids
    same = [row[1 : len(true)].tolist() == true[1 : len(row)].tolist() for row, true in zip(written, ids)]
    assert sum(same) >= STUDIES // 2  # free running, one slip at a word shared by two reports loses the thread
    wrong = generate(built, _with_images(batch, batch.images.flip(0)), new_tokens=LENGTH - 1)
    torch.testing.assert_close(wrong, written.flip(0))  # it is the image that decides


def test_the_cache_changes_the_speed_and_nothing_else(batch, tokenizer):
    built = make("captioning", tokenizer)
    train(built, batch, 20)
    for options in (dict(), dict(num_beams=3), dict(repetition_penalty=1.2)):
        with_cache = generate(built, batch, **options)
        assert torch.equal(with_cache, generate(built, batch, use_cache=False, **options))
        assert with_cache.shape[1] <= LENGTH


def test_greedy_decoding_is_the_argmax_of_the_training_scores(batch, tokenizer):
    built = make("captioning", tokenizer)
    train(built, batch, 40)
    written = generate(built, batch)
    ended = (written == SEP).cumsum(dim=1) - (written == SEP).long() > 0  # after the first [SEP]
    assert (written[ended] == PAD).all()
    with torch.no_grad():
        logits = built.objective.decoder(built.model.encode_image(batch.images), written, ~ended)
    asked = ~ended[:, 1:]
    assert torch.equal(logits[:, :-1].argmax(dim=-1)[asked], written[:, 1:][asked])


def test_beams_of_models_without_a_cache_look_at_their_own_image(batch, tokenizer):
    for name in ("prefix", "coca"):
        built = make(name, tokenizer)
        train(built, batch, 25)
        alone = generate(built, _with_images(batch, batch.images[3:4]), new_tokens=8, num_beams=3)
        together = generate(built, batch, new_tokens=8, num_beams=3)
        width = min(alone.shape[1], together.shape[1])
        assert torch.equal(alone[0, :width], together[3, :width])


def test_generation_leaves_the_model_in_training_mode_and_can_start_from_words(batch, tokenizer):
    built = make("captioning", tokenizer)
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    start = batch.tokens.ids[:, :3]
    written = generate(built, batch, start=start, new_tokens=2)
    assert torch.equal(written[:, :3], start) and written.shape == (STUDIES, 5)
    assert all(module.training for module in both.modules())
    for wrong in (0, LENGTH):
        with pytest.raises(KitError, match="writes 1 to"):
            generate(built, batch, new_tokens=wrong)


def test_coca_adds_its_two_losses_over_one_reading_of_the_text(batch, tokenizer):
    built = build(lambda model: CoCa(model, contrastive_weight=0.5, caption_weight=3.0), tokenizer)
    calls = []
    built.model.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    output = built.objective(ForwardPass(built.model, batch))
    assert calls == ["text"]
    expected = 0.5 * output.logs["contrastive"] + 3.0 * output.logs["captioning"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_the_attentional_pooler_gives_as_many_tokens_as_asked_and_knows_places(batch, tokenizer):
    built = make("coca", tokenizer)
    image = built.model.encode_image(batch.images)
    pooler = AttentionalPooler(built.model.image_encoder.width, 32, queries=7).eval()
    pooled = pooler(image)
    assert pooled.shape == (STUDIES, 7, 32)
    mixed = type(image)(image.pooled, image.patches.flip(1), image.grid)
    assert not torch.allclose(pooler(mixed), pooled, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: next_token_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), torch.ones(2, 3).bool()),
        lambda t: build(lambda model: Captioning(model, heads=5), t),
    ],
)
def test_wrong_arguments_are_one_line(wrong, tokenizer):
    with pytest.raises(KitError) as caught:
        wrong(tokenizer)
    assert "\n" not in str(caught.value)


def _with_images(batch, images):
    return type(batch)(batch.indices[: len(images)], {"frontal": images}, batch.texts, batch.sentences, batch.labels)


def _double(batch):
    return _with_images(batch, batch.images.double())
