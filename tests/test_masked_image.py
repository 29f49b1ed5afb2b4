"""Masked image modelling: pieces against plain loops, exact counts, and nothing of a hidden patch in the encoder."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.collate import collate
from medvlp_kit.encoders.features import ImageFeatures
from medvlp_kit.encoders.hidden import encode_painted, encode_visible, takes_token
from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.errors import KitError
from medvlp_kit.fusion.inputs import FusionInputs
from medvlp_kit.model import ForwardPass
from medvlp_kit.objectives.masked_image import (
    SHARP_VIEW,
    MaskedAutoencoder,
    PixelTarget,
    SimMIM,
    absolute_loss,
    patchify,
    random_masking,
    reconstruction_loss,
    unpatchify,
    visible_part,
)
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.recipes import Recipe
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.text import ReportTokenizer

TINY = budget("tiny")
STUDIES = 8
SMALL = {"kit_vit": dict(layers=2, width=32, heads=2, patch=4)}
SMALL["kit_vit_conv_stem"] = SMALL["kit_vit"]
SMALL["vit_tiny_patch16_224"] = dict(depth=2, embed_dim=48, patch_size=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch():
    phantoms = Phantoms(STUDIES, seed=0, image_size=TINY.image_size)
    tokenizer = ReportTokenizer.train([phantoms.report(i).text for i in range(STUDIES)], vocabulary_size=250)
    return collate(
        phantoms, range(STUDIES), tokenizer=tokenizer, image_size=TINY.image_size, text_length=16, views=("frontal", SHARP_VIEW)
    )


def build(objective, *, image="kit_vit"):
    torch.manual_seed(0)
    recipe = Recipe(
        name="masked", title="", paper="", year=0, idea="", objectives=(), objective=objective, image_encoder=image,
        image_options=SMALL.get(image, {}),
    )  # fmt: skip
    return recipes.build(recipe, budget=TINY, vocabulary_size=300)


def encoder(name="kit_vit", **options):
    torch.manual_seed(0)
    built = build_image_encoder(name, image_size=32, **SMALL.get(name, {}) | options).eval()
    for parameter in built.parameters():  # a class token of zeros would hide mistakes
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=seeded(1))
    return built


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patchify_equals_the_loop_and_unpatchify_undoes_it(batch, channels, rows, columns, patch):
    images = torch.arange(batch * channels * rows * columns * patch**2).view(batch, channels, rows * patch, columns * patch)
    patches = patchify(images, patch)
    for row in range(rows):
        for column in range(columns):
            square = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            slow = torch.stack([square[:, c, y, x] for y in range(patch) for x in range(patch) for c in range(channels)], 1)
            assert torch.equal(patches[:, row * columns + column], slow)
    assert torch.equal(unpatchify(patches, patch, grid=(rows, columns)), images)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 1000))
def test_masking_hides_an_exact_number_and_restore_puts_all_back(rows, count, ratio, seed):
    tokens = torch.randn(rows, count, 3, generator=seeded(seed))
    visible, mask, restore = random_masking(tokens, ratio=ratio, generator=seeded(seed))
    hidden = min(round(ratio * count), count - 1)
    assert visible.shape == (rows, count - hidden, 3) and (mask.sum(dim=1) == hidden).all()
    fillers = torch.full((rows, hidden, 3), math.nan)
    back = torch.cat([visible, fillers], dim=1).gather(1, restore[..., None].expand(-1, -1, 3))
    assert torch.equal(back[~mask], tokens[~mask]) and back[mask].isnan().all()


def test_every_patch_is_hidden_equally_often_and_a_seed_repeats():
    tokens = torch.zeros(4000, 16, 1)
    mask = random_masking(tokens, ratio=0.75, generator=seeded(3))[1]
    assert ((mask.double().mean(dim=0) - 0.75).abs() < 4.5 * math.sqrt(0.1875 / 4000)).all()
    assert torch.equal(mask, random_masking(tokens, ratio=0.75, generator=seeded(3))[1])
    assert not torch.equal(mask, random_masking(tokens, ratio=0.75, generator=seeded(4))[1])


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_equals_the_formula_forward_and_backward(normalise):
    generator = seeded()
    prediction = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 5, generator=generator) < 0.6
    slow, count = 0.0, 0
    for b in range(2):
        for n in range(5):
            if mask[b, n]:
                true = target[b, n]
                if normalise:
                    mean = sum(true) / 12
                    variance = sum((x - mean) ** 2 for x in true) / 11
                    true = (true - mean) / (variance + 1e-6) ** 0.5
                slow = slow + sum((p - t) ** 2 for p, t in zip(prediction[b, n], true)) / 12
                count += 1
    slow = slow / count
    fast = reconstruction_loss(prediction, target, mask, normalise=normalise)
    torch.testing.assert_close(fast, slow)
    gradient = torch.autograd.grad(fast, prediction)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(slow, prediction)[0])
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()


def test_predicting_nothing_costs_about_one_and_the_truth_nothing():
    target = torch.rand(4, 9, 64, generator=seeded())
    mask = torch.ones(4, 9, dtype=torch.bool)
    assert abs(float(reconstruction_loss(torch.zeros_like(target), target, mask)) - 63 / 64) < 1e-3
    assert float(reconstruction_loss(target, target, mask, normalise=False)) == 0
    flat = torch.full_like(target, 0.3)  # a black border: nothing to divide by
    assert float(reconstruction_loss(torch.zeros_like(target), flat, mask)) < 1e-6
    assert float(absolute_loss(torch.zeros_like(target), flat, ~mask)) == 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("pooling", ["average", "cls"])
def test_all_patches_visible_is_the_plain_encoder(name, pooling, batch):
    vit = encoder(name, pooling=pooling)
    full = vit(batch.images)
    order = torch.randperm(full.patches.shape[1], generator=seeded()).expand(STUDIES, -1)
    seen = encode_visible(vit, batch.images, order)
    torch.testing.assert_close(seen.patches, full.patches[:, order[0]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.pooled, full.pooled, atol=1e-5, rtol=1e-4)
    none = torch.zeros(STUDIES, full.patches.shape[1], dtype=torch.bool)
    painted = encode_painted(vit, batch.images, none, torch.randn(vit.width))
    torch.testing.assert_close(painted.patches, full.patches, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(painted.pooled, full.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*SMALL, "resnet10t"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_a_hidden_patch_reaches_the_encoder(name, training, batch):
    vit = encoder(name).train(training)
    images = batch.images.clone().requires_grad_()
    cell = 32 // vit.grid[0]
    count = vit.grid[0] * vit.grid[1]
    places, mask, _ = random_masking(torch.arange(count).expand(STUDIES, -1)[..., None], ratio=0.6, generator=seeded())
    ways = [lambda: encode_painted(vit, images, mask, torch.zeros(vit.width))]
    if takes_token(vit):
        ways.append(lambda: encode_visible(vit, images, places[..., 0]))
    for way in ways:
        features = way()
        loss = features.patches.pow(2).sum() + features.pooled.pow(3).sum()
        gradient = patchify(torch.autograd.grad(loss, images)[0], cell)  # (B, N, P)
        assert (gradient[mask] == 0).all() and (gradient[~mask].abs().sum(dim=-1) > 0).all()


def test_visible_patches_keep_their_own_positions_in_fusion():
    inputs = FusionInputs(8, 8, 16).eval()
    patches = torch.randn(2, 9, 8, generator=seeded())
    places = torch.stack([torch.randperm(9, generator=seeded(i))[:4] for i in range(2)])
    part = patches.gather(1, places[..., None].expand(-1, -1, 8))
    pooled = torch.zeros(2, 8)
    full, _ = inputs(ImageFeatures(pooled, patches, (3, 3)), None)
    seen, _ = inputs(ImageFeatures(pooled, part, (3, 3), places), None)
    torch.testing.assert_close(seen.patches, full.patches.gather(1, places[..., None].expand(-1, -1, 16)))


def test_a_cnn_cannot_leave_patches_out(batch):
    with pytest.raises(KitError, match="ViT"):
        encode_visible(encoder("resnet10t"), batch.images, torch.zeros(STUDIES, 1, dtype=torch.int64))
    with pytest.raises(KitError, match="SimMIM"):
        build(MaskedAutoencoder, image="resnet10t")


@pytest.mark.parametrize(
    "objective, image, bound",
    [
        (lambda model: MaskedAutoencoder(model), "kit_vit", 0.75),
        (lambda model: MaskedAutoencoder(model), "vit_tiny_patch16_224", 0.75),
        (lambda model: MaskedAutoencoder(model, target="super_resolution"), "kit_vit_conv_stem", 0.75),
        (lambda model: MaskedAutoencoder(model, target="pixels"), "kit_vit", 0.5),
        (lambda model: SimMIM(model), "kit_vit", 0.5),
        (lambda model: SimMIM(model, unit=2), "resnet10t", 0.5),
    ],
)
def test_learns_to_draw_hidden_patches(objective, image, bound, batch):
    """The loss falls clearly below its start, where the drawing says nothing yet."""
    built = build(objective, image=image)
    both = torch.nn.ModuleList([built.model, built.objective]).train()
    optimizer = build_optimizer(both)
    losses = []
    torch.manual_seed(1)
    for step in range(70):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10)
        loss = built.objective(ForwardPass(built.model, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < bound * sum(losses[:2]) / 2, losses


def test_a_quarter_is_encoded_once_however_many_ask(batch):
    built = build(lambda model: MaskedAutoencoder(model))
    lengths = []
    built.model.image_encoder.blocks[0].register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    forward_pass = ForwardPass(built.model, batch)
    output = built.objective(forward_pass)
    part = visible_part(forward_pass, ratio=0.75)
    assert lengths == [1 + 16] and part.mask.sum().item() == STUDIES * 48  # of 64 patches, 16 and the class token
    assert float(output.logs["patches hidden"]) == 0.75


def test_the_decoder_learns_where_the_hidden_patches_are(batch):
    """Drawn patches depend on their own place: two hidden ones of one picture are not drawn alike."""
    built = build(lambda model: MaskedAutoencoder(model))
    with torch.no_grad():
        drawn, part = built.objective.reconstruct(ForwardPass(built.model, batch))
    hidden = drawn[0][part.mask[0]]
    assert float((hidden[0] - hidden[1]).abs().max()) > 1e-3
    assert drawn.shape == (STUDIES, 64, 16)


def test_the_target_of_super_resolution_is_the_same_place_twice_as_fine(batch):
    built = build(lambda model: MaskedAutoencoder(model, target="super_resolution"))
    fine = built.objective.target(ForwardPass(built.model, batch))
    assert fine.shape == (STUDIES, 64, 64)  # 4 x 4 pixels seen, 8 x 8 drawn
    coarse = PixelTarget(built.model.image_encoder, "pixels")(ForwardPass(built.model, batch))
    both = torch.stack([fine.mean(dim=-1).flatten(), coarse.mean(dim=-1).flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98
    alone = type(batch)(batch.indices, {"frontal": batch.images}, batch.texts, batch.sentences, batch.labels)
    with pytest.raises(KitError, match="frontal x2"):
        built.objective(ForwardPass(built.model, alone))


def test_simmim_hides_whole_squares_of_an_exact_number(batch):
    built = build(lambda model: SimMIM(model, unit=2))
    mask = built.objective.mask(5, device="cpu", generator=seeded())
    squares = patchify(mask.view(5, 1, 8, 8).float(), 2).mean(dim=-1)  # (B, 16)
    assert set(squares.unique().tolist()) == {0.0, 1.0} and (squares.sum(dim=1) == round(0.6 * 16)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: patchify(torch.zeros(1, 1, 10, 8), 4),
        lambda: unpatchify(torch.zeros(1, 5, 16), 4),
        lambda: random_masking(torch.zeros(1, 4, 2), ratio=1.0, generator=None),
        lambda: random_masking(torch.zeros(4, 2), ratio=0.5, generator=None),
        lambda: reconstruction_loss(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), torch.zeros(1, 3)),
        lambda: build(lambda model: MaskedAutoencoder(model, target="edges")),
        lambda: build(lambda model: SimMIM(model, unit=3)),
    ],
)
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(KitError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
