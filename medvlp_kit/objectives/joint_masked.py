"""Masked prediction of image and report together: what is hidden in one may be read off the other.

Chen et al., "Multi-modal masked autoencoders for medical vision-and-language pre-training" (M3AE, arXiv 2209.07098):
pixels repeat themselves and words do not, so 75 % of the image but 15 % of the text is hidden; pixels are low-level, so
the image is drawn from an early layer of the fusion and words are read from the last. Zhou et al., "Advancing
radiograph representation learning with masked record modeling" (MRM, arXiv 2301.13155): no fusion; half of the report
is restored from its other half and the mean of the visible patches, so what the report needs must be in the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..encoders.hidden import takes_token
from ..encoders.layers import Block
from ..errors import KitError
from ..fusion.masks import keys_only
from . import Objective, ObjectiveOutput
from .masked_image import PatchDecoder, PixelTarget, visible_part
from .masked_text import TextMasking, TokenHead, predict_hidden

if TYPE_CHECKING:
    from ..fusion.features import FusedFeatures
    from ..model import ForwardPass, VisionLanguageModel


class JointMasked(Objective):
    """M3AE: loss = words + pixels, from fused features.

        words  = -mean over hidden words of log p(word | text, image)          from the last fusion layer
        pixels = mean over hidden patches of ||drawn - normalised patch||^2    from fusion layer `image_depth`

    together: False as in the released code, two passes through the fusion: hidden words with the whole image, and the
        visible patches with the whole text. True as in the paper's formula, one pass in which both are masked.
    image_depth: 1 to the number of fusion layers; None takes the middle one (M3AE: layer 3 of 6).

    model: the model it is for; sizes are read from it, nothing of it is kept. Needs a ViT and a fusion in which patches
    read words: "single_stream" or "dual_stream" with co-attention. The decoder's sizes go to `PatchDecoder`.
    """

    name = "joint masked"

    def __init__(
        self, model: VisionLanguageModel, *, image_ratio: float = 0.75, text_ratio: float = 0.15, unit: str = "word",
        image_depth: int | None = None, together: bool = False, target: str = "normalised", **decoder,
    ):  # fmt: skip
        super().__init__()
        _needs_vit(model, "M3AE")
        layers = _layers_that_change_patches(model.fusion)
        depth = image_depth if image_depth is not None else (layers + 1) // 2
        if not 1 <= depth <= layers:
            raise KitError(f"image_depth={image_depth}: patches leave the {layers} fusion layers at depth 1 to {layers}")
        self.image_ratio, self.image_depth, self.together = image_ratio, depth, together
        vocabulary_size = model.text_encoder.vocabulary_size
        self.masking = TextMasking(vocabulary_size, ratio=text_ratio, unit=unit)
        self.head = TokenHead(model.fusion.width, vocabulary_size)
        self.target = PixelTarget(model.image_encoder, target)
        self.norm = nn.LayerNorm(model.fusion.width)  # fusion layers normalise what they read, not what they leave
        self.decoder = PatchDecoder(model.fusion.width, self.target.width, **decoder)

    def read_tokenizer(self, tokenizer) -> None:
        """Whole-word masking needs to know the tokenizer."""
        self.masking.vocabulary.read(tokenizer)

    def fused(self, forward_pass: ForwardPass) -> tuple[FusedFeatures, FusedFeatures]:
        """What words are read from, and what pixels are drawn from."""
        seen = visible_part(forward_pass, ratio=self.image_ratio).features
        fuse = forward_pass.model.fuse
        if self.together:
            key = (self.masking.key, "visible part", self.image_ratio)
            both = forward_pass.cached(key, lambda: fuse(seen, self.masking.features(forward_pass)))
            return both, both
        key = ("visible part", self.image_ratio, "fused")
        return self.masking.fused(forward_pass), forward_pass.cached(key, lambda: fuse(seen, forward_pass.text))

    def drawn(self, forward_pass: ForwardPass) -> Tensor:
        """All patches as the decoder draws them, (B, N, P)."""
        part = visible_part(forward_pass, ratio=self.image_ratio)
        patches = self.norm(self.fused(forward_pass)[1].patch_levels[self.image_depth - 1])  # (B, K, D)
        return self.decoder(patches, part.restore, grid=part.features.grid)

    def pixels(self, forward_pass: ForwardPass) -> Tensor:
        """The loss of the drawn patches alone."""
        part = visible_part(forward_pass, ratio=self.image_ratio)
        return self.target.loss(self.drawn(forward_pass), self.target(forward_pass), part.mask)

    def restored(self, forward_pass: ForwardPass) -> tuple[Tensor, Tensor]:
        """What `head` reads hidden words from, (B, T, D), and all patches as drawn, (B, N, P)."""
        return self.fused(forward_pass)[0].tokens, self.drawn(forward_pass)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        tokens = self.fused(forward_pass)[0].tokens
        words = predict_hidden(self.head, tokens, self.masking.view(forward_pass))
        return _sum_of(words, self.pixels(forward_pass))


class MaskedRecord(Objective):
    """MRM: loss = words + pixels, without fusion.

    Each token of the half-hidden report gets the mean of the visible patches added, then a few transformer layers
    restore the hidden words. The image is drawn at twice its resolution from the visible patches.

    MRM adds the image to bare word embeddings and has no other text encoder; here the model's own text encoder reads
    the masked report first, so that it is trained as well. layers, heads: of the transformer that restores words.
    """

    name = "masked record"

    def __init__(
        self, model: VisionLanguageModel, *, image_ratio: float = 0.75, text_ratio: float = 0.5, unit: str = "word",
        target: str = "super_resolution", layers: int = 2, heads: int = 2, **decoder,
    ):  # fmt: skip
        super().__init__()
        _needs_vit(model, "MRM")
        width, vocabulary_size = model.text_encoder.width, model.text_encoder.vocabulary_size
        self.image_ratio = image_ratio
        self.masking = TextMasking(vocabulary_size, ratio=text_ratio, unit=unit)
        self.image_to_text = nn.Linear(model.image_encoder.width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = TokenHead(width, vocabulary_size)
        self.target = PixelTarget(model.image_encoder, target)
        self.decoder = PatchDecoder(model.image_encoder.width, self.target.width, **decoder)

    def read_tokenizer(self, tokenizer) -> None:
        """Whole-word masking needs to know the tokenizer."""
        self.masking.vocabulary.read(tokenizer)

    def restored(self, forward_pass: ForwardPass) -> tuple[Tensor, Tensor]:
        """What `head` reads hidden words from, (B, T, D), and all patches as drawn, (B, N, P)."""
        part = visible_part(forward_pass, ratio=self.image_ratio)
        patches, text = part.features.patches, self.masking.features(forward_pass)
        tokens = text.tokens + self.image_to_text(patches.mean(dim=1))[:, None]  # (B, T, D)
        for block in self.blocks:
            tokens = block(tokens, mask=keys_only(text.mask))
        return self.norm(tokens), self.decoder(patches, part.restore, grid=part.features.grid)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        tokens, drawn = self.restored(forward_pass)
        words = predict_hidden(self.head, tokens, self.masking.view(forward_pass))
        mask = visible_part(forward_pass, ratio=self.image_ratio).mask
        return _sum_of(words, self.target.loss(drawn, self.target(forward_pass), mask))


def _sum_of(words: ObjectiveOutput, pixels: Tensor) -> ObjectiveOutput:
    """Both papers add the two losses with equal weight."""
    logs = {"words": words.loss.detach(), "pixels": pixels.detach()} | words.logs
    return ObjectiveOutput(words.loss + pixels, logs)


def _needs_vit(model: VisionLanguageModel, name: str) -> None:
    if not takes_token(model.image_encoder):
        raise KitError(f"{name} leaves image patches out, which needs a ViT: take image_encoder='kit_vit'")


def _layers_that_change_patches(fusion: nn.Module | None) -> int:
    layers = getattr(fusion, "image_blocks", None) or getattr(fusion, "blocks", None)
    if not layers:
        raise KitError("M3AE draws patches that have read the text: take fusion single_stream, or dual_stream with co-attention")
    return len(layers)
