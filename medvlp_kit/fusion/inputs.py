"""The door of every fusion style: both modalities in one width, padding silenced, a missing modality replaced."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..encoders.pooling import masked_mean
from ..errors import KitError, unknown
from .prompt_pool import EmptyToken, LearnedToken, PromptPool

MISSING = ("empty", "learned", "prompt_pool")


def sine_positions(grid: tuple[int, ...], width: int, *, device=None) -> Tensor:
    """Sine and cosine positions of a line (T,) or a grid (h, w), row by row: (product of grid, width).

    Each axis has an equal share s of the channels: sin(p w_j), cos(p w_j) with w_j = 10000^(-j / (s/2)). They have no
    parameters, so any grid of any encoder and a text of any length fit. Source: Vaswani et al. 2017, section 3.5; the
    split over two axes as in MAE (He et al. 2022). Channels that do not divide are zero.
    """
    half = width // (2 * len(grid))
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=device) / max(half, 1))  # (s/2,)
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    coordinates = torch.cartesian_prod(*axes).reshape(-1, len(grid))  # (N, axes)
    angles = (coordinates[:, :, None] * rates).flatten(1)  # (N, axes * s/2)
    positions = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(positions, (0, width - positions.shape[1]))


class FusionInputs(nn.Module):
    """Projects image and text features to the fusion width and stands in for whichever is missing.

    Each modality: linear, layer norm, dropout. With `embed`, tokens also get a type vector (image or text) and their
    sine positions. Padded text tokens are set to zero before the first weight touches them, so nothing of them, not
    even a NaN, reaches output or gradient.

    `missing` says what replaces a modality given as None: "empty" one token without content, only its type and
    position; "learned" one learned token; "prompt_pool" `stand_ins` tokens that the mean of the other modality's
    tokens chooses from a pool of `pool_size`. The stand-ins count as real tokens (mask True, grid (1, K)), so that all
    styles treat them alike. The last two have weights that learn only from studies with a missing modality; do not
    choose them when there are none (distributed training refuses weights that never get a gradient).
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        width: int,
        *,
        missing: str = "empty",
        pool_size: int = 64,
        stand_ins: int = 8,
        embed: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if missing not in MISSING:
            raise unknown("way to replace a missing modality", missing, MISSING)
        self.width, self.embed = width, embed
        self.image_projection = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.text_projection = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width), nn.Dropout(dropout))

        def replacement() -> nn.Module:
            if missing == "prompt_pool":
                return PromptPool(width, size=pool_size, count=stand_ins)
            return LearnedToken(width) if missing == "learned" else EmptyToken()

        self.missing_image, self.missing_text = replacement(), replacement()
        if embed:
            self.types = nn.Parameter(torch.randn(2, width) * 0.02)  # image, text

    def forward(self, image: ImageFeatures | None, text: TextFeatures | None) -> tuple[ImageFeatures, TextFeatures]:
        """Features of the encoders (or None, not both) -> features of the fusion width."""
        if image is None and text is None:
            raise KitError("fusion got neither image nor text: give at least one of the two")
        if image is not None and text is not None and len(image.pooled) != len(text.pooled):
            raise KitError(f"fusion got {len(image.pooled)} images and {len(text.pooled)} texts: give pairs")
        image = None if image is None else self._project_image(image)
        text = None if text is None else self._project_text(text)
        if image is None:
            tokens = self.missing_image(masked_mean(text.tokens, text.mask))  # (B, K, D)
            image = ImageFeatures(tokens.mean(dim=1), tokens, (1, tokens.shape[1]))
        elif text is None:
            tokens = self.missing_text(image.patches.mean(dim=1))  # (B, K, D)
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            text = TextFeatures(tokens.mean(dim=1), tokens, mask)
        return (self._place(image), self._place_text(text)) if self.embed else (image, text)

    def _project_image(self, image: ImageFeatures) -> ImageFeatures:
        pooled, patches = self.image_projection(image.pooled), self.image_projection(image.patches)
        return ImageFeatures(pooled, patches, image.grid, image.places)

    def _project_text(self, text: TextFeatures) -> TextFeatures:
        padding = ~text.mask[:, :, None]
        tokens = self.text_projection(text.tokens.masked_fill(padding, 0.0)).masked_fill(padding, 0.0)
        return TextFeatures(self.text_projection(text.pooled), tokens, text.mask)

    def _place(self, image: ImageFeatures) -> ImageFeatures:
        where = sine_positions(image.grid, self.width, device=image.patches.device) + self.types[0]
        if image.places is not None:  # only some patches are here: each brings the position of its own cell
            where = where[image.places]  # (B, K, D)
        return ImageFeatures(image.pooled, image.patches + where.to(image.patches.dtype), image.grid, image.places)

    def _place_text(self, text: TextFeatures) -> TextFeatures:
        where = sine_positions(text.tokens.shape[1:2], self.width, device=text.tokens.device) + self.types[1]
        tokens = text.tokens + where.to(text.tokens.dtype)
        return TextFeatures(text.pooled, tokens.masked_fill(~text.mask[:, :, None], 0.0), text.mask)
