"""CoCa: one text tower, cut in two. Its lower half reads words alone and is aligned with the image; its upper half
looks at the image and writes. One pass serves both losses.

Yu et al., "CoCa: contrastive captioners are image-text foundation models" (arXiv 2205.01917); in pathology CONCH, Lu et
al., "A visual-language foundation model for computational pathology" (Nature Medicine 2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..encoders.features import ImageFeatures, TextFeatures
from ..encoders.layers import Block, CrossAttention
from ..fusion.inputs import sine_positions
from . import Objective, ObjectiveOutput
from .captioning import generate_by, needs_causal_text, next_token_output
from .contrastive import InfoNCE
from .masked_text import TokenHead

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel


class AttentionalPooler(nn.Module):
    """`queries` learned vectors look at all patches: features of the image -> (B, queries, width), however many patches.

    CoCa pools twice: many queries for the writer, which needs detail, and one for the contrast, which needs a summary.
    Here that one is the image encoder's own pooling="attention".
    """

    def __init__(self, image_width: int, width: int, *, queries: int = 16, heads: int = 4):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.project = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.attention = CrossAttention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: ImageFeatures) -> Tensor:
        patches = self.project(image.patches)  # (B, N, width)
        where = sine_positions(image.grid, patches.shape[-1], device=patches.device).to(patches.dtype)
        queries = self.queries.to(patches.dtype).expand(len(patches), -1, -1)
        return self.norm(self.attention(queries, patches + where))


class CoCa(Objective):
    """loss = contrastive_weight * InfoNCE + caption_weight * next-token loss; 1 and 2 in the paper and in open_clip.

    model: its text encoder, which must be causal, is the unimodal half; `text_options={"pooling": "eos"}` makes its
    last token the text embedding, as CoCa's appended class token is. layers: of the multimodal half, built here.
    Sizes are read from the model, nothing of it is kept.
    """

    name = "coca"

    def __init__(
        self, model: VisionLanguageModel, *, contrastive_weight: float = 1.0, caption_weight: float = 2.0,
        layers: int = 2, heads: int = 4, queries: int = 16,
    ):  # fmt: skip
        super().__init__()
        needs_causal_text(model, "CoCa")
        width = model.text_encoder.width
        self.contrastive_weight, self.caption_weight = contrastive_weight, caption_weight
        self.contrastive = InfoNCE()
        self.pooler = AttentionalPooler(model.image_encoder.width, width, queries=queries, heads=heads)
        self.blocks = nn.ModuleList(Block(width, heads, cross=True, context_width=width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = TokenHead(width, model.text_encoder.vocabulary_size)

    def logits(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Scores (B, T, V) of the token after each: the upper half of the tower."""
        context, tokens = self.pooler(image), text.tokens
        for block in self.blocks:
            tokens = block(tokens, mask=text.mask, causal=True, context=context)
        return self.head(self.norm(tokens))

    def generate(self, model: VisionLanguageModel, image: ImageFeatures, **options) -> Tensor:
        """Token ids (B, T) of the reports it writes; options of transformers' `generate`. Reads all words anew each step."""
        return generate_by(lambda image, ids, mask: self.logits(image, model.text_encoder(ids, mask)), model, image, **options)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        tokens = forward_pass.batch.tokens
        contrast = self.contrastive(forward_pass)
        caption = next_token_output(self.logits(forward_pass.image, forward_pass.text), tokens.ids, tokens.mask)
        logs = {"contrastive": contrast.loss.detach(), "captioning": caption.loss.detach()} | contrast.logs | caption.logs
        return ObjectiveOutput(self.contrastive_weight * contrast.loss + self.caption_weight * caption.loss, logs)
