"""The cost table adds up, and its numbers are those that can be counted by hand."""

from __future__ import annotations

import pytest
import torch

from medvlp_kit.encoders.image import build_image_encoder
from medvlp_kit.encoders.text import build_text_encoder
from medvlp_kit.errors import KitError
from medvlp_kit.model import VisionLanguageModel
from medvlp_kit.study import Batch, Tokens
from medvlp_kit.summary import summary

WIDTH, LENGTH, JOINT = 16, 8, 12


def model(**options) -> VisionLanguageModel:
    torch.manual_seed(0)
    image = build_image_encoder("kit_vit", image_size=32, patch=8, width=WIDTH, layers=2, heads=2)
    text = build_text_encoder("kit_bert", vocabulary_size=40, width=WIDTH, layers=3, heads=2, length=LENGTH, **options)
    return VisionLanguageModel(image, text, embedding_width=JOINT, projection_kind="linear")


def batch(size: int = 4) -> Batch:
    tokens = Tokens(torch.randint(5, 40, (size, LENGTH)), torch.ones(size, LENGTH, dtype=torch.bool))
    images = torch.rand(size, 1, 32, 32)
    return Batch(tuple(range(size)), {"frontal": images}, {"report": tokens}, ("",) * size, torch.zeros(size, 1))


def block_flops(tokens: int) -> int:
    """Two for each multiply-add: four projections, two attention products, two feed-forward layers."""
    return 2 * tokens * WIDTH * WIDTH * 4 + 2 * 2 * tokens * tokens * WIDTH + 2 * tokens * WIDTH * 4 * WIDTH * 2


def test_parameters_add_up():
    table = summary(model(), batch())
    assert table.loc["total", "parameters"] == sum(p.numel() for p in model().parameters())
    assert list(table.index) == ["image_encoder", "text_encoder", "fusion", "projections", "other", "total"]
    assert (table.loc["total"] == table.drop("total").sum()).all()
    assert table.loc["projections", "parameters"] == 2 * WIDTH * JOINT
    assert table.loc["fusion"].sum() == 0


def test_flops_are_those_counted_by_hand():
    table = summary(model(), batch(4))
    patches, one_patch = 16, 8 * 8
    image = 2 * patches * one_patch * WIDTH + 2 * block_flops(patches + 1)
    assert table.loc["image_encoder", "flops"] == 4 * image
    assert table.loc["text_encoder", "flops"] == 4 * 3 * block_flops(LENGTH)
    assert table.loc["projections", "flops"] == 4 * 2 * 2 * WIDTH * JOINT


def test_cost_grows_with_the_batch():
    small, large = summary(model(), batch(2)), summary(model(), batch(6))
    for part in ("image_encoder", "text_encoder", "projections"):
        assert large.loc[part, "flops"] == 3 * small.loc[part, "flops"]
        assert large.loc[part, "activation_bytes"] > 2 * small.loc[part, "activation_bytes"] > 0
        assert large.loc[part, "parameters"] == small.loc[part, "parameters"]


def test_frozen_parts_keep_nothing():
    free, frozen = summary(model(), batch()), summary(model(freeze="all"), batch())
    assert frozen.loc["text_encoder", "trainable"] == 0 < free.loc["text_encoder", "trainable"]
    assert frozen.loc["text_encoder", "parameters"] == free.loc["text_encoder", "parameters"]
    assert frozen.loc["text_encoder", "flops"] == free.loc["text_encoder", "flops"]
    assert frozen.loc["text_encoder", "activation_bytes"] < 0.1 * free.loc["text_encoder", "activation_bytes"]


def test_activation_bytes_of_one_layer_by_hand():
    """A linear layer keeps its input and nothing else; weights are not counted."""
    from medvlp_kit.summary import _SavedBytes

    layer = torch.nn.Linear(8, 5)
    x = torch.rand(3, 8)
    _, kept = _SavedBytes(layer)(lambda: layer(x))
    assert kept == 3 * 8 * 4
    _, kept = _SavedBytes(layer)(lambda: layer(x) + layer(x))
    assert kept == 3 * 8 * 4  # the same input, kept twice, is in memory once


def test_the_model_is_left_as_it_was():
    measured = model().train()
    measured.text_encoder.eval()
    before = {key: value.clone() for key, value in measured.state_dict().items()}
    modes = [module.training for module in measured.modules()]
    summary(measured, batch())
    assert [module.training for module in measured.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in measured.state_dict().items())
    assert all(parameter.grad is None for parameter in measured.parameters())


def test_fusion_is_a_part_of_its_own():
    class Fusion(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, image, text):
            return self.layer(torch.cat([image.patches, text.tokens], dim=1))

    fused = model()
    fused.fusion = Fusion()
    table = summary(fused, batch(4))
    assert table.loc["fusion", "parameters"] == WIDTH * WIDTH + WIDTH
    assert table.loc["fusion", "flops"] == 4 * (16 + LENGTH) * 2 * WIDTH * WIDTH
    assert table.loc["fusion", "activation_bytes"] > 0


def test_empty_batch_gives_one_line():
    with pytest.raises(KitError, match="empty batch"):
        summary(model(), Batch((), {}, {}, (), torch.zeros(0, 1)))
