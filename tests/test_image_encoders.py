"""Image encoders: every family gives the same tidy features, and a mistake gives one line."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from medvlp_kit.encoders.image import DEVIATION, MEAN, build_image_encoder
from medvlp_kit.errors import KitError

SMALL_SWIN = dict(depths=(1, 2, 1, 1), embed_dim=16, num_heads=(1, 2, 4, 8))
FAMILIES = {
    "resnet10t": {},
    "densenet121": dict(growth_rate=8, block_config=(2, 2, 2, 2)),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)),
    "vit_tiny_patch16_224": dict(depth=2),
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
    "kit_vit": dict(layers=2, width=32, heads=2),
    "kit_vit_conv_stem": dict(layers=2, width=32, heads=2),
}


def build(name: str, **options):
    torch.manual_seed(0)
    return build_image_encoder(name, **{"image_size": 64, **FAMILIES.get(name, {}), **options}).eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_gives_tidy_features(name, channels):
    encoder = build(name, channels=channels)
    images = torch.rand(2, channels, 64, 64)
    features = encoder(images)
    height, width = features.grid
    assert features.pooled.shape == (2, encoder.width)
    assert features.patches.shape == (2, height * width, encoder.width)
    assert features.grid == encoder.grid and min(features.grid) >= 4
    assert encoder.stride * height == 64
    torch.testing.assert_close(features.pooled, features.patches.mean(dim=1))
    levels = encoder.forward_levels(images)
    assert all(level.shape[:1] == (2,) and level.dim() == 4 for level in levels)
    assert [level.shape[-1] for level in levels] == sorted((level.shape[-1] for level in levels), reverse=True)
    # The last level is what the patches are, row by row from the top left.
    torch.testing.assert_close(levels[-1].flatten(2).transpose(1, 2), features.patches, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pooling", ["average", "attention"])
def test_no_parameter_is_idle(name, pooling):
    """A stage or head that no output uses would cost memory and break distributed training."""
    encoder = build(name, pooling=pooling).train()
    features = encoder(torch.rand(2, 1, 64, 64))
    (features.pooled.square().sum() + features.patches.square().sum()).backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_patches_are_where_they_say(name):
    """Changing the picture inside one cell changes that patch, or its neighbour, most: no flip, no transposition."""
    encoder = build(name, **({"level": 1} if name.startswith(("resnet", "densenet", "convnext", "swin")) else {}))
    images = torch.full((1, 1, 64, 64), 0.5)
    before = encoder(images).patches
    height, width = encoder.grid
    row, column = 1, width - 2
    cell = 64 // height
    images[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] += torch.rand(cell, cell) - 0.5
    change = (encoder(images).patches - before).norm(dim=-1)[0]
    changed_row, changed_column = divmod(change.argmax().item(), width)
    assert abs(changed_row - row) <= 1 and abs(changed_column - column) <= 1


@pytest.mark.parametrize(
    "name, options, index",
    [("resnet10t", {}, 3), ("vit_tiny_patch16_224", dict(depth=2, img_size=64), 1), ("test_convnext", {}, 2)],
)
def test_features_are_those_of_timm(name, options, index):
    encoder = build(name, **{k: v for k, v in options.items() if k != "img_size"})
    reference = timm.create_model(name, in_chans=1, num_classes=0, **options).eval()
    reference.load_state_dict(encoder.body.state_dict(), strict=False)
    images = torch.rand(2, 1, 64, 64)
    expected = reference.forward_intermediates(
        (images - MEAN) / DEVIATION, indices=[index], norm=True, intermediates_only=True
    )[0]
    maps, _ = encoder.encode(encoder.normalise(images))
    if name == "test_convnext":  # its stages are not normalised in timm
        expected = torch.nn.functional.layer_norm(expected.movedim(1, -1), (expected.shape[1],)).movedim(-1, 1)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


def test_default_level_keeps_a_grid_that_can_locate():
    grids = {size: build("resnet10t", image_size=size).grid for size in (32, 64, 128, 224)}
    assert grids == {32: (4, 4), 64: (4, 4), 128: (4, 4), 224: (7, 7)}


def test_levels_and_output_stride():
    assert build("resnet10t", level=-1).grid == (2, 2)
    assert build("resnet10t", level=2).grid == (8, 8)
    dilated = build("resnet10t", level=3, output_stride=8)
    assert dilated.grid == (8, 8) and dilated.stride == 8 and dilated.width == 256
    shallow, deep = build("resnet10t", level=1), build("resnet10t", level=-1)
    count = [sum(p.numel() for p in encoder.parameters()) for encoder in (shallow, deep)]
    assert count[0] < count[1] / 5  # later stages are cut off


def test_any_size_where_the_family_allows_it():
    images = torch.rand(2, 1, 96, 64)
    assert build("resnet10t")(images).grid == (6, 4)
    assert build("kit_vit")(images).grid == (12, 8)
    with pytest.raises(KitError, match="96 x 64 pixels.*built for 64 x 64"):
        build("vit_tiny_patch16_224")(images)


def test_class_token_pooling_is_the_class_token():
    encoder = build("vit_tiny_patch16_224", pooling="cls")
    images = torch.rand(2, 1, 64, 64)
    tokens = encoder.body.forward_features((images - MEAN) / DEVIATION)
    torch.testing.assert_close(encoder(images).pooled, tokens[:, 0])


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "test_convnext"])
def test_class_token_pooling_needs_a_class_token(name):
    with pytest.raises(KitError, match="no class token"):
        build(name, pooling="cls")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(name="resnet5o", image_size=64), "did you mean 'resnet50'"),
        (dict(name="kit_vitt", image_size=64), "did you mean 'kit_vit'"),
        (dict(name="resnet10t", image_size=64, pooling="avg"), "unknown pooling 'avg'"),
        (dict(name="resnet10t", image_size=64, level=9), "has 5 levels"),
        (dict(name="vit_tiny_patch16_224", image_size=60), "do not tile 60 x 60"),
        (dict(name="kit_vit", image_size=64, patch=7), "do not tile"),
        (dict(name="kit_vit_conv_stem", image_size=60, patch=6), "power of two"),
        (dict(name="resnet10t", image_size=64, colour=3), "timm cannot build"),
        (dict(name="kit_vit", image_size=64, pretrained=True), "load_timm"),
    ],
)
def test_mistakes_give_one_line(options, message):
    with pytest.raises(KitError, match=message) as caught:
        build_image_encoder(**options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 64, 64), torch.rand(1, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.uint8)]
)
def test_wrong_images_give_one_line(images):
    with pytest.raises(KitError, match="float images"):
        build("resnet10t")(images)


def test_pretrained_without_a_cache_gives_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(KitError, match="not in the local cache"):
        build("resnet10t", pretrained=True)


def test_pretrained_reads_the_cached_file_and_its_statistics(monkeypatch, tmp_path):
    torch.manual_seed(7)
    source = timm.create_model("test_resnet", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    encoder = build("test_resnet", pretrained=True, channels=1)
    for key, value in encoder.body.state_dict().items():
        expected = source.state_dict()[key]
        if key == "conv1.0.weight" or key == "conv1.weight":
            expected = expected.sum(dim=1, keepdim=True)  # timm's rule for grey pictures
        torch.testing.assert_close(value, expected)
    statistics = source.pretrained_cfg["mean"], source.pretrained_cfg["std"]
    assert encoder.mean.item() == pytest.approx(sum(statistics[0]) / 3)
    assert encoder.deviation.item() == pytest.approx(sum(statistics[1]) / 3)
