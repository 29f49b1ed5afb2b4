"""Single-stream fusion: one transformer over [CLS] image tokens [SEP] text tokens (MMBERT, MedViLL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..encoders.layers import Block
from ..encoders.pooling import masked_mean
from ..errors import KitError, unknown
from .features import FusedFeatures
from .inputs import FusionInputs
from .masks import MASKS, check_mask_style, non_crossing

POOLINGS = ("cls", "mean")


class SingleStream(nn.Module):
    """Image and text tokens, with type and position embeddings, in one transformer.

    mask_style: one of the five of `masks.MASKS`. "mixed" draws sequence-to-sequence or bidirectional once a call while
        training, from torch's global generator; in evaluation it is bidirectional. `forward(..., mask_style=...)`
        overrides it for one call: a model trained with "mixed" reads with one mask and writes with another.
    meet_at: the first layer in which image and text see each other; the layers before it use the non-crossing mask.
        0 is the early fusion of MedViLL; the larger it is, the later the fusion.
    pooling: "cls" takes [CLS], as MedViLL does; "mean" projects the mean patch and the mean word. Under the
        sequence-to-sequence and non-crossing masks [CLS] never sees the text: matching on it stays at chance.

    The layers normalise their input, where BERT's normalise their output: that trains more readily from scratch on few
    pairs. Image positions are sines of the grid, text positions sines of the index, so every encoder and length fits.
    The text brings its own [SEP] from the tokenizer. A missing modality: see `FusionInputs`.
    """

    style = "single_stream"

    def __init__(
        self,
        *,
        image_width: int,
        text_width: int,
        width: int,
        layers: int = 2,
        heads: int = 4,
        mask_style: str = "bidirectional",
        meet_at: int = 0,
        pooling: str = "cls",
        dropout: float = 0.0,
        **missing,
    ):
        super().__init__()
        if not 0 <= meet_at < layers:
            raise KitError(f"meet_at={meet_at} of {layers} fusion layers: the streams meet at layer 0 to {layers - 1}")
        if pooling not in POOLINGS:
            raise unknown("pooling of single-stream fusion", pooling, POOLINGS)
        self.width, self.meet_at, self.pooling = width, meet_at, pooling
        self.mask_style = check_mask_style(mask_style)
        self.inputs = FusionInputs(image_width, text_width, width, dropout=dropout, **missing)
        self.special = nn.Parameter(torch.randn(2, width) * 0.02)  # [CLS], [SEP]
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width if pooling == "cls" else 2 * width, width)

    def forward(
        self, image: ImageFeatures | None, text: TextFeatures | None, *, mask_style: str | None = None
    ) -> FusedFeatures:
        image, text = self.inputs(image, text)
        cls, sep = self.special[:, None, None].to(text.tokens.dtype).expand(-1, len(text.mask), -1, -1)  # (B, 1, D)
        stream = torch.cat([cls, image.patches, sep, text.tokens], dim=1)  # (B, L, D)
        image_length = image.patches.shape[1] + 2
        allowed = MASKS[self._style(mask_style)](image_length, text.mask)  # (B, 1, L, L)
        apart = non_crossing(image_length, text.mask) if self.meet_at else None
        levels = []
        for index, block in enumerate(self.blocks):
            stream = block(stream, mask=apart if index < self.meet_at else allowed)
            levels.append(stream[:, 1 : image_length - 1])
        stream = self.norm(stream)
        patches = stream[:, 1 : image_length - 1]
        tokens = stream[:, image_length:].masked_fill(~text.mask[:, :, None], 0.0)
        pooled = self._pool(stream, patches, tokens, text.mask)
        return FusedFeatures(pooled, patches, tokens, text.mask, tuple(levels))

    def _style(self, asked: str | None) -> str:
        style = self.mask_style if asked is None else check_mask_style(asked)
        return "bidirectional" if style == "mixed" and not self.training else style

    def _pool(self, stream: Tensor, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return self.pool(stream[:, 0])
        return self.pool(torch.cat([patches.mean(dim=1), masked_mean(tokens, mask)], dim=-1))
