"""The ViT written out equals timm's for the same weights."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from medvlp_kit.encoders.image import DEVIATION, MEAN
from medvlp_kit.encoders.layers import AttentionPool
from medvlp_kit.encoders.vit import ConvolutionStem, PatchEmbedding, VisionTransformerEncoder
from medvlp_kit.errors import KitError


def timm_vit(**options) -> torch.nn.Module:
    """A timm ViT-tiny with random weights large enough that every part matters."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.1)
    return model


@pytest.mark.parametrize("channels, size, patch", [(1, 32, 8), (3, 48, 16)])
def test_equals_timm(channels, size, patch):
    theirs = timm_vit(img_size=size, patch_size=patch, depth=3, in_chans=channels)
    ours = VisionTransformerEncoder(channels=channels, image_size=size, patch=patch, layers=3, pooling="cls").eval()
    images = torch.rand(2, channels, size, size)
    expected = theirs.forward_features((images - MEAN) / DEVIATION)
    assert (ours(images).pooled - expected[:, 0]).abs().max() > 1e-2  # before: other weights, other numbers
    features = ours.load_timm(theirs.state_dict())(images)
    torch.testing.assert_close(features.pooled, expected[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patches, expected[:, 1:], atol=1e-5, rtol=0)


def test_gradients_equal_timm():
    theirs = timm_vit(img_size=32, patch_size=16, depth=2, in_chans=1).double()
    ours = VisionTransformerEncoder(image_size=32, patch=16, layers=2, pooling="cls").double().eval()
    ours.load_timm(theirs.state_dict())
    images = torch.rand(2, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 192, dtype=torch.float64)
    (mine,) = torch.autograd.grad((ours(images).pooled * direction).sum(), images)
    tokens = theirs.forward_features((images - MEAN) / DEVIATION)
    (expected,) = torch.autograd.grad((tokens[:, 0] * direction).sum(), images)
    torch.testing.assert_close(mine, expected, atol=1e-9, rtol=1e-7)


def test_weights_of_another_size_give_one_line():
    theirs = timm_vit(img_size=32, patch_size=8, depth=2, in_chans=1)
    with pytest.raises(KitError, match="do not fit this ViT"):
        VisionTransformerEncoder(image_size=32, patch=8, layers=3).load_timm(theirs.state_dict())


def test_positions_of_another_size_are_interpolated_as_timm_does():
    encoder = VisionTransformerEncoder(image_size=32, patch=8, layers=1)
    assert encoder.positions_for((4, 4)) is encoder.positions
    expected = resample_abs_pos_embed(encoder.positions, (6, 5), old_size=(4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(encoder.positions_for((6, 5)), expected)
    assert encoder(torch.rand(1, 1, 48, 40)).grid == (6, 5)
    with pytest.raises(KitError, match="do not tile"):
        encoder(torch.rand(1, 1, 44, 40))


def test_patch_embedding_is_cutting_and_projecting():
    embed = PatchEmbedding(2, 5, patch=4)
    images = torch.rand(1, 2, 8, 12)
    maps = embed(images)
    weight = embed.project.weight.flatten(1)
    for row in range(2):
        for column in range(3):
            square = images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            torch.testing.assert_close(maps[0, :, row, column], weight @ square + embed.project.bias)


@pytest.mark.parametrize("patch", [2, 8, 16])
def test_convolution_stem_reaches_the_same_grid(patch):
    assert ConvolutionStem(1, 32, patch=patch)(torch.rand(2, 1, 64, 32)).shape == (2, 32, 64 // patch, 32 // patch)


def test_convolution_stem_sees_beyond_its_patch():
    """Overlapping convolutions are the point: a patch projection is blind to its neighbours, a stem is not."""
    images = torch.rand(1, 1, 32, 32, requires_grad=True)
    for stem, sees in ((PatchEmbedding(1, 16, patch=8), False), (ConvolutionStem(1, 16, patch=8).eval(), True)):
        (gradient,) = torch.autograd.grad(stem(images)[0, :, 1, 1].sum(), images)
        outside = gradient.clone()
        outside[..., 8:16, 8:16] = 0
        assert bool(outside.any()) is sees


def test_without_positions_a_vit_cannot_tell_order():
    encoder = VisionTransformerEncoder(image_size=32, patch=8, layers=2).eval()
    images = torch.rand(1, 1, 32, 32)
    rolled = images.roll(8, dims=-1)  # patches change places, their content stays
    assert (encoder(images).pooled - encoder(rolled).pooled).abs().max() > 1e-4
    torch.nn.init.zeros_(encoder.positions)
    torch.testing.assert_close(encoder(images).pooled, encoder(rolled).pooled, atol=1e-5, rtol=1e-4)


def test_attention_pool_ignores_masked_tokens():
    pool = AttentionPool(16).eval()
    tokens = torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    changed = tokens.clone()
    changed[1, 2:] = 9.0
    torch.testing.assert_close(pool(tokens, mask=mask), pool(changed, mask=mask), rtol=0, atol=0)
    assert not torch.allclose(pool(tokens), pool(changed))
