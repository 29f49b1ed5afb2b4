"""Sentences against regions, within one study (LoVT; Müller et al., "Joint Learning of Localized Representations from
Medical Images and Reports", ECCV 2022).

Every region asks the report what it says of it, every sentence asks the image where it is: cross-attention gives each
region k a counterpart z_k made of sentences, and each sentence one made of regions. A region must then find its own
counterpart among those of the same image. But neighbours show nearly the same, so positives are smoothed in space:

    p(k, l) ~ 1[d(k, l) <= threshold] exp(-beta d(k, l)),     d = distance / diagonal of the map
    loss_k = -sum_l p(k, l) cos(y_k, z_l) / temperature + log sum_l exp(cos(y_k, z_l) / temperature)

Sentences have no neighbours: p is the identity. Other studies give no negatives, so no false ones either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.layers import attend
from ..errors import KitError
from . import Objective, ObjectiveOutput
from .pieces import MarkedPieces, ends_sentence, real_words, sentence_numbers

if TYPE_CHECKING:
    from ..model import ForwardPass


def smoothed_positives(grid: tuple[int, int], *, threshold: float = 0.5, beta: float = 1.0) -> Tensor:
    """p (N, N) float64 of the formula for a map of `grid` (h, w) regions, row by row; every row sums to one."""
    height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()  # (N, 2)
    diagonal = max((height**2 + width**2) ** 0.5, 1.0)
    distance = (places[:, None] - places[None]).norm(dim=2) / diagonal  # (N, N)
    weights = torch.exp(-beta * distance) * (distance <= threshold)
    return weights / weights.sum(dim=1, keepdim=True)


def within_study_contrast(
    own: Tensor,
    cross: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each element finds its counterpart among those of its own study: (own to cross, cross to own), two scalars.

    own, cross (B, K, D) of any length; mask (B, K) bool, True on real elements; targets (K, K), rows distributions
    (None: the identity); weights (B, K), how much each element counts (None: all alike), normalised over the study.
    A study without a real element counts nothing.
    """
    if own.shape != cross.shape or own.ndim != 3:
        raise KitError(f"elements {tuple(own.shape)}, counterparts {tuple(cross.shape)}: both must be (B, K, D), of one shape")
    mask = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device) if mask is None else mask
    own, cross = (F.normalize(x.masked_fill(~mask[..., None], 0.0), dim=2) for x in (own, cross))
    logits = own @ cross.transpose(1, 2) / temperature  # (B, K, K)
    weights = mask.to(logits.dtype) if weights is None else weights.masked_fill(~mask, 0.0).to(logits.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)  # (B, K)
    studies = mask.any(dim=1).sum().clamp(min=1)

    def direction(scores: Tensor) -> Tensor:
        # The lowest finite number: a row of minus infinities has a gradient of NaN, even where its weight is zero.
        chances = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).log_softmax(dim=2)
        if targets is None:
            losses = -torch.diagonal(chances, dim1=1, dim2=2)  # (B, K)
        else:
            wanted = targets.to(scores.dtype) * mask[:, None]  # what lies on padding is given to the rest
            wanted = wanted / wanted.sum(dim=2, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
            losses = -(wanted * chances.masked_fill(~mask[:, None], 0.0)).sum(dim=2)
        return (losses.masked_fill(~mask, 0.0) * weights).sum() / studies

    return direction(logits), direction(logits.transpose(1, 2))


def pool_sentences(tokens: Tensor, numbers: Tensor, mask: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """Maximum over the tokens of each sentence, as LoVT pools: tokens (B, T, D), numbers (B, T) counted from 0.

    Returns sentences (B, most, D) and their mask (B, most) bool; what follows the last of `most` sentences joins it.
    """
    numbers = numbers.clamp(0, most - 1).masked_fill(~mask, most)  # padding goes to one extra place, cut off below
    empty = tokens.new_full((len(tokens), most + 1, tokens.shape[2]), torch.finfo(tokens.dtype).min)
    places = numbers[..., None].expand_as(tokens)
    pooled = empty.scatter_reduce(1, places, tokens.masked_fill(~mask[..., None], 0.0), "amax")[:, :most]
    found = torch.zeros(len(tokens), most + 1, dtype=torch.bool, device=tokens.device).scatter(1, numbers, True)[:, :most]
    return pooled.masked_fill(~found[..., None], 0.0), found


def importance(whole: Tensor, parts: Tensor, mask: Tensor | None = None, *, temperature: float = 0.1) -> Tensor:
    """How much each part says of the whole, without gradient: softmax of cos(whole, part) / temperature, (B, K).

    It stands in for the attention of the pooling layer, by which LoVT and MGCA weigh regions and tokens: encoders that
    pool by the mean have none. whole (B, D), parts (B, K, D), mask (B, K) bool.
    """
    with torch.no_grad():
        scores = (F.normalize(parts, dim=2) @ F.normalize(whole, dim=1)[..., None])[..., 0] / temperature  # (B, K)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=1) if mask is None else scores.softmax(dim=1) * mask


class SentenceRegion(Objective):
    """LoVT's four local terms, their mean: regions and sentences, each in both directions.

    width: of the joint space. vocabulary_size: of the text encoder; `read_tokenizer` says which pieces end a sentence.
    most: sentences of a report that are told apart. The model needs `local_projection`. LoVT adds 0.375 times the sum
    of the four terms, 1.5 times their mean, to a global loss with image weight 0.75 and temperature 0.1.
    """

    name = "sentence-region"

    def __init__(
        self, width: int, vocabulary_size: int, *, temperature: float = 0.3, threshold: float = 0.5, beta: float = 1.0,
        most: int = 12,
    ):  # fmt: skip
        super().__init__()
        self.temperature, self.threshold, self.beta, self.most = temperature, threshold, beta, most
        self.ends = MarkedPieces(vocabulary_size, ends_sentence)
        self.region_query, self.region_value = nn.Linear(width, width), nn.Linear(width, width)
        self.sentence_query, self.sentence_value = nn.Linear(width, width), nn.Linear(width, width)

    def read_tokenizer(self, tokenizer) -> None:
        self.ends.read(tokenizer)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        model, text = forward_pass.model, forward_pass.text
        if model.patch_projection is None:
            raise KitError("sentence-region alignment needs heads for patches and tokens: build with local_projection=True")
        words = real_words(text.mask)  # (B, T)
        numbers = sentence_numbers(self.ends(forward_pass.batch.tokens.ids), words)
        regions, tokens = model.project_patches(forward_pass.image), model.token_projection(text.tokens)
        image, report = forward_pass.image_embedding, forward_pass.text_embedding  # (B, D)
        with torch.autocast(regions.device.type, enabled=False):
            regions, tokens = regions.float(), tokens.float()  # (B, N, D), (B, T, D)
            image, report = image.float(), report.float()
            sentences, mask = pool_sentences(tokens, numbers, words, most=self.most)  # (B, M, D), (B, M)
            said = self._ask(self.region_query(regions), sentences, self.sentence_value(sentences), mask)  # (B, N, D)
            shown = self._ask(self.sentence_query(sentences), regions, self.region_value(regions), None)  # (B, M, D)
            targets = smoothed_positives(forward_pass.image.grid, threshold=self.threshold, beta=self.beta).to(regions.device)
            spoken = mask.any(dim=1)[:, None].expand(regions.shape[:2])  # no report, nothing to compare regions with
            options = dict(temperature=self.temperature)
            region_terms = within_study_contrast(
                regions, said, spoken, targets=targets, weights=importance(image, regions), **options
            )
            sentence_terms = within_study_contrast(sentences, shown, mask, weights=importance(report, sentences, mask), **options)
        logs = {"regions": sum(region_terms).detach() / 2, "sentences": sum(sentence_terms).detach() / 2}
        logs["sentences per report"] = mask.sum(dim=1).float().mean()
        return ObjectiveOutput((sum(region_terms) + sum(sentence_terms)) / 4, logs)

    @staticmethod
    def _ask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Single-head cross-attention: query (B, Q, D) over key and value (B, K, D) -> (B, Q, D)."""
        allowed = None if mask is None else mask[:, None, None]
        return attend(query[:, None], key[:, None], value[:, None], mask=allowed)[0][:, 0]
