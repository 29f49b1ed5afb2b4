"""No fusion of tokens: two encoders side by side, joined only in their pooled vectors (ConVIRT, CLIP, GLoRIA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from .features import FusedFeatures
from .inputs import FusionInputs


def join(image: Tensor, text: Tensor) -> Tensor:
    """[v; t; v * t] of two pooled vectors (B, D): (B, 3 D). The product lets a linear layer compare the two."""
    return torch.cat([image, text, image * text], dim=-1)


class NoFusion(nn.Module):
    """pooled (B, width) = linear of `join` of the two pooled vectors; patches and tokens are projected, never mixed.

    No patch ever sees a word. It is the baseline of the other styles, and the only one in which image and text can be
    encoded once and compared N x N for the price of a matrix product. A missing modality: see `FusionInputs`.
    """

    style = "none"

    def __init__(self, *, image_width: int, text_width: int, width: int, dropout: float = 0.0, **missing):
        super().__init__()
        self.width = width
        self.inputs = FusionInputs(image_width, text_width, width, embed=False, dropout=dropout, **missing)
        self.pool = nn.Linear(3 * width, width)

    def forward(self, image: ImageFeatures | None, text: TextFeatures | None) -> FusedFeatures:
        image, text = self.inputs(image, text)
        return FusedFeatures(self.pool(join(image.pooled, text.pooled)), image.patches, text.tokens, text.mask)
