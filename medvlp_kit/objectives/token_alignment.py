"""Tokens against patches, within one study (MGCA's cross-attention token alignment; Wang et al., NeurIPS 2022).

Each word gathers what it finds in its own image, o_t = sum_n softmax_n(<w_t, v_n> / temperature) v_n, and must tell that
apart from what the other words of its report found:

    loss = -sum_t weight_t log softmax_t'(cos(w_t, o_t') / temperature)[t]     and from o_t to the words w_t'

The same is done with patches that look at words. The published code leaves padding in the words' direction; here no
padded token asks, answers or is told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KitError
from . import Objective, ObjectiveOutput
from .pieces import real_words
from .sentence_region import importance, within_study_contrast

if TYPE_CHECKING:
    from ..model import ForwardPass


def cross_attention_alignment(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean of both directions of the formula: queries (B, Q, D) that look at keys (B, K, D). Returns a scalar.

    Both are normalised here. Masks (B, Q), (B, K) bool, True on real elements; weights (B, Q), see
    `within_study_contrast`. A study in which nothing can be looked at counts nothing.
    """
    if queries.ndim != 3 or keys.ndim != 3 or queries.shape[::2] != keys.shape[::2]:
        raise KitError(f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)}: give (B, Q, D) and (B, K, D)")
    if query_mask is None:
        query_mask = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
    queries = F.normalize(queries.masked_fill(~query_mask[..., None], 0.0), dim=2)
    if key_mask is not None:
        keys = keys.masked_fill(~key_mask[..., None], 0.0)
        query_mask = query_mask & key_mask.any(dim=1, keepdim=True)
    keys = F.normalize(keys, dim=2)
    scores = queries @ keys.transpose(1, 2) / temperature  # (B, Q, K)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], torch.finfo(scores.dtype).min)
    found = scores.softmax(dim=2) @ keys  # (B, Q, D)
    return sum(within_study_contrast(queries, found, query_mask, temperature=temperature, weights=weights)) / 2


def clip_to_quantiles(weights: Tensor, mask: Tensor | None = None, *, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Each row of weights (B, K) clipped to its own quantiles over the real elements; padding gives zero.

    MGCA clips the attention of the class token so, lest one patch or word have all the say; its code loops over rows.
    """
    real = weights if mask is None else weights.masked_fill(~mask, torch.nan)
    limits = torch.nanquantile(real, torch.tensor([low, high], dtype=real.dtype, device=real.device), dim=1)  # (2, B)
    clipped = torch.minimum(torch.maximum(real, limits[0][:, None]), limits[1][:, None])
    return clipped.nan_to_num(nan=0.0)


class TokenAlignment(Objective):
    """`cross_attention_alignment` of words over patches and of patches over words, their mean.

    The model needs `local_projection`. Words and patches are weighed by `importance`, clipped as MGCA clips.
    """

    name = "token alignment"

    def __init__(self, *, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        model, text = forward_pass.model, forward_pass.text
        if model.patch_projection is None:
            raise KitError("token alignment needs heads for patches and tokens: build with local_projection=True")
        patches, words = model.embed_patches(forward_pass.image), model.embed_tokens(text)
        mask = real_words(text.mask)  # (B, T)
        image, report = forward_pass.image_embedding, forward_pass.text_embedding  # (B, D)
        with torch.autocast(patches.device.type, enabled=False):
            patches, words = patches.float(), words.float()  # (B, N, D), (B, T, D)
            image, report = image.float(), report.float()
            of_words = clip_to_quantiles(importance(report, words, mask), mask)
            of_patches = clip_to_quantiles(importance(image, patches))
            options = dict(temperature=self.temperature)
            from_words = cross_attention_alignment(words, patches, mask, weights=of_words, **options)
            from_patches = cross_attention_alignment(patches, words, key_mask=mask, weights=of_patches, **options)
        logs = {"words": from_words.detach(), "patches": from_patches.detach()}
        return ObjectiveOutput((from_words + from_patches) / 2, logs)
