"""Attribution: completeness, the slow forms, a planted truth, and a model that is left as it was found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from planted_maps import planted_gallery

from medvlp_kit.attribution import (
    KINDS,
    ImageScore,
    baseline_images,
    explaining,
    find,
    grad_cam,
    integrated_gradients,
    occlusion,
    score,
    similarity_maps,
    to_cells,
    word_gradients,
    word_groups,
    word_occlusion,
    words,
)
from medvlp_kit.budget import budget
from medvlp_kit.downstream.grounding import contrast_to_noise, contribution_map, pointing_game, similarity_map
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.encoders.text import build_text_encoder
from medvlp_kit.errors import KitError
from medvlp_kit.fusion import build_fusion
from medvlp_kit.model import VisionLanguageModel
from medvlp_kit.study import Tokens
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny")
TEXTS = ["Small left pleural effusion.", "No pneumothorax.", "The heart is enlarged. Right apical pneumothorax."]
OTHERS = ["Normal study.", "Large mass.", "Clear lungs."]


@pytest.fixture(scope="module")
def tokenizer():
    return ReportTokenizer.train([*TEXTS, *OTHERS], vocabulary_size=60)  # small, so that words fall into pieces


def built(tokenizer, *, image="kit_vit", pooling="average", kind="linear", fusion=None, **options):
    torch.manual_seed(0)
    options = {"width": 24, "layers": 3, "heads": 2} | options if image == "kit_vit" else options
    encoder = build_image_encoder(image, image_size=32, pooling=pooling, **options)
    text = build_text_encoder("kit_bert", vocabulary_size=tokenizer.vocabulary_size, width=24, layers=2, heads=2,
                              length=32, pooling="mean")  # fmt: skip
    fused = fusion and build_fusion(fusion, image_width=encoder.width, text_width=24, width=24, layers=2, heads=2)
    model = VisionLanguageModel(encoder, text, embedding_width=16, projection_kind=kind, fusion=fused)
    for module in model.modules():  # untrained positions and classes are nearly zero, and hide what goes wrong with them
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1 and not isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.encode(TEXTS, length=32)


@pytest.fixture(scope="module")
def others(tokenizer):
    return tokenizer.encode(OTHERS, length=32)


# ---- the number --------------------------------------------------------------------------------------------------


def test_the_score_is_the_models_own_similarity_for_every_kind_of_scorer(tokenizer, images, tokens, others):
    model = built(tokenizer, fusion="dual_stream").eval()

    def diagonal(text):
        return model.similarity(model.encode_image(images), model.encode_text(text)).diagonal()

    torch.testing.assert_close(score(model, images, tokens), diagonal(tokens))
    torch.testing.assert_close(score(model, images, tokens, against=others), diagonal(tokens) - diagonal(others))
    vectors = model.embed_text(model.encode_text(tokens))
    torch.testing.assert_close(score(model, images, vectors), diagonal(tokens))

    def fused(model, image, text):  # every pair by itself, as a matching head ranks
        from medvlp_kit.encoders.features import ImageFeatures

        rows = [model.fuse(ImageFeatures(p.expand(len(text.mask), -1), q.expand(len(text.mask), -1, -1), image.grid), text)
                for p, q in zip(image.pooled, image.patches)]  # fmt: skip
        return torch.stack([row.pooled.sum(1) for row in rows])

    model.score_with(fused)
    torch.testing.assert_close(score(model, images, tokens, against=others), diagonal(tokens) - diagonal(others))
    maps = integrated_gradients(model, images, tokens, against=others, steps=16)
    gap = score(model, images, tokens, against=others) - score(model, baseline_images(images), tokens, against=others)
    torch.testing.assert_close(maps.double().sum((1, 2)), gap, atol=2e-3, rtol=2e-3)
    with pytest.raises(KitError, match="give Tokens"):
        score(model, images, vectors)


def test_one_text_serves_all_images_and_a_wrong_number_is_told(tokenizer, images, tokens):
    model = built(tokenizer)
    one = Tokens(tokens.ids[:1], tokens.mask[:1])
    assert score(model, images, one).shape == (3,)
    with pytest.raises(KitError, match="3 images and 2 texts"):
        score(model, images, Tokens(tokens.ids[:2], tokens.mask[:2]))


# ---- integrated gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["mean", "black", "blurred", 0.3])
def test_integrated_gradients_are_complete(tokenizer, images, tokens, others, baseline):
    model = built(tokenizer)  # smooth: at the kink of a ReLU the rule needs many more steps
    maps = integrated_gradients(model, images, tokens, against=others, baseline=baseline, steps=64)
    start = baseline_images(images, baseline)
    gap = score(model, images, tokens, against=others) - score(model, start, tokens, against=others)
    assert gap.abs().min() > 1e-3
    torch.testing.assert_close(maps.double().sum((1, 2)), gap, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_of_a_linear_score_are_weight_times_difference(tokenizer, images, tokens):
    """Where the gradient is constant the integral is exact with any number of steps."""
    model = built(tokenizer)
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    model.encode_image = lambda x: (x[:, 0] * weight).sum((1, 2))[:, None]  # (B, 1)
    model.embed_image = lambda image: image
    maps = integrated_gradients(model, images, torch.ones(3, 1, dtype=torch.float64), baseline="black", steps=2)
    torch.testing.assert_close(maps.double(), images[:, 0] * weight, atol=1e-5, rtol=1e-5)


def test_steps_decide_the_error(tokenizer, images, tokens):
    model = built(tokenizer)
    gap = score(model, images, tokens) - score(model, baseline_images(images), tokens)
    errors = [(integrated_gradients(model, images, tokens, steps=steps).double().sum((1, 2)) - gap).abs().max()
              for steps in (1, 4, 64)]  # fmt: skip
    assert errors[0] > 3 * errors[2] and errors[1] > errors[2]


def test_cells_keep_the_mean_of_a_map(images):
    maps = to_cells(images[:, 0], 4)
    cells = images[:, 0].unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4))
    torch.testing.assert_close(F.adaptive_avg_pool2d(images, 4)[:, 0], cells)
    torch.testing.assert_close(maps.mean((1, 2)), images.mean((1, 2, 3)), atol=0.02, rtol=0)
    assert maps.std() < images.std()


# ---- Grad-CAM ------------------------------------------------------------------------------------------------------


def slow_grad_cam(model, images, text, activation, again):
    """Weights are the mean gradients, one channel and one image at a time; `again` finishes the forward pass."""
    maps = []
    for row in range(len(images)):
        cells = activation[row : row + 1].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad((model.embed_image(again(cells)) * text[row]).sum(), cells)
        total = torch.zeros(cells.shape[-2:], dtype=cells.dtype)
        for channel in range(cells.shape[1]):
            total += gradient[0, channel].mean() * cells[0, channel].detach()
        maps.append(total)
    return F.interpolate(torch.stack(maps)[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("image, pooling", [("resnet10t", "average"), ("resnet10t", "attention"), ("kit_vit", "average")])
def test_grad_cam_equals_its_definition(tokenizer, images, tokens, others, image, pooling):
    model = built(tokenizer, image=image, pooling=pooling, kind="mlp").eval()
    text = (model.embed_text(model.encode_text(tokens)) - model.embed_text(model.encode_text(others))).detach()
    features = model.encode_image(images)
    cells = features.patches.transpose(1, 2).unflatten(2, features.grid)

    def again(cells):
        return model.image_encoder.collect(cells.flatten(2).transpose(1, 2), None, grid=features.grid)

    slow = slow_grad_cam(model, images, text, cells, again).float()
    torch.testing.assert_close(grad_cam(model, images, tokens, against=others), slow)
    positive = grad_cam(model, images, tokens, against=others, relu=True)
    assert positive.min() >= 0 and slow.min() < 0


def test_grad_cam_inside_a_network_and_of_a_class_token(tokenizer, images, tokens):
    model = built(tokenizer, pooling="cls").eval()
    text, encoder = model.embed_text(model.encode_text(tokens)).detach(), model.image_encoder
    stream, grid = encoder.embed(encoder.normalise(images))
    for block in encoder.blocks[:2]:
        stream = block(stream)

    class Pooled:
        def __init__(self, pooled):
            self.pooled = pooled

    maps = []
    for row in range(3):
        first = stream[row : row + 1, :1]

        def finish(cells):
            whole = torch.cat([first, cells.flatten(2).transpose(1, 2)], dim=1)
            return Pooled(encoder.norm(encoder.blocks[2](whole))[:, 0])

        cells = stream[row : row + 1, 1:].transpose(1, 2).unflatten(2, grid)
        maps.append(slow_grad_cam(model, images[row : row + 1], text[row : row + 1], cells, finish))
    torch.testing.assert_close(grad_cam(model, images, tokens), torch.cat(maps).float())
    torch.testing.assert_close(grad_cam(model, images, tokens, layer="image_encoder.blocks.1"), torch.cat(maps).float())
    with pytest.raises(KitError, match="unknown layer 'image_encoder.block.1'"):
        grad_cam(model, images, tokens, layer="image_encoder.block.1")
    with pytest.raises(KitError, match="two blocks"):
        grad_cam(built(tokenizer, pooling="cls", layers=1), images, tokens)


def test_grad_cam_of_a_linear_head_is_the_contribution_without_its_part_along_the_image(tokenizer, images, tokens, others):
    """d cos / d v = (d - <v, d> v) / |v|: Grad-CAM projects the direction that is asked for, the contribution does not."""
    model = built(tokenizer, image="resnet10t").eval()
    with torch.no_grad():
        image = model.encode_image(images)
        raw = model.image_projection(image.pooled)
        unit, length = F.normalize(raw, dim=-1), raw.norm(dim=-1)
        text, other = (model.embed_text(model.encode_text(each)) for each in (tokens, others))
        along = (unit * (text - other)).sum(-1, keepdim=True) * unit
    whole = contribution_map(model, images, text, against=other).double()
    part = contribution_map(model, images, along, against=torch.zeros_like(along)).double()
    cells = image.patches.shape[1]
    hand = (whole - part) / length[:, None, None] / cells
    torch.testing.assert_close(grad_cam(model, images, tokens, against=others).double(), hand, atol=1e-7, rtol=1e-4)


# ---- occlusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, stride", [(8, 4), (8, 8), (7, 5), (32, 1)])
def test_occlusion_equals_brute_force(tokenizer, images, tokens, window, stride):
    model = built(tokenizer)
    full, grey = score(model, images, tokens), baseline_images(images)
    total, count = torch.zeros(3, 32, 32, dtype=torch.float64), torch.zeros(32, 32)
    starts = [min(start, 31) for start in range(0, 32 - window + stride, stride)]  # the last one reaches the border
    for y in starts:
        for x in starts:
            covered = images.clone()
            square = (..., slice(y, min(y + window, 32)), slice(x, min(x + window, 32)))
            covered[square] = grey[square]
            total[square] += (full - score(model, covered, tokens))[:, None, None]
            count[square] += 1
    assert count.min() > 0
    maps = occlusion(model, images, tokens, window=window, stride=stride)
    torch.testing.assert_close(maps, (total / count).float(), atol=1e-6, rtol=1e-5)


def test_impossible_windows_are_told(tokenizer, images, tokens):
    for window, stride in ((40, 8), (8, 9), (8, -1)):
        with pytest.raises(KitError, match="stride <= window <= side"):
            occlusion(built(tokenizer), images, tokens, window=window, stride=stride)
    with pytest.raises(KitError, match="unknown baseline 'blak'"):
        occlusion(built(tokenizer), images, tokens, baseline="blak")
    with pytest.raises(KitError, match="of their shape"):
        baseline_images(images, torch.zeros(1, 1, 16, 16))


# ---- the word side ---------------------------------------------------------------------------------------------------


def test_word_gradients_are_complete(tokenizer, images, tokens):
    model = built(tokenizer)
    shares = word_gradients(model, images, tokens, tokenizer=tokenizer, steps=64)
    empty = torch.where(tokens.ids > tokenizer.mask_id, torch.zeros_like(tokens.ids), tokens.ids)
    gap = score(model, images, tokens) - score(model, images, Tokens(empty, tokens.mask))
    assert gap.abs().min() > 1e-3
    torch.testing.assert_close(shares.double().sum(1), gap, atol=1e-5, rtol=1e-4)
    assert (shares[:, 0] == 0).all() and (shares[~tokens.mask] == 0).all()  # [CLS] and padding get nothing


def test_word_occlusion_equals_leaving_words_out(tokenizer, images, tokens):
    model = built(tokenizer)
    falls = word_occlusion(model, images, tokens, tokenizer=tokenizer)
    full, groups = score(model, images, tokens), word_groups(tokens, tokenizer)
    hand = torch.zeros(tokens.ids.shape, dtype=torch.float64)
    for row in range(3):
        for word in range(1, int(groups[row].max()) + 1):
            out = (groups == word) & (torch.arange(3)[:, None] == row)
            less = Tokens(torch.where(out, 0, tokens.ids), tokens.mask & ~out)
            hand += out * (full - score(model, images, less))[:, None]
    torch.testing.assert_close(falls, hand.float(), atol=1e-6, rtol=1e-5)
    assert (falls != 0).sum() == (groups > 0).sum()


def test_words_are_put_together_and_found(tokenizer, tokens):
    assert (word_groups(tokens, tokenizer).amax(1) < tokens.mask.sum(1) - 2).any()  # some word has several pieces
    spelled = words(tokens, torch.ones(tokens.ids.shape), tokenizer)
    assert [word for word, _ in spelled[1]] == ["no", "pneumothorax", "."]
    assert sum(share for _, share in spelled[1]) == int(tokens.mask[1].sum()) - 2
    assert all(share == 1 for _, share in words(tokens, torch.ones(tokens.ids.shape), tokenizer, how="mean")[0])
    chosen = find(tokens, "left Effusion", tokenizer)
    assert chosen[0].any() and not chosen[1].any()
    assert tokenizer.decode([i for i, c in zip(tokens.ids[0].tolist(), chosen[0].tolist()) if c]) == "left effusion"


# ---- levels ----------------------------------------------------------------------------------------------------------


def test_similarity_at_each_level(tokenizer, images, tokens):
    model = built(tokenizer).eval()
    sentence = similarity_maps(model, images, tokens)
    torch.testing.assert_close(sentence, similarity_map(model, images, tokens))
    word = similarity_maps(model, images, tokens, level="word")
    assert word.isnan().all((2, 3)).equal(~tokens.mask)
    features, text = model.encode_image(images), model.encode_text(tokens)
    one = F.cosine_similarity(model.image_projection(features.patches[2]), model.text_projection(text.tokens[2, 4]), dim=-1)
    one = F.interpolate(one.view(1, 1, 8, 8), (32, 32), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(word[2, 4], one.float())
    chosen = torch.zeros_like(tokens.mask)
    chosen[:2, 1] = True  # a phrase of one word is that word's map; the third image has no phrase
    phrase = similarity_maps(model, images, tokens, level="phrase", chosen=chosen)
    torch.testing.assert_close(phrase[:2], word[:2, 1])
    assert phrase[2].isnan().all()
    with pytest.raises(KitError, match="unknown level of text 'words'"):
        similarity_maps(model, images, tokens, level="words")
    with pytest.raises(KitError, match="give chosen"):
        similarity_maps(model, images, tokens, level="phrase")


# ---- what every kind keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_planted_truth_is_found_perfectly(name):
    gallery = planted_gallery()
    maps = gallery.maps(KINDS[name])
    assert len(gallery) > 20
    assert pointing_game(maps, gallery.cases.boxes).min() == 1
    assert contrast_to_noise(maps, gallery.cases.boxes).min() > 0.5  # infinite where the map is the box itself


@pytest.mark.parametrize("explain", [grad_cam, integrated_gradients, occlusion])
def test_a_map_does_not_depend_on_its_batch(tokenizer, images, tokens, others, explain):
    model = built(tokenizer, image="resnet10t").train()
    whole = explain(model, images, tokens, against=others)
    for row in range(3):
        pick = slice(row, row + 1)
        one, other = Tokens(tokens.ids[pick], tokens.mask[pick]), Tokens(others.ids[pick], others.mask[pick])
        torch.testing.assert_close(explain(model, images[pick], one, against=other)[0], whole[row], atol=1e-6, rtol=1e-4)
    assert model.training  # and the statistics of batch normalisation took no part


def test_word_numbers_do_not_depend_on_the_batch(tokenizer, images, tokens):
    model = built(tokenizer)
    for explain in (word_gradients, word_occlusion):
        whole = explain(model, images, tokens, tokenizer=tokenizer)
        length = int(tokens.mask[1].sum())
        alone = explain(model, images[1:2], Tokens(tokens.ids[1:2, :length], tokens.mask[1:2, :length]), tokenizer=tokenizer)
        torch.testing.assert_close(alone[0], whole[1, :length], atol=1e-6, rtol=1e-4)


def state(model):
    hooks = sum(len(getattr(m, n)) for m in model.modules() for n in vars(m) if n.endswith("_hooks"))
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hooks


EXPLAINERS = {
    "grad_cam": lambda model, images, tokens, tokenizer: grad_cam(model, images, tokens),
    "grad_cam of a layer": lambda model, images, tokens, tokenizer: grad_cam(
        model, images, tokens, layer="image_encoder.blocks.0"
    ),
    "integrated_gradients": lambda model, images, tokens, tokenizer: integrated_gradients(model, images, tokens),
    "occlusion": lambda model, images, tokens, tokenizer: occlusion(model, images, tokens),
    "word_gradients": lambda model, images, tokens, tokenizer: word_gradients(model, images, tokens, tokenizer=tokenizer),
    "word_occlusion": lambda model, images, tokens, tokenizer: word_occlusion(model, images, tokens, tokenizer=tokenizer),
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_model_is_as_it_was_also_after_an_error(tokenizer, images, tokens, name):
    model = built(tokenizer).train()
    model.image_encoder.blocks[1].eval()
    model.text_projection.requires_grad_(False)
    before, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    maps = EXPLAINERS[name](model, images, tokens, tokenizer)
    assert state(model) == before and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not maps.requires_grad

    calls, embed = [], model.embed_text if name.startswith("word") else model.embed_image

    def fails(features):
        calls.append(1)
        raise RuntimeError("broken on purpose")

    setattr(model, embed.__name__, fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        EXPLAINERS[name](model, images, tokens, tokenizer)
    assert calls and state(model) == before
    assert torch.is_grad_enabled()


def test_a_transformers_text_encoder_that_first_runs_inside_still_works_afterwards(tokenizer, images, tokens):
    torch.manual_seed(0)
    encoder = build_image_encoder("kit_vit", image_size=32, pooling="average", width=24, layers=2, heads=2)
    text = build_text_encoder("bert", vocabulary_size=tokenizer.vocabulary_size, width=24, layers=2, heads=2, length=32,
                              pooling="mean")  # fmt: skip
    model = VisionLanguageModel(encoder, text, embedding_width=16, projection_kind="linear").double().eval()
    first = word_occlusion(model, images, tokens, tokenizer=tokenizer)
    torch.testing.assert_close(word_occlusion(model, images, tokens, tokenizer=tokenizer), first)
    shares = word_gradients(model, images, tokens, tokenizer=tokenizer, steps=8)
    assert shares.abs().sum() > 0 and len(model.encode_text(tokens).pooled) == len(tokens.ids)


def test_gradients_flow_also_under_inference_mode(tokenizer, images, tokens):
    model = built(tokenizer)
    outside = integrated_gradients(model, images, tokens)
    with torch.no_grad():
        torch.testing.assert_close(integrated_gradients(model, images, tokens), outside)
    with explaining(model):
        number = ImageScore(model, tokens)
        assert number(images.clone().requires_grad_(), *number.arguments(3)).requires_grad
