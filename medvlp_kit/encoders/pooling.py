"""From many token vectors to one, and from sub-words to words; padding never takes part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KitError, unknown

POOLINGS = ("cls", "mean", "max", "last4", "eos")


def pool_text(tokens: Tensor, mask: Tensor, *, how: str) -> Tensor:
    """tokens (B, T, D), mask (B, T) bool -> (B, D). A text without any real token gives zeros.

    "cls" the first real token, "eos" the last real token, "mean" and "max" over the real tokens.
    """
    if how == "mean":
        return masked_mean(tokens, mask)
    if how == "max":
        lowest = torch.finfo(tokens.dtype).min
        pooled = tokens.masked_fill(~mask[..., None], lowest).amax(dim=1)
    elif how in ("cls", "eos"):
        places = torch.arange(mask.shape[1], device=mask.device)
        if how == "eos":
            index = torch.where(mask, places, -1).amax(dim=1).clamp(min=0)  # (B,)
        else:
            index = torch.where(mask, places, mask.shape[1] - 1).amin(dim=1)
        pooled = tokens[torch.arange(len(tokens), device=tokens.device), index]
    else:
        raise unknown("pooling", how, ("cls", "eos", "mean", "max"))
    return pooled.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of tokens (B, T, D) over the real ones, (B, D); zeros where there is none."""
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens.masked_fill(~mask[..., None], 0.0) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def aggregate_words(tokens: Tensor, word_ids: Tensor, mask: Tensor, *, how: str = "mean") -> tuple[Tensor, Tensor]:
    """Sub-word vectors to word vectors.

    tokens (B, T, D); word_ids (B, T) int64, the number of the word each token belongs to, counted from 0 in each text,
    negative for tokens of no word (cls, sep, padding); mask (B, T) bool. `how`: "mean" or "sum" (GLoRIA sums).
    Returns words (B, W, D) and their mask (B, W) bool, W the greatest number of words in the batch (at least 1).
    """
    if how not in ("mean", "sum"):
        raise unknown("word aggregation", how, ("mean", "sum"))
    if word_ids.shape != mask.shape or tokens.shape[:2] != mask.shape:
        raise KitError(
            f"tokens {tuple(tokens.shape)}, word_ids {tuple(word_ids.shape)} and mask {tuple(mask.shape)} "
            "must agree in (B, T)"
        )
    counted = mask & (word_ids >= 0)
    count = max(1, int(word_ids.masked_fill(~counted, -1).amax()) + 1) if word_ids.numel() else 1
    place = word_ids.masked_fill(~counted, count)  # tokens of no word go to one extra place, cut off below
    batch, _, width = tokens.shape
    words = tokens.new_zeros(batch, count + 1, width)
    words = words.scatter_add(1, place[..., None].expand(-1, -1, width), tokens)[:, :count]
    pieces = tokens.new_zeros(batch, count + 1).scatter_add(1, place, torch.ones_like(place, dtype=tokens.dtype))
    pieces = pieces[:, :count]
    if how == "mean":
        words = words / pieces.clamp(min=1.0)[..., None]
    return words, pieces > 0
