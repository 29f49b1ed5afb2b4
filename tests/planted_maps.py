"""The planted world of `planted.py` as a `VisionLanguageModel`, so that gradients flow from its score to its pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planted import CHANNELS, Oracle, Planted, Words
from torch import nn

from medvlp_kit.attribution import Gallery
from medvlp_kit.budget import budget
from medvlp_kit.encoders.features import TextFeatures
from medvlp_kit.encoders.image import ImageEncoder
from medvlp_kit.model import VisionLanguageModel

TINY = budget("tiny")


class PlantedImages(ImageEncoder):
    """Patches are what the pixels are: the mean of each channel in each of 4 x 4 cells."""

    def __init__(self, size: int):
        super().__init__(
            width=CHANNELS, channels=CHANNELS, image_size=size, grid=(4, 4), pooling="average", has_cls=False,
            any_size=True, mean=torch.zeros(CHANNELS), deviation=torch.ones(CHANNELS),
        )  # fmt: skip
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)  # the identity, so that there is a weight to destroy
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(CHANNELS)[:, :, None, None])

    def encode(self, images):
        return self.mix(F.adaptive_avg_pool2d(images, 4)), None


class PlantedTexts(nn.Module):
    """Reads (finding, side) out of the words, as the oracle does."""

    width = CHANNELS

    def __init__(self, words: Words):
        super().__init__()
        self.oracle = [Oracle(words)]  # in a list, so that its weights are none of ours

    def forward(self, ids, mask) -> TextFeatures:
        from medvlp_kit.study import Tokens

        return self.oracle[0].encode_text(Tokens(ids, mask))


def planted_model(words: Words) -> VisionLanguageModel:
    model = VisionLanguageModel(
        PlantedImages(TINY.image_size), PlantedTexts(words), embedding_width=CHANNELS, projection_kind="linear"
    )
    for head in (model.image_projection, model.text_projection):
        nn.init.eye_(head.weight)
    return model.eval()


def planted_gallery(size: int = 12, *, seed: int = 0) -> Gallery:
    words = Words()
    return Gallery(planted_model(words), words, Planted(size, seed=seed), budget=TINY, kind="plain", split=None)
