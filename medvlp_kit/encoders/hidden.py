"""Encode a picture of which some patches are hidden: left out altogether (MAE), or painted over (SimMIM).

Leaving patches out needs an encoder that treats patches as a set: a ViT. Painting over works for every encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KitError
from .features import ImageFeatures
from .image import ImageEncoder, TimmEncoder
from .vit import ConvolutionStem, VisionTransformerEncoder


def encode_visible(encoder: ImageEncoder, images: Tensor, places: Tensor) -> ImageFeatures:
    """Features of the patches `places` (B, K) int64 of images (B, C, H, W) alone; the others are not even computed.

    Nothing of a hidden patch reaches the result: where the stem's convolutions reach over the border of a patch, the
    hidden pixels are painted grey first. KitError for an encoder that is no ViT.
    """
    normal = encoder.normalise(images)
    grid = (images.shape[-2] // encoder.stride, images.shape[-1] // encoder.stride)
    if isinstance(encoder, VisionTransformerEncoder):
        if isinstance(encoder.stem, ConvolutionStem):
            hidden = torch.ones(len(images), grid[0] * grid[1], dtype=torch.bool, device=images.device)
            normal = paint(normal, hidden.scatter(1, places, False), grid)
        patches, cls = encoder.encode_visible(normal, places)
    elif _is_timm_vit(encoder):
        patches, cls = _timm_visible(encoder, normal, places)
    else:
        raise KitError("leaving patches out needs a ViT: take kit_vit, kit_vit_conv_stem or a timm vit_..., or SimMIM")
    return encoder.collect(patches, cls, grid=grid, places=places)


def encode_painted(encoder: ImageEncoder, images: Tensor, hidden: Tensor, token: Tensor | None) -> ImageFeatures:
    """Features of all patches, where those with hidden (B, N) True were painted over.

    A ViT puts `token` (D,), usually learned, in place of the hidden patches; see `takes_token`. Any other encoder gets
    pixels that are grey there, the mean of the normalisation.
    """
    normal = encoder.normalise(images)
    if not takes_token(encoder):
        maps, cls = encoder.encode(paint(normal, hidden, encoder.grid))
        return encoder.collect(maps.flatten(2).transpose(1, 2), cls, grid=tuple(maps.shape[-2:]))
    if isinstance(encoder, VisionTransformerEncoder):
        if isinstance(encoder.stem, ConvolutionStem):
            normal = paint(normal, hidden, encoder.grid)
        tokens, grid = encoder.embed(normal, hidden=hidden, token=token)
        tokens = encoder.run_blocks(tokens)
        return encoder.collect(tokens[:, 1:], tokens[:, 0], grid=grid)
    embedded = encoder.body.patch_embed(normal)
    covered = torch.where(hidden.view(embedded.shape[:-1])[..., None], token.to(embedded.dtype), embedded)
    tokens = _timm_blocks(encoder, encoder.body._pos_embed(covered))
    return encoder.collect(*_timm_split(encoder, tokens), grid=encoder.grid)


def takes_token(encoder: ImageEncoder) -> bool:
    """Whether a learned token can stand for a hidden patch (ViTs), or its pixels are painted grey."""
    return isinstance(encoder, VisionTransformerEncoder) or _is_timm_vit(encoder)


def paint(normal: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Normalised images (B, C, H, W), zero in the cells of `grid` where hidden (B, h * w) is True."""
    cells = hidden.view(len(hidden), 1, *grid).to(normal.dtype)
    covered = F.interpolate(cells, size=normal.shape[-2:], mode="nearest").bool()
    return normal.masked_fill(covered, 0.0)


def _is_timm_vit(encoder: ImageEncoder) -> bool:
    if not isinstance(encoder, TimmEncoder):
        return False
    from timm.models.vision_transformer import VisionTransformer

    return type(encoder.body) is VisionTransformer  # its relatives with relative positions need the whole grid


def _timm_visible(encoder: TimmEncoder, normal: Tensor, places: Tensor) -> tuple[Tensor, Tensor | None]:
    body, prefix = encoder.body, encoder.prefix
    tokens = body._pos_embed(body.patch_embed(normal))  # (B, prefix + N, D)
    patches = tokens[:, prefix:].gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
    tokens = _timm_blocks(encoder, torch.cat([tokens[:, :prefix], patches], dim=1))
    return _timm_split(encoder, tokens)


def _timm_blocks(encoder: TimmEncoder, tokens: Tensor) -> Tensor:
    tokens = encoder.body.norm_pre(tokens)
    for block in encoder.body.blocks:
        tokens = block(tokens)
    return encoder.body.norm(tokens)


def _timm_split(encoder: TimmEncoder, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    return tokens[:, encoder.prefix :], tokens[:, 0] if encoder.prefix else None
