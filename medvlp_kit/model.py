"""`VisionLanguageModel`: two encoders, a fusion style and projection heads; `ForwardPass`: one batch through it.

The model owns what training and evaluation share: the projection into the joint space, the temperature, and the
similarity that ranks images against texts. Objectives own nothing but their extra heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders.features import ImageFeatures, TextFeatures
from .errors import KitError, unknown
from .fusion.features import FusedFeatures
from .study import Batch, Tokens

T = TypeVar("T")
PROJECTIONS = ("linear", "mlp")


def projection(kind: str, width: int, out: int) -> nn.Module:
    """A head from an encoder's width into the joint space: one matrix (CLIP) or two with a ReLU (ConVIRT)."""
    if kind not in PROJECTIONS:
        raise unknown("projection", kind, PROJECTIONS)
    if kind == "linear":
        return nn.Linear(width, out, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


class Temperature(nn.Module):
    """The temperature of a similarity, kept as log(1 / temperature) so that gradient steps are multiplicative.

    `lowest` and `highest` clamp the parameter itself (CLIP clamps at 0.01): a clamp inside the formula would have no
    gradient beyond its edge, and the temperature would stay stuck there.
    """

    def __init__(self, initial: float = 0.07, *, learnable: bool = True, lowest: float = 0.01, highest: float = 10.0):
        super().__init__()
        if not 0 < lowest <= initial <= highest:
            raise KitError(f"temperature {initial} is outside [{lowest}, {highest}]: choose a positive one inside")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / initial)), requires_grad=learnable)
        self.lowest, self.highest = lowest, highest

    def forward(self) -> Tensor:
        with torch.no_grad():
            self.log_scale.clamp_(math.log(1 / self.highest), math.log(1 / self.lowest))
        return torch.exp(-self.log_scale)


def cosine_similarity(model: VisionLanguageModel, image: ImageFeatures, text: TextFeatures) -> Tensor:
    """Cosine of the pooled embeddings, (B images, B texts): the similarity of every dual encoder."""
    return model.embed_image(image) @ model.embed_text(text).T


class VisionLanguageModel(nn.Module):
    """Image encoder + text encoder + fusion + projection heads.

    image_encoder: images (B, C, H, W) -> ImageFeatures, with `.width`
    text_encoder:  ids (B, T), mask (B, T) -> TextFeatures, with `.width`
    fusion:        (ImageFeatures, TextFeatures) -> FusedFeatures; None for a dual encoder that never fuses
    similarity:    (model, ImageFeatures, TextFeatures) -> (B images, B texts); cosine of pooled embeddings by default.
                   Training and evaluation both call it, so they cannot disagree.
    local_projection: own heads for patches and tokens (as local objectives use); without it the global heads serve.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        embedding_width: int,
        fusion: nn.Module | None = None,
        projection_kind: str = "mlp",
        local_projection: bool = False,
        temperature: float = 0.07,
        learnable_temperature: bool = True,
        similarity: Callable[[VisionLanguageModel, ImageFeatures, TextFeatures], Tensor] = cosine_similarity,
    ):
        super().__init__()
        self.image_encoder, self.text_encoder, self.fusion = image_encoder, text_encoder, fusion
        self.image_projection = projection(projection_kind, image_encoder.width, embedding_width)
        self.text_projection = projection(projection_kind, text_encoder.width, embedding_width)
        self.patch_projection = self.token_projection = None
        if local_projection:
            self.patch_projection = projection("linear", image_encoder.width, embedding_width)
            self.token_projection = projection("linear", text_encoder.width, embedding_width)
        self.temperature = Temperature(temperature, learnable=learnable_temperature)
        self.embedding_width = embedding_width
        self._similarity = similarity

    def encode_image(self, images: Tensor) -> ImageFeatures:
        if images.ndim != 4:
            raise KitError(f"images have shape {tuple(images.shape)}: give (B, C, H, W), float in [0, 1]")
        return self.image_encoder(images)

    def encode_text(self, tokens: Tokens) -> TextFeatures:
        return self.text_encoder(tokens.ids, tokens.mask)

    def fuse(self, image: ImageFeatures, text: TextFeatures) -> FusedFeatures:
        if self.fusion is None:
            raise KitError("this model has no fusion: build it with fusion='none', 'single_stream' or 'dual_stream'")
        return self.fusion(image, text)

    def embed_image(self, image: ImageFeatures) -> Tensor:
        """Unit vectors (B, D) in the joint space."""
        return F.normalize(self.image_projection(image.pooled), dim=-1)

    def embed_text(self, text: TextFeatures) -> Tensor:
        """Unit vectors (B, D) in the joint space."""
        return F.normalize(self.text_projection(text.pooled), dim=-1)

    def project_patches(self, image: ImageFeatures) -> Tensor:
        """Every patch in the joint space, (B, N, D), with its length: how much it says, not only what.

        With average pooling and a linear head their mean is the image's embedding before it is normalised.
        """
        return (self.patch_projection or self.image_projection)(image.patches)

    def embed_patches(self, image: ImageFeatures) -> Tensor:
        """Unit vectors (B, N, D): every patch in the joint space."""
        return F.normalize(self.project_patches(image), dim=-1)

    def embed_tokens(self, text: TextFeatures) -> Tensor:
        """Unit vectors (B, T, D): every token in the joint space; rows of padded tokens mean nothing."""
        return F.normalize((self.token_projection or self.text_projection)(text.tokens), dim=-1)

    def similarity(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """How well each image fits each text, (B images, B texts): the scorer training used."""
        return self._similarity(self, image, text)

    def score_with(self, similarity: Callable[[VisionLanguageModel, ImageFeatures, TextFeatures], Tensor]) -> None:
        """Rank by `similarity` from now on. If it is a module, its weights become part of the model."""
        self._similarity = similarity

    def summary(self, batch: Batch):
        """Parameters, FLOPs and activation memory of each part for one batch, as a table."""
        from .summary import summary

        return summary(self, batch)


class ForwardPass:
    """One batch through one model. Everything is computed at most once, however many objectives ask."""

    def __init__(self, model: VisionLanguageModel, batch: Batch):
        self.model, self.batch = model, batch
        self._cache: dict[Hashable, Any] = {}

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value under `key`, computed on first use. Masked or momentum views live here under names of their own."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def view(self, name: str) -> ImageFeatures:
        """Features of the batch's view `name`."""
        if name not in self.batch.views:
            raise unknown("view", name, self.batch.views)
        return self.cached(("view", name), lambda: self.model.encode_image(self.batch.views[name]))

    def reading(self, name: str) -> TextFeatures:
        """Features of the batch's text `name`."""
        if name not in self.batch.texts:
            raise unknown("text", name, self.batch.texts)
        return self.cached(("text", name), lambda: self.model.encode_text(self.batch.texts[name]))

    @property
    def image(self) -> ImageFeatures:
        """Features of the principal view."""
        return self.view(next(iter(self.batch.views)))

    @property
    def text(self) -> TextFeatures:
        """Features of the principal text."""
        return self.reading(next(iter(self.batch.texts)))

    @property
    def fused(self) -> FusedFeatures:
        return self.cached("fused", lambda: self.model.fuse(self.image, self.text))

    @property
    def image_embedding(self) -> Tensor:
        """Unit vectors (B, D)."""
        return self.cached("image embedding", lambda: self.model.embed_image(self.image))

    @property
    def text_embedding(self) -> Tensor:
        """Unit vectors (B, D)."""
        return self.cached("text embedding", lambda: self.model.embed_text(self.text))
