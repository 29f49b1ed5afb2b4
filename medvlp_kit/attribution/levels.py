"""Similarity maps at three levels of text: one for each word, one for a phrase, one for the sentence.

The same cosine, map_n = cos(patch_n, query), with another query: a token in its context, the mean of some tokens, or
the text's pooled embedding. A model trained on whole reports has been taught only the last of these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..downstream.encode import device_of, evaluating
from ..encoders.features import TextFeatures
from ..errors import KitError, unknown
from ..study import Tokens

LEVELS = ("word", "phrase", "sentence")


def text_queries(model: nn.Module, text: TextFeatures, *, level: str, chosen: Tensor | None = None) -> Tensor:
    """Unit vectors (B, Q, D) that ask the patches: Q = T for words, 1 for a phrase or a sentence."""
    if level not in LEVELS:
        raise unknown("level of text", level, LEVELS)
    if level == "sentence":
        return model.embed_text(text)[:, None]
    tokens = model.embed_tokens(text)  # (B, T, D)
    if level == "word":
        return tokens
    if chosen is None or chosen.shape != text.mask.shape:
        raise KitError(f"a phrase is some of the tokens: give chosen, a mask {tuple(text.mask.shape)}, True on its pieces")
    chosen = chosen.to(tokens.device) & text.mask
    return F.normalize((tokens * chosen[..., None]).sum(1, keepdim=True), dim=-1)


def similarity_maps(
    model: nn.Module, images: Tensor, tokens: Tokens, *, level: str = "sentence", chosen: Tensor | None = None
) -> Tensor:
    """Cosine of patches and text at a level, up-sampled bilinearly to the images, on the CPU.

    level "word":     (B, T, H, W), NaN at padding
    level "phrase":   (B, H, W), the mean of the tokens where chosen (B, T) is True; NaN for an image that has none
    level "sentence": (B, H, W), what `downstream.grounding.similarity_map` gives
    """
    device = device_of(model)
    if len(images) != len(tokens.ids):
        raise KitError(f"{len(images)} images and {len(tokens.ids)} texts: give one text to each image")
    with evaluating(model):
        image, text = model.encode_image(images.to(device)), model.encode_text(tokens.to(device))
        queries = text_queries(model, text, level=level, chosen=chosen)  # (B, Q, D)
        cells = torch.einsum("bnd,bqd->bqn", model.embed_patches(image), queries).unflatten(2, image.grid)
        maps = F.interpolate(cells, size=images.shape[-2:], mode="bilinear", align_corners=False)  # (B, Q, H, W)
        if level == "word":
            maps = maps.masked_fill(~text.mask[..., None, None], torch.nan)
        if level == "phrase":
            empty = ~(chosen.to(device) & text.mask).any(1)
            maps = maps.masked_fill(empty[:, None, None, None], torch.nan)
    maps = maps.float().cpu()
    return maps if level == "word" else maps[:, 0]
