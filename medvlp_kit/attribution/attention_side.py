"""Attention as a map: of an image encoder alone, of the words of a fusion, of a query decoder; one layer, or rolled out.

Attention says from where a layer took information, not what it made of it: the map of an image encoder cannot depend
on the text at all, and rollout is the same for every question.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import capture
from ..attention_maps import AttentionMaps, rollout
from ..downstream.encode import device_of, evaluating
from ..encoders.features import ImageFeatures
from ..errors import KitError
from ..objectives.knowledge import EntityQueries
from ..study import Tokens


def image_attention(
    model: nn.Module, images: Tensor, *, layer: int = -1, rolled_out: bool = False, residual: float = 0.5
) -> Tensor:
    """How much the pooled image looks at each place, (B, H, W): no text takes part.

    The reader is what is pooled: the class token, the learned query, or, with average pooling, all patches alike.
    layer: which self-attention, mean over heads; rolled_out: all of them multiplied (Abnar and Zuidema 2020), `residual`
    the share of the skip connection. With attention pooling alone (a CNN) the map is the query's own.
    """
    encoder = model.image_encoder
    with evaluating(model), capture(encoder) as maps:
        image = model.encode_image(images.to(device_of(model)))
    count = image.patches.shape[1]
    inner, pool = maps.kind("self"), maps.kind("pool")
    between = None
    if len(inner):
        between = rollout(inner, residual=residual) if rolled_out else _heads(inner, layer)  # (B, L, L)
        first = between.shape[-1] - count
        between, cls = between[:, first:, first:], between[:, 0, first:]
    if encoder.pooling == "attention":
        read = pool[-1].weights.mean(1)[:, 0]  # (B, N)
        cells = torch.einsum("bn,bnm->bm", read, between) if rolled_out and between is not None else read
    elif encoder.pooling == "cls":
        cells = cls
    else:
        cells = between.mean(1)
    return _as_map(cells, image.grid, images)


def fusion_attention(
    model: nn.Module, images: Tensor, tokens: Tokens, *, chosen: Tensor | None = None, layer: int = -1,
    rolled_out: bool = False, residual: float = 0.5,
) -> Tensor:  # fmt: skip
    """How much the words of a text look at each place of their image in a fusion, (B, H, W).

    chosen (B, T) bool: the reading words; None takes all real tokens. layer: which fusion layer, mean over heads (of
    the text's cross-attention, or of the one stream). rolled_out: all layers multiplied over the joined sequence of
    patches and words. In a layer with cross-attention a word then keeps `residual` of what its self-attention gave and
    takes the rest from the other stream.
    """
    if model.fusion is None or model.fusion.style == "none":
        raise KitError("no fusion in which words look at patches: use a single_stream or dual_stream model")
    device = device_of(model)
    with evaluating(model):
        image, text = model.encode_image(images.to(device)), model.encode_text(tokens.to(device))
        with capture(model.fusion) as maps:
            model.fuse(image, text)
    count, length = image.patches.shape[1], tokens.ids.shape[1]
    joined = _one_stream if model.fusion.style == "single_stream" else _two_streams
    between = joined(maps, count, length, layer=layer, rolled_out=rolled_out, residual=residual)  # (B, T, N)
    chosen = text.mask if chosen is None else chosen.to(device) & text.mask
    total = (between * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True)  # NaN where no word is chosen
    return _as_map(total, image.grid, images)


def query_attention(
    model: nn.Module, queries: EntityQueries, images: Tensor, tokens: Tokens, *, layer: int = -1
) -> Tensor:
    """How much a phrase, asked of its image through a query decoder (MedKLIP, KAD), looks at each place, (B, H, W).

    queries: the objective that holds the decoder. Each phrase is asked alone, beside the trained queries, as in
    `EntityQueries.ask`; the map is the cross-attention of decoder layer `layer`, mean over heads.
    """
    device = device_of(model)
    cells = []
    with evaluating(model), evaluating(queries):
        image = model.encode_image(images.to(device))
        known = queries.queries(model)[: len(queries.entities)]
        asked = model.encode_text(tokens.to(device)).pooled
        for row in range(len(images)):
            one = ImageFeatures(image.pooled[row : row + 1], image.patches[row : row + 1], image.grid)
            with capture(queries) as maps:
                queries.answer(one, torch.cat([known, asked[row : row + 1]]))
            cells.append(_heads(maps.kind("cross"), layer)[:, -1])  # (1, N)
    return _as_map(torch.cat(cells), image.grid, images)


def _one_stream(maps, count, length, *, layer, rolled_out, residual) -> Tensor:
    """[CLS] patches [SEP] words: the words' rows, the patches' columns, (B, T, N)."""
    whole = rollout(maps.kind("self"), residual=residual) if rolled_out else _heads(maps.kind("self"), layer)
    return whole[:, -length:, 1 : 1 + count]


def _two_streams(maps, count, length, *, layer, rolled_out, residual) -> Tensor:
    """Cross-attention of the text's blocks, or the product over layers of the joined matrices; (B, T, N)."""
    crosses = maps.part("text_blocks").kind("cross")
    if not rolled_out:
        return _heads(crosses, layer)
    blocks = len({name.split(".")[1] for name in maps.part("text_blocks").names})
    whole = None
    for index in range(blocks):
        step = _layer_matrix(maps, index, count, length, residual)
        whole = step if whole is None else step @ whole
    return whole[:, count:, :count]


def _layer_matrix(maps: AttentionMaps, index: int, count: int, length: int, residual: float) -> Tensor:
    """(B, N + T, N + T): what each patch and word after this layer holds of those that entered it; rows sum to one."""
    names = set(maps.names)

    def weights(stream: str, kind: str) -> Tensor | None:
        name = f"{stream}_blocks.{index}.{kind}"
        return maps[name].weights.mean(1) if name in names else None

    def rows(stream: str, size: int, others: int) -> tuple[Tensor, Tensor | None]:
        """(of itself (B, size, size), of the other stream (B, size, others) or None)."""
        own, cross = weights(stream, "attention"), weights(stream, "cross_attention")
        identity = torch.eye(size, dtype=example.dtype, device=example.device)
        kept = identity.expand(len(example), -1, -1) if own is None else residual * identity + (1 - residual) * own
        kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
        return (kept, None) if cross is None else (residual * kept, (1 - residual) * cross)

    example = maps[0].weights
    patches, patches_to_words = rows("image", count, length)
    text, words_to_patches = rows("text", length, count)
    zeros = example.new_zeros
    upper = [patches, zeros(len(example), count, length) if patches_to_words is None else patches_to_words]
    lower = [zeros(len(example), length, count) if words_to_patches is None else words_to_patches, text]
    return torch.cat([torch.cat(upper, 2), torch.cat(lower, 2)], 1)


def _heads(maps: AttentionMaps, layer: int) -> Tensor:
    """The mean over heads of one layer's weights, (B, Q, K)."""
    if not -len(maps) <= layer < len(maps):
        raise KitError(f"layer={layer}: there are {len(maps)} such attention layers, 0 to {len(maps) - 1}")
    return maps[layer].weights.mean(1)


def _as_map(cells: Tensor, grid: tuple[int, int], images: Tensor) -> Tensor:
    """(B, N) cells up-sampled bilinearly to the images, (B, H, W) on the CPU."""
    maps = F.interpolate(cells.unflatten(1, grid)[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
    return maps[:, 0].float().cpu()
