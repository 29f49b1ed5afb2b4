"""M3AE and MRM: the right shares hidden, the right layers read, one modality helping the other, nothing leaking."""

import math

import pytest
import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.errors import KitError
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.joint_masked import JointMasked, MaskedRecord
from medvlp_kit.objectives.masked_image import SHARP_VIEW, patchify, visible_part
from medvlp_kit.objectives.vocabulary import read_tokenizer
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.study import Tokens
from medvlp_kit.text import SPECIAL, ReportTokenizer

TINY = budget("tiny")
STUDIES = 8


@pytest.fixture(scope="module")
def tokenizer():
    phantoms = Phantoms(STUDIES, seed=0, image_size=TINY.image_size)
    return ReportTokenizer.train([phantoms.report(i).text for i in range(STUDIES)], vocabulary_size=250)


@pytest.fixture(scope="module")
def batch(tokenizer):
    return collate(
        Phantoms(STUDIES, seed=0, image_size=TINY.image_size), range(STUDIES), tokenizer=tokenizer,
        image_size=TINY.image_size, text_length=40, views=("frontal", SHARP_VIEW), texts=("impression",),
    )  # fmt: skip


def build(objective, tokenizer, *, fusion="dual_stream", image="kit_vit", **fusion_options):
    torch.manual_seed(0)
    recipe = Recipe(
        name="joint", title="", paper="", year=0, idea="", objectives=(), objective=objective, image_encoder=image,
        image_options=dict(layers=2, width=32, heads=2, patch=4) if image == "kit_vit" else {}, fusion=fusion,
        fusion_options={"layers": 2} | fusion_options if fusion not in (None, "none") else {},
    )  # fmt: skip
    built = recipes.build(recipe, budget=TINY.but(text_length=48), vocabulary_size=tokenizer.vocabulary_size)
    read_tokenizer(built.objective, tokenizer)
    return built


EVERY = {
    "M3AE code, dual": (lambda model: JointMasked(model), "dual_stream"),
    "M3AE paper, dual": (lambda model: JointMasked(model, together=True), "dual_stream"),
    "M3AE code, single": (lambda model: JointMasked(model), "single_stream"),
    "M3AE paper, single": (lambda model: JointMasked(model, together=True), "single_stream"),
    "MRM": (lambda model: MaskedRecord(model), None),
}


@pytest.mark.parametrize("make, fusion", EVERY.values(), ids=EVERY)
def test_both_parts_start_where_nothing_is_known_and_fall(make, fusion, batch, tokenizer):
    built = build(make, tokenizer, fusion=fusion)
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    torch.manual_seed(1)
    words, pixels = [], []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        output = built.objective(ForwardPass(built.model, batch))
        torch.testing.assert_close(output.loss.detach(), output.logs["words"] + output.logs["pixels"])
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        words.append(float(output.logs["words"]))
        pixels.append(float(output.logs["pixels"]))
    assert abs(words[0] - math.log(tokenizer.vocabulary_size)) < 0.5
    assert sum(words[-5:]) / 5 < 0.75 * words[0] and sum(pixels[-5:]) / 5 < 0.8 * pixels[0], (words[-5:], pixels[-5:])


@pytest.mark.parametrize("make, fusion", EVERY.values(), ids=EVERY)
def test_three_quarters_of_the_image_and_the_stated_share_of_words_are_hidden(make, fusion, batch, tokenizer):
    built = build(make, tokenizer, fusion=fusion)
    forward_pass = ForwardPass(built.model, batch)
    built.objective(forward_pass)
    assert (visible_part(forward_pass, ratio=0.75).mask.sum(dim=1) == 48).all()
    vocabulary, view = built.objective.masking.vocabulary, built.objective.masking.view(forward_pass)
    starts = vocabulary.word_starts(view.original)
    firsts = starts == torch.arange(starts.shape[1])
    words = (firsts & batch.tokens.mask & (view.original >= len(SPECIAL))).sum(dim=1)
    hidden = (firsts & view.chosen).sum(dim=1)
    ratio = 0.5 if fusion is None else 0.15
    assert hidden.tolist() == [max(1, round(ratio * int(count))) for count in words]


@pytest.mark.parametrize("make, fusion", EVERY.values(), ids=EVERY)
def test_words_are_read_from_the_image_and_never_from_a_hidden_patch(make, fusion, batch, tokenizer):
    built = build(make, tokenizer, fusion=fusion)
    images = batch.images.clone().requires_grad_()
    views = {"frontal": images, SHARP_VIEW: batch.views[SHARP_VIEW]}
    forward_pass = ForwardPass(built.model, type(batch)(batch.indices, views, batch.texts, batch.sentences, batch.labels))
    built.objective.target.forward = lambda forward_pass: torch.zeros(STUDIES, 64, built.objective.target.width)
    gradient = patchify(torch.autograd.grad(built.objective(forward_pass).loss, images)[0], 4)  # (B, N, P)
    mask = visible_part(forward_pass, ratio=0.75).mask
    assert (gradient[~mask].abs().sum(dim=-1) > 0).all()
    whole_image_for_words = fusion is not None and not built.objective.together
    assert bool((gradient[mask] == 0).all()) != whole_image_for_words


@pytest.mark.parametrize("fusion", ["single_stream", "dual_stream"])
def test_pixels_are_drawn_from_their_own_depth(fusion, batch, tokenizer):
    """Layers of the fusion above `image_depth` get no gradient from the pixels, those up to it do."""
    for depth in (1, 2, 3):
        built = build(lambda model, depth=depth: JointMasked(model, image_depth=depth), tokenizer, fusion=fusion, layers=3)
        built.objective.pixels(ForwardPass(built.model, batch)).backward()
        blocks = built.model.fusion.image_blocks if fusion == "dual_stream" else built.model.fusion.blocks
        learns = [any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in block.parameters()) for block in blocks]
        assert learns == [index < depth for index in range(3)]


def test_the_middle_layer_is_the_default(tokenizer):
    for layers, expected in [(1, 1), (2, 1), (3, 2), (6, 3)]:
        assert build(JointMasked, tokenizer, layers=layers).objective.image_depth == expected


@pytest.mark.parametrize("make, fusion", EVERY.values(), ids=EVERY)
def test_padding_changes_neither_loss_nor_gradient(make, fusion, batch, tokenizer):
    built = build(make, tokenizer, fusion=fusion)
    both = torch.nn.ModuleList([built.model, built.objective]).eval()
    assert (~batch.tokens.mask).any()
    results = []
    for filler in (0, 7):
        tokens = Tokens(batch.tokens.ids.masked_fill(~batch.tokens.mask, filler), batch.tokens.mask)
        changed = type(batch)(batch.indices, batch.views, {"impression": tokens}, batch.sentences, batch.labels)
        torch.manual_seed(3)
        both.zero_grad()
        loss = built.objective(ForwardPass(built.model, changed)).loss
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name in results[0][1]:
        torch.testing.assert_close(results[0][1][name], results[1][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make, fusion", EVERY.values(), ids=EVERY)
def test_a_batch_padded_further_gives_the_same_loss(make, fusion, batch, tokenizer):
    built = build(make, tokenizer, fusion=fusion)
    built.model.eval()
    masking = built.objective.masking
    view = masking(batch.tokens, generator=torch.Generator().manual_seed(0))
    losses = []
    for extra in (0, 5):
        longer = lambda x, extra=extra: torch.nn.functional.pad(x, (0, extra))  # noqa: E731
        texts = {"impression": Tokens(longer(batch.tokens.ids), longer(batch.tokens.mask))}
        forward_pass = ForwardPass(built.model, type(batch)(batch.indices, batch.views, texts, batch.sentences, batch.labels))
        seen = Tokens(longer(view.tokens.ids), longer(view.tokens.mask))
        forward_pass.cached(masking.key, lambda: type(view)(seen, longer(view.chosen), longer(view.original)))  # noqa: B023
        torch.manual_seed(3)
        losses.append(built.objective(forward_pass).loss)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: build(JointMasked, t, fusion=None),
        lambda t: build(JointMasked, t, fusion="none"),
        lambda t: build(JointMasked, t, variant="text_to_image"),
        lambda t: build(JointMasked, t, image="resnet10t"),
        lambda t: build(MaskedRecord, t, image="resnet10t", fusion=None),
        lambda t: build(lambda model: JointMasked(model, image_depth=3), t),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(wrong, tokenizer):
    with pytest.raises(KitError) as caught:
        wrong(tokenizer)
    assert "\n" not in str(caught.value)
