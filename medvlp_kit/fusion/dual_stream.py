"""Dual-stream fusion: image and text keep a stream each and meet by cross-attention (M3AE, ALBEF)."""

from __future__ import annotations

import torch
from torch import nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..encoders.layers import Block
from ..encoders.pooling import pool_text
from ..errors import KitError, unknown
from .features import FusedFeatures
from .inputs import FusionInputs
from .masks import keys_only

VARIANTS = ("co_attention", "text_to_image")


class DualStream(nn.Module):
    """Two streams of transformer layers with cross-attention between them.

    variant "co_attention" (M3AE, after METER): in each layer both streams look at themselves, then at the other
        stream as it entered the layer. pooled = linear of [mean patch; first text token].
    variant "text_to_image" (ALBEF): only the text has fusion layers; it looks at itself, then at the projected
        patches, which nothing changes. pooled = linear of the first text token.
    meet_at: the first layer with cross-attention; the layers before it see one modality only. ALBEF's text tower of
        twelve layers with the last six looking at the image is layers=12, meet_at=6.

    The first text token is the tokenizer's [CLS]. The image is averaged instead, since a convolutional encoder has no
    such token. The layers normalise what they read, not what they leave: a norm over the result slowed matching from
    scratch, so heads that need one bring it. A missing modality: see `FusionInputs`.
    """

    style = "dual_stream"

    def __init__(
        self,
        *,
        image_width: int,
        text_width: int,
        width: int,
        layers: int = 2,
        heads: int = 4,
        variant: str = "co_attention",
        meet_at: int = 0,
        dropout: float = 0.0,
        **missing,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise unknown("dual-stream variant", variant, VARIANTS)
        if not 0 <= meet_at < layers:
            raise KitError(f"meet_at={meet_at} of {layers} fusion layers: the streams meet at layer 0 to {layers - 1}")
        self.width, self.variant, self.meet_at = width, variant, meet_at
        self.inputs = FusionInputs(image_width, text_width, width, dropout=dropout, **missing)

        def stream() -> nn.ModuleList:
            crosses = [index >= meet_at for index in range(layers)]
            return nn.ModuleList(Block(width, heads, cross=c, dropout=dropout) for c in crosses)

        self.text_blocks = stream()
        self.image_blocks = stream() if variant == "co_attention" else None
        self.pool = nn.Linear(width if self.image_blocks is None else 2 * width, width)

    def forward(self, image: ImageFeatures | None, text: TextFeatures | None) -> FusedFeatures:
        image, text = self.inputs(image, text)
        patches, tokens = image.patches, text.tokens
        words = keys_only(text.mask)  # (B, 1, 1, T)
        levels = []
        for index, text_block in enumerate(self.text_blocks):
            together = index >= self.meet_at
            before = patches  # both streams read the other as it entered the layer
            if self.image_blocks is not None:
                other = {"context": tokens, "context_mask": words} if together else {}
                patches = self.image_blocks[index](patches, **other)
            tokens = text_block(tokens, mask=words, **({"context": before} if together else {}))
            levels.append(patches)
        tokens = tokens.masked_fill(~text.mask[:, :, None], 0.0)
        pooled = pool_text(tokens, text.mask, how="cls")  # (B, D)
        if self.image_blocks is not None:
            pooled = torch.cat([patches.mean(dim=1), pooled], dim=-1)
        return FusedFeatures(self.pool(pooled), patches, tokens, text.mask, tuple(levels))
